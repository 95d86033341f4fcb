// An answer as its reader sees it after some events: blocks of text, thinking, tools, agents and notices. No DOM.

import { grown, newRun } from "./run.js";

const INTERNAL = "internal.";

/**
 * `apply` takes the events in order; `restart` discards the blocks before it. A block never changes: a newer one takes
 * its place, so a copy of `blocks` stays what it was, and what was drawn for a block need not be drawn again.
 *
 * What a sub-agent says and does is in the `blocks` of its own block, whoever speaks in between.
 */
export class Transcript {
  #places = { tool: new Map(), approval: new Map(), agent: new Map() }; // id → [whose, as a path, its place there]

  constructor() {
    this.reset();
  }

  reset() {
    this.#clear();
    this.state = "queued";
    this.status = "";
    this.agent = null; // which one answers
    this.ending = null;
    // Operators' events are not said again after a `restart`, though the calls that they are about may be.
    this.known = new Map(); // tool_call_id → its arguments, result, error
    this.decided = new Map(); // approval_id → the decision
  }

  apply({ event: kind, data }) {
    // An external producer need not write a `start`: what writes is running.
    if (this.state === "queued" && kind !== "queued" && kind !== "status") this.state = "running";
    const isInternal = kind.startsWith(INTERNAL) && ALSO_INTERNAL.has(kind.slice(INTERNAL.length));
    const take = HANDLERS.get(isInternal ? kind.slice(INTERNAL.length) : kind);
    if (take) take(this, data ?? {}, isInternal);
  }

  snapshot() {
    const { blocks, state, status, agent, ending, hasText, known, decided } = this;
    const kept = { known: new Map(known), decided: new Map(decided) };
    return { blocks: blocks.slice(), state, status, agent, ending, hasText, ...kept };
  }

  restore(snapshot) {
    const { blocks, known, decided } = snapshot;
    Object.assign(this, snapshot, { blocks: blocks.slice(), known: new Map(known), decided: new Map(decided) });
    this.#forgetPlaces();
    this.#findPlaces(this.blocks, "");
  }

  /** The approvals that nobody has decided yet. */
  waiting() {
    return this.#those("approval").filter((block) => block.state === "waiting");
  }

  /** After a gap: the rest of the answer, as the server returns it. */
  replaceText(text, after) {
    this.startAgain("gap", `Events after ${after} no longer exist. This is the remaining text.`);
    this.append("text", text);
  }

  startAgain(tone, why) {
    this.#clear();
    this.blocks.push({ kind: "notice", tone, text: why });
  }

  /** `path`: of the sub-agent whose words they are. */
  append(kind, text, path = "") {
    if (typeof text !== "string" || text === "") return;
    const list = this.#listOf(path);
    const last = list.at(-1);
    if (last?.kind === kind) list[list.length - 1] = grown(last, text);
    else list.push(newRun(kind, text));
    if (kind === "text" && path === "") this.hasText = true;
  }

  add(block, path = "") {
    this.#listOf(path).push(block);
  }

  tool(data, change) {
    const made = () => ({ kind: "tool", id: data.tool_call_id, text: String(data.tool ?? "tool"), phase: "called" });
    const learnt = this.known.get(data.tool_call_id);
    this.#change("tool", data.tool_call_id, pathOf(data), made, { ...learnt, ...change });
  }

  /** What is learnt of a call by an event that need not belong to a tool on the page. */
  note(callId, learnt) {
    this.known.set(callId, { ...this.known.get(callId), ...learnt });
    if (this.#places.tool.has(callId)) this.tool({ tool_call_id: callId }, {});
    for (const block of this.#those("approval")) {
      if (block.callId === callId) this.approval({ approval_id: block.id }, { args: learnt.args ?? block.args });
    }
  }

  subAgent(path, change) {
    const made = () => ({ kind: "agent", path, blocks: [], phase: "running" });
    this.#change("agent", path, "", made, change);
  }

  approval(data, change) {
    const { approval_id: id, tool_call_id: callId } = data;
    const title = typeof data.title === "string" ? data.title : "";
    const made = () => ({ kind: "approval", id, callId, text: String(data.tool ?? "tool"), title, state: "waiting" });
    this.#change("approval", id, pathOf(data), made, change);
  }

  /** Users are not told of decisions, but of what became of the call. */
  inferDecision(callId, state) {
    for (const block of this.#those("approval")) {
      const isOpen = block.state === "waiting" || block.state === "decided";
      if (isOpen && block.callId === callId) this.approval({ approval_id: block.id }, { state });
    }
  }

  end(state, text, result) {
    if (result != null) this.add({ kind: "result", value: result });
    const run = (kind) => this.#those(kind).filter(({ phase }) => phase === "running");
    for (const { id } of run("tool")) this.tool({ tool_call_id: id }, { phase: "unfinished" });
    for (const { path } of run("agent")) this.subAgent(path, { phase: "unfinished" });
    for (const { id } of this.waiting()) this.approval({ approval_id: id }, { state: "ended" });
    this.state = state;
    this.status = "";
    this.ending = { state, text };
  }

  #clear() {
    this.blocks = [];
    this.#forgetPlaces();
    this.hasText = false;
  }

  #forgetPlaces() {
    for (const places of Object.values(this.#places)) places.clear();
  }

  /** A list that may be changed: it is in no copy. */
  #listOf(path) {
    if (path === "") return this.blocks;
    if (!this.#places.agent.has(path)) this.subAgent(path, {});
    const [, at] = this.#places.agent.get(path);
    const blocks = this.blocks[at].blocks.slice();
    this.blocks[at] = { ...this.blocks[at], blocks };
    return blocks;
  }

  #change(kind, id, path, made, change) {
    const known = this.#places[kind].get(id);
    const list = this.#listOf(known ? known[0] : path);
    const at = known ? known[1] : list.length;
    if (!known) this.#places[kind].set(id, [path, at]);
    list[at] = { ...(list[at] ?? made()), ...change };
  }

