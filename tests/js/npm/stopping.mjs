/**
 * Stops streams while each of the things that they wait for is awaited: `node stopping.mjs SERVER SID`, of a stream that
 * runs. What was awaited comes afterwards. It says whether that changed anything, and how many timers are left.
 */

import { createServer } from "node:http";
import { follow, start } from "lastevent";

const [server, sid] = process.argv.slice(2);
const url = `${server}/v1/streams/${sid}/events`;
const never = new Promise(() => {});

function later() {
  let come;
  const promise = new Promise((resolve) => (come = resolve));
  return { promise, come };
}

/** One that is asked for, and answers when the stream has been stopped. */
function late(value) {
  const asked = later();
  const answer = later();
  return { asked: asked.promise, ask: () => (asked.come(), answer.promise), come: () => answer.come(value) };
}

const until = (stream, state) =>
  new Promise((resolve) => stream.subscribe(({ connection }) => connection.state === state && resolve()));

const events = (getReader) => ({
  status: 200,
  ok: true,
  headers: new Headers({ "Content-Type": "text/event-stream" }),
  body: { getReader },
});

/** A stream at a server that takes requests and never answers. It must be let go, and have been asked once. */
function silence(open) {
  const [asked, left] = [later(), later()];
  let requests = 0;
  const silent = createServer((request) => {
    requests++;
    request.socket.on("close", left.come);
    asked.come();
  });
  const stream = later();
  silent.listen(0, "127.0.0.1", () => stream.come(open(`http://127.0.0.1:${silent.address().port}/v1/streams`)));
  const then = async () => {
    await left.promise;
    silent.close();
    silent.closeAllConnections(); // Node's fetch has made another one, for what may come
    if (requests !== 1) throw new Error(`asked ${requests} times`);
  };
  return { stream: stream.promise, awaited: asked.promise, then };
}

/** What → its stream, when to stop it, and what comes then. */
const situations = {
  token() {
    const token = late("too late");
    return { stream: follow({ url, token: token.ask, headers: { case: "token" } }), awaited: token.asked, then: token.come };
  },
  answer() {
    return silence((url) => follow({ url }));
  },
  "answer of a start"() {
    return silence((url) => start({ url, body: { prompt: "x" } }));
  },
  "answer of a fetch that hears of no abort"() {
    const answer = late(events(() => ({ read: () => never })));
    return { stream: follow({ url, fetch: answer.ask, headers: { case: "deaf" } }), awaited: answer.asked, then: answer.come };
  },
  "next bytes"() {
    const stream = follow({ url, headers: { case: "next bytes" } });
    return { stream, awaited: until(stream, "open") };
  },
  "next bytes of a reader that hears of no abort"() {
    const bytes = late({ value: new TextEncoder().encode('data: {"text":"late"}\nid: 9\n\n'), done: false });
    const stream = follow({ url, fetch: async () => events(() => ({ read: bytes.ask })) });
    return { stream, awaited: bytes.asked, then: bytes.come };
  },
  "storage before anything is sent"() {
    const kept = late(null);
    const storage = { getItem: kept.ask, setItem() {}, removeItem() {} };
    return { stream: follow({ url, key: "k", storage, headers: { case: "storage" } }), awaited: kept.asked, then: kept.come };
  },
  "storage that never answers"() {
    const stream = follow({ url, key: "k", storage: { getItem: () => never }, headers: { case: "silent storage" } });
    return { stream, awaited: Promise.resolve() };
  },
  "next try"() {
    const stream = follow({ url, fetch: async () => new Response("", { status: 503 }) });
    return { stream, awaited: until(stream, "waiting") };
  },
  "what a refusal says"() {
    const said = late({ code: "stream_not_found" });
    const refused = { status: 404, ok: false, headers: new Headers(), json: said.ask };
    return { stream: follow({ url, fetch: async () => refused }), awaited: said.asked, then: said.come };
  },
  "text after a gap"() {
    const text = late(new Response("x", { headers: { "Last-Event-ID": "9" } }));
    const gap = new TextEncoder().encode('event: gap\ndata: {"requested":0,"earliest":9}\n\n');
    const answer = events(() => ({ read: async () => ({ value: gap, done: false }) }));
    const stream = follow({ url, fetch: async (address) => (address.endsWith("/text") ? text.ask() : answer) });
    return { stream, awaited: text.asked, then: text.come };
  },
  "an app that takes nothing"() {
    const stream = follow({ url, headers: { case: "held" } });
    const events = stream[Symbol.asyncIterator]();
    return { stream, awaited: events.next() };
  },
  "storage before a start"() {
    const saved = late();
    const storage = { getItem: () => null, setItem: saved.ask, removeItem() {} };
    const stream = start({ url: `${server}/v1/streams`, body: { prompt: "x" }, key: "k", storage, headers: { case: "saved" } });
    return { stream, awaited: saved.asked, then: saved.come };
  },
};

for (const [what, situation] of Object.entries(situations)) {
  const { stream: opened, awaited, then } = situation();
  const stream = await opened;
  await awaited;
  stream.stop();
  const { answer } = stream;
  await then?.();
  await stream.finished;
  await new Promise((resolve) => setTimeout(resolve)); // what came late has been dealt with
  const changes = stream.answer !== answer || stream.connection.state !== "stopped";
  const timers = process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
  console.log(JSON.stringify({ what, changes, timers }));
}
