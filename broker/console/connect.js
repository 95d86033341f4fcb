// Connect your client: a few lines for each ecosystem whose clients are served as they are (docs/DIALECTS.md).

import { ask } from "./dialog.js";
import { fill, h } from "./dom.js";

/** name, what it is, lines that run as they stand. `BASE` is this server, NONCE a new key. */
const CLIENTS = [
  ["OpenAI: Responses (Python)", "Resumes by starting_after. Also openai for JavaScript, openai-agents, LiteLLM.", [
    "from openai import OpenAI",
    'client = OpenAI(base_url="BASE/v1", api_key="none")',
    'stream = client.responses.create(model="gpt-5-mini", input="Hello", stream=True, background=True)',
    "for event in stream:",
    '    print(event.sequence_number, event.type, getattr(event, "delta", ""))',
    "# cut? client.responses.retrieve(response_id, stream=True, starting_after=last_sequence_number)",
  ]],
  ["OpenAI: Chat Completions (Python)", "The same Idempotency-Key again is the same answer, from its beginning.", [
    "from openai import OpenAI",
    'client = OpenAI(base_url="BASE/v1", api_key="none")',
    'asked = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello"}], "stream": True}',
    'for chunk in client.chat.completions.create(**asked, extra_headers={"Idempotency-Key": "NONCE"}):',
    '    print(chunk.choices[0].delta.content or "", end="")',
  ]],
  ["Anthropic: Messages (Python)", "The same Idempotency-Key again is the same answer, from its beginning.", [
    "from anthropic import Anthropic",
    'client = Anthropic(base_url="BASE", api_key="none")',
    'asked = {"model": "claude-sonnet-5-5", "max_tokens": 1000, "messages": [{"role": "user", "content": "Hello"}]}',
    'with client.messages.stream(**asked, extra_headers={"Idempotency-Key": "NONCE"}) as stream:',
    "    for text in stream.text_stream:",
    '        print(text, end="")',
  ]],
  ["AI SDK: useChat", "/api/chat is an endpoint of your own, which adds the key and passes on.", [
    'import { useChat } from "@ai-sdk/react";',
    'import { DefaultChatTransport } from "ai";',
    'const transport = new DefaultChatTransport({ api: "/api/chat" });',
    "const { messages, sendMessage } = useChat({ id, resume: true, transport }); // in a component; id: the chat's",
    "// your endpoint passes POST /api/chat on to BASE/v1/ai-sdk/chat,",
    "// and GET /api/chat/<id>/stream to BASE/v1/ai-sdk/chat/<id>/stream",
  ]],
  ["AI SDK: WorkflowChatTransport", "Reconnects by itself. /api/workflow is an endpoint of your own, which adds the key.", [
    'import { useChat } from "@ai-sdk/react";',
    'import { WorkflowChatTransport } from "@ai-sdk/workflow";',
    'const transport = new WorkflowChatTransport({ api: "/api/workflow" });',
    "const { messages, sendMessage } = useChat({ id, transport }); // in a component; id: the chat's",
    "// your endpoint passes POST /api/workflow on to BASE/v1/ai-sdk/workflow,",
    "// and GET /api/workflow/<id>/stream to BASE/v1/ai-sdk/workflow/<id>/stream",
  ]],
  ["AG-UI", "From a back end. A page asks an endpoint of your own, which adds the key. Also TanStack AI.", [
    'import { HttpAgent } from "@ag-ui/client";',
    'const agent = new HttpAgent({ url: "BASE/v1/ag-ui", headers: { Authorization: "Bearer none" } });',
    'agent.addMessage({ id: "1", role: "user", content: "Hello" });',
    "await agent.runAgent();",
    "console.log(agent.messages.at(-1).content);",
  ]],
  ["LangGraph SDK (Python)", "Reconnects by itself. useStream asks an endpoint of your own, which adds the key.", [
    "from langgraph_sdk import get_sync_client",
    'client = get_sync_client(url="BASE/langgraph", api_key="none")',
    'thread, asked = client.threads.create(), {"messages": [{"role": "user", "content": "Hello"}]}',
    'for part in client.runs.stream(thread["thread_id"], "agent", input=asked, stream_mode="messages-tuple"):',
    "    print(part.event, part.data)",
  ]],
  ["Durable Streams", "Streams of your own, under any path. Any answer is BASE/v1/ds/events/<its id>, to read.", [
    'import { DurableStream, stream } from "@durable-streams/client";',
    'const [url, headers] = ["BASE/v1/ds/rooms/kitchen", { Authorization: "Bearer none" }];',
    'const room = await DurableStream.create({ url, headers, contentType: "application/json" });',
    'await room.append(JSON.stringify({ said: "Hello" }));',
    'const all = await stream({ url, headers, offset: "-1", live: "sse" });',
    "all.subscribeJson(({ items, offset }) => console.log(items, offset));",
  ]],
];

export function connect() {
  const lines = h("pre", { class: "connect-lines", tabindex: "0", "aria-label": "Code" });
  const note = h("p", { class: "dialog-text" });
  const choice = h("select", { "aria-label": "Client" }, CLIENTS.map(([name]) => h("option", {}, name)));
  const copy = h("button", { type: "button", "aria-live": "polite", onclick: () => copied() }, "Copy");
  const said = (text) => text.replaceAll("BASE", location.origin);
  const id = crypto.getRandomValues(new Uint32Array(2)).join("-"); // randomUUID is not there without TLS
  async function copied() {
    try {
      await navigator.clipboard.writeText(lines.textContent);
      fill(copy, "Copied");
    } catch { // a page without TLS has no clipboard
      getSelection().selectAllChildren(lines);
      fill(copy, "Selected");
    }
  }
  const show = () => {
    const [, about, code] = CLIENTS[choice.selectedIndex];
    fill(copy, "Copy");
    fill(note, said(about));
    fill(lines, said(code.join("\n")).replaceAll("NONCE", `${choice.selectedIndex}-${id}`));
  };
  choice.addEventListener("change", show);
  show();
  const text = "Clients that you already have are served as they are, from the same log: docs/DIALECTS.md.";
  const key = "If this server asks for a key, put an API key in the place of “none”. It belongs in no page.";
  const content = [h("p", {}, text), choice, note, h("p", { class: "dialog-text" }, key), lines, copy];
  return ask("Connect your client", content, { confirm: "Close" });
}
