// Text that has no end yet, as it can be shown: what may still become syntax is held back, what is open is closed.
//
// `see **the` is shown as `see **the**`, `see [the` as `see the`, and `see *` as `see`. It guesses what is to come, as an
// answer mostly goes on; a wrong guess is only shown until its end is there.

/** @typedef {{ char: string, run: number, count: number, at: number, both?: boolean, guess: boolean }} Open */

/** What may be the beginning of something else when more has come. */
const TAIL = /(?:[!\\\ud800-\udbff]|&#?\w{0,31})$/;
const DEEPEST = 32; // markers that are open at once: marked looks through all that follows for the end of each
const SPECIAL = /[\\`<![\]*_~]/g;
const TAG = /<[^\s<>][^<>]*>/y;
const HALF_ADDRESS = /^<(?:[a-z][\w+.-]*(?::[^\s<>]*|@[\w.-]*)?)?$/i;
const TARGET =
  /\(\s*(?:<(?:\\.|[^\n<>\\])*>|(?:\\.|[^\s()\\]|\((?:\\.|[^\s()\\])*\))*)(?:\s+(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\((?:\\.|[^()\\])*\)))?\s*\)/y;
const HALF_TARGET = /^\(\s*(?:<[^\n<>]*>?|[^\s<]\S*)?(?:\s+(?:["'(][^]{0,300})?)?$/;
const LABEL = /\[(?:\\.|[^\\[\]])*\]/y;
const HALF_LABEL = /^\[(?:\\.|[^\\[\]])*$/;

/**
 * @param {string} source
 * @returns {{ text: string, end: number, carry: string, closed: boolean, plain?: boolean }} what to show; how far of the
 *   source that goes; the markers that had to be closed; whether nothing is open that more text could close; whether there
 *   are so many markers that it is not worth to look at them
 */
export function settle(source) {
  let text = trim(source);
  /** @type {Open[]} */
  const open = [];
  /** @param {number} at */
  const cut = (at) => (text = text.slice(0, at));

  for (let at = 0; at < text.length; ) {
    if (open.length > DEEPEST) return { text: source, end: at, carry: "", closed: false, plain: true };
    const char = text[at];
    if (char === "\\") at += 2;
    else if (char === "`") at = code(at, length(text, at));
    else if (char === "<") at = find(TAG, at) || (HALF_ADDRESS.test(text.slice(at)) ? cut(at).length : at + 1);
    else if (char === "[" || text.startsWith("![", at)) {
      const width = char === "[" ? 1 : 2;
      at = push({ char: "[", run: width, count: width, at, guess: false });
    } else if (char === "]") at = bracket(at);
    else if (char === "*" || char === "_" || char === "~") at = delimiter(at, char, length(text, at));
    else {
      SPECIAL.lastIndex = at + 1;
      at = SPECIAL.test(text) ? SPECIAL.lastIndex - 1 : text.length;
    }
  }
  return finish();

  /** @param {RegExp} sticky @param {number} at */
  function find(sticky, at) {
    sticky.lastIndex = at;
    return sticky.test(text) ? sticky.lastIndex : 0;
  }

  /** @param {Open} one */
  function push(one) {
    open.push(one);
    return one.at + one.run;
  }

  /** @param {(one: Open) => boolean} is */
  function last(is) {
    let index = open.length - 1;
    while (index >= 0 && !is(open[index])) index--;
    return index;
  }

  /** @param {number} at @param {number} run */
  function code(at, run) {
    const ticks = /`+/g;
    ticks.lastIndex = at + run;
    for (let found; (found = ticks.exec(text)); ) if (found[0].length === run) return ticks.lastIndex;
    cut(text.length - (/`*$/.exec(text)?.[0].length ?? 0));
    push({ char: "`", run, count: run, at, guess: true });
    return text.length;
  }

  /** @param {number} at of a `]` */
  function bracket(at) {
    const from = last(({ char }) => char === "[");
    if (from < 0) return at + 1;
    const rest = text.slice(at + 1);
    const end = find(TARGET, at + 1) || find(LABEL, at + 1);
    if (!end && (!rest || HALF_TARGET.test(rest) || HALF_LABEL.test(rest))) return cut(at).length;
    open.splice(from, end ? Infinity : 1); // a link binds tighter than what is open within it
    return end || at + 1;
  }

  /** @param {number} at @param {string} char @param {number} run */
  function delimiter(at, char, run) {
    const after = text.slice(at + run, at + run + 2);
    if (!after) return cut(at).length;
    const next = kind(String.fromCodePoint(after.codePointAt(0) ?? 0));
    const before = [...text.slice(Math.max(0, at - 2), at)].at(-1) ?? "";
    const previous = kind(before);
    const left = next !== "space" && (next !== "sign" || previous !== "letter");
    const right = previous !== "space" && (previous !== "sign" || next !== "letter");
    const opens = left && (char !== "_" || !right || previous === "sign");
    const closes = right && (char !== "_" || !left || next === "sign");
    let count = run;
    while (closes && count) {
      const from = last((one) => one.char === "[" || fits(one));
      if (from < 0 || open[from].char === "[") break;
      const used = char === "~" ? count : Math.min(count, open[from].count, 2);
      count -= used;
      open.length = from + ((open[from].count -= used) ? 1 : 0);
    }
    // One alone in `2*3`, `~5` or `}_i` is mostly no emphasis: it stays as it is until it is closed.
    const guess = run > 1 || (char !== "~" && previous !== "letter" && !/[\p{Pe}$|^]/u.test(before));
    return count && opens ? push({ char, run, count, at, both: closes, guess }) : at + run;

    /** @param {Open} one */
    function fits(one) {
      if (one.char !== char) return false;
      if (char === "~") return one.run === run;
      return !((one.both || opens) && (one.run + run) % 3 === 0 && run % 3); // CommonMark, rules 9 and 10
    }
  }

  function finish() {
    text = trim(text);
    for (let top; (top = open[open.length - 1]) && top.at + top.run >= text.length; open.pop()) {
      text = trim(text.slice(0, top.at)); // nothing stands in it
    }
    const end = text.length;
    const closed = !open.length && end >= source.trimEnd().length;
    let shown = text;
    let carry = "";
    let closers = "";
    for (let one; (one = open.pop()); ) {
      const { char, at, run, count } = one;
      if (char === "[") shown = shown.slice(0, at) + shown.slice(at + run);
      if (!one.guess) continue;
      carry = char.repeat(count) + carry;
      // With a space at both ends, code is shown without them.
      closers += (char === "`" && text[at + run] === " " ? " " : "") + char.repeat(count);
    }
    return { text: shown + closers, end, carry, closed };
  }
}

/** Spaces at the end of a line are not shown, and a backslash there is none. @param {string} text */
function trim(text) {
  const trimmed = text.trimEnd();
  if (text.includes("\n", trimmed.length)) return trimmed.replace(/\\$/, "");
  return trimmed === text ? text.replace(TAIL, "") : trimmed;
}

/** How often the character at a place stands there. @param {string} text @param {number} at */
function length(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end++;
  return end - at;
}

/** @param {string} char */
const kind = (char) => (!char.trim() ? "space" : /[\p{P}\p{S}]/u.test(char) ? "sign" : "letter");
