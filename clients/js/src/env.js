/** The world as browsers and servers have it. Phones give their own `signs`. */

/** @import { Environment } from "./index.js" */

const FRAME_MS = 16; // where nothing is painted
const LONGEST_FRAME_MS = 250; // hidden pages are not painted

/** @type {Environment} */
export const world = {
  now: () => performance.now(),
  wall: () => Date.now(),
  random: () => Math.random(),
  timer(ms, run) {
    const timer = setTimeout(run, ms);
    return () => clearTimeout(timer);
  },
  frame(run) {
    /** @type {typeof requestAnimationFrame | undefined} */
    const paint = globalThis.requestAnimationFrame;
    let isDue = true;
    const once = () => {
      if (!isDue) return;
      isDue = false;
      run();
    };
    paint?.(once);
    return this.timer(paint === undefined ? FRAME_MS : LONGEST_FRAME_MS, once);
  },
  signs(wake, sleep) {
    if (typeof document === "undefined") return () => {};
    const looked = () => (document.hidden ? sleep() : wake());
    const gone = () => sleep(true);
    /** @type {[string, (event: any) => void][]} */
    const heard = Object.entries({
      online: looked,
      pageshow: (/** @type {any} */ { persisted }) => persisted && looked(), // not at each load
      resume: looked,
      visibilitychange: looked,
      freeze: gone,
      pagehide: gone,
    });
    for (const [name, run] of heard) addEventListener(name, run, true); // the document's do not all bubble
    if (document.hidden) sleep();
    return () => {
      for (const [name, run] of heard) removeEventListener(name, run, true);
    };
  },
};
