// What a log tells that takes time: calls of tools, sub-agents, approvals. No DOM.

const INTERNAL = "internal.";

/**
 * Each is {kind, name, agent, at, until, index, outcome, isVoid}: `until` is null while it lasts, `index` that of its
 * first event.
 */
export class Spans {
  all = [];
  approvals = new Map(); // tool_call_id → the name of its approval's span
  #open = new Map(); // "tool <id>", "approval <id>", "agent <path>" → its span

  /** `at`: ms since the log's first event. */
  take({ event: kind, data }, at, index) {
    const take = EVENTS.get(kind.startsWith(INTERNAL) ? kind.slice(INTERNAL.length) : kind);
    if (take) take(this, data ?? {}, at, index);
  }

  begin(name, span) {
    this.end(name, span.at, "unfinished");
    const begun = { until: null, outcome: "running", isVoid: false, ...span };
    this.all.push(begun);
    this.#open.set(name, begun);
  }

  /** False if it has not begun. */
  end(name, at, outcome) {
    const span = this.#open.get(name);
    if (span) Object.assign(span, { until: at, outcome });
    return this.#open.delete(name);
  }

  endAll(at) {
    for (const name of [...this.#open.keys()]) this.end(name, at, "unfinished");
  }

  void(at) {
    this.endAll(at);
    for (const span of this.all) span.isVoid = true;
  }
}

const agentOf = ({ agent }) => (agent == null ? "" : String(agent));
const call = (data) => `tool ${data.tool_call_id}`;

function endCall(spans, data, at, index, outcome) {
  const ended = data.replayed === true ? "replayed" : outcome;
  if (spans.end(call(data), at, ended)) return;
  begin(spans, "tool", call(data), data, at, index); // its start is not in the log: what it is about is known
  spans.end(call(data), at, ended);
}

const begin = (spans, kind, name, data, at, index) =>
  spans.begin(name, { kind, name: String(data.tool ?? data.agent ?? kind), agent: agentOf(data), at, index });

const EVENTS = new Map(
  Object.entries({
    tool_start: (spans, data, at, index) => {
      spans.end(spans.approvals.get(data.tool_call_id), at, "decided"); // users are told no more of it
      if (data.client === true) return; // it is for the caller to run, who does not say how long that took
      begin(spans, "tool", call(data), data, at, index);
    },
    tool_end: (spans, data, at, index) => endCall(spans, data, at, index, "done"),
    tool_error: (spans, data, at, index) => endCall(spans, data, at, index, "failed"),
    agent_start: (spans, data, at, index) => begin(spans, "agent", `agent ${data.agent}`, data, at, index),
    agent_end: (spans, data, at) => spans.end(`agent ${data.agent}`, at, data.code === undefined ? "done" : "failed"),
    approval_request: (spans, data, at, index) => {
      const name = `approval ${data.approval_id}`;
      spans.approvals.set(data.tool_call_id, name);
      begin(spans, "approval", name, data, at, index);
    },
    approval: (spans, data, at) =>
      spans.end(`approval ${data.approval_id}`, at, data.approve === true ? "approved" : "refused"),
    restart: (spans, _, at) => spans.void(at),
    done: (spans, _, at) => spans.endAll(at),
    error: (spans, _, at) => spans.endAll(at),
    cancelled: (spans, _, at) => spans.endAll(at),
  }),
);
