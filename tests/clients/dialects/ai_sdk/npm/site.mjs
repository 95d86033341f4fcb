// The site of docs/DIALECTS.md: its endpoint (endpoint.mjs) and its page (page.js, bundled). Tells its port.

import { readFile } from "node:fs/promises";

import { serve } from "@hono/node-server";
import { Hono } from "hono";

import { GET, POST, stop } from "./endpoint.mjs";

const site = new Hono();
const chat = (context) => ({ params: Promise.resolve(context.req.param()) }); // as Next.js gives it
site.get("/", (context) => context.html("<!doctype html><div id=root></div><script type=module src=/page.js></script>"));
site.get("/page.js", async (context) => {
  return context.body(await readFile("page.js"), 200, { "content-type": "text/javascript" });
});
site.post("/api/chat", (context) => POST(context.req.raw));
site.get("/api/chat/:id/stream", (context) => GET(context.req.raw, chat(context)));
site.post("/api/chat/:id/stop", (context) => stop(context.req.raw, chat(context)));

serve({ fetch: site.fetch, port: 0, hostname: "127.0.0.1" }, ({ port }) => console.log(port));
