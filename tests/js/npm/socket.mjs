/**
 * Streams over one WebSocket, as a file of JSON says: `{api, socket, pace, patience, slow, cancels, streams: [{url, body,
 * kept, tokens}]}`. Waits between tries are `pace` times shorter than they say, the socket's own `patience` times. Out: a
 * line of what came of it.
 */

import { readFileSync } from "node:fs";
import process from "node:process";
import { cancel, follow, start } from "lastevent";
import { connect } from "lastevent/socket";

const SILENCE_MS = 40_000;
const given = JSON.parse(readFileSync(process.argv[2], "utf8"));
const { api, socket: url, pace = 1, patience = 1, slow = 0, cancels = false, streams: asked } = given;
const counted = { sockets: 0, live: 0, most: 0, fetched: [], said: {}, whys: [] };

class Counted extends WebSocket {
  #isLive = true; // until somebody closes it: how long that takes is the network's
  constructor(...args) {
    super(...args);
    counted.sockets++;
    counted.live++;
    counted.most = Math.max(counted.most, counted.live);
    this.addEventListener("close", () => this.#end());
  }
  #end() {
    if (this.#isLive) counted.live--;
    this.#isLive = false;
  }
  close(...args) {
    this.#end();
    super.close(...args);
  }
  send(text) {
    const { op } = JSON.parse(text);
    counted.said[op] = (counted.said[op] ?? 0) + 1;
    super.send(text);
  }
}

const hurried = (by) => ({ timer: (ms, run) => ((timer) => () => clearTimeout(timer))(setTimeout(run, ms / by)) });

const one = connect({
  url,
  WebSocket: Counted,
  env: hurried(patience),
  fetch(url, init) {
    counted.fetched.push(`${init?.method ?? "GET"} ${new URL(url).pathname.replace(/\/[0-9a-f-]{16,}/, "/*")}`);
    return fetch(url, init);
  },
});

/** Frames too: whoever is told of the end is told at once. */
const env = { ...hurried(pace), frame: (run) => void queueMicrotask(run) };

function open({ url, body, kept, tokens }, n) {
  const whys = (counted.whys[n] = []);
  const options = {
    url,
    env,
    silence: SILENCE_MS * pace,
    fetch: one.fetch,
    ...(kept && { key: url, storage: { getItem: () => JSON.stringify(kept), setItem() {}, removeItem() {} } }),
    ...(tokens && { token: (why) => (whys.push(why ?? null), tokens[Math.min(whys.length, tokens.length) - 1]) }),
  };
  return body ? start({ ...options, body }) : follow(options);
}

const opened = asked.map(open);
const order = []; // in which they end
const outcomes = await Promise.all(
  opened.map(async (stream, n) => {
    const events = [];
    try {
      for await (const { id, event } of stream) {
        events.push([id, event]);
        if (slow && n === 0) await new Promise((resolve) => setTimeout(resolve, slow));
        if (cancels && events.length === 5) await cancel({ url: stream.url, fetch: one.fetch });
      }
    } catch ({ name, code, status }) {
      return { events, error: { name, code, status } };
    } finally {
      order.push(n);
    }
    const { state, text, incomplete } = stream.answer;
    return { events, state, text, incomplete, url: stream.url };
  }),
);
one.close();
console.log(JSON.stringify({ outcomes, order, ...counted }));
process.exit(); // some wait for the other side's close frame
