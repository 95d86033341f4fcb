/** What goes over the socket, and what by the page's own fetch. In: the server's address, and a stream's. Out: a line. */

import process from "node:process";
import { connect } from "lastevent/socket";

const [, , api, events] = process.argv;
const IDLE_FASTER = 50;
const SSE = { Accept: "text/event-stream" };
let live = 0;
let fetched = [];
const said = [];

class Counted extends WebSocket {
  constructor(...args) {
    super(...args);
    live++;
    this.addEventListener("close", () => live--);
  }
  send(text) {
    said.push(JSON.parse(text).op);
    super.send(text);
  }
}

const env = { timer: (ms, run) => ((timer) => () => clearTimeout(timer))(setTimeout(run, ms > 100 ? ms / IDLE_FASTER : ms)) };
const { fetch: ask, close } = connect({
  url: `${api}/v1/socket`,
  WebSocket: Counted,
  env,
  fetch: async (url, init) => (fetched.push(`${init?.method ?? "GET"} ${url}`), new Response("{}")),
});
const post = (body, headers = {}) => ({ method: "POST", body: JSON.stringify(body), headers });
const start = (body) => post(body, { ...SSE, "Idempotency-Key": crypto.randomUUID() });
const elsewhere = api.replace("127.0.0.1", "localhost");

for (const [url, init] of [
  [events.replace(api, elsewhere), { headers: SSE }],
  [`${api}/other${events.slice(api.length)}`, { headers: SSE }],
  [`${events}?audience=public`, { headers: SSE }],
  [`${events}?access_token=t`, { headers: SSE }],
  [events, { headers: { Accept: "application/x-ndjson" } }],
  [events, { headers: { ...SSE, Authorization: "Basic eA==" } }],
  [events, post({ epoch: 1, events: [] })],
  [events.replace("events", "cancel"), post({})],
  [`${api}/v1/streams`, post({ prompt: "x" }, SSE)],
  [`${api}/v1/streams`, start({ prompt: "x".repeat(200_000) })],
]) await ask(url, init);
const byFetch = fetched.length;
const opened = live;
fetched = [];

// Dropped before it was answered, and again: the second one has the stream.
const dropped = new AbortController();
ask(events, { headers: SSE, signal: dropped.signal }).catch(() => {});
await Promise.resolve();
await Promise.resolve();
dropped.abort();
const kept = new AbortController();
const again = await ask(events, { headers: SSE, signal: kept.signal });
const { value } = await again.body.getReader().read();
const first = new TextDecoder().decode(value).split("\n")[0];
const refused = await ask(`${api}/v1/streams/none/events`, { headers: SSE });
const begun = await ask(`${api}/v1/streams`, start({ producer: "external" }));
const status = [again.status, refused.status, (await refused.json()).code, begun.status];
const location = begun.headers.get("Location");
const cancelled = await (await ask(`${location}/cancel`, post({}))).json();
kept.abort();
const over = Date.now() + 5000;
while (live && Date.now() < over) await new Promise((is) => setTimeout(is, 5));
const idle = live;
close();
await ask(events, { headers: SSE });
console.log(JSON.stringify({ byFetch, opened, fetched, first, status, location, cancelled, said, idle, live }));
process.exit();
