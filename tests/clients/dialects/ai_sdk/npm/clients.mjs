// The AI SDK's clients in Node: cases in (JSON lines), what each client made of its case out (JSON lines).
//
// A case is {case, client, url, chatId, text?, body?, startIndex?, resumes?, tool?, messages?}. `client`: workflow, or chat-5, chat-6,
// chat-7. `text`: it asks that; else it resumes.
// Its requests say in the header `case` whose they are: the proxy cuts by that.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { WorkflowChatTransport } from "@ai-sdk/workflow/client";
import { readUIMessageStream } from "ai";

console.error = console.warn = () => {}; // of each cut, the transport tells

const versions = {};
for (const [version, react] of Object.entries({ 5: "@ai-sdk/react-2", 6: "@ai-sdk/react-3", 7: "@ai-sdk/react" })) {
  const from = createRequire(fileURLToPath(import.meta.resolve(react)));
  const ai = await import(version === "7" ? "ai" : `file://${from.resolve("ai")}`);
  versions[version] = { Chat: (await import(react)).Chat, ...(ai.default ?? ai) };
}

const tell = (said) => process.stdout.write(`${JSON.stringify(said)}\n`);

const answered = {}; // case → how many of its requests have been answered

const named = (name) => async (url, init) => {
  const headers = { ...Object.fromEntries(new Headers(init?.headers)), case: name };
  const answer = await fetch(url, { ...init, headers });
  answered[name] = (answered[name] ?? 0) + 1;
  return answer;
};

async function workflow({ case: name, url, chatId, text, startIndex, body }) {
  const ended = [];
  const transport = new WorkflowChatTransport({
    api: url,
    fetch: named(name),
    onChatEnd: ({ chunkIndex }) => ended.push(chunkIndex),
  });
  const chunks = [];
  const stream = text
    ? await transport.sendMessages({ chatId, messages: [asked(text)], trigger: "submit-message", body: { id: chatId, ...body } })
    : await transport.reconnectToStream({ chatId, startIndex });
  const [told, read] = stream.tee();
  let message;
  const reading = (async () => {
    for await (const state of readUIMessageStream({ stream: read, onError() {} })) message = state;
  })();
  for await (const chunk of told) chunks.push(chunk);
  await reading;
  return { chunks, message, ended };
}

async function chat({ case: name, client, url, chatId, text, resumes = 0, tool, body, messages }) {
  const { Chat, DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls } = versions[client.slice(-1)];
  const seen = { errors: [], data: [], statuses: [], finished: [] };
  const chat = new Chat({
    id: chatId,
    messages,
    transport: new DefaultChatTransport({ api: url, fetch: named(name), body }),
    onError: (error) => seen.errors.push(error.message),
    onData: (part) => seen.data.push(part),
    onFinish: ({ isAbort, isDisconnect, isError, finishReason }) =>
      seen.finished.push({ isAbort, isDisconnect, isError, finishReason }),
    onToolCall({ toolCall }) {
      (seen.calls ??= []).push(toolCall);
      if (tool) chat.addToolOutput({ tool: toolCall.toolName, toolCallId: toolCall.toolCallId, output: tool });
    },
    sendAutomaticallyWhen: tool && lastAssistantMessageIsCompleteWithToolCalls,
  });
  let last = "";
  const watching = setInterval(() => {
    const now = { answered: answered[name], text: textOf(chat.messages.at(-1)) };
    if (last !== (last = JSON.stringify(now))) tell({ case: name, now });
  }, 20);
  for (let asking = 0; asking <= resumes; asking++) {
    if (asking || !text) await chat.resumeStream();
    else await chat.sendMessage({ text });
    seen.statuses.push(chat.status);
  }
  clearInterval(watching);
  return { messages: chat.messages, ...seen };
}

function textOf(message) {
  return message?.role === "assistant" ? message.parts.map((part) => (part.type === "text" ? part.text : "")).join("") : "";
}

function asked(text) {
  return { id: "asked", role: "user", parts: [{ type: "text", text }] };
}

async function run(given) {
  try {
    tell({ case: given.case, ...(await (given.client === "workflow" ? workflow : chat)(given)) });
  } catch (error) {
    tell({ case: given.case, failed: `${error}` });
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  run(JSON.parse(line));
}
