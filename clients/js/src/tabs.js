/**
 * Tabs that follow the same stream over one connection. One of them leads: it has the Web Lock, follows, and tells the
 * others. The tab in front takes the lock from whoever has it, since a hidden tab may be frozen.
 *
 * Who is robbed hears of it late, if its thread is held, and leads meanwhile. So nobody trusts a word for its time: each
 * says from which cursor it goes on, and a tab takes only what begins where it is; of all else that is new to it, it asks
 * for the whole. One that leads takes nothing at all: a frame of its own connection goes on from where that connection
 * was, and may have the same words. A word that is lost is missed at the next one. Two tabs in front do not rob each other for ever: a tab asks
 * only when it comes to the front, or the network comes back.
 */

/** @import { Answer, Notice, StreamEvent } from "./index.js" */

/** Browsers that have locks have channels; a page without https has neither, unless it is this machine's own. */
export const hasTabs = () => globalThis.navigator?.locks;

/**
 * @param {string} name
 * @param {() => Answer} answer
 * @param {() => boolean} isLeading
 * @param {() => void} lead
 * @param {() => void} listen another tab leads
 * @param {(event: StreamEvent | Notice) => void} take
 * @param {(answer: Answer) => void} reset
 */
export function tabs(name, answer, isLeading, lead, listen, take, reset) {
  /** @type {any} */
  let channel;
  let asking = new AbortController();
  /** @type {any} */
  let release; // what ends the promise for which the lock is held

  /** `event`: what has changed the answer `from` this cursor. `need`: what is behind it. `whole`: all of it. */
  const say = (/** @type {{ from: number, event: StreamEvent | Notice } | { need: number } | { whole: Answer }} */ message) =>
    channel?.postMessage(message);

  function hear(/** @type {MessageEvent} */ { data: { need, from, event, whole } }) {
    const { cursor } = answer();
    if (isLeading()) need < cursor && say({ whole: answer() });
    else if (event && from === cursor) take(event);
    else if (from > cursor || event?.id > cursor) say({ need: cursor });
    else if (whole?.cursor > cursor) reset(whole);
  }

  function ask(/** @type {boolean | undefined} */ isHidden) {
    asking.abort();
    const { signal } = (asking = new AbortController());
    navigator.locks
      .request(name, isHidden ? { signal } : { steal: true }, () => {
        if (signal.aborted) return null;
        lead();
        return new Promise((resolve) => (release = resolve));
      })
      .catch(({ name }) => {
        if (signal.aborted) return;
        release = undefined;
        if (name !== "AbortError") return lead(); // this page may have no locks: it follows by itself
        listen();
        ask(true);
      });
  }

  return {
    /** Begin, or come to the front. */
    enter() {
      if (!channel) {
        channel = new BroadcastChannel(name);
        channel.onmessage = hear;
        say({ need: answer().cursor });
      }
      if (!release) ask(globalThis.document?.hidden);
    },
    /** A page that is `gone` hears nothing either: with a lock or a channel no browser would keep it to come back to. */
    leave(/** @type {boolean | undefined} */ gone) {
      asking.abort();
      release = release?.();
      if (gone) channel = channel?.close();
    },
    say,
  };
}
