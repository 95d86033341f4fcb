// An answer as its user sees it after some events: blocks of text, thinking, tools and notices. No DOM.

/**
 * `apply` takes the events in order; `restart` discards the blocks before it. `epoch` changes whenever blocks may have
 * shrunk: while it stays the same, they have only grown.
 */
export class Transcript {
  epoch = 0;

  constructor() {
    this.reset();
  }

  reset() {
    this.epoch += 1;
    this.blocks = [];
    this.state = "queued";
    this.status = "";
    this.ending = null;
    this.hasText = false;
  }

  apply({ event: kind, data }) {
    // A producer of its own need not send `start`.
    if (this.state === "queued" && kind !== "queued") this.state = "running";
    const take = HANDLERS.get(kind);
    if (take) take(this, data ?? {});
  }

  /** After a gap: the rest of the answer, as the server returns it. */
  replaceText(text, { requested, reason }) {
    const why = `Events after ${requested} no longer exist (${reason}). This is the remaining text.`;
    this.epoch += 1;
    this.blocks = [{ kind: "notice", tone: "gap", text: why }];
    this.append("text", text);
  }

  append(kind, text) {
    if (typeof text !== "string" || text === "") return;
    const last = this.blocks.at(-1);
    if (last?.kind === kind) last.text += text;
    else this.blocks.push({ kind, text });
    if (kind === "text") this.hasText = true;
  }

  tool(data, change) {
    const open = this.blocks.findLast((block) => block.kind === "tool" && block.id === data.tool_call_id);
    if (open) Object.assign(open, change);
    else this.blocks.push({ kind: "tool", id: data.tool_call_id, text: String(data.tool ?? "tool"), ...change });
  }

  end(state, text) {
    this.state = state;
    this.status = "";
    this.ending = { state, text };
  }
}

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
    tool_start: (transcript, data) => transcript.tool(data, { phase: "running" }),
    tool_args_delta: (transcript, data) => transcript.tool(data, {}),
    tool_progress: (transcript, data) => transcript.tool(data, {}),
    tool_end: (transcript, data) => transcript.tool(data, { phase: "done", ms: data.duration_ms }),
    tool_error: (transcript, data) => transcript.tool(data, { phase: "failed", ms: data.duration_ms }),
    restart: (transcript, data) => {
      transcript.epoch += 1;
      const why = `Restarted as attempt ${data.attempt}: ${data.reason}. Everything before it was discarded.`;
      transcript.blocks = [{ kind: "notice", tone: "restart", text: why }];
      transcript.hasText = false;
    },
    done: (transcript, data) => transcript.end("done", `Done: ${data.stop_reason ?? "ended by the producer"}`),
    error: (transcript, data) => transcript.end("error", `Error ${data.code ?? ""}: ${data.message ?? "no message"}`),
    cancelled: (transcript, data) => transcript.end("cancelled", `Cancelled: ${data.reason || "no reason given"}`),
  }),
);
