// A route handler as Next.js takes it (docs/CLIENTS.md), called as it calls one: `node route.mjs start '{"prompt": …}'`.
import { start } from "lastevent";
import { GET, POST } from "./app/api/chat/[[...at]]/route.js";
import { env } from "./native-trials.mjs";

const next = (path, { headers, ...init } = {}) => {
  const request = new Request(new URL(path, "http://app"), { ...init, headers: { ...headers, "x-user": "ann" } });
  return (request.method === "POST" ? POST : GET)(request, { params: Promise.resolve({}) });
};

const trials = {
  async start({ prompt }) {
    const stream = start({ url: "/api/chat", body: { prompt }, fetch: next, env });
    const ids = [];
    for await (const { id } of stream) ids.push(id);
    const { text, state } = await stream.finished;
    return { ids, text, state, url: stream.url };
  },

  /** A page that starts by the endpoint, and follows at the server. */
  async token({ prompt }) {
    const { token } = await import("./token.js");
    const { ask } = await import("./ask.js");
    const { fetch } = globalThis;
    globalThis.fetch = (url, init) => {
      if (!String(url).startsWith("/")) return fetch(url, init);
      return url === "/api/token" ? token(new Request("http://app/api/token", { headers: { "x-user": "ann" } })) : next(url, init);
    };
    const stream = await ask(prompt, null, "chat");
    const { text, state } = await stream.finished;
    return { text, state, url: stream.url };
  },

  /** Both ways to leave a body. */
  async leave({ path }) {
    const controller = new AbortController();
    const { body } = await next(path, { signal: controller.signal });
    await body.getReader().read();
    const other = await next(path);
    await other.body.cancel();
    controller.abort();
    return {};
  },

  async used({ path }) {
    const { forward } = await import("lastevent/server");
    const request = new Request("http://app/api/chat", { method: "POST", body: "{}" });
    await request.text();
    const { LASTEVENT_URL: server, LASTEVENT_API_KEY: key } = process.env;
    return forward(request, { server, key, path }).then(() => null, ({ name, message }) => ({ name, message }));
  },

  /** What becomes of a request, by method and path. */
  async paths({ asked }) {
    const { forward } = await import("lastevent/server");
    const { LASTEVENT_URL: server, LASTEVENT_API_KEY: key } = process.env;
    const said = [];
    for (const [method, path, url = "http://app/api/chat"] of asked) {
      const body = method === "POST" ? "{}" : null;
      const answer = await forward(new Request(url, { method, body }), { server, key, path: path ?? undefined });
      said.push([answer.status, (await answer.json()).code]);
    }
    return said;
  },
};

const [, , name, options] = process.argv;
console.log(JSON.stringify(await trials[name](JSON.parse(options))));
setInterval(() => {}, 1000); // until it is killed
