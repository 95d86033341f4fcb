// The player: a stream's whole log, at any instant of it, played at any pace; a running one is watched live.

import * as api from "./api.js";
import { AnswerView } from "./answer.js";
import { drawDetails, drawHead, sealBadge } from "./details.js";
import { ask } from "./dialog.js";
import { eachFrame, fill, h, notice, setAttribute, setText } from "./dom.js";
import { EventList } from "./eventlist.js";
import { Follower } from "./follower.js";
import { clock, moment, number } from "./format.js";
import { icon } from "./icons.js";
import { Log } from "./log.js";
import { problemNotice } from "./problem.js";
import { bind } from "./shortcuts.js";
import { NdjsonDecoder } from "./sse.js";
import { hasEnded, streamAddress } from "./stream.js";
import { Timeline } from "./timeline.js";
import { Transcript } from "./transcript.js";

export const title = "Player";
export const name = "stream";

const SPEEDS = [1, 2, 4, 8, 16];
const POLL_MS = 3000; // who watches, while it runs; the seal, until the archive has it
const SEAL_POLLS = 10;
const SILENT_MS = 2000;

export function mount(container, id, query) {
  return new Player(container, decode(id), Number(query.get("event")) || null);
}

class Player {
  #record = null;
  #log = new Log();
  #transcript = new Transcript();
  #answer = new AnswerView();
  #events = new EventList((index) => this.#goTo(index + 1));
  #timeline = new Timeline({
    onSeek: (ms) => this.#seek(ms),
    onStep: (by) => this.#goTo(this.#count + by),
    onEvent: (index) => this.#goTo(index + 1),
  });
  #count = 0; // how many events have happened at the instant that is shown
  #position = 0; // that instant, in ms since the first event
  #applied = 0; // how many of them the transcript holds
  #live = false;
  #playingSince = null; // the time of the last frame while playing
  #follower = null;
  #heardAt = 0; // when the last event came, on this page's clock
  #views = "Loading";
  #seal = undefined;
  #masked = [];
  #abort = new AbortController();
  #draw = eachFrame(() => this.#paint());

  constructor(container, id, event) {
    this.id = id;
    this.startAt = event;
    this.#build(container);
    this.unbind = bind("Player", this.#shortcuts());
    this.#open();
  }

  close() {
    this.#abort.abort();
    this.#follower?.stop();
    this.#events.close();
    this.#draw.cancel();
    clearTimeout(this.polling);
    clearInterval(this.silenceClock);
    this.#playingSince = null;
    this.unbind();
  }

  #shortcuts() {
    return [
      { keys: [" "], does: "Play and pause", run: () => this.#togglePlay() },
      { keys: ["ArrowRight"], does: "Step forward by an event", run: () => this.#goTo(this.#count + 1) },
      { keys: ["ArrowLeft"], does: "Step back by an event", run: () => this.#goTo(this.#count - 1) },
      { keys: ["Home"], does: "To the start", run: () => this.#goTo(1) },
      { keys: ["End"], does: "To the end", run: () => this.#goLive() },
      { keys: ["]"], does: "Faster", run: () => this.#changeSpeed(1) },
      { keys: ["["], does: "Slower", run: () => this.#changeSpeed(-1) },
      { keys: ["e"], does: "To the list of events", run: () => this.#events.list.focus() },
    ];
  }

  // -- reading

  async #open() {
    fill(this.state, notice("loading", "Loading the stream"));
    try {
      this.#record = await api.stream(this.id, this.#abort.signal);
      if (this.#record.erased_at) this.#showTombstone();
      else if (hasEnded(this.#record)) await this.#readAll();
      else this.#watch();
    } catch (problem) {
      if (this.#abort.signal.aborted) return;
      if (problem.status === 410) this.#showTombstone();
      else fill(this.state, problemNotice(problem, () => this.#open()));
    }
    if (this.#record) this.#poll(0);
  }

  async #readAll() {
    const decoder = new NdjsonDecoder((line) => this.#take(line));
    const response = await api.exportLog(this.id, this.#abort.signal);
    decoder.push(`${await response.text()}\n`);
    this.#show();
    this.#goTo(this.#placeOf(this.startAt));
  }

  #watch() {
    this.#live = true;
    this.#follower = new Follower(this.id, {
      wire: "ndjson",
      onEvent: (event) => this.#take(event),
      onGap: () => {},
      onChange: this.#draw,
    });
    this.#follower.run().then(() => this.#followed());
    this.silenceClock = setInterval(this.#draw, 1000);
    this.#show();
  }

  #take(line) {
    this.#heardAt = performance.now();
    if (line.id !== undefined) this.#log.add(line);
    else if (line.redacted) this.#masked = line.redacted;
  }

  /** The stream has ended, or the server will not have it followed, or this page is left. */
  async #followed() {
    clearInterval(this.silenceClock);
    const { problem } = this.#follower;
    if (problem) fill(this.state, problemNotice(problem, () => this.#watch()));
    this.#record = await api.stream(this.id, this.#abort.signal).catch(() => this.#record);
    this.#draw();
  }

  /** Views and seal: at once, then for as long as they may change. */
  async #poll(round) {
    clearTimeout(this.polling);
    const { signal } = this.#abort;
    const known = (problem) => (signal.aborted ? undefined : problem.message);
    if (!document.hidden) {
      [this.#views, this.#seal] = await Promise.all([
        api.views(this.id, signal).then((answer) => answer && answer.views).catch(known),
        api.verify(this.id, signal).catch(() => undefined),
      ]);
    }
    if (signal.aborted) return;
    this.#draw();
    if (this.#views === null && this.#seal === null) return; // this server will not know more later
    const ended = hasEnded(this.#record);
    const sealMayCome = this.#seal?.verdict === "not_sealed" && round < SEAL_POLLS;
    const isWatched = Array.isArray(this.#views) && this.#views.some((view) => view.closed_at === null);
    if (!ended || sealMayCome || isWatched) {
      this.polling = setTimeout(() => this.#poll(ended ? round + 1 : 0), POLL_MS);
    }
  }

  // -- moving in time

  #goTo(count) {
    this.#count = Math.min(Math.max(count, 0), this.#log.events.length);
    this.#position = this.#log.at(this.#count - 1);
    this.#moved();
  }

  #seek(ms) {
    this.#position = Math.min(Math.max(ms, 0), this.#log.end);
    this.#count = this.#log.countAt(this.#position);
    this.#moved();
  }

  #moved() {
    const isAtTheEnd = this.#count === this.#log.events.length;
    this.#live = this.#isRunning && isAtTheEnd;
    this.#remember();
    this.#draw();
  }

  /** The instant is part of the address: it can be handed on. At the end there is nothing to remember. */
  #remember() {
    clearTimeout(this.remembering);
    this.remembering = setTimeout(() => {
      if (this.#abort.signal.aborted || this.#playingSince !== null) return;
      const event = this.#count < this.#log.events.length && this.#log.events[this.#count - 1];
      history.replaceState(null, "", `${streamAddress(this.id)}${event ? `?event=${event.id}` : ""}`);
    }, 250);
  }

  #placeOf(eventId) {
    const index = eventId === null ? -1 : this.#log.events.findIndex((event) => event.id >= eventId);
    return index < 0 ? this.#log.events.length : index + 1;
  }

  get #isRunning() {
    return this.#follower !== null && this.#follower.state !== "ended";
  }

  #goLive() {
    this.#goTo(this.#log.events.length);
  }

  #togglePlay() {
    if (this.#log.events.length === 0) return;
    if (this.#playingSince !== null || this.#live) return this.#pause();
    if (this.#position >= this.#log.end) this.#seek(0);
    this.#playingSince = performance.now();
    requestAnimationFrame((now) => this.#play(now));
    this.#draw();
  }

  #pause() {
    this.#playingSince = null;
    this.#live = false;
    this.#remember();
    this.#draw();
  }

  #play(now) {
    if (this.#playingSince === null) return;
    const passed = Math.max(0, now - this.#playingSince) * Number(this.speed.value);
    this.#playingSince = now;
    this.#seek(this.#position + passed);
    if (this.#position < this.#log.end) requestAnimationFrame((next) => this.#play(next));
    else if (this.#isRunning) this.#playingSince = null;
    else this.#pause();
  }

  #changeSpeed(by) {
    const at = Math.min(Math.max(this.speed.selectedIndex + by, 0), SPEEDS.length - 1);
    this.speed.selectedIndex = at;
  }

  // -- what else can be done

  async #export() {
    await this.#attempt(async () => {
      const response = await api.exportLog(this.id);
      const address = URL.createObjectURL(await response.blob());
      h("a", { href: address, download: `${this.id}.ndjson` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
    });
  }

  #cancel() {
    return this.#attempt(() => api.cancel(this.id));
  }

  async #erase() {
    if (!(await confirmErasure(this.id))) return;
    await this.#attempt(async () => {
      await api.erase(this.id);
      this.#record = await api.stream(this.id).catch(() => ({ ...this.#record, erased_at: new Date().toISOString() }));
      this.#showTombstone();
      this.#poll(0);
    });
  }

  async #attempt(action) {
    fill(this.state);
    try {
      await action();
    } catch (problem) {
      fill(this.state, problemNotice(problem, () => this.#attempt(action)));
    }
  }

  // -- showing

  #show() {
    fill(this.state);
    this.stage.hidden = false;
    this.#draw();
  }

  /** Its content is gone, or not kept any longer. What is left: id, times, and the seal. */
  #showTombstone() {
    const erasedAt = this.#record?.erased_at;
    this.stage.hidden = true;
    const gone = erasedAt ? `Erased on ${moment(erasedAt)}` : "No longer kept";
    const left = erasedAt ? "Its events, its request and its usage are gone. Its id, its times and its seal stay."
      : "Its retention is over, or it was erased.";
    fill(this.state, notice("tombstone", gone, left));
    if (this.#record) this.#paintFrame();
  }

  #build(container) {
    this.head = h("div", { class: "player-facts" });
    this.heading = h("h1", { tabindex: "-1", class: "player-title" }, h("code", {}, this.id));
    this.badges = h("div", { class: "badges" });
    this.actions = h("div", { class: "actions" });
    this.state = h("div", {});
    this.masked = h("p", { class: "hint" });
    this.details = h("section", { class: "panel details", "aria-label": "Details" });
    this.stage = h("div", { class: "stage", hidden: true }, [
      h("section", { class: "panel timeline-panel", "aria-label": "Timeline" }, this.#transport(), this.#timeline.element),
      h("div", { class: "player-columns" }, [
        h("section", { class: "panel answer-panel", "aria-label": "Answer" },
          h("header", { class: "panel-head" }, h("h2", {}, "As the user saw it"), this.masked),
          this.#answer.element),
        h("section", { class: "panel", "aria-label": "Events" },
          h("header", { class: "panel-head" }, h("h2", {}, "Events"), this.#events.filter),
          this.#events.element),
      ]),
    ]);
    container.append(
      h("div", { class: "player-head" }, h("div", { class: "player-name" }, this.heading, this.badges), this.actions),
      this.head,
      this.state,
      this.stage,
      this.details,
    );
    this.details.hidden = true;
    this.cancelButton = h("button", { type: "button", onclick: () => this.#cancel() }, "Cancel");
    this.exportButton = h("button", { type: "button", onclick: () => this.#export() }, "Export");
    this.eraseButton = h("button", { type: "button", class: "danger", onclick: () => this.#erase() }, "Erase…");
  }

  #transport() {
    const button = (label, name_, run) =>
      h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick: run }, icon(name_));
    this.playButton = button("Play", "play", () => this.#togglePlay());
    this.speed = h("select", { "aria-label": "Speed" }, SPEEDS.map((each) => h("option", { value: each }, `${each}×`)));
    this.clock = h("span", { class: "clock" });
    this.place = h("span", { class: "muted place" });
    this.silence = h("span", { class: "silence" });
    this.liveButton = h("button", { type: "button", class: "live", onclick: () => this.#goLive() }, "Live");
    return h("div", { class: "transport" }, [
      button("Step back", "back", () => this.#goTo(this.#count - 1)),
      this.playButton,
      button("Step forward", "forward", () => this.#goTo(this.#count + 1)),
      this.speed,
      this.clock,
      this.place,
      this.silence,
      this.liveButton,
    ]);
  }

  #paint() {
    if (this.#live) {
      this.#count = this.#log.events.length;
      this.#position = this.#log.end;
      if (!this.#isRunning) this.#live = false;
    }
    this.#applyUntil(this.#count);
    this.#answer.draw(this.#transcript);
    this.#events.draw(this.#log, this.#count);
    this.#timeline.draw(this.#log, this.#position, this.#count);
    this.#timeline.drawViews(this.#log, this.#views);
    this.#paintTransport();
    this.#paintFrame();
  }

  /** Forward, event by event; back, from the start again: ten thousand events are some milliseconds. */
  #applyUntil(count) {
    if (count < this.#applied) {
      this.#transcript.reset();
      this.#applied = 0;
    }
    for (; this.#applied < count; this.#applied += 1) this.#transcript.apply(this.#log.events[this.#applied]);
  }

  #paintTransport() {
    const isMoving = this.#playingSince !== null || this.#live;
    const label = isMoving ? "Pause" : "Play";
    if (this.playButton.title !== label) {
      this.playButton.title = label;
      setAttribute(this.playButton, "aria-label", label);
      fill(this.playButton, icon(isMoving ? "pause" : "play"));
    }
    setText(this.clock, `${clock(this.#position)} / ${clock(this.#log.end)}`);
    setText(this.place, `event ${number(this.#count)} of ${number(this.#log.events.length)}`);
    const silentMs = this.#live ? performance.now() - this.#heardAt : 0;
    setText(this.silence, silentMs > SILENT_MS ? `No event for ${Math.floor(silentMs / 1000)} s` : "");
    this.liveButton.hidden = !this.#isRunning;
    setAttribute(this.liveButton, "aria-pressed", String(this.#live));
    setText(this.masked, this.#masked.length ? `Masked for this key: ${this.#masked.join(", ")}` : "");
  }

  #paintFrame() {
    const shown = JSON.stringify([this.#record, this.#seal ?? String(this.#seal)]);
    if (this.details.dataset.shown === shown) return;
    this.details.dataset.shown = shown;
    this.details.hidden = false;
    drawHead(this.head, this.badges, this.#record, sealBadge(this.#seal, hasEnded(this.#record)));
    drawDetails(this.details, this.#record, this.#seal);
    const isErased = Boolean(this.#record.erased_at);
    const ended = hasEnded(this.#record);
    fill(this.actions, [
      !isErased && h("a", { class: "button", href: `#/playground?stream=${this.id}` }, "Playground"),
      !ended && this.cancelButton,
      !isErased && this.exportButton,
      ended && !isErased && this.eraseButton,
    ]);
  }
}

function confirmErasure(id) {
  const content = h("p", {}, "The events, the request and the usage of ", h("code", {}, id),
    " are erased for good, here and in the archive. A tombstone with its seal stays.");
  return ask("Erase this stream?", content, { confirm: "Erase", cancel: "Keep it", confirmClass: "danger" });
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
