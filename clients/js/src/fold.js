/** The answer as its events tell it. Pure: no network, no clock, no storage. */

import { partial } from "./partial.js";

/** @import { Answer, Notice, StreamEvent, Tool } from "./index.js" */

const ARGS_FROM = 64; // characters of arguments at which they are first parsed; then at each doubling
const OTHER = 100;

/** What an attempt has said before it has said anything. */
const NOTHING = {
  text: "",
  thinking: "",
  tools: [],
  status: null,
  usage: null,
  agents: {},
  citations: [],
  approvals: [],
  sentences: [],
  other: [],
};

/** @returns {Answer} */
export const empty = () => ({
  v: 1,
  cursor: 0,
  state: "new",
  attempt: 0,
  restarts: 0,
  ...NOTHING,
  ending: null,
  error: null,
  incomplete: false,
  inputs: [],
  model: null,
  agent: null,
});

/** @param {Answer} answer */
export const hasEnded = ({ ending }) => ending !== null;

/**
 * The answer after this event. What it does not change stays the same object; an event that says nothing new leaves
 * all of it.
 *
 * @param {Answer} answer
 * @param {StreamEvent | Notice} event
 * @returns {Answer}
 */
export function fold(answer, { id, event, data }) {
  if (id === null) {
    if (event === "gap" && !answer.incomplete) return { ...answer, incomplete: true };
    return event === "snapshot" ? { ...answer, ...running, ...data } : answer; // of the loop's: {text, cursor, incomplete}
  }
  if (id <= answer.cursor || hasEnded(answer)) return answer;
  const change = changes[event]?.(answer, data ?? {}) ?? {
    other: [...answer.other, { id, event, data }].slice(-OTHER),
  };
  return { ...answer, ...change, cursor: id };
}

/** @type {{ state: "running" }} */
const running = { state: "running" };

/**
 * Kind → what it changes. Without a prototype: an object knows kinds such as `constructor`.
 *
 * @type {Record<string, ((before: Answer, data: any) => Partial<Answer>) | null>}
 */
const changes = {
  __proto__: null,

  queued: () => ({ state: "queued" }),
  start: (before, { attempt = before.attempt, model = null, agent = null }) => ({ ...running, attempt, model, agent }),
  text_delta: ({ text }, data) => ({ ...running, text: text + textOf(data), status: null }),
  thinking_delta: ({ thinking }, data) => ({ ...running, thinking: thinking + textOf(data) }),
  status: (_, { message = null }) => ({ status: message }),

  tool_start: tool((_, data) => ({ ...data, state: "running" })),
  tool_args_delta: tool((before, { partial_json = "" }) => grown(before, partial_json)),
  tool_args: tool((before, { args, complete }) => ({ args, complete })),
  tool_progress: tool((before, data) => ({ progress: data })),
  tool_end: tool((before, data) => ({ ...parsed(before), ...data, state: "done" })),
  tool_error: tool((before, data) => ({ ...parsed(before), ...data, state: "error" })),

  agent_start: agent((_, data) => ({ ...data, state: "running" })),
  agent_text_delta: agent(({ text }, data) => ({ text: text + textOf(data) })),
  agent_end: agent((_, data) => ({ ...data, state: data.code ? "error" : "done" })),

  citation: added("citations"),
  approval_request: added("approvals"),
  sentence: added("sentences"),
  input: added("inputs"),

  // What the person said stays: nobody says it again.
  restart: (before, { attempt = before.attempt }) => ({ ...NOTHING, attempt, restarts: before.restarts + 1 }),

  done: ended("done"),
  error: ended("error"),
  cancelled: ended("cancelled"),
};

/** An external producer may write any shape under these kinds; the server's `/text` takes what is no text for none. */
const textOf = (/** @type {any} */ { text }) => (typeof text === "string" ? text : "");

/** A change of the tool with this call's id; never of the one at some place or with some name. */
function tool(/** @type {(before: Tool, data: any) => object} */ change) {
  return (/** @type {Answer} */ { tools }, /** @type {any} */ { tool_call_id: id, tool: name, ...data }) => {
    const at = tools.findIndex((each) => each.id === id);
    /** @type {Tool} */
    const before = tools[at] ?? { id, name, state: "running", json: "" };
    const after = { ...before, ...change(before, data) };
    return { tools: at < 0 ? [...tools, after] : tools.map((each) => (each === before ? after : each)) };
  };
}

/** Arguments come in many small pieces: to parse all of them at each piece would be quadratic. */
function grown(/** @type {Tool} */ before, /** @type {string} */ piece) {
  const json = before.json + piece;
  const parseAt = Math.max(ARGS_FROM, 2 ** Math.ceil(Math.log2(before.json.length + 1)));
  return json.length >= parseAt ? { json, args: partial(json) } : { json };
}

const parsed = (/** @type {Tool} */ { json, complete }) => (json && !complete ? { args: partial(json) } : {});

function agent(/** @type {(before: any, data: any) => object} */ change) {
  return (/** @type {Answer} */ { agents }, /** @type {any} */ { agent: name, ...data }) => {
    /** @type {Record<string, any>} */
    const known = { __proto__: null, ...agents }; // an agent may be called `constructor`
    const before = known[name] ?? { state: "running", text: "" };
    return { agents: { ...agents, [name]: { ...before, ...change(before, data) } } };
  };
}

function added(/** @type {"citations" | "approvals" | "sentences" | "inputs"} */ list) {
  return (/** @type {Answer} */ answer, /** @type {any} */ data) => ({ [list]: [...answer[list], data] });
}

/** Of a tool that the caller must run there is no `tool_end`: its arguments are whole now. */
function ended(/** @type {"done" | "error" | "cancelled"} */ state) {
  return (/** @type {Answer} */ { tools }, /** @type {any} */ data) => ({
    state,
    ending: data,
    error: state === "error" ? data : null,
    usage: data.usage ?? null,
    status: null,
    tools: tools.some((each) => each.state === "running" && each.json)
      ? tools.map((each) => (each.state === "running" ? { ...each, ...parsed(each) } : each))
      : tools,
  });
}
