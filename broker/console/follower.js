// Follows one stream over as many connections as needed: one cursor, and every event once.

import * as api from "./api.js";
import { NdjsonDecoder, SseDecoder } from "./sse.js";

export const TERMINAL = new Set(["done", "error", "cancelled"]);

/** Of this document: the token is over soon, {expires_at}. */
export const EXPIRING = "lastevent-expiring";

const RETRY_MS = 1000; // until the server sends its own
const LONGEST_PAUSE_MS = 30_000;
const HEARTBEAT_S = 5;
const SILENCE_MS = 3 * HEARTBEAT_S * 1000; // three: a connection that died silently (a phone that changed cells)
const FINAL = new Set([400, 401, 403, 404, 410, 422]); // a retry would get the same response

class Gap extends Error {
  constructor(notice) {
    super("gap");
    this.notice = notice;
  }
}

/**
 * States: connecting, open, waiting (for the next try), cut (by `cut()`), hidden (the tab is), ended, failed.
 * `connections` has one {from, replayed, live, end} for each connection. An event counts as replayed if it was in the
 * log before the connection was made, and an earlier connection (or page) had existed.
 */
export class Follower {
  state = "connecting";
  received = 0;
  replayed = 0;
  bytes = 0;
  connections = [];
  problem = null; // why it failed, or why the last try did
  retryAt = 0;
  lostAt = null; // when the connection was lost; null while there is one, and while nobody wants one

  #isCut = false;
  #stopped = false;
  #retryMs = RETRY_MS;
  #failures = 0;
  #abort = new AbortController();
  #wake = () => {};

  /**
   * `onGap(notice, text)` repaints the answer. Without it, the follower continues with the events that still exist.
   * `seen`: an earlier page had begun to follow, so events already in the log count as replayed.
   * `audience`: "public" for what users see.
   */
  constructor(id, { cursor = 0, seen = false, wire = "sse", audience = null, onEvent, onGap, onChange }) {
    Object.assign(this, { id, cursor, wire, audience, onEvent, onGap, onChange });
    this.resumes = seen;
  }

  get reconnects() {
    return Math.max(0, this.connections.length - 1);
  }

  async run() {
    addEventListener("online", this.tryNow);
    document.addEventListener("visibilitychange", this.#onVisibility);
    while (!this.isOver) {
      if (this.#isHeld) await this.#hold();
      else await this.#connect();
    }
    removeEventListener("online", this.tryNow);
    document.removeEventListener("visibilitychange", this.#onVisibility);
  }

  /** As a lost network does: the connection breaks, and no new one is made until `restore`. */
  cut() {
    this.#isCut = true;
    this.#letGo();
  }

  restore() {
    this.#isCut = false;
    this.#goOn();
  }

  /** Without the pause until the next try, and instead of one that hangs. */
  tryNow = () => {
    if (this.state !== "open" && !this.#isHeld) this.#goOn();
  };

  stop() {
    this.#stopped = true;
    this.#abort.abort();
    this.#wake();
  }

  get isOver() {
    return this.#stopped || this.state === "ended" || this.state === "failed";
  }

  /** A hidden tab needs no connection, and browsers make only six to a server (HTTP/1.1) for all their tabs. */
  get #isHeld() {
    return this.#isCut || document.hidden;
  }

  #onVisibility = () => {
    if (document.hidden) this.#letGo();
    else this.tryNow();
  };

  #letGo() {
    if (this.isOver) return;
    this.lostAt = null;
    this.#abort.abort();
    this.#become(this.#isCut ? "cut" : "hidden");
    this.#wake();
  }

  #goOn() {
    if (this.isOver) return;
    this.#failures = 0;
    this.#abort.abort();
    this.#become("connecting");
    this.#wake();
  }

