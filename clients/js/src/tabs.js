/**
 * Tabs that follow the same stream over one connection. One of them leads: it has the Web Lock, follows, and tells the
 * others. The tab in front takes the lock from whoever has it, since a hidden tab may be frozen.
 *
 * Who is robbed hears of it late, if its thread is held, and leads until then. So each event says from which cursor it
 * goes on: a tab takes one that begins where it is, and where others are new to it, it asks for the whole. A tab that
 * leads takes nothing: its own connection goes on from where it was opened, and may bring the same words in other
 * pieces. Two tabs in front do not rob each other for ever: a tab asks when it comes to the front, or the network comes
 * back.
 *
 * Who leads lets go at the ending, which may reach a tab after the lock does: that one asks the server for it.
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

  /**
   * @param {{ from: number, event: StreamEvent | Notice } | { need: number } | { whole: Answer }} message what changes the
   *   answer `from` this cursor; or what is wanted, behind this one; or all of it
   */
  const say = (message) => channel?.postMessage(message);

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
