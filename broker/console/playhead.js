// The player's position in a log: an instant, and the number of events until then. It plays by the log's own times.

export const SPEEDS = [1, 2, 4, 8, 16];

export class Playhead {
  count = 0; // the number of events until the position
  position = 0; // ms since the first of them
  isLive = false; // it stays at the end of a log that still grows
  mayGrow = false;
  #speed = 0; // an index into SPEEDS
  #lastFrame = null; // its time, while playing

  /** `onMove()`: anything here has changed. */
  constructor(log, onMove) {
    this.log = log;
    this.onMove = onMove;
  }

  get isMoving() {
    return this.#lastFrame !== null || this.isLive;
  }

  get isAtTheEnd() {
    return this.count === this.log.events.length;
  }

  /** The last event until the position; undefined before the first. */
  get event() {
    return this.log.events[this.count - 1];
  }

  get speed() {
    return SPEEDS[this.#speed];
  }

  set speed(speed) {
    this.#speed = SPEEDS.indexOf(speed);
    this.onMove();
  }

  faster(by) {
    this.speed = SPEEDS[Math.min(Math.max(this.#speed + by, 0), SPEEDS.length - 1)];
  }

  goTo(count) {
    this.count = Math.min(Math.max(count, 0), this.log.events.length);
    this.position = this.log.at(this.count - 1);
    this.#moved();
  }

  step(by) {
    this.goTo(this.count + by);
  }

  seek(ms) {
    this.position = Math.min(Math.max(ms, 0), this.log.end);
    this.count = this.log.countAt(this.position);
    this.#moved();
  }

  toEnd() {
    this.goTo(this.log.events.length);
  }

  /** Go to the event with this id, or the next one; to the end if there is none. */
  goToId(id) {
    const index = this.log.events.findIndex((event) => event.id >= id);
    if (index < 0) this.toEnd();
    else this.goTo(index + 1);
  }

  toggle() {
    if (this.isMoving) this.pause();
    else if (this.log.events.length > 0) this.#start();
  }

  pause() {
    this.#lastFrame = null;
    this.isLive = false;
    this.onMove();
  }

  /** Call before drawing: moves a live playhead to the log's current end. */
  catchUp() {
    if (!this.isLive) return;
    this.count = this.log.events.length;
    this.position = this.log.end;
    this.isLive = this.mayGrow;
  }

  #start() {
    if (this.position >= this.log.end) this.seek(0);
    this.#lastFrame = performance.now();
    requestAnimationFrame((now) => this.#play(now));
    this.onMove();
  }

  #play(now) {
    if (this.#lastFrame === null) return;
    const passed = Math.max(0, now - this.#lastFrame) * this.speed;
    this.#lastFrame = now;
    this.seek(this.position + passed);
    if (this.position < this.log.end) requestAnimationFrame((next) => this.#play(next));
    else this.#arrive();
  }

  /** At the end of a log that still grows, playing becomes following. */
  #arrive() {
    this.#lastFrame = null;
    this.isLive = this.mayGrow;
    this.onMove();
  }

  #moved() {
    this.isLive = this.mayGrow && this.isAtTheEnd;
    this.onMove();
  }
}
