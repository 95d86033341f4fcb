// The suite of @durable-streams/server-conformance-tests as it is; its own command finds no test in an install.
// BASE: where streams are. KEY: what each request is sent with. TIMEOUT_S: of a long poll, if not the server's own.

import { runConformanceTests } from "@durable-streams/server-conformance-tests";

const { BASE, KEY, TIMEOUT_S } = process.env;
const send = globalThis.fetch;

globalThis.fetch = (address, init = {}) => {
  const url = new URL(address);
  const headers = new Headers(init.headers);
  headers.set("Authorization", `Bearer ${KEY}`);
  if (TIMEOUT_S && url.searchParams.get("live") === "long-poll") {
    url.searchParams.set("timeout", TIMEOUT_S);
  }
  return send(url, { ...init, headers });
};

runConformanceTests({ baseUrl: BASE, longPollTimeoutMs: 20_000 });
