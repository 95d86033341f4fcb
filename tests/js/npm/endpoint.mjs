// An endpoint of an app, as docs/CLIENTS.md has it, under one of the frameworks: `node endpoint.mjs hono`. It writes its
// port. The server behind it is $LASTEVENT_URL.
import http from "node:http";

const under = {
  async hono() {
    const { serve } = await import("@hono/node-server");
    const { app } = await import("./hono-app.js");
    return serve({ fetch: app.fetch, port: 0, hostname: "127.0.0.1" });
  },

  async express() {
    const { default: express } = await import("express");
    const { default: compression } = await import("compression");
    const { endpoint } = await import("./express-app.js");
    const app = express();
    app.use(compression({ threshold: 0, filter: () => true }));
    app.all("/api/chat{/*at}", endpoint);
    return http.createServer(app).listen(0, "127.0.0.1");
  },
};

const server = await under[process.argv[2]]();
const written = () => console.log(server.address().port);
if (server.listening) written();
else server.on("listening", written);
