/**
 * One WebSocket for all streams of a page: a `fetch` that `follow` and `start` are given, so streams and answers are
 * what they are elsewhere. A follow's body is what the server would have sent as Server-Sent Events. Where no socket
 * comes through, the same requests go by the page's own `fetch`.
 *
 * A browser cannot make a server wait. So each follow has a window: what its reader has taken is acknowledged.
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

const ELSEWHERE = ["already_followed", "too_many_follows"]; // there is a connection of its own for these

const DRAINED = 1012;
const CREDENTIAL = 4401;

const CALL = /\/v1\/streams(?:\/([^/?#]+)\/(events|cancel|input|interrupt))?(?:\?([^#]*))?$/;
const EVENT = /^\{"stream":"([^"\\]*)","id":(\d+),"event":"([^"\\]*)","data":(.*),"t":\d+\}$/s;

/** @returns {Socket} */
export function connect(/** @type {SocketOptions} */ options) {
  const { fetch = globalThis.fetch, WebSocket = globalThis.WebSocket } = options;
  const env = { ...world, ...options.env };
  let failures = 0; // sockets in a row from which nothing came
  let hasWorked = false;
  let blockedUntil = WebSocket ? -Infinity : Infinity;
  /** @type {ReturnType<typeof line> | null} */
  let current = null;
  const offSigns = env.signs(
    () => current?.wake(),
    () => {},
  );

  /** Two in a row where one has worked: that may have been the network. */
  function ended(/** @type {boolean} */ isGood) {
    current = null;
    hasWorked ||= isGood;
    failures = isGood ? 0 : failures + 1;
    if (failures > Number(hasWorked)) blockedUntil = env.now() + BLOCKED_MS;
  }

  async function ask(/** @type {string} */ url, /** @type {any} */ init = {}) {
    const [found, stream, call, query] = CALL.exec(url) ?? [];
    const isStart = found && !call && init.method === "POST";
    const isFollow = call === "events";
    if (!(call || isStart) || env.now() < blockedUntil || (isFollow && current?.isFollowed(stream))) return fetch(url, init);
    current ??= line(options.url, WebSocket, env, ended);
    const headers = new Headers(init.headers);
    const body = init.body ? JSON.parse(init.body) : {};
    current.authorize(headers.get("Authorization")?.replace(/^Bearer /, ""));
    const answer = await (isFollow
      ? followed(current, { op: "follow", stream, ...wanted(headers, query) }, init.signal, env)
      : isStart
        ? followed(current, { ...body, op: "start", ...wished(headers) }, init.signal, env)
        : current.ask({ ...body, op: call, stream }));
    if (answer.status) return answer;
    const { event, data, isUnsaid } = answer;
    if (event === "lost" && !isUnsaid) throw new TypeError("The socket was lost");
    if (event === "lost" || ELSEWHERE.includes(data.code)) return fetch(url, init);
    const { status = 200, retry_after = null } = event === "refused" ? data : {};
    return response(status, { "retry-after": retry_after }, data);
  }

  return {
    fetch: ask,
    close() {
      offSigns();
      current?.drop();
    },
  };
}

/** @returns {Promise<any>} a response, or what the op was answered */
async function followed(/** @type {ReturnType<typeof line>} */ by, /** @type {any} */ op, /** @type {AbortSignal | undefined} */ signal, /** @type {any} */ env) {
  let { stream } = op;
  let isStopped = false;
  /** @type {ReturnType<typeof feed> | undefined} */
  let body;
  function stop() {
    if (isStopped) return;
    isStopped = true;
    if (body) body.stop(true);
    else if (stream) by.unfollow(stream); // the server takes one after the other
  }
  if (stream) by.follow(stream);
  signal?.addEventListener("abort", stop);
  if (signal?.aborted) stop();
  const answer = await by.ask(op, ({ event, data }) => {
    if (event !== "ok" || (op.op === "start" && !op.follow)) return;
    stream ??= data.id;
    by.follow(stream);
    if (!isStopped) body = feed(by, stream, env);
    else if (op.op === "start") by.unfollow(stream);
  });
  if (!body) {
    if (stream && !isStopped) by.forget(stream);
    return answer;
  }
  const isOver = await body.first;
  const headers = { "content-type": "text/event-stream", location: op.op === "start" ? `/v1/streams/${stream}` : null };
  return isOver ? response(204, headers, null) : { ...response(200, headers, answer.data), body: { getReader: () => body } };
}

function wanted(/** @type {Headers} */ headers, /** @type {string | undefined} */ query) {
  const asked = new URLSearchParams(query);
  const kinds = asked.get("kinds");
  return {
    cursor: Number(headers.get("Last-Event-ID") ?? 0),
    window: WINDOW,
    compact: asked.get("compact") === "1",
    ...(kinds && { kinds: kinds.split(",") }),
  };
}

function wished(/** @type {Headers} */ headers) {
  const idempotency_key = headers.get("Idempotency-Key");
  const isFollowed = headers.get("Accept")?.includes("text/event-stream");
  return { ...(idempotency_key && { idempotency_key }), ...(isFollowed && { follow: { window: WINDOW, compact: true } }) };
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
    if (event === "over") stop(false);
    else if (event === "lost") {
      if (code === DRAINED) frames.push("retry: 2000\n");
      stop(false);
    } else if (event === "ping") frames.push(": ping\n");
    else if (id) {
      frames.push(`event: ${event}\ndata: ${data}\nid: ${id}\n\n`);
      events++;
      last = Number(id);
    } else frames.push(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
    tellFirst(false);
    more();
  });

  function stop(/** @type {boolean} */ isEarly) {
    if (isDone) return;
    isDone = true;
    off();
    if (isEarly) by.unfollow(stream);
    else by.forget(stream);
    tellFirst(frames.length === 0 && !isEarly);
    more();
  }

  return {
    stop,
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
    cancel: async () => stop(true),
  };
}

