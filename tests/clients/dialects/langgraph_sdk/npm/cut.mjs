// Joins one run many times, each time as another case, of which a proxy cuts each once. Says which cases saw what.
import { readFileSync } from "node:fs";

const { library, url, threadId, runId, modes, cases } = JSON.parse(readFileSync(0, "utf8"));
const { Client } = await import(library);

async function follow(name) {
  const client = new Client({ apiUrl: url, apiKey: null, defaultHeaders: { case: name } });
  const parts = [];
  for await (const { id, event, data } of client.runs.joinStream(threadId, runId, { streamMode: modes })) {
    parts.push([id, event, data]);
  }
  return JSON.stringify(parts);
}

const seen = {};
await Promise.all(
  cases.map(async (name) => {
    const said = await follow(name).catch((error) => String(error));
    (seen[said] ??= []).push(name);
  }),
);
console.log(JSON.stringify(Object.entries(seen)));
