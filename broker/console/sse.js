// The two wire forms of a log, chunk by chunk: Server-Sent Events (WHATWG HTML, section 9.2) and NDJSON.

/** Calls onMessage({id, event, data}) for each complete frame and onRetry(ms). An incomplete frame is ignored. */
export class SseDecoder {
  #lines = new LineSplitter();
  #data = [];
  #event = "";
  #id = null;

  constructor(onMessage, onRetry) {
    this.onMessage = onMessage;
    this.onRetry = onRetry;
  }

  push(chunk) {
    for (const line of this.#lines.push(chunk)) this.#take(line);
  }

  #take(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#event = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "retry" && /^[0-9]+$/.test(value)) this.onRetry(Number(value));
  }

  #dispatch() {
    if (this.#data.length > 0) {
      const data = JSON.parse(this.#data.join("\n"));
      const id = this.#id === null ? null : Number(this.#id);
      this.onMessage({ id, event: this.#event || "message", data });
    }
    this.#data = [];
    this.#event = "";
    this.#id = null; // in this broker, an event without an id is a notice and leaves the cursor unchanged
  }
}

/** Calls onMessage with each line's object; empty lines are heartbeats. */
export class NdjsonDecoder {
  #lines = new LineSplitter();

  constructor(onMessage) {
    this.onMessage = onMessage;
  }

  push(chunk) {
    for (const line of this.#lines.push(chunk)) if (line) this.onMessage(JSON.parse(line));
  }
}

/** Splits chunks, which may end anywhere, into whole lines that end with LF, CR or CRLF. */
class LineSplitter {
  #rest = "";

  push(chunk) {
    let text = this.#rest + chunk;
    // A CR at the end may be half of a CRLF: it waits for the next chunk.
    const waits = text.endsWith("\r") ? "\r" : "";
    if (waits) text = text.slice(0, -1);
    const lines = text.split(/\r\n|\n|\r/);
    this.#rest = lines.pop() + waits;
    return lines;
  }
}
