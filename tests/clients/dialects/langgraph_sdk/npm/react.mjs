// React's useStream, in pages of jsdom: what a person says in each, one after the other, and what is shown in the end.
import { JSDOM } from "jsdom";

const [library, apiUrl, scripts] = process.argv.slice(2);
const dom = new JSDOM("<!doctype html><div id=root></div>", { url: "http://localhost/" });
globalThis.window = dom.window;
globalThis.document = dom.window.document;
Object.defineProperty(globalThis, "navigator", { value: dom.window.navigator, configurable: true });
globalThis.IS_REACT_ACT_ENVIRONMENT = false;

const { createElement } = await import("react");
const { createRoot } = await import("react-dom/client");
const { useStream } = await import(`${library}/react`);

let told;
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

async function visit({ threadId, says, joins, regenerates }) {
  told = { custom: [], metadata: 0, errors: [] };
  stream = undefined;
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
  const about = () => stream.getMessagesMetadata(stream.messages.at(-1));
  if (regenerates) {
    const { id } = stream.messages.at(-1);
    const { parent_checkpoint: checkpoint } = about().firstSeenState;
    stream.submit(undefined, { checkpoint, streamMode: ["messages-tuple"] });
    const isAnother = () => stream.messages.length > 1 && stream.messages.at(-1).id !== id;
    await until(() => !stream.isLoading && isAnother(), "there is another answer");
    await until(() => about()?.branchOptions?.length === 2, "there are two branches");
  }
  const seen = { lines: lines(), branches: about()?.branchOptions?.length ?? 0, history: stream.history.length, ...told };
  root.unmount();
  return seen;
}

const seen = [];
for (const script of JSON.parse(scripts)) seen.push(await visit(script));
console.log(JSON.stringify(seen));
process.exit(0);
