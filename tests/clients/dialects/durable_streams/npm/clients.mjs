// The clients of Durable Streams in Node: cases in (JSON lines), what each client made of its case out (JSON lines).
//
// A case is {case, client, url, key, …}. `client`:
// read   {live}: a stream from its beginning to its end, by batches; behind a cut again, from the last batch's offset
// write  {messages}: to a new stream, numbered, one request each, and then the end; its last offset
// chat   {text, api}: an answer, through the AI SDK's transport; its chunks
// Its requests say in the header `case` whose they are: the proxy cuts by that.

import { createInterface } from "node:readline";

import { createDurableChatTransport } from "@durable-streams/aisdk-transport";
import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client";

const MAX_TRIES = 20;
const PATIENCE_MS = 5000;

console.error = console.warn = () => {}; // of each cut, the client tells

const tell = (said) => process.stdout.write(`${JSON.stringify(said)}\n`);

async function read({ case: name, url, key, live }) {
  const items = [];
  let offset = "-1";
  for (let tries = 0; tries < MAX_TRIES; tries += 1) {
    try {
      const headers = { case: name, Authorization: `Bearer ${key}` };
      const response = await stream({ url, offset, live, json: true, headers });
      const isOver = await new Promise((resolve, reject) => {
        response.subscribeJson((batch) => {
          items.push(...batch.items);
          offset = batch.offset; // not the response's, which is ahead of what it has given
          if (batch.streamClosed) resolve(true);
        });
        response.closed.then(() => {
          if (response.streamClosed && response.offset === offset) resolve(true); // there was nothing but the end
          else setTimeout(resolve, PATIENCE_MS); // batches come behind that
        }, reject);
      });
      if (isOver) return { items, offset };
    } catch {
      // As an app does it: from where it stands.
    }
  }
  throw new Error("it never saw the end");
}

async function write({ case: name, url, key, messages }) {
  const headers = { case: name, Authorization: `Bearer ${key}` };
  const handle = await DurableStream.create({ url, headers, contentType: "application/json" });
  const producer = new IdempotentProducer(handle, "writer", { lingerMs: 0, maxBatchBytes: 1, maxInFlight: 4 });
  for (const message of messages) {
    producer.append(JSON.stringify(message));
    await producer.flush();
  }
  const closed = await producer.close();
  return { offset: closed.finalOffset };
}

async function chat({ case: name, key, api, text }) {
  const headers = { case: name, Authorization: `Bearer ${key}` };
  const transport = createDurableChatTransport({ api, headers });
  const messages = [{ id: "1", role: "user", parts: [{ type: "text", text }] }];
  const sent = await transport.sendMessages({ trigger: "submit-message", chatId: name, messages });
  const chunks = [];
  for await (const chunk of sent) chunks.push(chunk);
  const active = await transport.reconnectToStream({ chatId: name });
  return { chunks, active: active !== null };
}

const clients = { read, write, chat };

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  clients[asked.client](asked).then(
    (said) => tell({ case: asked.case, ...said }),
    (error) => tell({ case: asked.case, failed: String(error?.stack ?? error) }),
  );
}
