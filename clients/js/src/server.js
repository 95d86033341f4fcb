/** For an endpoint of your own: a request goes on to the Lastevent server with your key, and its answer back as it comes. */

/** @import { ForwardOptions } from "./server.js" */

// What those who follow a stream may ask for. A listing or an export is not theirs, whatever the key may do.
const CALLS =
  /^(GET \/v1\/streams\/[\w-]+(\/events|\/text)?|POST \/v1\/streams(\/[\w-]+\/(cancel|input|regenerate|approvals\/[\w-]+))?)$/;
const QUERIES = /^(compact|follow|heartbeat(_s)?|last_event_id|lastEventId)$/;
const ASKED = /^(accept|content-type|idempotency-key|last-event-id)$/;
const SAID = /^(content-type|last-event-id|retry-after)$/;
const UNBUFFERED = { "cache-control": "no-store, no-transform", "x-accel-buffering": "no" };

/**
 * @param {Request} request
 * @param {ForwardOptions} options
 * @returns {Promise<Response>}
 */
export async function forward(request, { server, key, path, location = (id) => `/v1/streams/${id}` }) {
  const { method, body, signal } = request;
  const asked = new URL(request.url);
  const [pathname, query] = (path ?? asked.pathname).split("?");
  if (!CALLS.test(`${method} ${pathname}`)) return problem(404, "not_found");
  if (request.bodyUsed) throw new TypeError("The body was read: forward a new Request");

  const url = new URL(pathname, server);
  copy([...asked.searchParams, ...new URLSearchParams(query)], QUERIES, url.searchParams);
  url.searchParams.set("audience", "public"); // your key may see more of a stream than its users
  const headers = copy(request.headers, ASKED, new Headers({ authorization: `Bearer ${key}` }));
  /** @type {any} */
  const init = { method, headers, body, signal, duplex: "half", redirect: "manual", cache: "no-store" };
  let answer, record;
  try {
    answer = await fetch(url, init);
    if (answer.headers.get("content-type")?.startsWith("application/json")) record = await answer.json();
  } catch {
    return problem(503, "server_unreachable");
  }

  const { status } = answer;
  if (/^3|^40[13]/.test(String(status))) {
    await answer.body?.cancel();
    return problem(502, "key_refused"); // which is no fault of the client's
  }
  const said = copy(answer.headers, SAID, new Headers(UNBUFFERED));
  const id = answer.headers.get("location")?.split("/").pop();
  if (id) said.set("location", location(id));
  if (record?.events_url) {
    // What a token would show of a record. The rest is what was asked, your prompts among it, and a token.
    const { id, state, agent, attempt, last_event_id } = record;
    record = { id, state, agent, attempt, last_event_id, events_url: `${location(id)}/events` };
  }
  return new Response(record ? JSON.stringify(record) : answer.body, { status, headers: said });
}

/**
 * @template {Headers | URLSearchParams} To
 * @param {Iterable<[string, string]>} from
 * @param {RegExp} names
 * @param {To} to
 */
function copy(from, names, to) {
  for (const [name, value] of from) if (names.test(name)) to.append(name, value);
  return to;
}

function problem(/** @type {number} */ status, /** @type {string} */ code) {
  const headers = { ...UNBUFFERED, "content-type": "application/problem+json" };
  return Response.json({ status, code }, { status, headers });
}
