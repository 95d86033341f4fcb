// What is tried of lastevent/native in Node and in a page.
import { follow } from "lastevent";
import { xhr } from "lastevent/native";

/** Waits are short; what is called silence stays. */
export const env = {
  timer(ms, run) {
    const timer = setTimeout(run, ms < 40_000 ? ms / 50 : ms);
    return () => clearTimeout(timer);
  },
};

/** How far the last one to be followed is. */
export const at = { id: 0 };

/** A stream to its end by the package's own loop. */
export async function followed(url) {
  const asked = [];
  const began = performance.now();
  const fetch = (address, init) => {
    asked.push(Math.round(performance.now() - began));
    return xhr(address, init);
  };
  const stream = follow({ url, fetch, env });
  const ids = [];
  for await (const { id } of stream) ids.push((at.id = id));
  const { text, state } = await stream.finished;
  return { ids, text, state, asked };
}

/** One body: its text, and how it ended. */
export async function read(url, cursor) {
  const response = await xhr(url, { headers: cursor ? { "Last-Event-ID": cursor } : {} });
  const reader = response.body.getReader();
  const pieces = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return { text: decoded(pieces), end: response.again ? "again" : "done" };
      pieces.push(value);
    }
  } catch (error) {
    return { text: decoded(pieces), end: error.name };
  }
}

function decoded(pieces) {
  const utf8 = new TextDecoder("utf-8", { fatal: true });  // each piece by itself: none may be torn
  return pieces.map((piece) => utf8.decode(piece)).join("");
}
