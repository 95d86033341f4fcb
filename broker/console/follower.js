// Follows one stream with the package, as every page may, and notes what it does: its connections, its bytes, its cursor.

import * as api from "./api.js";
import { follow, StreamError } from "./lastevent/index.js";
import { asSse } from "./ndjson.js";

/** Of this document: the token is over soon. */
export const EXPIRING = "lastevent-expiring";

const TERMINAL = new Set(["done", "error", "cancelled"]);
const HEARTBEAT_S = 5;
const SILENCE_MS = 3 * HEARTBEAT_S * 1000; // three: a connection that died silently (a phone that changed cells)

const OVER = new Set(["ended", "failed", "stopped"]);

/**
 * States: connecting, open, waiting (for the next try), cut (by `cut()`), hidden (the tab is), ended, failed, stopped.
 * `connections` has one {from, replayed, live, end} for each connection. An event counts as replayed if it was in the
 * log before the connection was made, and an earlier connection (or page) had existed.
 */
export class Follower {
  received = 0;
  replayed = 0;
  bytes = 0;
  connections = [];
  problem = null; // what the server last refused, and why
  retryAt = 0;
  lostAt = null; // when the connection was lost; null while there is one, and while nobody wants one

  #stream = null;
  #told = null; // the connection's state that was told last
  #bearer = null; // what the package has
  #network = new AbortController();
  #backlogEnd = 0;
  #seen = 0; // the id of the last event
  #times = new Map(); // id → when, of the events that are on their way
  #wake = () => {};

  /**
   * `seen`: an earlier page had begun to follow, so events already in the log count as replayed.
   * `audience`: "public" for what users see.
   * `hasTimes`: each event comes with its time, `t`, and those that are left after a gap come as they are. Without it
   * `onGap(after, text)` repaints the answer.
   * `onAgain()`: the events come again from the first one.
   */
  constructor(id, { seen = false, audience = null, hasTimes = false, onEvent, onGap, onAgain, onChange }) {
    Object.assign(this, { id, audience, hasTimes, onEvent, onGap, onAgain, onChange });
    this.resumes = seen;
  }

  get state() {
    const state = this.#stream?.connection.state ?? "connecting";
    if (OVER.has(state)) return state;
    if (this.#isCut) return "cut";
    return state === "away" ? "hidden" : state;
  }

  get isOver() {
    return OVER.has(this.state);
  }

  get cursor() {
    return this.#stream?.answer.cursor ?? 0;
  }

  get reconnects() {
    return Math.max(0, this.connections.length - 1);
  }

  async run() {
    const audience = this.audience ? `&audience=${this.audience}` : "";
    this.#stream = follow({
      url: `${api.events(this.id)}?compact=0&heartbeat_s=${HEARTBEAT_S}${audience}`, // each event, as it is in the log
      token: (why) => this.#token(why),
      fetch: (url, init) => this.#fetch(url, init),
      silence: SILENCE_MS,
      env: { signs: (wake, sleep) => this.#signs(wake, sleep) },
    });
    this.#stream.subscribe(() => this.#look());
    try {
      for await (const event of this.#stream) this.#take(event);
    } catch (error) {
      if (!(error instanceof StreamError)) throw error;
      this.problem ??= new api.Problem(error.status, { title: error.message, code: error.code });
    }
    this.#look();
  }

  /** As a lost network does: the connection breaks, and no new one is made until `restore`. */
  cut() {
    this.lostAt = null;
    this.#end("cut here");
    this.#network.abort(new TypeError("cut here"));
    this.onChange();
  }

  restore() {
    this.#network = new AbortController();
    this.tryNow();
    this.onChange();
  }

  /** Without the pause until the next try, and instead of one that hangs. */
  tryNow = () => {
    if (!document.hidden) this.#wake();
  };

  stop() {
    this.#stream.stop();
  }

  get #isCut() {
    return this.#network.signal.aborted;
  }

