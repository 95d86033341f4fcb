// Reads a stream with the npm package `eventsource`, unmodified, and writes what it is given, a JSON object a line.
import { EventSource } from "eventsource";

const kinds = ["queued", "start", "thinking_delta", "text_delta", "restart", "done", "cancelled"];
const source = new EventSource(process.argv[2]);
const write = (line) => process.stdout.write(JSON.stringify(line) + "\n");
setInterval(() => {}, 1000);  // without it the process would end while `eventsource` waits to reconnect

for (const kind of kinds) {
  source.addEventListener(kind, (event) => write({ id: event.lastEventId, kind, data: JSON.parse(event.data) }));
}
source.addEventListener("open", () => write({ open: true }));
source.addEventListener("error", (event) => write({ error: event.code ?? null, closed: source.readyState === source.CLOSED }));
