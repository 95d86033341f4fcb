// Vercel's resumable-stream as its README shows it, in two processes, run where it is installed:
//
//   node resumable_stream.cjs serve PORT     viewers: resumeExistingStream as the body of an SSE answer
//   node resumable_stream.cjs produce        createNewResumableStream of a paced ReadableStream; an agent (load/agent.py)
//
// REDIS_URL in the environment, as the package wants it.
const { createRequire } = require("node:module");
const { createServer } = require("node:http");
const { createInterface } = require("node:readline");

const { createResumableStreamContext } = createRequire(`${process.cwd()}/`)("resumable-stream");

const FIRST_N = 1000000; // with the layout of load/stamp.py
const SLOT_MS = 1;
const SLACK_MS = 50;

function frame(n) {
  const sent = BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n;
  return `id: ${n}\nevent: text_delta\ndata: {"text":"~ a few words of it","sent":${sent},"n":${FIRST_N + n}}\n\n`;
}

function serve(port) {
  const context = createResumableStreamContext({ waitUntil: () => {} });
  createServer(async (request, response) => {
    const stream = await context.resumeExistingStream(request.url.slice(1));
    if (!stream) return response.writeHead(stream === null ? 204 : 404).end();
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.flushHeaders();
    const reader = stream.getReader();
    response.on("close", () => reader.cancel());
    for (let read; !(read = await reader.read()).done; ) {
      if (!response.write(read.value)) await new Promise((resolve) => response.once("drain", resolve));
    }
    response.end();
  }).listen(port, "127.0.0.1", 2048);
}

class Producer {
  context = createResumableStreamContext({ waitUntil: () => {} });
  controllers = [];
  written = 0;
  pace = null;

  async open({ streams }) {
    const opening = [...Array(streams).keys()].map(async (stream) => {
      const make = () => new ReadableStream({ start: (controller) => void (this.controllers[stream] = controller) });
      const body = await this.context.createNewResumableStream(`${stream}`, make);
      const reader = body.getReader(); // the first client's answer, which somebody reads
      (async () => { while (!(await reader.read()).done); })();
      return `/${stream}`;
    });
    return { paths: await Promise.all(opening) };
  }

  async go({ rate, seconds }) {
    this.pace = this.keepPace(rate * this.controllers.length, seconds);
    return {};
  }

  async finish() {
    const share = await this.pace;
    const streams = this.controllers.length;
    const written = this.controllers.map((_, at) => Math.floor(this.written / streams) + (at < this.written % streams));
    return { written, share };
  }

  async keepPace(rate, seconds) {
    const total = Math.round(rate * seconds);
    const began = performance.now();
    while (this.written < total && performance.now() < began + seconds * 1000 + SLACK_MS) {
      const due = Math.min(total, 1 + Math.floor(((performance.now() - began) / 1000) * rate));
      for (; this.written < due; this.written++) {
        const stream = this.written % this.controllers.length;
        this.controllers[stream].enqueue(frame(1 + Math.floor(this.written / this.controllers.length)));
      }
      await new Promise((resolve) => setTimeout(resolve, SLOT_MS));
    }
    return this.written / total;
  }
}

async function produce() {
  const producer = new Producer();
  for await (const line of createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    console.log(JSON.stringify(await producer[asked.do](asked)));
  }
  process.exit();
}

const [role, port] = process.argv.slice(2);
role === "serve" ? serve(Number(port)) : produce();
