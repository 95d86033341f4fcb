/**
 * One WebSocket for all streams of a page: a `fetch` that `follow` and `start` are given, so streams and answers are
 * what they are elsewhere. A follow's body is what the server would have sent as Server-Sent Events. Where no socket
 * comes through, the same requests go by the page's own `fetch`.
 *
 * A browser cannot make a server wait. So each follow has a window: what its reader has taken is acknowledged.
 *
 * Races:
 * - an abort before `ok`: `unfollow` is said behind the op, and what comes until its answer is for nobody
 * - a stream that is followed already, as that of a start that is repeated: the second one goes by `fetch`
 * - two credentials: the later `auth` and the ops that it is for wait for each other, so none runs by another's. What a
 *   newer one does not cover goes by `fetch` from then on: two streams would else displace each other for ever
 * - lost before `hello`: it is asked again by `fetch`. Later: the request fails as any does, and its caller comes back
 */

import { world } from "./env.js";

/** @import { Socket, SocketOptions } from "./socket.js" */

const WINDOW = 256; // events of a follow that are on their way
const ACK_EVERY = 64;
const OPEN_MS = 5000; // what lets the upgrade through may pass on nothing else
const BLOCKED_MS = 60_000; // and for so long no other socket is tried
const SILENCE_MS = 40_000; // the server says something every 4 s
const STALE_MS = 2000; // a connection that was silent for so long may be one that the phone took away
const SIGN_MS = 5000; // of the socket's life, for a follow that is quiet
const IDLE_MS = 10_000; // without a follow
const FIRST_MS = 100; // in which a follow that is over says so

const MEANT = 1000; // closed by us, for no fault
const DRAINED = 1012;
const LOST = 1006;
const VIOLATED = 1002;
const FAULTS = [VIOLATED, 1003, 1007, 1009]; // which come again
const ELSEWHERE = ["already_followed", "too_many_follows", "forbidden"]; // there is a connection of its own for these

