// Clients that speak Chat Completions or Messages: cases in (JSON lines), what each made of its case out (JSON lines).
//
// A case is {case, client, url, key, prompt, asks}. A client asks up to `asks` times, with the same Idempotency-Key, until
// it has a whole answer: that is what docs/DIALECTS.md tells an app to do. Its requests say in the header `case` whose
// they are: the proxy cuts by that.

import { createInterface } from "node:readline";

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { isStepCount, jsonSchema, streamText, tool } from "ai";
import OpenAI from "openai";

globalThis.AI_SDK_LOG_WARNINGS = false;

const MODEL = "anthropic/claude-sonnet-5-5";
const SCHEMA = { type: "object", properties: { city: { type: "string" } } };
const ABOUT = "The weather of a city";

const tell = (said) => process.stdout.write(`${JSON.stringify(said)}\n`);
const headersOf = ({ case: name, key }) => ({ case: name, "Idempotency-Key": key });

const chatBody = ({ prompt }) => ({
  model: MODEL,
  messages: [{ role: "user", content: prompt }],
  tools: [{ type: "function", function: { name: "get_weather", description: ABOUT, parameters: SCHEMA } }],
  reasoning_effort: "low",
  stream_options: { include_usage: true },
});

function chat(told) {
  const client = new OpenAI({ baseURL: `${told.url}/v1`, apiKey: "none" });
  return [client.chat.completions, { headers: headersOf(told) }];
}

async function openaiChunks(told) {
  const [completions, options] = chat(told);
  const said = { id: null, text: "", thinking: "", calls: [], finish: null, usage: null };
  for await (const chunk of await completions.create({ ...chatBody(told), stream: true }, options)) {
    said.id = chunk.id;
    said.usage = chunk.usage ?? said.usage;
    for (const { delta, finish_reason } of chunk.choices) {
      said.text += delta.content ?? "";
      said.thinking += delta.reasoning_content ?? "";
      said.finish = finish_reason ?? said.finish;
      for (const { index, id, function: called } of delta.tool_calls ?? []) {
        const call = (said.calls[index] ??= { id, name: called.name, args: "" });
        call.args += called.arguments;
      }
    }
  }
  return { ...said, usage: said.usage && counted(said.usage) };
}

async function openaiHelper(told) {
  const [completions, options] = chat(told);
  return ofCompletion(await completions.stream(chatBody(told), options).finalChatCompletion());
}

async function openaiWhole(told) {
  const [completions, options] = chat(told);
  const { stream_options, ...body } = chatBody(told);
  return ofCompletion(await completions.create(body, options));
}

function ofCompletion({ id, choices: [{ message, finish_reason }], usage }) {
  const calls = (message.tool_calls ?? []).map(({ id, function: called }) => ({
    id,
    name: called.name,
    args: called.arguments,
  }));
  const thinking = message.reasoning_content ?? null; // which the SDK's helper does not gather
  return { id, text: message.content ?? "", thinking, calls, finish: finish_reason, usage: usage && counted(usage) };
}

const counted = ({ prompt_tokens, completion_tokens }) => [prompt_tokens, completion_tokens];

const messagesBody = ({ prompt }) => ({
  model: MODEL,
  max_tokens: 5000,
  messages: [{ role: "user", content: prompt }],
  tools: [{ name: "get_weather", description: ABOUT, input_schema: SCHEMA }],
  thinking: { type: "enabled", budget_tokens: 2000 },
});

function messages(told) {
  const client = new Anthropic({ baseURL: told.url, apiKey: "none" });
  return [client.messages, { headers: headersOf(told) }];
}

async function anthropicHelper(told) {
  const [calls, options] = messages(told);
  return ofMessage(await calls.stream(messagesBody(told), options).finalMessage());
}

async function anthropicWhole(told) {
  const [calls, options] = messages(told);
  return ofMessage(await calls.create(messagesBody(told), options));
}

function ofMessage({ id, content, stop_reason, usage }) {
  const joined = (type, field) => content.filter((block) => block.type === type).map((block) => block[field]).join("");
  const calls = content
    .filter(({ type }) => type === "tool_use")
    .map(({ id, name, input }) => ({ id, name, args: JSON.stringify(input) }));
  const said = { text: joined("text", "text"), thinking: joined("thinking", "thinking"), calls };
  return { id, ...said, finish: stop_reason, usage: [usage.input_tokens, usage.output_tokens] };
}

const aiSdk = (modelOf, options) => async (told) => {
  const errors = [];
  const { act } = told;
  const result = streamText({
    model: modelOf(told),
    prompt: told.prompt,
    maxRetries: 0,
    tools: {
      get_weather: tool({
        description: ABOUT,
        inputSchema: jsonSchema(SCHEMA),
        execute: act && (() => act),
      }),
    },
    stopWhen: isStepCount(3),
    onError: ({ error }) => errors.push(error),
    ...options,
  });
  await result.consumeStream({ onError: (error) => errors.push(error) });
  if (errors.length) throw errors[0];
  const calls = (await result.toolCalls).map(({ toolCallId, toolName, input }) => ({
    id: toolCallId,
    name: toolName,
    args: JSON.stringify(input),
  }));
  const usage = await result.totalUsage;
  return {
    id: (await result.response).id,
    text: await result.text,
    thinking: (await result.reasoningText) ?? "",
    calls,
    finish: await result.finishReason,
    usage: [usage.inputTokens, usage.outputTokens],
    steps: (await result.steps).length,
  };
};

const compatible = (told) =>
  createOpenAICompatible({
    name: "lastevent",
    baseURL: `${told.url}/v1`,
    headers: told.act ? { case: told.case } : headersOf(told),
    includeUsage: true,
  })(MODEL);
const anthropics = (told) =>
  createAnthropic({
    baseURL: `${told.url}/v1`,
    apiKey: "none",
    headers: told.act ? { case: told.case } : headersOf(told),
  })(MODEL);

const CLIENTS = {
  "openai-js": openaiChunks,
  "openai-js-helper": openaiHelper,
  "openai-js-whole": openaiWhole,
  "anthropic-js": anthropicHelper,
  "anthropic-js-whole": anthropicWhole,
  "ai-sdk-compatible": aiSdk(compatible, { providerOptions: { lastevent: { reasoningEffort: "low" } } }),
  "ai-sdk-anthropic": aiSdk(anthropics, {
    maxOutputTokens: 5000,
    providerOptions: { anthropic: { thinking: { type: "enabled", budgetTokens: 2000 } } },
  }),
};

// Where a proxy takes a cut for a proper end, most clients see nothing wrong: what a whole answer ends with tells. The AI
// SDK says `interrupted`.
const isWhole = ({ finish, usage }) => finish && finish !== "interrupted" && usage && usage.every(Number.isInteger);

async function run(told) {
  const errors = [];
  for (let asks = 0; asks < told.asks; asks++) {
    try {
      const said = await CLIENTS[told.client](told);
      if (isWhole(said)) return tell({ case: told.case, ...said, errors });
      errors.push({ message: "the answer ended early" });
    } catch (error) {
      errors.push({ status: error.status, code: error.code ?? error.error?.code, message: `${error.message ?? JSON.stringify(error)}` });
    }
  }
  tell({ case: told.case, errors });
}

for await (const line of createInterface({ input: process.stdin })) {
  run(JSON.parse(line)).catch((error) => tell({ case: JSON.parse(line).case, failed: `${error.stack ?? error}` }));
}
