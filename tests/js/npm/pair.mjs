// Two tabs in one world of virtual time: Web Locks and channels as browsers have them, and no document: both are in front.
// It writes one line of JSON: what each case came to.
import { follow } from "lastevent";
import { EVENTS, rendered, scripted } from "./scripted.mjs";
import { world } from "./world.mjs";

const HOUR_MS = 3_600_000;
const LOCK_MS = 5; // until one is given: what was said before has been heard
const LOG = [[1, "start", { model: "m", attempt: 1 }], [2, "text_delta", { text: "a" }], [3, "text_delta", { text: "b" }], [4, "done", {}]];

function browser(time) {
  let held = null;
  let queue = [];
  const channels = new Set();
  const aborted = () => Object.assign(new Error("aborted"), { name: "AbortError" });

  function grant() {
    if (held || !queue.length) return;
    const one = (held = queue.shift());
    Promise.resolve(one.run()).then(() => {
      one.resolve();
      if (held === one) held = null;
      time.after(LOCK_MS, grant);
    });
  }

  function request(_, { steal, signal }, run) {
    return new Promise((resolve, reject) => {
      const one = { run, resolve, reject };
      signal?.addEventListener("abort", () => {
        if (!queue.includes(one)) return;
        queue = queue.filter((other) => other !== one);
        reject(aborted());
      });
      if (steal) {
        held?.reject(aborted());
        held = null;
        queue.unshift(one);
      } else queue.push(one);
      time.after(LOCK_MS, grant);
    });
  }

  class Channel {
    constructor() { channels.add(this); }
    postMessage(data) {
      for (const other of channels) if (other !== this) time.after(1, () => channels.has(other) && other.onmessage({ data }));
    }
    close() { channels.delete(this); }
  }

  Object.defineProperty(globalThis, "navigator", { value: { locks: { request } }, configurable: true });
  globalThis.BroadcastChannel = Channel;
  return { tabs: () => channels.size };
}

function memory() {
  const held = new Map();
  return {
    getItem: (key) => held.get(key) ?? null,
    setItem: (key, value) => void held.set(key, value),
    removeItem: (key) => void held.delete(key),
  };
}

function tab(time, server, storage, env = { ...time.env, signs: () => () => {} }) {
  const asked = [];
  const texts = [];
  const one = follow({
    url: EVENTS, key: "k", share: true, storage, env,
    fetch: (url, init) => { asked.push(url); return server.fetch(url, init); },
  });
  one.subscribe(({ answer }) => texts.push(answer.text));
  return { one, asked, texts };
}

const said = ({ one: { answer, connection }, asked, texts }) =>
  ({ state: answer.state, incomplete: answer.incomplete, connection: connection.state, asked: asked.length, texts });

/** The tab in front reads a text that reaches to the ending; the other one is to have the ending from it. */
async function endingBehindAGap() {
  const time = world({ wall: 0, random: 0 });
  browser(time);
  const first = [1, 2].map((n) => LOG[n - 1]);
  const script = [{ frames: first, how: "hang" }, { frames: [[null, "gap", { from: 2 }]] },
    { headers: { "last-event-id": "4" }, body: "ab" }, { status: 204 }, { chunks: [[100, rendered([LOG[3]], {})]] }];
  const server = scripted({ log: LOG, script }, time, 0);
  const storage = memory();
  const other = tab(time, server, storage);
  await time.run(1000);
  const front = tab(time, server, storage);
  await time.run(HOUR_MS);
  return { front: said(front), other: said(other) };
}

/** A tab that kept what the other one has, and opens when that has heard of the gap already. */
async function openedSinceTheGap() {
  const time = world({ wall: 0, random: 0, signs: [[6000, "wake"]] });
  browser(time);
  const first = [1, 2].map((n) => LOG[n - 1]);
  const script = [{ frames: [...first, [null, "gap", {}]], how: "hang" }, { status: 503, headers: { "retry-after": "30" } },
    { how: "never" }, { headers: { "last-event-id": "3" }, body: "ab" }];
  const server = scripted({ log: LOG, script }, time, 0);
  const storage = memory();
  const one = tab(time, server, storage, time.env);
  await time.run(1000);
  const kept = JSON.parse(storage.getItem("lastevent:k"));
  storage.setItem("lastevent:k", JSON.stringify({ ...kept, answer: { ...kept.answer, incomplete: false } })); // as before the gap
  const later = tab(time, server, storage);
  await time.run(HOUR_MS);
  return { front: said(one), other: said(later) };
}

/** One listener throws at all that it is told. */
async function listenerThrows() {
  const time = world({ wall: 0, random: 0 });
  const errors = [];
  process.on("unhandledRejection", (error) => errors.push(error.message));
  const server = scripted({ log: LOG }, time, 0);
  const one = follow({ url: EVENTS, env: time.env, fetch: server.fetch });
  const told = [];
  one.subscribe(() => { throw new Error("of the app"); });
  one.subscribe(({ connection }) => told.push(connection.state));
  await time.run(HOUR_MS);
  return { last: told.at(-1), errors: [...new Set(errors)] };
}

console.log(JSON.stringify({ ending: await endingBehindAGap(), gap: await openedSinceTheGap(), listener: await listenerThrows() }));
process.exit(0);
