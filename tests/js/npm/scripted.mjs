// The server of a case in tests/conformance/conformance.json, as a `fetch`. What it does is told at the table's top.
import { Buffer } from "node:buffer";
import { URL } from "node:url"; // also where phone.mjs took the other one away
import { empty, fold } from "lastevent";

export const ORIGIN = "http://le.test";
export const COLLECTION = `${ORIGIN}/v1/streams`;
export const EVENTS = `${COLLECTION}/s1/events`;
const STREAM = { "content-type": "text/event-stream; charset=utf-8" };
const MAX_REQUESTS = 200; // more is a spin

const utf8 = new TextEncoder();
const isEnding = (kind) => kind === "done" || kind === "error" || kind === "cancelled";

/** `cut`: what "every" stands for in this run. */
export function scripted({ log = [], script = [], render = {} }, world, cut) {
  const requests = [];
  const connections = [];
  const wrong = [];
  let length = 0; // bytes of the body that "every" is about

  function fetch(url, init = {}) {
    const { origin, pathname, search } = new URL(url, ORIGIN);
    const headers = new Headers(init.headers);
    const request = {
      method: init.method ?? "GET",
      origin,
      path: pathname + search,
      last_event_id: headers.get("last-event-id"),
      authorization: headers.get("authorization"),
      key: headers.get("idempotency-key"),
      body: init.body === undefined ? null : JSON.parse(init.body),
      at_ms: world.now(),
    };
    requests.push(request);
    if (requests.length > MAX_REQUESTS) throw new Error(`more than ${MAX_REQUESTS} requests`);
    if (connections.some((other) => other.isOpen())) wrong.push(`request ${requests.length}: the connection before is open`);
    const entry = script[requests.length - 1] ?? product(request, pathname);
    if (entry.expect_path && !pathname.endsWith(`/${entry.expect_path}`)) {
      wrong.push(`request ${requests.length} is for ${pathname}, not for ${entry.expect_path}`);
    }
    return answer(entry, request, init.signal);
  }

  /** What the server does of which the script says nothing. */
  function product({ method }, pathname) {
    if (method === "POST") return { serve: "log", headers: { location: "/v1/streams/s1" } };
    if (!pathname.endsWith("/text")) return { serve: "log" };
    const { text, cursor } = log.reduce((answer, [id, event, data]) => fold(answer, { id, event, data }), empty());
    return { headers: { "content-type": "text/plain; charset=utf-8", "last-event-id": `${cursor}` }, body: text };
  }

  function answer(entry, request, signal) {
    const { how = "end", deaf = false } = entry;
    let { status = 200 } = entry;
    let chunks = [];
    let headers = entry.headers ?? {};
    if (entry.chunks) {
      headers = { ...STREAM, ...headers };
      chunks = entry.chunks.map(([ms, text]) => [ms, utf8.encode(text)]);
    } else if (entry.serve || entry.frames) {
      headers = { ...STREAM, ...headers };
      let events = entry.serve ? log.filter(([id]) => id > Number(request.last_event_id ?? 0)) : entry.frames;
      if (entry.serve && !events.length && isEnding(log.at(-1)?.[1])) status = 204;
      if (entry.serve && entry.frames !== undefined) events = events.slice(0, entry.frames);
      let bytes = status === 204 ? utf8.encode("") : utf8.encode(rendered(events, render));
      if (entry.cut === "every") length = bytes.length;
      if (entry.cut !== undefined) bytes = bytes.subarray(0, entry.cut === "every" ? cut : entry.cut);
      chunks = pieces(bytes, render.chunk);
    } else if (entry.body) {
      chunks = [[0, utf8.encode(entry.body)]];
    }

    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(ABORTED);
      if (entry.error) return reject(new TypeError("network"));
      const body = bodyOf(chunks, status === 204 ? "end" : how, world);
      const connection = { isOpen: () => !signal?.aborted && (how === "never" || body.isOpen()) };
      connections.push(connection);
      signal?.addEventListener("abort", () => {
        if (deaf) return;
        reject(ABORTED);
        body.fail(ABORTED);
      });
      if (how !== "never") resolve(response(status, headers, body));
    });
  }

  return { fetch, requests, wrong, isOpen: () => connections.some((one) => one.isOpen()), length: () => length };
}

const ABORTED = Object.assign(new Error("aborted"), { name: "AbortError" });

/** Only what the package may use: React Native's `fetch` has little more. */
function response(status, headers, body) {
  const get = (name) => headers[name.toLowerCase()] ?? null;
  const text = () => body.text();
  const json = async () => JSON.parse(await text());
  return {
    status, ok: status >= 200 && status < 300, headers: { get }, text, json,
    body: status === 204 ? null : { getReader: () => body.reader, cancel: body.reader.cancel },
  };
}

function bodyOf(chunks, how, world) {
  const queue = [];
  let over = null; // what is told when the queue is empty
  let waiting = null;
  let open = how === "hang" || chunks.length > 0;
  const offs = [];

  function tell() {
    if (!waiting || (!queue.length && !over)) return;
    const { resolve, reject } = waiting;
    waiting = null;
    if (queue.length) return resolve({ done: false, value: queue.shift() });
    open = false;
    if (over.error) reject(over.error);
    else resolve({ done: true, value: undefined });
  }

  function close(error) {
    over = { error };
    tell();
  }

  const end = () => (how === "hang" ? undefined : close(how === "reset" ? new TypeError("reset") : undefined));
  chunks.forEach(([ms, bytes]) => {
    const say = () => { queue.push(bytes); tell(); };
    if (ms) offs.push(world.after(ms, say));
    else say();
  });
  const last = chunks.at(-1)?.[0] ?? 0;
  if (last) offs.push(world.after(last, end));
  else end();

  function drop(error) {
    offs.forEach((off) => off());
    queue.length = 0;
    open = false;
    close(error);
  }

  const reader = {
    read: () => new Promise((resolve, reject) => { waiting = { resolve, reject }; tell(); }),
    cancel: async () => drop(),
    releaseLock() {},
  };
  return {
    reader,
    fail: drop,
    isOpen: () => open,
    async text() {
      const parts = [];
      for (let part; !(part = await reader.read()).done;) parts.push(part.value);
      return Buffer.concat(parts).toString();
    },
  };
}

/** Bytes as frames of server-sent events: how, the table's `render` says. */
export function rendered(events, { id = "first", newline = "\n", bom = false, pings = false, retry = 1000 }) {
  const lines = events.flatMap(([at, kind, data], n) => {
    const said = [`event: ${kind}`, `data: ${JSON.stringify(data)}`];
    if (at !== null) said.splice(id === "first" ? 0 : 2, 0, `id: ${at}`);
    const ping = pings ? [": ping", ...(n % 2 ? [""] : [])] : [];
    return [...ping, ...said, ""];
  });
  return (bom ? "\uFEFF" : "") + [`retry: ${retry}`, ...lines].map((line) => line + newline).join("");
}

function pieces(bytes, size = Infinity) {
  const found = [];
  for (let at = 0; at < bytes.length; at += size) found.push([0, bytes.subarray(at, at + size)]);
  return found;
}
