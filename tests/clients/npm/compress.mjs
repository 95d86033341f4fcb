// A proxy as front ends have it in development and in small deployments: compression before http-proxy.
// `node compress.mjs upstream-port`; it writes its own port.
import http from "node:http";
import compression from "compression";
import proxies from "http-proxy";

const proxy = proxies.createProxyServer({ target: `http://127.0.0.1:${process.argv[2]}` });
const compress = compression({ threshold: 0, filter: () => true });
const server = http.createServer((request, response) => compress(request, response, () => proxy.web(request, response)));
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
