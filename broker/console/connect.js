// "Connect your client": three lines for each ecosystem whose clients are served as they are (docs/DIALECTS.md).

import { ask } from "./dialog.js";
import { fill, h } from "./dom.js";

/** name, what it is, three lines. `BASE` stands for this server; KEY for an API key, which belongs in no page. */
const CLIENTS = [
  ["OpenAI: Responses (Python)", "Resumes by starting_after. Also openai for JavaScript, openai-agents, LiteLLM.", [
    'client = OpenAI(base_url="BASE/v1", api_key=KEY)',
    'stream = client.responses.create(model=MODEL, input="Hello", stream=True, background=True)',
    "# cut? client.responses.retrieve(response_id, stream=True, starting_after=last_sequence_number)",
  ]],
  ["OpenAI: Chat Completions (Python)", "The same Idempotency-Key again continues with the same answer.", [
    'client = OpenAI(base_url="BASE/v1", api_key=KEY)',
    'hello = [{"role": "user", "content": "Hello"}]',
    'client.chat.completions.create(model=MODEL, messages=hello, stream=True, extra_headers={"Idempotency-Key": ID})',
  ]],
  ["Anthropic: Messages (Python)", "The same Idempotency-Key again continues with the same answer.", [
    'client = Anthropic(base_url="BASE", api_key=KEY)',
    'hello = [{"role": "user", "content": "Hello"}]',
    'client.messages.stream(model=MODEL, max_tokens=1000, messages=hello, extra_headers={"Idempotency-Key": ID})',
  ]],
  ["AI SDK: useChat", "/api/chat is your own endpoint, which adds the key and passes on.", [
    'const transport = new DefaultChatTransport({ api: "/api/chat" });',
    "const { messages, sendMessage } = useChat({ id, resume: true, transport });",
    "// in your endpoint: POST BASE/v1/ai-sdk/chat and GET BASE/v1/ai-sdk/chat/<id>/stream",
  ]],
  ["AI SDK: WorkflowChatTransport", "Reconnects by itself, by the number of chunks that it has.", [
    'const transport = new WorkflowChatTransport({ api: "/api/workflow" });',
    "const { messages, sendMessage } = useChat({ id, transport });",
    "// in your endpoint: POST BASE/v1/ai-sdk/workflow and GET BASE/v1/ai-sdk/workflow/<id>/stream",
  ]],
  ["AG-UI", "Also CopilotKit's runtime, whose agents are AG-UI.", [
    'const agent = new HttpAgent({ url: "BASE/v1/ag-ui", headers: { Authorization: `Bearer ${KEY}` } });',
    'agent.addMessage({ id: crypto.randomUUID(), role: "user", content: "Hello" });',
    "await agent.runAgent();",
  ]],
  ["LangGraph SDK (Python)", "Reconnects by itself. useStream takes BASE/langgraph as its apiUrl.", [
    'client = get_client(url="BASE/langgraph", api_key=KEY)',
    'hello = {"messages": [{"role": "user", "content": "Hello"}]}',
    'async for part in client.runs.stream(thread_id, "agent", input=hello, stream_mode="messages-tuple"): ...',
  ]],
  ["Durable Streams", "Any stream, by its id; and streams of your own under any other path.", [
    'import { stream } from "@durable-streams/client";',
    "const events = await stream({ url: `BASE/v1/ds/events/${id}`, headers: { Authorization: `Bearer ${KEY}` } });",
    "for await (const event of events.jsonStream()) console.log(event);",
  ]],
];

export function connect() {
  const lines = h("pre", { class: "connect-lines", tabindex: "0", "aria-label": "Three lines" });
  const note = h("p", { class: "dialog-text" });
  const choice = h("select", { "aria-label": "Client" }, CLIENTS.map(([name]) => h("option", {}, name)));
  const copy = h("button", { type: "button", onclick: () => navigator.clipboard?.writeText(lines.textContent) }, "Copy");
  const show = () => {
    const [, about, code] = CLIENTS[choice.selectedIndex];
    fill(note, about);
    fill(lines, code.join("\n").replaceAll("BASE", location.origin));
  };
  choice.addEventListener("change", show);
  show();
  const text = "Clients that you already have are served as they are, from the same log: docs/DIALECTS.md.";
  return ask("Connect your client", [h("p", {}, text), choice, note, lines, copy], { confirm: "Close" });
}
