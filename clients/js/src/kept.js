/** What an app keeps of an answer: text and cursor in one value, since two would tear. */

/** @import { Answer, FollowOptions } from "./index.js" */

const VERSION = 1;

/**
 * `url`: of the stream, without its token. `idem`: the Idempotency-Key that started it. `body`, `to`: of a start that
 * was not answered yet.
 *
 * @typedef {{ v: number, user: string | null, url: string | null, idem?: string, body?: object, to?: string,
 *   answer: Partial<Answer>, at: number }} Kept
 */

/** An address without what opens it. */
export const plain = (/** @type {string} */ url) =>
  url.replace(/([?&])((access_)?token=[^&#]*&?)+/g, "$1").replace(/[?&]$/, "");

/** By what it does: Angular and libraries have promises of their own. */
const isPromise = (/** @type {any} */ value) => typeof value?.then === "function";

/**
 * Who writes to a place: of the streams of this page the one that was opened last. The one before, which may go on,
 * would write over a start of which nobody knows yet.
 *
 * @type {WeakMap<object, Record<string, object>>}
 */
const writers = new WeakMap();

/**
 * The place of an answer in the app's storage. A storage that refuses is given up, and left empty: what stays there
 * would be old.
 *
 * @param {FollowOptions} options
 */
export function placeOf({ storage, key, user: owner }) {
  const user = owner ?? null;
  const name = `lastevent:${key}`;
  let isUsed = Boolean(storage) && key != null;
  /** @type {Promise<any> | null} */
  let busy = null; // until all that was written is there
  /** @type {(() => string | null) | null} */
  let next = null;
  const writer = {};
  const writing = (storage && writers.get(storage)) ?? {};
  if (isUsed) writers.set(/** @type {object} */ (storage), writing);
  writing[name] = writer;

  /** @returns {Kept | null} */
  function parsed(/** @type {any} */ text) {
    try {
      const kept = JSON.parse(text);
      if (kept.v === VERSION && kept.user === user) return kept;
    } catch {} // nothing, half a value, or another program's
    write(() => null);
    return null;
  }

  /**
   * One after the other, and of those that wait the last one: a slow storage keeps no order. Of a storage that is
   * asynchronous a promise that this one is there too, which never rejects.
   *
   * @returns {Promise<unknown> | null}
   */
  function write(/** @type {() => string | null} */ value) {
    if (busy) next = value;
    else if (isUsed && writing[name] === writer) {
      try {
        const text = value();
        const done = text === null ? storage?.removeItem(name) : storage?.setItem(name, text);
        if (isPromise(done)) busy = Promise.resolve(done).then(written, refused);
      } catch {
        refused();
      }
    }
    return busy;
  }

  function written() {
    busy = null;
    const value = next;
    next = null;
    return value && write(value);
  }

  function refused() {
    busy = null;
    try {
      if (isUsed) Promise.resolve(storage?.removeItem(name)).catch(() => {});
    } catch {} // it refuses everything: private mode
    isUsed = false;
  }

  return {
    /** @returns {Kept | null | Promise<Kept | null>} at once if the storage is */
    load() {
      try {
        const text = isUsed && storage?.getItem(name);
        return isPromise(text) ? Promise.resolve(text).then(parsed, () => null) : parsed(text);
      } catch {
        return null;
      }
    },
    save: (/** @type {() => Omit<Kept, "v" | "user">} */ kept) =>
      write(() => JSON.stringify({ v: VERSION, user, ...kept() })),
    remove: () => write(() => null),
  };
}