/** A connection, from the first message that it is to carry to its end. */
function line(/** @type {string} */ url, /** @type {any} */ WebSocket, /** @type {any} */ env, /** @type {(isGood: boolean) => void} */ ended) {
  const socket = new WebSocket(address(url), "lastevent.v1");
  /** @type {object[]} */
  const waiting = []; // to be said
  /** @type {Map<number, (answer: any) => void>} */
  const asked = new Map();
  /** @type {Map<string, (message: any) => void>} */
  const heard = new Map();
  /** @type {Set<string>} */
  const followed = new Set(); // or about to be
  let isSaid = false; // anything
  let refs = 0;
  /** @type {string | undefined} */
  let bearer;
  let hasAnswered = false;
  let isOver = false;
  let heardAt = env.now();
  let signedAt = heardAt;
  let offWatch = env.timer(OPEN_MS, drop);
  let offIdle = () => {};

  function say(/** @type {object} */ message) {
    if (socket.readyState === 0) waiting.push(message);
    else if (socket.readyState === 1) socket.send(JSON.stringify(message));
  }

  /**
   * `begin` is told at once: the next message may be here already.
   *
   * @returns {Promise<any>} `ok`, `refused` or `lost`
   */
  function ask(/** @type {object} */ message, /** @type {(answer: any) => void} */ begin = () => {}) {
    if (isOver) return Promise.resolve({ event: "lost", isUnsaid: true });
    const ref = ++refs;
    say({ ...message, ref });
    return new Promise((give) => {
      asked.set(ref, (answer) => {
        begin(answer);
        give(answer);
      });
    });
  }

  function authorize(/** @type {string | undefined} */ token) {
    if (!token || token === bearer) return;
    bearer = token;
    ask({ op: "auth", token }).then((answer) => answer.event === "refused" && settle(answer)); // who came with it, too
  }

  function settle(/** @type {any} */ answer) {
    const all = [...asked.values()];
    asked.clear();
    for (const give of all) give(answer);
  }

  function watch() {
    offWatch();
    offWatch = env.timer(SILENCE_MS, drop);
  }

  function take(/** @type {string} */ text) {
    const event = EVENT.exec(text); // what is only passed on is not parsed
    const message = event ? { stream: event[1], id: event[2], event: event[3], data: event[4] } : JSON.parse(text);
    heardAt = env.now();
    if (heardAt - signedAt > SIGN_MS || !hasAnswered) {
      hasAnswered = true;
      signedAt = heardAt;
      watch();
      tell({ event: "ping" });
    }
    if (message.event === "ok" || message.event === "refused") {
      const give = asked.get(message.ref);
      asked.delete(message.ref);
      if (give) give(message);
      else if (message.stream) heard.get(message.stream)?.({ event: "over" }); // refused what it had begun
      else settle(message);
    } else if (message.stream) heard.get(message.stream)?.(message);
    else if (message.event === "token_expiring") tell(message);
  }

  function tell(/** @type {object} */ message) {
    for (const told of [...heard.values()]) told(message);
  }

  function over(/** @type {{ code: number, reason: string }} */ { code, reason }) {
    if (isOver) return;
    isOver = true;
    offWatch();
    offIdle();
    ended(hasAnswered);
    settle(code === CREDENTIAL ? { event: "refused", data: { status: 401, code: reason } } : { event: "lost", isUnsaid: !isSaid });
    tell({ event: "lost", code });
  }

  function drop() {
    socket.close();
    over({ code: 1006, reason: "" }); // its close may take as long as the network likes
  }

  function unfollow(/** @type {string} */ stream) {
    forget(stream);
    say({ op: "unfollow", stream });
  }

  function forget(/** @type {string} */ stream) {
    followed.delete(stream);
    offIdle();
    if (followed.size === 0) offIdle = env.timer(IDLE_MS, () => (asked.size > 0 ? forget("") : drop()));
  }

  forget(""); // a call alone does not keep it
  socket.onopen = () => {
    isSaid = true;
    waiting.splice(0).forEach(say);
  };
  socket.onmessage = (/** @type {{ data: string }} */ { data }) => isOver || take(data);
  socket.onerror = () => {}; // `onclose` follows
  socket.onclose = over;

  return {
    say,
    ask,
    authorize,
    drop,
    unfollow,
    forget,
    follow(/** @type {string} */ stream) {
      followed.add(stream);
      offIdle();
    },
    isFollowed: (/** @type {string} */ stream) => followed.has(stream),
    hear(/** @type {string} */ stream, /** @type {(message: any) => void} */ told) {
      heard.set(stream, told);
      return () => heard.get(stream) === told && heard.delete(stream);
    },
    wake() {
      if (env.now() - heardAt > STALE_MS) drop();
    },
  };
}

/** Pages give a path, and not all browsers take one. */
const address = (/** @type {string} */ url) =>
  (url.startsWith("/") ? globalThis.location.origin + url : url).replace(/^http/, "ws");
