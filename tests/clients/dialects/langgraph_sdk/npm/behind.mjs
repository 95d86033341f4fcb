// The endpoint of docs/DIALECTS.md (endpoint.mjs) on Node's own server, and a thread's life behind it.
import { createServer } from "node:http";
import { once } from "node:events";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { GET, POST } from "./endpoint.mjs";

const server = createServer(async (request, response) => {
  const { method, url, headers } = request;
  const body = method === "POST" ? Readable.toWeb(request) : undefined;
  const asked = new Request(`http://${headers.host}${url}`, { method, headers, body, duplex: "half" });
  const { status, headers: told, body: answer } = await (method === "POST" ? POST : GET)(asked);
  response.writeHead(status, Object.fromEntries([...told].filter(([name]) => name !== "transfer-encoding")));
  if (answer) await pipeline(Readable.fromWeb(answer), response).catch(() => {});
  else response.end();
});
server.listen(0, "127.0.0.1");
await once(server, "listening");
process.argv[3] = `http://127.0.0.1:${server.address().port}/api/langgraph`;
await import("./story.mjs");
process.exit(0);
