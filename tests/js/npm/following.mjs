/**
 * Follows, or starts, what the cases of a file say, many at once: `{pace, cases: [{case, url, body, kept, tokens}]}`.
 * Waits are so many times shorter than they say. What came of it is a line of JSON for all cases with the same outcome.
 */

import { readFileSync } from "node:fs";
import { follow, start } from "lastevent";

const AT_ONCE = 500; // of thousands, some would be too late for a server: it waits 10 s for a request
const SILENCE_MS = 40_000;
const { pace = 1, cases } = JSON.parse(readFileSync(process.argv[2], "utf8"));

/** Many times faster than others, but as patient as they are with a server that says nothing. */
const env = { timer: (ms, run) => ((timer) => () => clearTimeout(timer))(setTimeout(run, ms / pace)) };
const silence = SILENCE_MS * pace;

async function outcome({ case: name, url, body, kept, tokens }) {
  const whys = [];
  const options = {
    url,
    headers: { case: name },
    env,
    silence,
    ...(kept && { key: name, storage: { getItem: () => JSON.stringify(kept), setItem() {}, removeItem() {} } }),
    ...(tokens && { token: (why) => (whys.push(why ?? null), tokens[Math.min(whys.length, tokens.length) - 1]) }),
  };
  const stream = body ? start({ ...options, body }) : follow(options);
  const events = [];
  try {
    for await (const { id, event } of stream) events.push([id, event]);
    return { events, answer: await stream.finished, whys };
  } catch ({ name, code, status }) {
    return { events, answer: stream.answer, whys, error: { name, code, status } };
  }
}

const outcomes = new Map();

async function take() {
  for (let each = cases.shift(); each; each = cases.shift()) {
    const text = JSON.stringify(await outcome(each));
    outcomes.set(text, [...(outcomes.get(text) ?? []), each.case]);
  }
}

await Promise.all(Array.from({ length: AT_ONCE }, take));
for (const [text, names] of outcomes) console.log(JSON.stringify({ cases: names, ...JSON.parse(text) }));
