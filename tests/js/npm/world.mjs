// The world of a test: its time, its chance, its signs. Time is virtual: an hour of it takes a millisecond.
import { setImmediate } from "node:timers";

const FRAME_MS = 16;
const LONGEST_TIMER_MS = 2 ** 31 - 1; // what is longer fires at once in JavaScript
const MAX_STEPS = 20_000; // more is a spin

/** `signs`: [ms, "wake" | "sleep" | "gone"]; `jumps` of the wall clock: [ms, by ms]; `random`: what chance always says. */
export function world({ wall, random, signs = [], jumps = [] }) {
  let now = 0;
  let steps = 0;
  let timers = []; // in the order in which they are due
  const heard = new Set();

  function at(ms, run, isOfTheTest = true) {
    const timer = { ms, run, isOfTheTest };
    const later = timers.findIndex((other) => other.ms > ms);
    timers.splice(later < 0 ? timers.length : later, 0, timer);
    return () => { timers = timers.filter((other) => other !== timer); };
  }

  const timer = (ms, run) => at(now + (ms >= 0 && ms <= LONGEST_TIMER_MS ? ms : 0), run, false);
  for (const [ms, sign] of signs) {
    at(ms, () => heard.forEach(({ wake, sleep }) => (sign === "wake" ? wake() : sleep(sign === "gone"))));
  }

  return {
    env: {
      now: () => now + 1e6, // as in a page that has been open for a while
      wall: () => wall + now + jumps.reduce((by, [ms, jump]) => (ms <= now ? by + jump : by), 0),
      random: () => random,
      timer,
      frame: (run) => timer(FRAME_MS, run),
      signs(wake, sleep) {
        const listener = { wake, sleep };
        heard.add(listener);
        return () => heard.delete(listener);
      },
    },
    now: () => now,
    /** For what is outside of the package: the server, the app. */
    after: (ms, run) => at(now + ms, run),
    /** Go on to `ms`, or until `over`; from one timer to the next one, with all that follows from each. */
    async run(ms, over = () => false) {
      for (;;) {
        await new Promise((resolve) => setImmediate(resolve)); // promises come first
        if (over()) return;
        const [next] = timers;
        if (!next || next.ms > ms) break;
        if (++steps > MAX_STEPS) throw new Error(`it spins, at ${now} ms`);
        timers.shift();
        now = next.ms;
        next.run();
      }
      if (ms > now && ms < Infinity) now = ms;
    },
    /** What is still waited for or listened to. */
    left: () => [
      ...timers.filter((timer) => !timer.isOfTheTest).map((timer) => `a timer at ${timer.ms} ms`),
      ...[...heard].map(() => "a listener to signs"),
    ],
  };
}
