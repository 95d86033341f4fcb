/**
 * One stream over as many connections as it takes: what each answer of a server means, and when to come back. The
 * answer itself is the stream's (stream.js).
 */

import { beside, caller, refusal } from "./calls.js";
import { StreamError } from "./error.js";
import { empty } from "./fold.js";
import { frames } from "./frames.js";

/** @import { Answer, Connection, Environment, FollowOptions, Notice, StreamEvent, WhyToken } from "./index.js" */

const SILENCE_MS = 40_000; // the server says something every 4 s, but proxies and phones hold it back
const RETRY_MS = 1000; // until the server says another
const LEAST_RETRY_MS = 100;
const LONGEST_RETRY_AFTER_MS = 300_000;
const LONGEST_WAIT_MS = 30_000;
const STALE_MS = 2000; // a connection that was silent for so long may be one that the phone took away
const RENEWAL_MS = 20_000; // less than a token lives: one that is over so soon is the same again, or no better
const LATER = [408, 425, 429]; // the 4xx that say so

const FOLDER = /^[^?#]*\//;
const ORIGIN = /^([a-z][a-z\d+.-]*:)?[/\\]{2,}[^/\\?#]*/i; // to a browser a backslash is a slash, and more than two are two

/** Thrown where the next connection is made without a wait. */
const AT_ONCE = new Error("at once");

/**
 * What is followed, and who has the answer.
 *
 * @typedef {object} Target
 * @property {() => Answer} answer
 * @property {(event: StreamEvent | Notice) => void} take
 * @property {(answer: Answer) => void} reset
 * @property {() => string | null} url null until it is known
 * @property {() => { to: string, body: object, idem: string }} starting what is posted until then
 * @property {(url: string) => void} located
 * @property {() => Promise<void> | null} drained while the app has not taken what it was given
 * @property {(error: StreamError) => void} fail
 * @property {(connection: Partial<Connection>) => void} become
 */

/**
 * @param {Target} target
 * @param {FollowOptions} options
 * @param {Environment} env
 */
export function loop(target, { silence = SILENCE_MS, ...options }, env) {
  const { isRenewable, authorize, send } = caller(options);

  let isHalted = true;
  let isAlive = false; // also while it only unwinds
  let heardAt = 0; // ±Infinity: while it waits for the next try, or for the app, whose silence is not the network's
  let openedAt = 0;
  let tries = 0; // connections in a row that brought no new event, and did not stand for long either
  let retryMs = RETRY_MS;
  let dueAt = 0; // the next try, by our own patience
  let notBefore = 0; // and by the server's word
  /** @type {WhyToken} */
  let why;
  let isRefused = false; // the last token; this one is another
  let renewableAt = 0;
  let isRead = false; // from no cursor for a second time
  let lacksText = false; // since a gap
  let snapshotAt = 0; // Infinity: of what follows there is only the ending
  let controller = new AbortController();
  let drop = (/** @type {Error} */ _) => {};

  async function run() {
    isHalted = false;
    if (isAlive) return;
    isAlive = true;
    while (!isHalted) {
      const { cursor } = target.answer();
      try {
        await pause();
        await connect();
      } catch (error) {
        const isWell = target.answer().cursor > cursor || heardAt - openedAt > LONGEST_WAIT_MS;
        if (isWell) tries = 0;
        if (!isHalted) plan(/** @type {Error} */ (error));
      }
      controller.abort();
    }
    isAlive = false;
  }

  /** A mere answer is no progress: a server that drains says 200, and cuts at once. */
  function plan(/** @type {Error} */ error) {
    if (error === AT_ONCE) return;
    dueAt = env.now() + (Math.min(retryMs * 2 ** tries++, LONGEST_WAIT_MS) * (1 + env.random())) / 2;
    target.become({ tries, error });
  }

  /**
   * Whatever is awaited can be dropped: some fetches, and some readers, never hear of an abort. Without `start` it is a
   * mere pause of `limit` ms.
   */
  function until(/** @type {(() => any) | null} */ start, /** @type {number} */ limit) {
    return new Promise((resolve, reject) => {
      if (isHalted) return reject(AT_ONCE);
      const promise = start && Promise.resolve(start());
      const late = () => (start ? cut(new Error("silent")) : resolve(null));
      const off = limit ? env.timer(limit, late) : () => {};
      const over = (/** @type {(result: any) => void} */ settle) => (/** @type {any} */ result) => {
        off();
        settle(result);
      };
      drop = over(reject);
      promise?.then(over(resolve), drop);
    });
  }

  const answered = (/** @type {() => any} */ start) => until(start, silence);

  function cut(/** @type {Error} */ error) {
    controller.abort();
    drop(error);
  }

  function halt() {
    isHalted = true;
    cut(AT_ONCE);
  }

  /** There is a network again, or the app is in front. */
  function wake() {
    tries = dueAt = 0;
    if (env.now() - heardAt > STALE_MS) cut(AT_ONCE);
  }

  async function pause() {
    const wait = Math.max(dueAt, notBefore) - env.now();
    if (wait <= 0) return;
    target.become({ state: "waiting", wait });
    heardAt = -Infinity;
    await until(null, wait);
  }

  async function connect() {
    target.become({ state: "connecting" });
    controller = new AbortController();
    openedAt = heardAt = env.now();
    await until(() => authorize(why), 0);
    why = undefined;
    if (lacksText) await readText();
    const response = await open();
    if (isHalted) throw AT_ONCE;
    target.become({ state: "open", tries: 0, error: null });
    await read(response);
  }

  async function open() {
    const { cursor } = target.answer();
    const { signal } = controller;
    const url = target.url();
    const { to, body, idem } = target.starting();
    const headers = { Accept: "text/event-stream", ...(cursor && { "Last-Event-ID": String(cursor) }) };
    const response = await answered(() =>
      url === null
        ? send(to, { headers: { ...headers, "Idempotency-Key": idem }, body, signal })
        : send(compact(url), { headers, signal }),
    );
    await judge(response);
    const isStream = /^text\/event-stream/i.test(response.headers.get("Content-Type"));
    if (url === null) locate(response, to, isStream);
    if (!isStream) throw url !== target.url() ? AT_ONCE : new StreamError("not_a_stream", response.status); // a captive portal
    return response;
  }

  /** Throws at each answer that is none. */
  async function judge(/** @type {any} */ response) {
    const { status, ok, headers } = response;
    if (status === 204) reread(new StreamError("no_ending", 204));
    if (ok) return void (isRefused = false);
    const after = headers.get("Retry-After");
    const ms = /^\d+$/.test(after) ? after * 1000 : Date.parse(after) - env.wall();
    if (ms > 0) notBefore = env.now() + Math.min(ms, LONGEST_RETRY_AFTER_MS);
    const error = await answered(() => refusal(response));
    if (error.code === "bad_cursor") reread(error);
    if (status === 401 && isRenewable && !isRefused) {
      isRefused = true;
      why = "refused";
      throw AT_ONCE;
    }
    if (status >= 400 && status < 500 && !LATER.includes(status)) fail(error);
    throw error;
  }

  /**
   * The server knows nothing behind our cursor, and we know no ending. Behind a snapshot there is only that one; else
   * the text was lost.
   */
  function reread(/** @type {StreamError} */ error) {
    const answer = target.answer();
    if (snapshotAt && snapshotAt === answer.cursor) {
      snapshotAt = Infinity;
      snapshot(answer.text, answer.cursor - 1);
    } else {
      if (isRead) fail(error);
      isRead = true;
      target.reset(empty());
    }
    throw AT_ONCE;
  }

  function fail(/** @type {StreamError} */ error) {
    target.fail(error);
    throw error;
  }

  /** Only the path of it counts: another host would be given the token. */
  function locate(/** @type {any} */ response, /** @type {string} */ to, /** @type {boolean} */ isStream) {
    const location = response.headers.get("Location");
    const path = location?.replace(ORIGIN, "");
    const [base] = (path?.startsWith("/") ? to.match(ORIGIN) : to.match(FOLDER)) ?? [""];
    if (location) target.located(beside(base + path, "events"));
    else if (isStream) fail(new StreamError("no_location", response.status));
  }

  async function read(/** @type {any} */ response) {
    const reader = response.body.getReader();
    const push = frames(taken, (ms) => {
      retryMs = Math.max(ms, LEAST_RETRY_MS);
    });
    for (;;) {
      for (let full = target.drained(); full; full = target.drained()) {
        heardAt = Infinity;
        await until(() => full, 0);
        heardAt = env.now();
      }
      const { value, done } = await answered(() => reader.read());
      if (done) throw response.again ? AT_ONCE : new Error("cut"); // `again`: native.js has stopped it
      heardAt = env.now();
      push(value);
    }
  }

  function taken(/** @type {StreamEvent | Notice} */ frame) {
    target.take(frame);
    if (frame.id !== null) return;
    if (frame.event === "gap") {
      lacksText = true; // it has what follows on this connection too
      if (snapshotAt === Infinity) return; // nothing need stand right before an ending
      throw snapshotAt && snapshotAt === target.answer().cursor ? new Error("gap") : AT_ONCE;
    }
    if (frame.event === "token_expiring" && isRenewable && env.now() >= renewableAt) {
      renewableAt = env.now() + RENEWAL_MS;
      why = "expiring";
      throw AT_ONCE;
    }
  }

  async function readText() {
    const url = /** @type {string} */ (target.url());
    const response = await answered(() => send(beside(url, "text"), { signal: controller.signal }));
    await judge(response);
    const text = await answered(() => response.text());
    const cursor = Number(response.headers.get("Last-Event-ID"));
    if (!cursor) throw new StreamError("not_a_stream", response.status);
    snapshotAt = cursor;
    lacksText = false;
    snapshot(text, cursor);
  }

  /** As a notice, which tabs that listen take too; one that opened since the gap has not heard of that. */
  function snapshot(/** @type {string} */ text, /** @type {number} */ cursor) {
    target.take({ id: null, event: "snapshot", data: { text, cursor, incomplete: true } });
  }

  return { run, halt, wake };
}

const compact = (/** @type {string} */ url) =>
  /[?&]compact=/.test(url) ? url : `${url}${url.includes("?") ? "&" : "?"}compact=1`;
