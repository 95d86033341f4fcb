/** The answer as a component has it. Components that name the same stream share it, for as long as one of them is there. */

import { useEffect, useLayoutEffect, useMemo, useReducer, useSyncExternalStore } from "react";

import { empty, follow, StreamError } from "./index.js";

/** @import { FollowOptions, Snapshot, Stream } from "./index.js" */
/** @import { LiveAnswer } from "./react.js" */

/** What a component needs of a stream. @typedef {Pick<Stream, "subscribe" | "getSnapshot" | "cancel" | "send" | "stop">} Shown */

/** Before there is a stream, and where a server renders. @type {Snapshot} */
const nothing = { answer: empty(), connection: { state: "idle", tries: 0, wait: 0, error: null } };
const refuse = () => Promise.reject(new StreamError("no_location"));
const nobody = () => () => {};
/** @type {Shown} */
const none = { subscribe: nobody, getSnapshot: () => nothing, cancel: refuse, send: refuse, stop: nobody };

/**
 * By name: what components hold open. `shown`: how many have painted with it, and not with another one since.
 *
 * @type {Map<string, { stream: Stream, key?: string, holders: number, shown: number }>}
 */
const opened = new Map();

/** What is stored is painted first, not behind a frame without it. (Of this one React 18 warns where a server renders.) */
const useBeforePainting = typeof window === "undefined" ? useEffect : useLayoutEffect;

/** A stream is its own name. Only another name opens anew. */
function nameOf(/** @type {FollowOptions | Stream | null} */ source) {
  if (!source || "subscribe" in source) return source;
  const { url = null, key = null, user } = source;
  return (url ?? key) === null ? null : JSON.stringify([url, key, user]);
}

/** @returns {Shown} */
const named = (/** @type {string | Stream | null} */ name) =>
  (typeof name === "string" ? opened.get(name)?.stream : name) ?? none;

/** @returns {() => void} to let go of it */
function hold(/** @type {string} */ name, /** @type {FollowOptions} */ options, /** @type {number} */ shown) {
  const entry = opened.get(name) ?? open(name, options);
  entry.holders++;
  entry.shown += shown;
  return () => {
    entry.holders--;
    entry.shown -= shown;
    // A task later: StrictMode, or another place in the page, mounts again at once, and finds it open.
    setTimeout(() => entry.holders || close(name, entry));
  };
}

function open(/** @type {string} */ name, /** @type {FollowOptions} */ options) {
  const { key } = options;
  // What is left with this key is kept now, or this stream would go on from what was kept half a second ago.
  for (const [other, entry] of opened) if (key && entry.key === key && !entry.shown) close(other, entry);
  const entry = { stream: follow(options), key, holders: 0, shown: 0 };
  opened.set(name, entry);
  return entry;
}

function close(/** @type {string} */ name, /** @type {{ stream: Stream }} */ entry) {
  if (opened.get(name) === entry) opened.delete(name);
  entry.stream.stop();
}

/** @returns {LiveAnswer} */
export function useAnswer(/** @type {FollowOptions | Stream | null} */ source) {
  const name = nameOf(source);
  const place = useMemo(() => {
    const held = (/** @type {number} */ shown) =>
      typeof name === "string" ? hold(name, /** @type {FollowOptions} */ (source), shown) : () => {};
    return {
      held,
      getSnapshot: () => named(name).getSnapshot(),
      subscribe(/** @type {() => void} */ tell) {
        const release = held(0);
        const off = named(name).subscribe(tell);
        return () => {
          off();
          release();
        };
      },
    };
  }, [name]);

  const snapshot = useSyncExternalStore(place.subscribe, place.getSnapshot, none.getSnapshot);
  const [, render] = useReducer((/** @type {number} */ times) => times + 1, 0);
  useBeforePainting(() => {
    const release = place.held(1);
    if (place.getSnapshot().answer.cursor !== snapshot.answer.cursor) render();
    return release;
  }, [place]);

  return useMemo(() => {
    const { cancel, send, stop } = named(name);
    return { ...snapshot.answer, connection: snapshot.connection, cancel, send, stop };
  }, [snapshot, name]);
}
