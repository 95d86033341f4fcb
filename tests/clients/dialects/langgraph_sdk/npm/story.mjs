// A thread's life: a run that is streamed, one that is waited for, one that is joined and cancelled, one that fails.
const [library, apiUrl, apiKey = null] = process.argv.slice(2);
const { Client } = await import(library);
const client = new Client({ apiUrl, apiKey });
const asks = (content) => ({ messages: [{ role: "user", content }] });
const texts = (values) => values.messages.map((message) => message.content);

const { thread_id: threadId } = await client.threads.create();
const streamed = [];
let created;
for await (const part of client.runs.stream(threadId, "agent", {
  input: asks("One [[ttft_ms=0 rate=0 tokens=3]]"),
  streamMode: ["values", "messages-tuple"],
  onRunCreated: (run) => (created = run),
})) {
  streamed.push(part);
}
const waited = await client.runs.wait(threadId, "agent", { input: asks("Two [[ttft_ms=0 rate=0 tokens=3]]") });
const state = await client.threads.getState(threadId);
const history = await client.threads.getHistory(threadId, { limit: 3 });

const run = await client.runs.create(threadId, "agent", { input: asks("Three [[ttft_ms=0 stall_at=2]]") });
const joined = [];
for await (const part of client.runs.joinStream(threadId, run.run_id, { streamMode: ["messages-tuple"] })) {
  joined.push(part.event);
  if (joined.length === 2) await client.runs.cancel(threadId, run.run_id);
}
let failed = "";
await client.runs
  .wait(null, "agent", { input: asks("[[ttft_ms=0 status=400]]") })
  .catch((error) => (failed = error.message));
let refused = "";
await client.runs
  .create(threadId, "agent", { input: asks("x"), command: { resume: "yes" } })
  .catch((error) => (refused = error.message));

console.log(
  JSON.stringify({
    created: created.thread_id === threadId && created.run_id === streamed[0].data.run_id,
    chunks: streamed.filter((part) => part.event === "messages").map((part) => part.data[0].content),
    last: streamed.at(-1),
    waited: texts(waited),
    isState: JSON.stringify(state.values) === JSON.stringify(waited),
    history: history.map((one) => one.values.messages.length),
    joined,
    status: (await client.runs.get(threadId, run.run_id)).status,
    runs: (await client.runs.list(threadId)).length,
    failed,
    refused,
  }),
);
