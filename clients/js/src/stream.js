/** What an app has in its hands: the answer, and all that tells of it. */

import { cancel, send } from "./calls.js";
import { world } from "./env.js";
import { StreamError } from "./error.js";
import { empty, fold, hasEnded } from "./fold.js";
import { placeOf, plain } from "./kept.js";
import { loop } from "./loop.js";
import { hasTabs, tabs } from "./tabs.js";

/** @import { Answer, Connection, Environment, FollowOptions, Notice, Snapshot, StartOptions, Stream, StreamEvent } from "./index.js" */
/** @import { Kept } from "./kept.js" */

const SAVE_EVERY_MS = 500;
const HIDDEN_MS = 15_000;

/** @returns {Stream} */
export const follow = (/** @type {FollowOptions} */ options) => open(options, options.url || null, null);

/** @returns {Stream} */
export const start = (/** @type {StartOptions} */ options) => open(options, null, { to: options.url, body: options.body });

/**
 * @param {FollowOptions} options
 * @param {string | null} url
 * @param {{ to: string, body: object } | null} asked a new generation
 * @returns {Stream}
 */
function open(options, url, asked) {
  const env = { ...world, ...options.env };
  const place = placeOf(options);
  let answer = empty();
  /** @type {Connection} */
  let connection = { state: "idle", tries: 0, wait: 0, error: null };
  let starting = { to: "", body: {}, idem: "" };
  let isBegun = false;
  let isOver = false;
  let isAway = false;
  let isLeading = true;
  /** @type {StreamError | null} */
  let failure = null;
  /** @type {ReturnType<typeof tabs> | null} */
  let others = null;

  // ---- what is told: listeners once a frame, and then whoever waits for the end

  /** @type {Set<{ tell: (snapshot: Snapshot) => void }>} */
  const listeners = new Set();
  /** @type {Snapshot} */
  let told = { answer, connection };
  /** @type {(() => void) | null} */
  let offFrame = null;
  /** @type {(answer: Answer) => void} */
  let resolve;
  /** @type {(error: StreamError) => void} */
  let reject;
  /** @type {Promise<Answer>} */
  const finished = new Promise((...both) => ([resolve, reject] = both));
  finished.catch(() => {}); // who does not ask for it is told by `connection`

  function current() {
    return (told = told.answer === answer && told.connection === connection ? told : { answer, connection });
  }

  const getSnapshot = () => (listeners.size > 0 ? told : current());

  function changed() {
    offFrame ??= env.frame(() => {
      offFrame = null;
      if (isOver) failure ? reject(failure) : resolve(answer);
      current();
      for (const { tell } of [...listeners]) {
        try {
          tell(told);
        } catch (error) {
          Promise.reject(error); // is the app's own, and heard of there; the others are told all the same
        }
      }
    });
  }

  function become(/** @type {Partial<Connection>} */ change) {
    if (isOver) return;
    connection = { ...connection, wait: 0, ...change };
    changed();
  }

  // ---- what comes

  function take(/** @type {StreamEvent | Notice} */ event) {
    const before = answer;
    if (!isOver) answer = fold(before, event);
    if (answer === before) return;
    if (isLeading) others?.say({ from: before.cursor, event });
    if (event.id !== null && event.id > given) {
      given = event.id;
      queues.forEach((queue) => queue.push(event));
    }
    nudge();
    moved();
  }

  function reset(/** @type {Answer} */ another) {
    if (isOver) return;
    answer = another;
    moved();
  }

  function moved() {
    if (hasEnded(answer)) return finish("ended");
    offSave ??= env.timer(SAVE_EVERY_MS, save);
    changed();
  }

  /** @type {Set<StreamEvent[]>} */
  const queues = new Set(); // of the iterators
  /** @type {(() => void)[]} */
  const waiting = [];
  let given = 0; // the last id, also where the answer is read once more from the beginning
  let relieved = () => {};

  /** While an iterator has events that its app has not taken, nothing is read: TCP fills up, and the server waits. */
  function drained() {
    if (![...queues].some((queue) => queue.length > 0)) return null;
    return new Promise((/** @type {(value: void) => void} */ resolve) => (relieved = resolve));
  }

  /** @returns {AsyncIterator<StreamEvent>} */
  function iterate() {
    /** @type {StreamEvent[]} */
    const queue = [];
    queues.add(queue);
    return {
      async next() {
        while (queue.length === 0 && !isOver) await new Promise((resolve) => waiting.push(() => resolve(null)));
        const value = queue.shift();
        if (queue.length === 0) relieved();
        if (value) return { value, done: false };
        if (failure) throw failure;
        return { value, done: true };
      },
      /** Who breaks off a loop wants no more of it, unless somebody else listens. */
      async return() {
        queues.delete(queue);
        relieved();
        if (queues.size + listeners.size === 0) stop();
        return { value: undefined, done: true };
      },
    };
  }

  const nudge = () => waiting.splice(0).forEach((waits) => waits());

  // ---- what is kept

  /** @type {(() => void) | null} */
  let offSave = null;

  function save() {
    offSave?.();
    offSave = null;
    if (!isBegun || !isLeading || !isThere()) return;
    const { to, body, idem } = starting;
    return place.save(() => ({
      url: url && plain(url),
      answer,
      at: env.wall(),
      idem,
      ...(url === null && { to, body }),
    }));
  }

  /** @returns {void} */
  function begin(/** @type {Kept | null} */ kept) {
    if (isOver) return;
    isBegun = true;
    if (asked) {
      const isSame = kept?.to === asked.to && JSON.stringify(kept.body) === JSON.stringify(asked.body);
      starting = { ...asked, idem: (isSame && kept?.idem) || newKey(env) };
      const saved = save();
      if (saved) return void saved.then(go);
    } else if (kept && (url === null || plain(url) === kept.url)) {
      answer = { ...empty(), ...kept.answer };
      url ??= kept.url;
      starting = { ...starting, ...kept };
      changed();
    }
    if (hasEnded(answer)) finish("ended");
    else go();
  }

  // ---- when it is followed

  const isThere = () => url ?? starting.to;

  const line = loop(
    {
      answer: () => answer,
      take,
      reset,
      url: () => url,
      starting: () => starting,
      located(found) {
        url = found;
        save();
        go();
      },
      drained,
      fail: (error) => finish("failed", error),
      become,
    },
    options,
    env,
  );

  function go() {
    if (!isBegun || isOver || isAway || !isThere()) return; // a page may leave and come back before its storage answers
    if (options.share && url !== null && !others && hasTabs()) {
      isLeading = asked !== null; // a start has its connection already
      others = tabs(["lastevent", options.key, options.user, plain(url)].join(":"), () => answer, () => isLeading, lead, listen, take, reset);
    }
    if (url !== null) known();
    if (others) others.enter();
    else line.run();
    if (!isLeading) listen();
  }

  function lead() {
    isLeading = true;
    line.run();
  }

  function listen() {
    isLeading = false;
    line.halt();
    become({ state: "listening" });
  }

  function wake() {
    offHidden();
    line.wake();
    if (isAway || others) {
      isAway = false;
      go();
    }
  }

  /** @param {boolean} [gone] */
  function sleep(gone) {
    save();
    offHidden();
    if (gone) letGo(gone);
    else if (options.hidden !== "follow") offHidden = env.timer(HIDDEN_MS, letGo);
  }

  /** @param {boolean} [gone] */
  function letGo(gone) {
    if (!isThere()) return;
    isAway = true;
    isLeading = !others;
    line.halt();
    others?.leave(gone);
    become({ state: "away" });
  }

  function finish(/** @type {Connection["state"]} */ state, /** @type {StreamError | null} */ error = null) {
    if (isOver) return;
    if (error && (error.status === 410 || url === null)) { // erased, or never started: nothing to go on with
      answer = empty();
      offSave?.();
      place.remove();
    } else save();
    become({ state, error });
    isOver = true;
    failure = error;
    line.halt();
    others?.leave(true);
    offHidden();
    offSigns();
    options.signal?.removeEventListener("abort", stop);
    known();
    nudge();
  }

  const stop = () => finish("stopped");

  let offHidden = () => {};
  const offSigns = env.signs(wake, sleep);
  let known = () => {};
  /** @type {Promise<void>} */
  const isKnown = new Promise((resolve) => (known = resolve));

  /** A person may want to stop a start that has no answer yet. */
  async function call(/** @type {(options: any) => Promise<any>} */ what, /** @type {object} */ said) {
    if (isThere()) await isKnown;
    if (url === null) throw new StreamError("no_location");
    return what({ ...options, signal: undefined, url, ...said });
  }

  options.signal?.addEventListener("abort", stop);
  if (options.signal?.aborted) stop();
  const kept = place.load();
  if (kept instanceof Promise) kept.then(begin);
  else begin(kept);

  return {
    get answer() {
      return answer;
    },
    get connection() {
      return connection;
    },
    get url() {
      return url;
    },
    finished,
    stop,
    subscribe(tell) {
      const listener = { tell };
      const snapshot = getSnapshot(); // as the others have it: two parts of a page show the same
      listeners.add(listener);
      if (answer.cursor > 0 || isOver) tell(snapshot);
      return () => void listeners.delete(listener);
    },
    getSnapshot,
    cancel: (reason) => call(cancel, { reason }),
    send: (input) => call(send, { input }),
    [Symbol.asyncIterator]: iterate,
  };
}

/** An Idempotency-Key: nobody else's. */
const newKey = (/** @type {Environment} */ { wall, random }) => [wall(), random(), random()].join("-");