  #those(kind) {
    return [...this.#places[kind].values()].map(([path, at]) => {
      const [, agentAt] = this.#places.agent.get(path) ?? [];
      return (path === "" ? this.blocks : this.blocks[agentAt].blocks)[at];
    });
  }

  #findPlaces(blocks, path) {
    for (const [at, block] of blocks.entries()) {
      this.#places[block.kind]?.set(block.kind === "agent" ? block.path : block.id, [path, at]);
      if (block.kind === "agent") this.#findPlaces(block.blocks, block.path);
    }
  }
}

const pathOf = ({ agent }) => (agent == null ? "" : String(agent));

/** What is told whether users see it too or not. An internal text is none of the answer. */
const ALSO_INTERNAL = new Set([
  ...["thinking_delta", "tool_start", "tool_args_delta", "tool_args", "tool_progress", "tool_end", "tool_error"],
  "agent_text_delta",
]);

/** (transcript, data, whether it is for operators only) */
const HANDLERS = new Map(
  Object.entries({
    start: (transcript, data) => {
      transcript.agent = data.agent == null ? null : String(data.agent);
    },
    status: (transcript, data) => {
      transcript.status = String(data.message ?? "");
    },
    thinking_delta: (transcript, data) => transcript.append("thinking", data.text, pathOf(data)),
    text_delta: (transcript, data) => {
      transcript.status = "";
      transcript.append("text", data.text);
    },
    tool_start: (transcript, data, hidden) => {
      const { title, client, replayed, turn } = data;
      transcript.inferDecision(data.tool_call_id, "decided");
      transcript.tool(data, { phase: client ? "called" : "running", title, turn, replayed: replayed === true, hidden });
    },
    tool_args_delta: (transcript, data) => transcript.tool(data, {}),
    tool_args: (transcript, data) => {
      transcript.note(data.tool_call_id, { args: data.args });
      transcript.tool(data, {});
    },
    tool_progress: (transcript, data) => transcript.tool(data, { progress: progressOf(data) }),
    tool_end: (transcript, data) => {
      transcript.inferDecision(data.tool_call_id, "approved");
      if (data.output !== undefined) transcript.note(data.tool_call_id, { output: data.output });
      transcript.tool(data, { phase: "done", ms: data.duration_ms });
    },
    tool_error: (transcript, data) => {
      const { code, message } = data;
      transcript.inferDecision(data.tool_call_id, code === "not_approved" ? "refused" : "approved");
      transcript.tool(data, { phase: "failed", ms: data.duration_ms, code, ...(message !== undefined && { message }) });
    },
    "internal.tool_result": (transcript, { tool_call_id: callId, output, error }) =>
      transcript.note(callId, error == null ? { output } : { message: error.message }),
    "internal.turn": (transcript, data) => {
      if (data.agent === undefined) return; // of a model without an agent: its one turn is the answer
      transcript.add({ kind: "turn", data }, pathOf(data));
      for (const call of Array.isArray(data.calls) ? data.calls : []) transcript.note(call?.id, { args: call?.args });
    },
    "internal.call_trace": (transcript, { tool_call_id: callId, traceback }) => {
      if (typeof traceback === "string") transcript.note(callId, { traceback });
    },
    "internal.trace": (transcript, data) => {
      const { traceback } = data;
      if (typeof traceback === "string") transcript.add({ kind: "trace", traceback }, pathOf(data));
    },
    agent_start: (transcript, data) => transcript.subAgent(pathOf(data), { phase: "running" }),
    agent_text_delta: (transcript, data, hidden) => {
      transcript.append("text", data.text, pathOf(data));
      if (hidden) transcript.subAgent(pathOf(data), { hidden });
    },
    agent_end: (transcript, data) => {
      const { duration_ms: ms, code } = data;
      transcript.subAgent(pathOf(data), { phase: code === undefined ? "done" : "failed", ms, code });
    },
    approval_request: (transcript, data) => {
      const { args } = transcript.known.get(data.tool_call_id) ?? {};
      transcript.approval(data, { args, ...transcript.decided.get(data.approval_id) });
    },
    "internal.approval": (transcript, data) => {
      const { approval_id: id, approve, reason, by } = data;
      const decision = { state: approve === true ? "approved" : "refused", reason, by };
      transcript.decided.set(id, decision);
      transcript.approval(data, decision);
    },
    input: (transcript, { text, data, interrupt, replayed }) =>
      transcript.add({ kind: "input", text, data, interrupts: interrupt === true, replayed: replayed === true }),
    restart: (transcript, data) =>
      transcript.startAgain(
        "restart",
        `Restarted as attempt ${data.attempt}: ${data.reason}. Everything before it was discarded.`,
      ),
    done: (transcript, data) =>
      transcript.end("done", `Done: ${data.stop_reason ?? "ended by the producer"}`, data.result),
    error: (transcript, data) => transcript.end("error", `Error ${data.code ?? ""}: ${data.message ?? "no message"}`),
    cancelled: (transcript, data) => transcript.end("cancelled", `Cancelled: ${data.reason || "no reason given"}`),
  }),
);

function progressOf({ message, tool_call_id: _, tool: __, agent: ___, ...more }) {
  const said = message == null ? "" : String(message);
  return Object.keys(more).length > 0 ? `${said} ${JSON.stringify(more)}`.trim() : said;
}
