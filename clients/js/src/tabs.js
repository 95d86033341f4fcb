/**
 * Tabs that follow the same stream over one connection. One of them leads: it has the Web Lock, follows, and tells the
 * others. The tab in front takes the lock from whoever has it, since a hidden tab may be frozen.
 */

/** @import { Answer, Notice, StreamEvent } from "./index.js" */

export const hasTabs = () => Boolean(globalThis.navigator?.locks && globalThis.BroadcastChannel);

/**
 * @param {string} name
 * @param {object} tab
 * @param {() => Answer} tab.answer
 * @param {() => void} tab.lead
 * @param {() => void} tab.listen another tab leads
 * @param {(event: StreamEvent | Notice) => void} tab.take
 * @param {(answer: Answer) => void} tab.reset
 */
export function tabs(name, { answer, lead, listen, take, reset }) {
  const channel = new BroadcastChannel(name);
  let asking = new AbortController();
  /** @type {(() => void) | null} */
  let release = null;

  channel.onmessage = ({ data: { need, from, event, whole } }) => {
    const { cursor } = answer();
    if (need < cursor && release) channel.postMessage({ whole: answer() });
    else if (event && from === cursor) take(event);
    else if (from > cursor) channel.postMessage({ need: cursor });
    else if (whole?.cursor > cursor) reset(whole);
  };
  channel.postMessage({ need: answer().cursor });

  function ask(/** @type {boolean} */ isInFront) {
    asking.abort();
    const { signal } = (asking = new AbortController());
    navigator.locks
      .request(name, isInFront ? { steal: true } : { signal }, () => {
        if (signal.aborted) return null;
        lead();
        return new Promise((resolve) => {
          release = () => resolve(null);
        });
      })
      .catch(() => {
        if (signal.aborted) return;
        release = null;
        listen();
        ask(false);
      });
  }

  return {
    /** Begin, or come to the front. */
    enter() {
      if (!release) ask(!globalThis.document?.hidden);
    },
    leave() {
      asking.abort();
      release?.();
      release = null;
    },
    close() {
      channel.close();
    },
    /** The others, what has changed `from` this cursor. */
    tell(/** @type {number} */ from, /** @type {StreamEvent | Notice} */ event) {
      channel.postMessage({ from, event });
    },
  };
}
