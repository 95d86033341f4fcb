// The answer after any number of a log's events. Going back starts from the snapshot before, not from the first event.

import { Transcript } from "./transcript.js";

const EVERY = 500;

export class Rewind {
  #transcript = new Transcript();
  #applied = 0;
  #snapshots = [this.#transcript.snapshot()]; // after 0, 500, 1,000 … events

  /** The transcript of the first `count` events. Between calls, `events` may only get more. */
  at(events, count) {
    const nearest = Math.min(Math.floor(count / EVERY), this.#snapshots.length - 1);
    if (count < this.#applied || nearest * EVERY > this.#applied) this.#goTo(nearest);
    while (this.#applied < count) this.#apply(events[this.#applied]);
    return this.#transcript;
  }

  #goTo(number) {
    this.#transcript.restore(this.#snapshots[number]);
    this.#applied = number * EVERY;
  }

  #apply(event) {
    this.#transcript.apply(event);
    this.#applied += 1;
    if (this.#applied === this.#snapshots.length * EVERY) this.#snapshots.push(this.#transcript.snapshot());
  }
}
