// The site of docs/DIALECTS.md: its endpoints (chats.mjs, runs.mjs) and its page (page.js, bundled). Tells its port.

import { readFile } from "node:fs/promises";

import { serve } from "@hono/node-server";
import { Hono } from "hono";

import * as chats from "./chats.mjs";
import * as runs from "./runs.mjs";

const site = new Hono();
const given = (context) => ({ params: Promise.resolve(context.req.param()) }); // as Next.js gives it
site.get("/", (context) => context.html("<!doctype html><div id=root></div><script type=module src=/page.js></script>"));
site.get("/page.js", async (context) => {
  return context.body(await readFile("page.js"), 200, { "content-type": "text/javascript" });
});
site.post("/api/chat", (context) => chats.POST(context.req.raw));
site.get("/api/chat/:id/stream", (context) => chats.GET(context.req.raw, given(context)));
site.post("/api/chat/:id/stop", (context) => chats.stop(context.req.raw, given(context)));
site.post("/api/workflow", (context) => runs.POST(context.req.raw));
site.get("/api/workflow/:id/stream", (context) => runs.GET(context.req.raw, given(context)));

serve({ fetch: site.fetch, port: 0, hostname: "127.0.0.1" }, ({ port }) => console.log(port));
