// A run of text that grows, in parts that can be drawn one by one. No DOM.

const PART = 2000; // characters: a part ends at the first line break after so many
const LONGEST_PART = 8000; // and in mid-paragraph after so many, where the page then shows a line break

export const newRun = (kind, text) => grown({ kind, parts: [], settled: 0, tail: "", length: 0 }, text);

/**
 * A run of text: the first `settled` of its `parts`, and the `tail` that still grows. Text in one piece would be laid
 * out anew, whole, with each event. Older and newer versions of a run share `parts`, which only get more.
 */
export function grown(run, text) {
  const { parts } = run;
  let { settled } = run;
  let tail = run.tail + text;
  for (let end = endOfPart(tail); end > 0; end = endOfPart(tail)) {
    parts[settled] = tail.slice(0, end);
    settled += 1;
    tail = tail.slice(end);
  }
  return { kind: run.kind, parts, settled, tail, length: run.length + text.length };
}

/** Where the text's first part ends; 0 while it is too short. */
function endOfPart(text) {
  if (text.length <= PART) return 0;
  const line = text.indexOf("\n", PART) + 1;
  if (line > 0 && line <= LONGEST_PART) return line;
  if (text.length <= LONGEST_PART) return 0;
  const word = text.lastIndexOf(" ", LONGEST_PART - 1) + 1;
  if (word > PART) return word;
  const isHalf = /[\ud800-\udbff]/.test(text[LONGEST_PART - 1]); // of a character: its other half is next
  return isHalf ? LONGEST_PART - 1 : LONGEST_PART;
}