  async #hold() {
    this.#become(this.#isCut ? "cut" : "hidden");
    await this.#sleep(Infinity);
  }

  async #connect() {
    this.#abort = new AbortController();
    this.#become("connecting");
    try {
      await this.#read();
    } catch (problem) {
      if (this.#abort.signal.aborted) return;
      this.#failures += 1;
      this.problem = problem;
      if (FINAL.has(problem.status)) return this.#become("failed");
    }
    if (this.isOver || this.#isHeld) return;
    this.lostAt ??= Date.now();
    await this.#pause();
  }

  async #read() {
    const { signal } = this.#abort;
    const backlogEnd = this.resumes ? (await api.stream(this.id, signal)).last_event_id : 0;
    const headers = { Accept: this.wire === "sse" ? "text/event-stream" : "application/x-ndjson" };
    if (this.cursor) headers["Last-Event-ID"] = String(this.cursor);
    const { audience } = this;
    const response = await api.events(this.id, headers, { heartbeatS: HEARTBEAT_S, audience }, signal);
    const connection = { from: this.cursor, replayed: 0, live: 0, end: null };
    this.connections.push(connection);
    this.resumes = true;
    this.#failures = 0;
    this.lostAt = this.problem = null;
    this.#become(response.status === 204 ? "ended" : "open");
    try {
      if (response.body) await this.#readBody(response.body.getReader(), this.#decoder(connection, backlogEnd));
    } catch (problem) {
      if (!(problem instanceof Gap)) throw problem;
      connection.end = "gap";
      await this.#repaint(problem.notice);
      await this.#read();
    } finally {
      connection.end ??= this.state === "ended" ? "ended" : this.#whyOver();
      this.onChange();
    }
  }

  #whyOver() {
    if (this.#isCut) return "cut here";
    return document.hidden ? "hidden" : "lost";
  }

  async #readBody(reader, decoder) {
    const utf8 = new TextDecoder();
    const { signal } = this.#abort;
    for (;;) {
      const silence = setTimeout(() => reader.cancel().catch(() => {}), SILENCE_MS);
      const { value, done } = await reader.read().finally(() => clearTimeout(silence));
      // Bytes read before the cut but not decoded yet are lost, as on a real network, and arrive again.
      if (done || signal.aborted) return;
      this.bytes += value.byteLength;
      decoder.push(utf8.decode(value, { stream: true }));
      this.onChange();
      if (this.state === "ended") return void reader.cancel().catch(() => {});
    }
  }

  #decoder(connection, backlogEnd) {
    const take = (event) => {
      if (event.id == null) return this.#notice(event);
      const replayed = event.id <= backlogEnd;
      this.received += 1;
      this.replayed += replayed;
      connection[replayed ? "replayed" : "live"] += 1;
      this.cursor = event.id;
      this.onEvent(event);
      if (TERMINAL.has(event.event)) this.#become("ended");
    };
    if (this.wire === "ndjson") return new NdjsonDecoder(take);
    return new SseDecoder(take, (ms) => {
      this.#retryMs = ms;
    });
  }

  #notice({ event: kind, data }) {
    if (kind === "gap" && this.onGap) throw new Gap(data);
    if (kind === "token_expiring") document.dispatchEvent(new CustomEvent(EXPIRING, { detail: data }));
  }

  /** The missing events no longer exist: repaint the text as it is now, and follow from there. */
  async #repaint(notice) {
    this.#abort.abort();
    this.#abort = new AbortController();
    const { text, cursor } = await api.text(this.id, this.#abort.signal);
    this.cursor = cursor;
    this.onGap(notice, text);
  }

  /** The server's `retry:` has jitter already. Failed tries double it, with our own jitter. */
  async #pause() {
    const grown = this.#retryMs * 2 ** Math.max(0, this.#failures - 1);
    const jitter = this.#failures > 1 ? 0.5 + Math.random() : 1;
    const pause = Math.min(grown * jitter, LONGEST_PAUSE_MS);
    this.retryAt = Date.now() + pause;
    this.#become("waiting");
    await this.#sleep(pause);
  }

  #sleep(ms) {
    return new Promise((resolve) => {
      const timer = ms === Infinity ? 0 : setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #become(state) {
    this.state = state;
    this.onChange();
  }
}
