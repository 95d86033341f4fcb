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
    const once = () => {
      off();
      run();
    };
    const isPainted = typeof requestAnimationFrame === "function";
    const timer = setTimeout(once, isPainted ? LONGEST_FRAME_MS : FRAME_MS);
    const painting = isPainted ? requestAnimationFrame(once) : 0;
    const off = () => {
      clearTimeout(timer);
      if (isPainted) cancelAnimationFrame(painting);
    };
    return off;
  },
  signs(wake, sleep) {
    if (typeof document === "undefined" || !document.addEventListener) return () => {};
    const looked = () => (document.hidden ? sleep() : wake());
    const gone = () => sleep(true);
    /** @type {[EventTarget, string, (event: any) => void][]} */
    const heard = [
      [globalThis, "online", () => document.hidden || wake()],
      [globalThis, "pageshow", (event) => event.persisted && wake()],
      [globalThis, "pagehide", gone],
      [document, "freeze", gone],
      [document, "resume", looked],
      [document, "visibilitychange", looked],
    ];
    for (const [target, name, run] of heard) target.addEventListener(name, run);
    if (document.hidden) sleep();
    return () => heard.forEach(([target, name, run]) => target.removeEventListener(name, run));
  },
};
