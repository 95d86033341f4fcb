// A stream's whole log in memory, and its analysis: times, rates and faults. No DOM.

import { Spans } from "./spans.js";

const BLOCK = 1_000_000; // ids jump to the start of a block when the pen changes hands
const STALL_MS = 2000;
const STALL_INTERVALS = 10;
const SHORTEST_BIN_MS = 50; // a rate over less has no meaning: two events in one millisecond are not 2,000 a second

/** What is asked with each frame of a growing log is kept as events arrive, not found again among all of them. */
export class Log {
  events = [];
  #spans = new Spans();
  #at = []; // ms since the first event, never decreasing: after a failover, Redis' clock may be behind
  #firstText = -1;
  #suspects = []; // all that may be marks: restarts, ids that are not the next one, intervals of STALL_MS or more
  #quick = 0; // the number of intervals after which a stall is STALL_MS, whatever the other half of them is

  /** `isPart`: events are left out of it, so ids that are missing are no fault. */
  constructor({ isPart = false } = {}) {
    this.isPart = isPart;
  }

  add(event) {
    const index = this.events.length;
    const before = this.end;
    const at = Math.max(index === 0 ? 0 : event.t - this.events[0].t, before);
    if (index > 0) this.#suspect(event, index, at, before);
    if (this.#firstText < 0 && event.event === "text_delta") this.#firstText = index;
    this.#spans.take(event, at, index);
    this.events.push(event);
    this.#at.push(at);
  }

  get start() {
    return this.events[0]?.t ?? 0;
  }

  get end() {
    return this.#at.at(-1) ?? 0;
  }

  at(index) {
    return this.#at[index] ?? 0;
  }

  /** The number of events in the first `ms` milliseconds. */
  countAt(ms) {
    let [low, high] = [0, this.#at.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#at[middle] <= ms) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  firstTextAt() {
    return this.#firstText < 0 ? null : this.#at[this.#firstText];
  }

  /** What took time, in the order of its beginnings: see spans.js. */
  get spans() {
    return this.#spans.all;
  }

  /** Events per second in equal parts of the whole time; `most` limits the number of parts. */
  rates(most) {
    const bins = Math.min(most, Math.ceil(this.end / SHORTEST_BIN_MS) || 1);
    const width = Math.max(this.end / bins, SHORTEST_BIN_MS);
    const counts = new Array(bins).fill(0);
    for (const at of this.#at) counts[Math.min(bins - 1, Math.floor(at / width))] += 1;
    return counts.map((count) => (count * 1000) / width);
  }

  /** [{kind: restart | jump | hole | stall, at, until?, index, text}] in order; `index`: the event after the mark. */
  marks() {
    const longestMs = this.#longestMs();
    return this.#suspects.filter((mark) => mark.kind !== "stall" || mark.until - mark.at > longestMs);
  }

  #suspect(event, index, at, before) {
    if (at - before >= STALL_MS) this.#suspects.push({ kind: "stall", at: before, until: at, index });
    if (at - before <= STALL_MS / STALL_INTERVALS) this.#quick += 1;
    const { id } = this.events[index - 1];
    const isJump = this.isPart ? Math.floor(event.id / BLOCK) !== Math.floor(id / BLOCK) : event.id % BLOCK === 1;
    if (event.id !== id + 1 && (isJump || !this.isPart)) {
      this.#suspects.push({ kind: isJump ? "jump" : "hole", at, index, from: id, to: event.id });
    }
    if (event.event === "restart") this.#suspects.push({ kind: "restart", at, index, ...event.data });
  }

  /** The longest interval that is not a stall: ten times the median, but never less than two seconds. */
  #longestMs() {
    const count = this.#at.length - 1;
    if (this.#quick > count >> 1) return STALL_MS; // most logs; the others are slow, and so not long
    const intervals = this.#at.slice(1).map((at, index) => at - this.#at[index]);
    const median = intervals.sort((a, b) => a - b)[count >> 1] ?? 0;
    return Math.max(STALL_MS, median * STALL_INTERVALS);
  }
}
