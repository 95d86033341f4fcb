// The log as NDJSON, which has the time of each event, where Server-Sent Events have none.

/** Calls onMessage with each line's object; empty lines are heartbeats. */
export class NdjsonDecoder {
  #rest = "";

  constructor(onMessage) {
    this.onMessage = onMessage;
  }

  push(chunk) {
    const lines = (this.#rest + chunk).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) if (line) this.onMessage(JSON.parse(line));
  }
}

const COMMENT = ":\n";

/**
 * A response that is followed as NDJSON, as the package takes it: Server-Sent Events. `onLine` is told each line before
 * its event comes. A `gap` is left out: who wants the times shows the events that are left, and not the text.
 */
export function asSse(response, onLine) {
  let frames = "";
  const decoder = new NdjsonDecoder((line) => {
    onLine(line);
    if (line.event !== "gap") frames += frameOf(line);
  });
  const reframe = new TransformStream({
    transform(chunk, out) {
      frames = COMMENT; // for a heartbeat, a sign of life that is no event either
      decoder.push(chunk);
      out.enqueue(frames);
    },
  });
  const body = response.body
    .pipeThrough(new TextDecoderStream())
    .pipeThrough(reframe)
    .pipeThrough(new TextEncoderStream());
  return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
}

const frameOf = ({ id, event, data }) =>
  `${id === undefined ? "" : `id: ${id}\n`}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