  // -- what the package is given

  /** A user who gives a key that is refused too is asked again, by the request for the record. */
  async #token(why) {
    if (why === "expiring") {
      this.#end("token expiring");
      document.dispatchEvent(new Event(EXPIRING));
    }
    if (why === "refused" && (await api.newKey(this.#bearer, this.problem))) {
      await api.stream(this.id, this.#network.signal).catch(() => {}); // whatever else is wrong, the next try says
    }
    this.#bearer = api.key.get();
    return this.#bearer;
  }

  /**
   * A hidden tab needs no connection, not even for the package's 15 s: browsers make only six to a server (HTTP/1.1) for
   * all their tabs.
   */
  #signs(wake, sleep) {
    this.#wake = wake;
    const looked = () => {
      if (!document.hidden) return wake();
      this.#end("hidden");
      sleep(true);
    };
    addEventListener("online", this.tryNow);
    document.addEventListener("visibilitychange", looked);
    if (document.hidden) sleep(true);
    return () => {
      removeEventListener("online", this.tryNow);
      document.removeEventListener("visibilitychange", looked);
    };
  }

  /** Over the network that can be cut. */
  async #fetch(url, { headers, signal, ...init }) {
    const over = AbortSignal.any([signal, this.#network.signal]);
    over.throwIfAborted();
    const isText = url.includes("/text?");
    if (!isText && this.resumes) this.#backlogEnd = await api.lastEventId(this.id, over);
    if (this.hasTimes) headers = { ...headers, Accept: "application/x-ndjson" };
    const response = await api.once(url, { ...init, headers, signal: over }, this.#bearer, (problem) => {
      this.problem = problem;
    });
    if (!response.ok || response.body === null) return response;
    if (isText) return this.#repaint(response);
    this.#connected(Number(headers["Last-Event-ID"] ?? 0));
    const counted = this.#counted(response);
    return this.hasTimes ? asSse(counted, ({ id, t }) => this.#times.set(id, t)) : counted;
  }

  #connected(from) {
    this.#end("lost");
    this.connections.push({ from, replayed: 0, live: 0, end: null });
    this.resumes = true;
    this.problem = null;
  }

  #counted(response) {
    const count = new TransformStream({
      transform: (bytes, out) => {
        this.bytes += bytes.byteLength;
        out.enqueue(bytes);
        this.onChange();
      },
    });
    return new Response(response.body.pipeThrough(count), response);
  }

  /** The missing events no longer exist: the package takes the text as it is now, and follows from there. */
  async #repaint(response) {
    const text = await response.text();
    this.#end("gap");
    this.onGap(this.#seen, text);
    return new Response(text, response);
  }

  // -- what comes

  #take(event) {
    if (this.state === "stopped") return; // some may have come before
    const { id } = event;
    if (id <= this.#seen) this.onAgain();
    this.#seen = id;
    const connection = this.connections.at(-1);
    const isReplayed = id <= this.#backlogEnd;
    this.received += 1;
    this.replayed += isReplayed;
    connection[isReplayed ? "replayed" : "live"] += 1;
    if (TERMINAL.has(event.event)) this.#end("ended");
    this.onEvent(this.hasTimes ? { ...event, t: this.#times.get(id) } : event);
    this.#times.delete(id);
  }

  #look() {
    const { connection } = this.#stream;
    if (connection !== this.#told) {
      this.#told = connection;
      this.retryAt = Date.now() + connection.wait;
      if (connection.state === "waiting") this.#lost();
      else if (connection.state !== "connecting") this.lostAt = null;
    }
    if (connection.state !== "stopped") this.onChange();
  }

  #lost() {
    if (this.#isCut) return;
    this.#end("lost");
    this.lostAt ??= Date.now();
  }

  /** Why the connection ended, if there is one. */
  #end(why) {
    const last = this.connections.at(-1);
    if (last) last.end ??= why;
  }
}
