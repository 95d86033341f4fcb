// Runs clients on cases: `node drive.mjs cases.json`, [{"client", "case", "url", "cursor"}, …], all at once. It writes what
// each of them shows, a JSON object a line, and how it ended. A client is a module here: `follow(url, cursor, show)`.
import { readFileSync } from "node:fs";
import { EventSource } from "eventsource";
import { XMLHttpRequest } from "./xhr.mjs";

// What a browser, or React Native, has and Node does not.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
globalThis.EventSource = EventSource;
globalThis.XMLHttpRequest = XMLHttpRequest;


setInterval(() => {}, 1000);  // `eventsource` lets a process end while it waits to reconnect

const write = (line) => process.stdout.write(JSON.stringify(line) + "\n");
await Promise.all(JSON.parse(readFileSync(process.argv[2])).map(async (one) => {
  const [file, name = "follow"] = one.client.split(":");
  const follow = (await import(`./${file}.mjs`))[name];
  try {
    const how = await follow(one.url, one.cursor, (id, kind, data) => write({ case: one.case, id, kind, data }));
    write({ case: one.case, how: how ?? null });
  } catch (error) {
    write({ case: one.case, failed: String(error) });
  }
}));
process.exit(0);
