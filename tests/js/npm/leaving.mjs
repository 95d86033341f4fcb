/**
 * Starts streams that end once nobody follows them, and leaves each in another way; then it waits, alive, for what becomes
 * of them: `node leaving.mjs SERVER`.
 */

import { start } from "lastevent";

const url = `${process.argv[2]}/v1/streams`;
const lasting = (seconds) => ({ prompt: `[[tokens=${10 * seconds} rate=10 ttft_ms=0]]`, abandon_after_s: 1 });
const body = lasting(120);

const hasText = (stream) =>
  new Promise((resolve) => stream.subscribe(({ answer }) => answer.text && resolve()));

/** Way → what a stream that is well under way is left by. */
const ways = {
  async stop() {
    const stream = start({ url, body });
    await hasText(stream);
    stream.stop();
    return stream;
  },
  async signal() {
    const leaving = new AbortController();
    const stream = start({ url, body, signal: leaving.signal });
    await hasText(stream);
    leaving.abort();
    return stream;
  },
  async break() {
    const stream = start({ url, body });
    for await (const { event } of stream) if (event === "text_delta") break;
    return stream;
  },
  async hidden() {
    let hide;
    const stream = start({ url, body, env: { signs: (wake, sleep) => ((hide = () => sleep(true)), () => {}) } });
    await hasText(stream);
    hide();
    return stream;
  },
  async staying() {
    const stream = start({ url, body: lasting(16) });
    await stream.finished;
    return stream;
  },
};

async function becomes(stream) {
  for (;;) {
    const { state } = await (await fetch(stream.url.replace("/events", ""))).json();
    if (state !== "queued" && state !== "running") return state;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

await Promise.all(
  Object.entries(ways).map(async ([way, leave]) => {
    const stream = await leave();
    const { connection } = stream;
    console.log(JSON.stringify({ way, connection: connection.state, stream: await becomes(stream) }));
  }),
);
