// React's useStream, in a page of jsdom: what a person says, one after the other, and what is shown in the end.
import { JSDOM } from "jsdom";

const [library, apiUrl, script] = process.argv.slice(2);
const dom = new JSDOM("<!doctype html><div id=root></div>", { url: "http://localhost/" });
globalThis.window = dom.window;
globalThis.document = dom.window.document;
Object.defineProperty(globalThis, "navigator", { value: dom.window.navigator, configurable: true });
globalThis.IS_REACT_ACT_ENVIRONMENT = false;

const { createElement, useEffect } = await import("react");
const { createRoot } = await import("react-dom/client");
const { useStream } = await import(`${library}/react`);

const told = { custom: [], metadata: 0, errors: [] };
let stream;

function Page({ threadId }) {
  stream = useStream({
    apiUrl,
    apiKey: null,
    assistantId: "agent",
    messagesKey: "messages",
    threadId,
    fetchStateHistory: true,
    reconnectOnMount: true,
    defaultHeaders: { case: threadId ?? "" },
    onCustomEvent: (data) => told.custom.push(data.event),
    onMetadataEvent: () => (told.metadata += 1),
    onError: (error) => told.errors.push(String(error)),
  });
  useEffect(() => {});
  return createElement("ul", null, stream.messages.map((one, at) => createElement("li", { key: one.id ?? at }, shown(one))));
}

const shown = (one) => `${one.type ?? one.getType()}: ${typeof one.content === "string" ? one.content : JSON.stringify(one.content)}`;
const lines = () => [...document.querySelectorAll("li")].map((line) => line.textContent);

async function until(condition, what) {
  for (let turn = 0; turn < 2000; turn += 1) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`waited in vain until ${what}: ${JSON.stringify({ lines: lines(), told })}`);
}

const { threadId, says, joins, regenerates } = JSON.parse(script);
const root = createRoot(document.getElementById("root"));
if (joins) window.sessionStorage.setItem(`lg:stream:${threadId}`, joins);
root.render(createElement(Page, { threadId }));
await until(() => stream && !stream.isThreadLoading, "the thread is there");
if (joins) await until(() => !stream.isLoading && lines().length > 1, "the run is over");
for (const content of says ?? []) {
  const before = lines().length;
  stream.submit({ messages: [{ type: "human", content }] }, { streamMode: ["messages-tuple"] });
  await until(() => !stream.isLoading && lines().length >= before + 2, "it is answered");
}
let branches = 0;
if (regenerates) {
  const last = stream.messages.at(-1);
  const meta = stream.getMessagesMetadata(last);
  stream.submit(undefined, { checkpoint: meta.firstSeenState.parent_checkpoint, streamMode: ["messages-tuple"] });
  await until(() => !stream.isLoading && stream.messages.at(-1)?.id !== last.id && stream.messages.length > 1, "there is another answer");
  await until(() => (stream.getMessagesMetadata(stream.messages.at(-1))?.branchOptions ?? []).length === 2, "there are two branches");
  branches = stream.getMessagesMetadata(stream.messages.at(-1)).branchOptions.length;
}
console.log(JSON.stringify({ lines: lines(), branches, history: stream.history.length, ...told }));
process.exit(0);
