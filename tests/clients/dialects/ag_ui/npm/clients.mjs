// AG-UI's clients in Node: cases in (JSON lines), what each client made of its case out (JSON lines).
//
// A case is {case, client, url, threadId?, runId?, text?, messages?, joins?}. `client`: http (HttpAgent), tanstack
// (ChatClient), join or hydrate (what its connection does). Its requests say in the header `case` whose they are: the proxy cuts
// by that. `joins`: HttpAgent reads with GET, a run that somebody else has started; only its fetch function is ours.

import { createInterface } from "node:readline";

import { HttpAgent } from "@ag-ui/client";
import { StreamProcessor } from "@tanstack/ai/client";
import { ChatClient, fetchServerSentEvents } from "@tanstack/ai-client";

console.warn = console.error = () => {}; // of each cut, HttpAgent tells
process.on("unhandledRejection", () => {}); // it cancels the body that was cut, and leaves what that says to nobody

const tell = (said) => process.stdout.write(`${JSON.stringify(said)}\n`);

async function http({ case: name, url, threadId, runId, text, messages, joins, tools, context, forwardedProps }) {
  const agent = new HttpAgent({
    url,
    threadId,
    headers: { case: name },
    initialMessages: messages ?? (text ? [{ id: "asked", role: "user", content: text }] : []),
    ...(joins && { fetch: (_, { headers }) => fetch(`${url}?runId=${joins}`, { headers }) }),
  });
  const events = [];
  const seen = {};
  try {
    const { result } = await agent.runAgent(
      { runId, tools, context, forwardedProps },
      {
        onEvent: ({ event }) => void events.push(structuredClone(event)), // its parts become the agent's messages
        onRunFinishedEvent: ({ outcome, pendingToolCallIds }) => void Object.assign(seen, { outcome, pendingToolCallIds }),
        onRunErrorEvent: ({ event }) => void (seen.error = event),
      },
    );
    seen.result = result;
  } catch (error) {
    seen.failed = `${error}`;
  }
  return { seen, messages: agent.messages, events };
}

const connection = (name, url) =>
  fetchServerSentEvents(url, { headers: { case: name }, reconnect: { delayMs: 1, maxAttempts: 5 } });

async function join({ case: name, url, runId }) {
  const chunks = [];
  const processor = new StreamProcessor();
  const seen = {};
  try {
    for await (const chunk of connection(name, url).joinRun(runId)) {
      chunks.push(chunk);
      processor.processChunk(chunk);
    }
  } catch (error) {
    seen.failed = `${error}`;
  }
  return { seen, chunks, messages: processor.getMessages() };
}

async function tanstack({ case: name, url, threadId, text }) {
  const seen = { errors: [] };
  const chunks = [];
  const client = new ChatClient({
    connection: connection(name, url),
    threadId,
    onChunk: (chunk) => void chunks.push(chunk),
    onError: (error) => seen.errors.push(`${error}`),
  });
  await client.sendMessage(text);
  return { seen, chunks, messages: client.getMessages() };
}

async function hydrate({ case: name, url, threadId }) {
  return { hydrated: await connection(name, url).hydrate(threadId) };
}

async function run(given) {
  try {
    tell({ case: given.case, ...(await { http, join, tanstack, hydrate }[given.client](given)) });
  } catch (error) {
    tell({ case: given.case, failed: `${error.stack}` });
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  run(JSON.parse(line));
}
