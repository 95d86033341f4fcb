// A team's server in Node, whose one route is endpoint.js. It says where it listens.
//
// A body that breaks off must break off here too: as a proper end, HttpAgent would take it for all of the run.

import { createServer } from "node:http";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

import { handle } from "./endpoint.js";

const server = createServer(async (incoming, outgoing) => {
  const leaves = new AbortController();
  outgoing.on("close", () => leaves.abort());
  const hasBody = incoming.method === "POST";
  const request = new Request(`http://127.0.0.1${incoming.url}`, {
    method: incoming.method,
    headers: incoming.headers,
    body: hasBody ? Readable.toWeb(incoming) : undefined,
    duplex: "half",
    signal: leaves.signal,
  });
  const answer = await handle(request);
  outgoing.writeHead(answer.status, { "content-type": answer.headers.get("content-type") });
  await pipeline(Readable.fromWeb(answer.body), outgoing).catch(() => outgoing.destroy());
});
process.on("unhandledRejection", () => {});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
