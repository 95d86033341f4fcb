// An answer as its user sees it after some events: blocks of text, thinking, tools and notices. No DOM.

const PART = 2000; // characters: a part ends at the first line break after so many
const LONGEST_PART = 8000; // and in mid-paragraph after so many, where the page then shows a line break

/**
 * `apply` takes the events in order; `restart` discards the blocks before it. A block never changes: a newer one takes
 * its place, so a copy of `blocks` stays what it was, and what was drawn for a block need not be drawn again.
 */
export class Transcript {
  #tools = new Map(); // tool_call_id → its place in `blocks`

  constructor() {
    this.reset();
  }

  reset() {
    this.#clear();
    this.state = "queued";
    this.status = "";
    this.ending = null;
  }

  apply({ event: kind, data }) {
    // An external producer need not write a `start`: what writes is running.
    if (this.state === "queued" && kind !== "queued" && kind !== "status") this.state = "running";
    const take = HANDLERS.get(ALSO_INTERNAL.has(kind) ? kind.slice("internal.".length) : kind);
    if (take) take(this, data ?? {});
  }

  snapshot() {
    const { blocks, state, status, ending, hasText } = this;
    return { blocks: blocks.slice(), state, status, ending, hasText };
  }

  restore(snapshot) {
    Object.assign(this, snapshot, { blocks: snapshot.blocks.slice() });
    this.#tools.clear();
    this.blocks.forEach((block, place) => block.kind === "tool" && this.#tools.set(block.id, place));
  }

  /** After a gap: the rest of the answer, as the server returns it. */
  replaceText(text, { requested, reason }) {
    this.startAgain("gap", `Events after ${requested} no longer exist (${reason}). This is the remaining text.`);
    this.append("text", text);
  }

  startAgain(tone, why) {
    this.#clear();
    this.blocks.push({ kind: "notice", tone, text: why });
  }

  append(kind, text) {
    if (typeof text !== "string" || text === "") return;
    const last = this.blocks.at(-1);
    if (last?.kind === kind) this.blocks[this.blocks.length - 1] = grown(last, text);
    else this.blocks.push(grown({ kind, parts: [], settled: 0, tail: "", length: 0 }, text));
    if (kind === "text") this.hasText = true;
  }

  tool(data, change) {
    const place = this.#tools.get(data.tool_call_id);
    if (place === undefined) {
      this.#tools.set(data.tool_call_id, this.blocks.length);
      this.blocks.push({ kind: "tool", id: data.tool_call_id, text: String(data.tool ?? "tool"), ...change });
    } else {
      this.blocks[place] = { ...this.blocks[place], ...change };
    }
  }

  end(state, text) {
    this.state = state;
    this.status = "";
    this.ending = { state, text };
  }

  #clear() {
    this.blocks = [];
    this.#tools.clear();
    this.hasText = false;
  }
}

/**
 * A run of text: the first `settled` of its `parts`, and the `tail` that still grows. Text in one piece would be laid
 * out anew, whole, with each event. Older and newer versions of a run share `parts`, which only get more.
 */
function grown(run, text) {
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

/** What is told here whether users see it too or not. An internal text is none of the answer. */
const ALSO_INTERNAL = new Set(
  ["thinking_delta", "tool_start", "tool_args_delta", "tool_args", "tool_progress", "tool_end", "tool_error"].map(
    (kind) => `internal.${kind}`,
  ),
);

const HANDLERS = new Map(
  Object.entries({
    status: (transcript, data) => {
      transcript.status = String(data.message ?? "");
    },
    thinking_delta: (transcript, data) => transcript.append("thinking", data.text),
    text_delta: (transcript, data) => {
      transcript.status = "";
      transcript.append("text", data.text);
    },
    tool_start: (transcript, data) => transcript.tool(data, { phase: data.client ? "called" : "running" }),
    tool_args_delta: (transcript, data) => transcript.tool(data, {}),
    tool_args: (transcript, data) => transcript.tool(data, {}),
    tool_progress: (transcript, data) => transcript.tool(data, {}),
    tool_end: (transcript, data) => transcript.tool(data, { phase: "done", ms: data.duration_ms }),
    tool_error: (transcript, data) => transcript.tool(data, { phase: "failed", ms: data.duration_ms }),
    restart: (transcript, data) =>
      transcript.startAgain(
        "restart",
        `Restarted as attempt ${data.attempt}: ${data.reason}. Everything before it was discarded.`,
      ),
    done: (transcript, data) => transcript.end("done", `Done: ${data.stop_reason ?? "ended by the producer"}`),
    error: (transcript, data) => transcript.end("error", `Error ${data.code ?? ""}: ${data.message ?? "no message"}`),
    cancelled: (transcript, data) => transcript.end("cancelled", `Cancelled: ${data.reason || "no reason given"}`),
  }),
);
