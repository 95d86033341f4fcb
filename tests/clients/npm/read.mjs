// Reads a stream with the npm package `eventsource`, unmodified, and writes what it is given, a JSON object a line.
// It ends when the client itself gives up reconnecting, which is what the server's 204 after the end makes it do.
import { EventSource } from "eventsource";

const kinds = ["queued", "start", "thinking_delta", "text_delta", "restart", "done", "cancelled"];
const source = new EventSource(process.argv[2]);
const write = (line) => process.stdout.write(JSON.stringify(line) + "\n");

for (const kind of kinds) {
  source.addEventListener(kind, (event) => write({ id: event.lastEventId, kind, data: JSON.parse(event.data) }));
}
source.addEventListener("open", () => write({ open: true }));
source.addEventListener("error", (event) => write({ error: event.code ?? null, closed: source.readyState === source.CLOSED }));