const BEARER = "Bearer ";
const SSE = "text/event-stream";
const CALL = /^(?:\/([^/?#]+)\/(events|cancel|input))?(?:\?(?:&?(?:compact=([01])|kinds=([^&#]*)))*)?$/;
const EVENT = /^\{"stream":"([^"\\]*)","id":(\d+),"event":"([^"\\]*)","data":(.*),"t":\d+\}$/s;

/** @returns {Socket} */
export function connect(/** @type {SocketOptions} */ options) {
  const { fetch = globalThis.fetch, WebSocket = globalThis.WebSocket } = options;
  const env = { ...world, ...options.env };
  const to = whole(options.url);
  const base = to.replace(/socket$/, "streams");
  let failures = 0; // sockets in a row from which nothing came
  let hasWorked = false;
  let blockedUntil = WebSocket ? -Infinity : Infinity;
  let longest = 2 ** 18; // bytes of a message
  /** @type {Set<string>} */
  const apart = new Set(); // streams that no socket of ours is given
  /** @type {ReturnType<typeof line> | null} */
  let current = null;
  const page = {
    hello: (/** @type {any} */ { max_message_bytes }) => void (longest = max_message_bytes),
    refused: (/** @type {string} */ stream) => void apart.add(stream),
    ended(/** @type {boolean} */ isGood, /** @type {number} */ code) {
      current = null;
      hasWorked ||= isGood;
      if (isGood) failures = 0;
      else if (code !== MEANT) failures++;
      if (FAULTS.includes(code)) blockedUntil = Infinity;
    },
  };
  const drop = () => current?.drop(MEANT);
  const offSigns = env.signs(
    () => current?.wake(),
    (gone) => gone && drop(), // it would keep the page out of the back-forward cache
  );

  /** No socket, and an answer all the same: it is not the network. Where one has worked, it may be the server. */
  async function elsewhere(/** @type {string} */ url, /** @type {any} */ init) {
    const response = await fetch(url, init);
    if (failures > (hasWorked ? 2 : 0)) blockedUntil = Math.max(blockedUntil, env.now() + BLOCKED_MS);
    return response;
  }

  /** What is said for a request, if it is one for the socket. */
  function said(/** @type {string} */ url, /** @type {any} */ { method, body = "{}" }, /** @type {Headers} */ headers) {
    const at = whole(url);
    const [found, stream, call, compact, kinds] = (at.startsWith(base) && CALL.exec(at.slice(base.length))) || [];
    const isPost = method === "POST";
    const isStream = headers.get("Accept")?.includes(SSE);
    const isShort = typeof body === "string" && body.length * 3 < longest - 4096; // of UTF-8, and what comes to it
    if (found === undefined || !isShort || !(headers.get("Authorization") ?? BEARER).startsWith(BEARER)) return null;
    if (call === "events") {
      if (isPost || !isStream || apart.has(stream) || current?.isFollowed(stream)) return null;
      return {
        op: "follow",
        stream,
        cursor: Number(headers.get("Last-Event-ID") ?? 0),
        window: WINDOW,
        compact: compact === "1",
        ...(kinds && { kinds: decodeURIComponent(kinds).split(",") }),
      };
    }
    if (!isPost) return null;
    if (call) return current?.isOpen() ? { ...JSON.parse(body), op: call, stream } : null;
    const idempotency_key = headers.get("Idempotency-Key"); // without one it could not be asked again
    const follow = { window: WINDOW, compact: compact === "1" };
    return isStream && idempotency_key ? { ...JSON.parse(body), op: "start", idempotency_key, follow } : null;
  }

  async function ask(/** @type {string} */ url, /** @type {any} */ init = {}) {
    const headers = new Headers(init.headers);
    const op = init.signal?.aborted || env.now() < blockedUntil ? null : said(url, init, headers);
    if (!op) return fetch(url, init);
    try {
      current ??= line(to, WebSocket, env, page);
    } catch {
      blockedUntil = Infinity; // a page that may have none
      return fetch(url, init);
    }
    const token = headers.get("Authorization")?.slice(BEARER.length);
    const { event, data, isNew, stream, body } = await asked(current, op, token, init.signal, env);
    if (event === "lost" && !isNew) throw new TypeError("The socket was lost");
    if (event === "lost" || ELSEWHERE.includes(data?.code)) return elsewhere(url, init);
    if (event === "refused") return response(data.status, { "retry-after": data.retry_after_s }, data);
    const location = op.op === "start" ? `${url.replace(/\?.*/, "")}/${stream}` : null;
    if (!body) return response(location ? 201 : 200, { location }, data);
    const isOver = await body.first;
    const head = response(isOver ? 204 : 200, { location, "content-type": SSE }, data);
    return { ...head, body: { getReader: () => body } };
  }

  return {
    fetch: ask,
    close() {
      blockedUntil = Infinity;
      offSigns();
      drop();
    },
  };
}

/**
 * @param {ReturnType<typeof line>} by
 * @param {any} op
 * @param {string | undefined} token
 * @param {AbortSignal | undefined} signal
 * @param {any} env
 * @returns {Promise<any>} what the op was answered, or its credential; with the `stream` and its `body`, if one begins
 */
async function asked(by, op, token, signal, env) {
  const isFollow = op.op === "follow";
  let { stream } = op;
  let isOver = false; // nobody waits for it any more
  /** @type {ReturnType<typeof feed> | undefined} */
  let body;
  function stop() {
    if (isOver) return;
    isOver = true;
    if (body) body.stop();
    else if (isFollow) by.unfollow(stream);
  }
  function begin(/** @type {any} */ { event, data }) {
    if (event !== "ok" || (isFollow ? isOver : !op.follow)) return;
    stream ??= data.id;
    if (!isFollow && by.isFollowed(stream)) return; // by somebody else: the server gives it once
    by.follow(stream);
    body = feed(by, stream, env);
    if (isOver) body.stop();
  }
  if (isFollow) by.follow(stream);
  signal?.addEventListener("abort", stop);
  const granted = await by.authorize(token);
  if (isOver) return { event: "lost" };
  if (granted && granted.event !== "ok") {
    stop();
    return granted;
  }
  const answer = await by.ask(op, begin, token);
  if (!body && isFollow && !isOver) by.forget(stream);
  isOver ||= !body;
  return { ...answer, stream, body };
}

/** As much of a Response as this package asks for. */
function response(/** @type {number} */ status, /** @type {Record<string, any>} */ headers, /** @type {any} */ data) {
  return {
    status,
    ok: status < 300,
    headers: { get: (/** @type {string} */ name) => headers[name.toLowerCase()] ?? null },
    json: async () => data,
    text: async () => JSON.stringify(data),
  };
}

/** The body of a follow. */
function feed(/** @type {ReturnType<typeof line>} */ by, /** @type {string} */ stream, /** @type {any} */ env) {
  const utf8 = new TextEncoder();
  /** @type {string[]} */
  let frames = [];
  let events = 0; // in them
  let taken = 0; // since the last acknowledgement
  let last = 0;
  let isDone = false;
  let more = () => {};
  let tellFirst = (/** @type {boolean} */ _) => {};

  const off = by.hear(stream, ({ event, id, data, code }) => {
    if (event === "ping") frames.length > 0 || frames.push(": ping\n"); // nobody may read for hours
    else {
      if (event === "over" || event === "lost" || event === "refused") {
        if (code === DRAINED) frames.push("retry: 2000\n");
        end();
        by.forget(stream);
      } else {
        const text = typeof data === "string" ? data : JSON.stringify(data);
        frames.push(`event: ${event}\ndata: ${text}\n${id ? `id: ${id}\n` : ""}\n`);
        if (id) {
          events++;
          last = Number(id);
        }
      }
      tellFirst(event === "over");
    }
    more();
  });

  function end() {
    isDone = true;
    off();
  }

  return {
    /** Whoever reads wants no more. */
    stop() {
      if (isDone) return;
      end();
      by.unfollow(stream);
      tellFirst(false);
      more();
    },
    /** Whether there was nothing to give. */
    first: new Promise((/** @type {(isOver: boolean) => void} */ give) => {
      tellFirst = give;
      env.timer(FIRST_MS, () => give(false));
    }),
    async read() {
      while (frames.length === 0 && !isDone) await new Promise((wake) => (more = () => wake(null)));
      if (frames.length === 0) return { done: true };
      const value = utf8.encode(frames.join(""));
      taken += events;
      frames = [];
      events = 0;
      if (taken >= ACK_EVERY && !isDone) {
        taken = 0;
        by.say({ op: "ack", stream, id: last });
      }
      return { value, done: false };
    },
  };
}

/**
 * What a connection tells its page.
 *
 * @typedef {object} Page
 * @property {(limits: any) => void} hello
 * @property {(stream: string) => void} refused
 * @property {(isGood: boolean, code: number) => void} ended
 */

/**
 * A connection, from the first message that it is to carry to its end.
 *
 * @param {string} url
 * @param {any} WebSocket
 * @param {any} env
 * @param {Page} page
 */
function line(url, WebSocket, env, page) {
  const socket = new WebSocket(url.replace(/^http/, "ws"), "lastevent.v1");
  /** @type {object[]} */
  const waiting = []; // to be said
  /** @type {Map<number, (answer: any) => void>} */
  const asked = new Map();
  /** @type {Map<string, (message: any) => void>} */
  const heard = new Map();
  /** @type {Set<string>} */
  const followed = new Set(); // or about to be
  /** @type {Map<string, number>} */
  const beginning = new Map(); // of follows, until they are answered, or end without that
  let refs = 0;
  /** @type {string | undefined} */
  let bearer;
  /** @type {Promise<any> | undefined} */
  let first; // credential, and its answer
  /** @type {Promise<any> | undefined} */
  let later;
  let hasAnswered = false;
  let isOver = false;
  let heardAt = env.now();
  let signedAt = heardAt;
  let offWatch = env.timer(OPEN_MS, () => drop());
  let offIdle = () => {};

  function say(/** @type {object} */ message) {
    if (socket.readyState === 0) waiting.push(message);
    else if (socket.readyState === 1) socket.send(JSON.stringify(message));
  }

  const lost = () => ({ event: "lost", isNew: !hasAnswered });

  /**
   * `begin` is told at once: the next message may be here already.
   *
   * @returns {Promise<any>} `ok`, `refused` or `lost`
   */
  function ask(
    /** @type {any} */ message,
    /** @type {(answer: any) => void} */ begin = () => {},
    /** @type {string | undefined} */ token = bearer,
  ) {
    if (isOver) return Promise.resolve(lost());
    const ref = ++refs;
    const isFollow = message.op === "follow";
    if (isFollow) beginning.set(message.stream, ref);
    say({ ...message, ref });
    return new Promise((give) => {
      asked.set(ref, (answer) => {
        const isOvertaken = isFollow && answer.event === "refused" && token !== bearer; // a newer credential was asked
        if (isOvertaken) page.refused(message.stream);
        const told = isOvertaken ? { event: "lost", isNew: true } : answer;
        begin(told);
        give(told);
      });
    });
  }

  /**
   * What to wait for, before an op of this credential. The first one's ops go with it, and fail with it; what a later
   * one is for waits for its answer, and the next one for that.
   */
  function authorize(/** @type {string | undefined} */ token) {
    if (!token) return undefined;
    if (token === bearer) return later;
    bearer = token;
    const auth = () => ask({ op: "auth", token });
    if (!first) {
      first = auth();
      first.then((given) => {
        if (given.event !== "refused") return;
        settle(given);
        drop(MEANT); // the server closes it, and would refuse others by that
      });
      return undefined;
    }
    later = (later ?? first).then(auth).then((given) => {
      if (given.event !== "ok" && bearer === token) bearer = ""; // it is the one before
      return given;
    });
    return later;
  }

  function answer(/** @type {number | undefined} */ ref, /** @type {any} */ given) {
    const give = asked.get(/** @type {number} */ (ref));
    asked.delete(/** @type {number} */ (ref));
    give?.(given);
    return give;
  }

  function settle(/** @type {any} */ given) {
    for (const ref of [...asked.keys()]) answer(ref, given);
  }

  function take(/** @type {string} */ text) {
    const event = EVENT.exec(text); // what is only passed on is not parsed
    const message = event ? { stream: event[1], id: event[2], event: event[3], data: event[4] } : JSON.parse(text);
    heardAt = env.now();
    if (heardAt - signedAt > SIGN_MS || !hasAnswered) {
      hasAnswered = true;
      signedAt = heardAt;
      offWatch();
      offWatch = env.timer(SILENCE_MS, () => drop());
      tell({ event: "ping" });
    }
    const { stream, ref } = message;
    if (answer(ref, message)) return;
    if (message.event === "hello") page.hello(message.data);
    else if (message.event === "token_expiring") tell(message);
    else if (message.event === "ok") return; // of an `unfollow`
    else if (stream) {
      if (message.event === "refused") {
        page.refused(stream); // after all
        answer(beginning.get(stream), { event: "lost", isNew: true });
      }
      heard.get(stream)?.(message);
    } else if (message.event === "refused") settle(message); // the socket
  }

  function tell(/** @type {object} */ message) {
    for (const told of [...heard.values()]) told(message);
  }

  function over(/** @type {{ code: number, reason: string }} */ { code, reason }) {
    if (isOver) return;
    isOver = true;
    offWatch();
    offIdle();
    page.ended(hasAnswered, code);
    settle(code > 4400 && code < 4500 ? { event: "refused", data: { status: code - 4000, code: reason } } : lost());
    tell({ event: "lost", code });
    offIdle();
  }

  function drop(/** @type {number} */ code = LOST) {
    socket.close();
    over({ code, reason: "" }); // its close may take as long as the network likes
  }

  function rest() {
    offIdle();
    if (followed.size === 0) offIdle = env.timer(IDLE_MS, () => (asked.size > 0 ? rest() : drop(MEANT)));
  }

  function forget(/** @type {string} */ stream) {
    followed.delete(stream);
    if (!isOver) rest();
  }

  rest(); // a start that is refused does not keep it
  socket.onopen = () => waiting.splice(0).forEach(say);
  socket.onmessage = (/** @type {{ data: string }} */ { data }) => {
    if (isOver) return;
    try {
      take(data);
    } catch {
      drop(VIOLATED); // something else speaks there
    }
  };
  socket.onerror = () => {}; // `onclose` follows
  socket.onclose = over;

  return {
    say,
    ask,
    authorize,
    drop,
    forget,
    isOpen: () => hasAnswered && socket.readyState === 1,
    follow(/** @type {string} */ stream) {
      followed.add(stream);
      offIdle();
    },
    unfollow(/** @type {string} */ stream) {
      forget(stream);
      say({ op: "unfollow", stream });
      answer(beginning.get(stream), { event: "lost" }); // a server may not
    },
    isFollowed: (/** @type {string} */ stream) => followed.has(stream),
    hear(/** @type {string} */ stream, /** @type {(message: any) => void} */ told) {
      heard.set(stream, told);
      return () => heard.delete(stream);
    },
    wake() {
      if (env.now() - heardAt > STALE_MS) drop(MEANT);
    },
  };
}

/** Pages give a path, and not all browsers take one for a socket. */
const whole = (/** @type {string} */ url) =>
  (url.startsWith("/") ? globalThis.location.origin + url : url).replace(/^ws/, "http");
