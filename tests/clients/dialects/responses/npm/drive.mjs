// Jobs, one a line of standard input, for clients as npm has them; what each made of it, one a line of standard output.
import { createInterface } from "node:readline";
import OpenAI from "openai";

const clientOf = ({ url, key = "any", case: name }) =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, defaultHeaders: { case: name } });

// Reads until it is cut, and goes on behind the last event that it has, as an app does it.
async function follow({ id, ...job }) {
  const client = clientOf(job);
  const events = [];
  let cuts = 0;
  for (;;) {
    const last = events.at(-1)?.sequence_number;
    try {
      const after = last === undefined ? {} : { starting_after: last };
      for await (const event of await client.responses.retrieve(id, { stream: true, ...after })) events.push(event);
      return { events, cuts };
    } catch (error) {
      if (++cuts > 5) throw error;
    }
  }
}

// The helper fetches all of it, and shows what is behind the number.
async function helper({ id, after, ...job }) {
  const stream = clientOf(job).responses.stream({ response_id: id, starting_after: after });
  const numbers = [];
  for await (const event of stream) numbers.push(event.sequence_number);
  const response = await stream.finalResponse();
  return { numbers, status: response.status, text: response.output_text };
}

// The AI SDK, whose second step refers to what the first one said.
async function steps({ url, prompt, model = "gpt-5-mini", streams, options }) {
  const { generateText, streamText, stepCountIs, tool } = await import("ai");
  const { createOpenAI } = await import("@ai-sdk/openai");
  const { z } = await import("zod");
  const ran = [];
  const execute = async ({ city }) => {
    ran.push(city);
    return `sunny in ${city}`;
  };
  const weather = tool({ inputSchema: z.object({ city: z.string() }), execute });
  const asked = {
    model: createOpenAI({ baseURL: `${url}/v1`, apiKey: "any" }).responses(model),
    prompt,
    tools: { weather },
    stopWhen: stepCountIs(3),
    maxRetries: 0,
    providerOptions: { openai: options ?? {} },
  };
  if (!streams) {
    const { text, finishReason, totalUsage } = await generateText(asked);
    return { ran, text, finishReason, tokens: totalUsage.totalTokens };
  }
  const errors = [];
  const answer = streamText({ ...asked, onError: ({ error }) => errors.push(error.message) });
  await answer.consumeStream();
  const [text, finishReason, reasoning] = await Promise.all([answer.text, answer.finishReason, answer.reasoningText]);
  return { ran, text, finishReason, reasoning, errors };
}

const jobs = { follow, helper, steps };
const running = [];
for await (const line of createInterface({ input: process.stdin })) {
  const { client, ...job } = JSON.parse(line);
  const told = jobs[client](job).catch((error) => ({ failed: `${error.name}: ${error.message}` }));
  running.push(told.then((result) => console.log(JSON.stringify({ case: job.case, ...result }))));
}
await Promise.all(running);
