/** Streams over one WebSocket. In: a JSON file {api, socket, start: bodies, follow: urls, slow, blocked}. Out: a line. */

import { readFileSync } from "node:fs";
import { cancel, follow, start } from "lastevent";
import { connect } from "lastevent/socket";

const { api, socket: url, headers, bodies = [], urls = [], slow = 0, cancels = false } = JSON.parse(readFileSync(process.argv[2], "utf8"));
let sockets = 0;
let live = 0;
let most = 0;
const fetched = [];
const said = { follow: 0, ack: 0, unfollow: 0 };

class Counted extends WebSocket {
  constructor(...args) {
    super(...args);
    sockets++;
    live++;
    most = Math.max(most, live);
    this.addEventListener("close", () => live--);
  }
  send(text) {
    const { op } = JSON.parse(text);
    said[op] = (said[op] ?? 0) + 1;
    super.send(text);
  }
}

const one = connect({
  url,
  WebSocket: Counted,
  fetch: (url, init) => {
    fetched.push(`${init?.method ?? "GET"} ${new URL(url).pathname.split("/").slice(0, 3).join("/")}`);
    return fetch(url, init);
  },
});

const options = { fetch: one.fetch, headers, env: { frame: (run) => void queueMicrotask(run) } };
const streams = [
  ...bodies.map((body) => start({ ...options, url: `${api}/v1/streams`, body })),
  ...urls.map((url) => follow({ ...options, url })),
];

const outcomes = await Promise.all(
  streams.map(async (stream, n) => {
    const ids = [];
    try {
      for await (const { id } of stream) {
        ids.push(id);
        if (slow && n === 0) await new Promise((resolve) => setTimeout(resolve, slow));
        if (cancels && ids.length === 5) await cancel({ ...options, url: stream.url });
      }
    } catch (error) {
      return { ids, error: { code: error.code, status: error.status } };
    }
    const { state, text } = stream.answer;
    return { ids, state, text, url: stream.url };
  }),
);
console.log(JSON.stringify({ outcomes, sockets, most, fetched, said }));
one.close();
