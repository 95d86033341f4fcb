// The player's controls: play, step, speed, the current position, and whether it is live.

import { fill, h, setAttribute, setText } from "./dom.js";
import { clock, moment, number } from "./format.js";
import { icon } from "./icons.js";
import { SPEEDS } from "./playhead.js";

const SILENT_MS = 2000;

export class Transport {
  /** `onTryNow()`: the user does not want to wait until the lost connection is tried again. */
  constructor(playhead, onTryNow) {
    this.playhead = playhead;
    const button = (label, sign, run) =>
      h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick: run }, icon(sign));
    this.playButton = button("Play", "play", () => playhead.toggle());
    const speeds = SPEEDS.map((speed) => h("option", { value: speed }, `${speed}×`));
    const choose = () => (playhead.speed = Number(this.speed.value));
    this.speed = h("select", { "aria-label": "Speed", onchange: choose }, speeds);
    this.clock = h("span", { class: "clock" });
    this.place = h("span", { class: "muted place" });
    this.silence = h("span", { class: "silence" });
    this.lostSince = h("span", { role: "status" });
    this.nextTry = h("span", {});
    const tryNow = h("button", { type: "button", onclick: onTryNow }, "Try now");
    this.lost = h("span", { class: "lost" }, this.lostSince, this.nextTry, tryNow);
    this.live = h("button", { type: "button", class: "live", onclick: () => playhead.toEnd() }, "Live");
    this.element = h("div", { class: "transport" }, [
      button("Step back", "back", () => playhead.step(-1)),
      this.playButton,
      button("Step forward", "forward", () => playhead.step(1)),
      this.speed,
      this.clock,
      this.place,
      this.silence,
      this.lost,
      this.live,
    ]);
  }

  /** `heardAt`: when the last event arrived, by performance.now(). `follower`: null if the log is complete. */
  draw(heardAt, follower) {
    const { log, position, count, isMoving, isLive, mayGrow, speed } = this.playhead;
    this.#drawPlayButton(isMoving ? "Pause" : "Play", isMoving ? "pause" : "play");
    if (this.speed.value !== String(speed)) this.speed.value = String(speed);
    setText(this.clock, `${clock(position)} / ${clock(log.end)}`);
    setText(this.place, `event ${number(count)} of ${number(log.events.length)}`);
    this.#drawConnection(follower);
    const silentMs = isLive && follower?.state === "open" ? performance.now() - heardAt : 0;
    setText(this.silence, silentMs > SILENT_MS ? `No event for ${Math.floor(silentMs / 1000)} s` : "");
    this.live.hidden = !mayGrow;
    setAttribute(this.live, "aria-pressed", String(isLive));
  }

  /** Without a connection, that no event comes says nothing about the stream. */
  #drawConnection(follower) {
    const lostAt = follower && !follower.isOver ? follower.lostAt : null;
    this.lost.hidden = lostAt === null;
    setAttribute(this.live, "data-lost", lostAt !== null);
    setText(this.lostSince, lostAt === null ? "" : `Connection lost at ${moment(lostAt)}`);
    if (lostAt === null) return;
    const seconds = Math.ceil(Math.max(0, follower.retryAt - Date.now()) / 1000);
    setText(this.nextTry, follower.state === "waiting" ? `· next try in ${seconds} s` : "· trying now");
  }

  #drawPlayButton(label, sign) {
    if (this.playButton.title === label) return;
    this.playButton.title = label;
    setAttribute(this.playButton, "aria-label", label);
    fill(this.playButton, icon(sign));
  }
}
