// A stream's whole log in memory, and its analysis: times, rates and faults. No DOM.

const BLOCK = 1_000_000; // ids jump to the start of a block when the pen changes hands
const STALL_MS = 2000;
const STALL_INTERVALS = 10;
const SHORTEST_BIN_MS = 50; // a rate over less has no meaning: two events in one millisecond are not 2,000 a second

export class Log {
  events = [];
  #at = []; // ms since the first event, never decreasing: after a failover, Redis' clock may be behind
  #marks = { count: -1, list: [] };

  add(event) {
    const at = this.events.length === 0 ? 0 : event.t - this.events[0].t;
    this.events.push(event);
    this.#at.push(Math.max(at, this.end));
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
    const index = this.events.findIndex((event) => event.event === "text_delta");
    return index < 0 ? null : this.#at[index];
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
    if (this.#marks.count !== this.events.length) {
      this.#marks = { count: this.events.length, list: this.#findMarks() };
    }
    return this.#marks.list;
  }

  #findMarks() {
    const isStall = this.#stallTest();
    const found = [];
    this.events.forEach((event, index) => {
      const at = this.#at[index];
      const before = this.events[index - 1];
      if (before && isStall(at - this.#at[index - 1])) {
        found.push({ kind: "stall", at: this.#at[index - 1], until: at, index });
      }
      if (before && event.id !== before.id + 1) {
        found.push({ kind: event.id % BLOCK === 1 ? "jump" : "hole", at, index, from: before.id, to: event.id });
      }
      if (event.event === "restart") found.push({ kind: "restart", at, index, ...event.data });
    });
    return found;
  }

  #stallTest() {
    const intervals = this.#at.slice(1).map((at, index) => at - this.#at[index]);
    const median = intervals.sort((a, b) => a - b)[intervals.length >> 1] ?? 0;
    const limit = Math.max(STALL_MS, median * STALL_INTERVALS);
    return (interval) => interval > limit;
  }
}
