// The player: a stream's whole log, at any instant, played at any speed. A running stream is followed live.

import { keep } from "./address.js";
import * as api from "./api.js";
import { AnswerView } from "./answer.js";
import { drawDetails, drawHead, sealBadge } from "./details.js";
import { ask } from "./dialog.js";
import { eachFrame, fill, h, notice, setText } from "./dom.js";
import { EventList } from "./eventlist.js";
import { Follower } from "./follower.js";
import { exact, number } from "./format.js";
import { Log } from "./log.js";
import { NdjsonDecoder } from "./ndjson.js";
import { Playhead } from "./playhead.js";
import { Problems } from "./problem.js";
import { Rewind } from "./rewind.js";
import { AUDITS, learn, may, noun, onRights, SEES_ALL } from "./rights.js";
import { bind } from "./shortcuts.js";
import { hasEnded, streamAddress } from "./stream.js";
import { Timeline } from "./timeline.js";
import { Transport } from "./transport.js";

export const title = "Player";
export const name = "stream";

const POLL_MS = 3000; // for the viewers while it runs, and the seal until the stream is archived
const SEAL_POLLS = 10;
const REMEMBER_MS = 250; // browsers reject an address that changes with every frame
const SAVING_MS = 60_000;
const LOADING = "Loading";
const CANCEL = "Cancel again";
const CANCELS = "streams:cancel";
const ERASES = "streams:erase";
const PUBLIC = "public";

export function mount(container, id, query) {
  return new Player(container, decode(id), Number(query.get("event")), query.get("audience") === PUBLIC);
}

class Player {
  #record = null;
  #log = new Log();
  #playhead = new Playhead(this.#log, () => this.#moved());
  #rewind = new Rewind();
  #reading = new AbortController(); // of a log that has ended
  #transport = new Transport(this.#playhead, () => this.#follower?.tryNow());
  #timeline = new Timeline({
    onSeek: (ms) => this.#playhead.seek(ms),
    onStep: (by) => this.#playhead.step(by),
    onEvent: (index) => this.#playhead.goTo(index + 1),
  });
  #answer = new AnswerView();
  #events = new EventList((index) => this.#playhead.goTo(index + 1));
  #follower = null;
  #heardAt = 0; // when the last event arrived, on this page's clock
  #views = LOADING;
  #seal = undefined; // while it is not known; null: this reader is refused
  #masked = [];
  #problems = new Problems();
  #abort = new AbortController();
  #draw = eachFrame(() => this.#paint());

  /** `event`: the id of the event to open at, or 0 for the end. `isPublic`: as users see it. */
  constructor(container, id, event, isPublic) {
    this.id = id;
    this.startAt = event;
    this.#build(container);
    this.usersView.checked = isPublic;
    this.#use(this.#newLog());
    this.unwatch = onRights(this.#draw);
    this.unbind = bind("Player", this.#shortcuts());
    this.#open();
  }

  close() {
    this.#abort.abort();
    this.#follower?.stop();
    this.#playhead.pause();
    this.#events.close();
    this.#timeline.close();
    this.#problems.clear();
    this.#draw.cancel();
    clearTimeout(this.polling);
    clearTimeout(this.remembering);
    clearInterval(this.silenceClock);
    this.unwatch();
    this.unbind();
  }

  #shortcuts() {
    const playhead = this.#playhead;
    return [
      { keys: [" "], does: "Play and pause", run: () => playhead.toggle() },
      { keys: ["ArrowRight"], does: "Step forward by an event", run: () => playhead.step(1) },
      { keys: ["ArrowLeft"], does: "Step back by an event", run: () => playhead.step(-1) },
      { keys: ["Home"], does: "Go to the start", run: () => playhead.goTo(1) },
      { keys: ["End"], does: "Go to the end", run: () => playhead.toEnd() },
      { keys: ["]"], does: "Faster", run: () => playhead.faster(1) },
      { keys: ["["], does: "Slower", run: () => playhead.faster(-1) },
      { keys: ["e"], does: "Go to the list of events", run: () => this.#events.list.focus() },
    ];
  }

  // -- reading

  async #open() {
    fill(this.state, notice("loading", "Loading the stream"));
    try {
      this.#record = await api.stream(this.id, this.#abort.signal);
      await learn(); // only now is there the key that it is about
      if (this.#abort.signal.aborted) return;
      if (this.#record.erased_at) this.#showTombstone();
      else if (hasEnded(this.#record)) await this.#readAll();
      else this.#watch();
    } catch (problem) {
      if (this.#abort.signal.aborted) return;
      if (problem.status === 410) this.#showTombstone();
      else {
        fill(this.state);
        this.#problems.show(problem, { again: "Open again", run: () => this.#open(), reads: true });
      }
    }
    if (this.#record) this.#poll(0);
  }

  get #audience() {
    return this.usersView.checked ? PUBLIC : null;
  }

  /** Who sees what users see gets no more than that, without asking for it. */
  get #seesPart() {
    return this.#audience !== null || !may(...SEES_ALL);
  }

  #newLog() {
    return new Log({ isPart: this.#seesPart });
  }

  /** The other audience's log, at the same instant. */
  #changeAudience() {
    const { event, isAtTheEnd } = this.#playhead;
    this.startAt = isAtTheEnd || !event ? 0 : event.id;
    this.#playhead.pause();
    this.#remember();
    if (!this.#record || this.#record.erased_at) return;
    this.#reading.abort();
    this.#attempt("Read it again", () => (hasEnded(this.#record) ? this.#readAll() : this.#watch()));
  }

  /** Line by line as it arrives: a long log in one piece would stop the page for as long as it takes to parse. */
  async #readAll() {
    const audience = this.#audience;
    this.#reading = new AbortController();
    const signal = AbortSignal.any([this.#abort.signal, this.#reading.signal]);
    const log = this.#newLog();
    const decoder = new NdjsonDecoder((line) => this.#take(line, log));
    const detail = h("p", { class: "notice-detail" });
    this.state.firstChild?.append(detail);
    const read = (text) => {
      decoder.push(text);
      setText(detail, `${number(log.events.length)} events`);
    };
    await api.readLog(this.id, read, { exports: may(...AUDITS), audience, signal });
    decoder.push("\n");
    this.#use(log);
    this.#show();
    if (this.startAt) this.#playhead.goToId(this.startAt);
    else this.#playhead.toEnd();
  }

  #use(log) {
    this.#log = this.#playhead.log = log;
    this.#rewind = new Rewind();
  }

  async #watch() {
    this.#follower?.stop();
    clearInterval(this.silenceClock);
    this.#use(this.#newLog());
    this.#playhead.mayGrow = this.#playhead.isLive = true;
    const follower = new Follower(this.id, {
      audience: this.#audience,
      hasTimes: true,
      onEvent: (event) => this.#take(event),
      onAgain: () => this.#use(this.#newLog()),
      onChange: this.#draw,
    });
    this.#follower = follower;
    this.silenceClock = setInterval(this.#draw, 1000);
    this.#show();
    await follower.run();
    if (this.#follower === follower) this.#followed();
  }

  /** The stream has ended, or the server refuses to let it be followed, or the user has left this page. */
  async #followed() {
    clearInterval(this.silenceClock);
    this.#playhead.mayGrow = false;
    if (this.#follower.state === "failed") {
      this.#problems.show(this.#follower.problem, { again: "Follow again", run: () => this.#watch() });
    }
    this.#problems.clear(CANCEL);
    this.#record = await api.stream(this.id, this.#abort.signal).catch(() => this.#record);
    this.#draw();
  }

  /** Lines without an id are not events: the seal, and the names of the masks for this reader. */
  #take(line, log = this.#log) {
    this.#heardAt = performance.now();
    if (line.id !== undefined) log.add(line);
    else if (line.redacted) this.#masked = line.redacted;
  }

  /** Read record, views and seal: at once, then again while they may change. */
  async #poll(round) {
    clearTimeout(this.polling);
    if (!document.hidden) await this.#readAround();
    if (this.#abort.signal.aborted) return;
    this.#draw();
    const ended = hasEnded(this.#record);
    const sealMayCome = this.#seal?.verdict === "not_sealed" && round < SEAL_POLLS;
    const isWatched = Array.isArray(this.#views) && this.#views.some((view) => view.closed_at === null);
    if (!ended || sealMayCome || isWatched || this.#seal === undefined || this.#views === LOADING) {
      this.polling = setTimeout(() => this.#poll(ended ? round + 1 : 0), POLL_MS);
    }
  }

  async #readAround() {
    const { signal } = this.#abort;
    const audits = may(...AUDITS);
    const none = `Not with this ${noun()}.`;
    const [views, seal, record] = await Promise.all([
      audits ? api.views(this.id, signal).catch((problem) => (mayPass(problem) ? this.#views : problem.message)) : none,
      audits ? api.verify(this.id, signal).catch((problem) => (mayPass(problem) ? this.#seal : null)) : null,
      hasEnded(this.#record) ? this.#record : api.stream(this.id, signal).catch(() => this.#record),
    ]);
    const found = views?.views ?? views;
    if (JSON.stringify(found) !== JSON.stringify(this.#views)) this.#views = found;
    this.#seal = seal;
    if (!hasEnded(this.#record)) this.#record = record; // a record that arrived meanwhile is newer
  }

  // -- actions

  async #export() {
    const address = URL.createObjectURL(await api.exportLog(this.id));
    h("a", { href: address, download: `${this.id}.ndjson` }).click();
    setTimeout(() => URL.revokeObjectURL(address), SAVING_MS);
  }

  async #erase() {
    if (!(await confirmErasure(this.id))) return;
    await this.#attempt("Erase again", async () => {
      await api.erase(this.id);
      this.#record = await api.stream(this.id);
      this.#showTombstone();
      this.#poll(0);
    });
  }

  async #attempt(again, action) {
    this.#problems.clear();
    try {
      await action();
    } catch (problem) {
      if (problem.name === "AbortError" || this.#abort.signal.aborted) return;
      if (again === CANCEL && hasEnded(this.#record)) return;
      this.#problems.show(problem, { again, run: () => this.#attempt(again, action) });
    }
  }

  #moved() {
    this.#draw();
    clearTimeout(this.remembering);
    this.remembering = setTimeout(() => this.#remember(), REMEMBER_MS);
  }

  /** The instant is part of the address, so it can be shared. At the end there is nothing to store. */
  #remember() {
    if (this.#playhead.isMoving) return;
    const event = this.#playhead.isAtTheEnd ? null : this.#playhead.event;
    const place = [event && `event=${event.id}`, this.#audience && `audience=${this.#audience}`].filter(Boolean);
    keep(`${streamAddress(this.id)}${place.length > 0 ? `?${place.join("&")}` : ""}`);
  }

  // -- drawing

  #build(container) {
    const button = (label, run, more) => h("button", { type: "button", onclick: run, ...more }, label);
    this.cancelButton = button("Cancel", () => this.#attempt(CANCEL, () => api.cancel(this.id)));
    this.exportButton = button("Export", () => this.#attempt("Export again", () => this.#export()));
    this.eraseButton = button("Erase…", () => this.#erase(), { class: "danger" });
    this.badges = h("div", { class: "badges" });
    this.actions = h("div", { class: "actions" });
    this.facts = h("div", {});
    this.state = h("div", {});
    this.masked = h("p", { class: "hint" });
    this.usersView = h("input", { type: "checkbox", role: "switch", onchange: () => this.#changeAudience() });
    this.seenAs = h("h2", {});
    this.stage = this.#buildStage();
    this.details = h("section", { class: "panel details", "aria-label": "Details", hidden: true });
    const heading = h("h1", { tabindex: "-1", class: "player-title" }, h("code", {}, this.id));
    container.append(
      h("div", { class: "player-head" }, h("div", { class: "player-name" }, heading, this.badges), this.actions),
      this.facts,
      this.state,
      this.#problems.element,
      this.stage,
      this.details,
    );
  }

  #buildStage() {
    const panel = (label, ...content) => h("section", { class: "panel", "aria-label": label }, content);
    const head = (label, ...more) => h("header", { class: "panel-head" }, label, more);
    this.usersSwitch = h("label", { class: "switch" }, this.usersView, "What users see");
    return h("div", { class: "stage", hidden: true }, [
      panel("Timeline", this.#transport.element, this.#timeline.element),
      h("div", { class: "player-columns" }, [
        panel("Answer", head(this.seenAs, this.masked, this.usersSwitch), this.#answer.element),
        panel("Events", head(h("h2", {}, "Events"), this.#events.filter), this.#events.element),
      ]),
    ]);
  }

  #show() {
    fill(this.state);
    this.stage.hidden = false;
    this.#draw();
  }

  /** Its content was erased or has expired. Its id, times and seal remain. */
  #showTombstone() {
    const erasedAt = this.#record?.erased_at;
    this.stage.hidden = true;
    const [gone, left] = erasedAt
      ? [
          "Erased",
          `Its events, request and usage were erased at ${exact(erasedAt)}. Its times and its seal remain.`,
        ]
      : ["No longer available", "Its retention has expired, or it was erased."];
    fill(this.state, notice("tombstone", gone, left));
    if (this.#record) this.#paintFrame();
  }

  #paint() {
    if (!this.#record) return;
    this.#playhead.catchUp();
    const { position, count } = this.#playhead;
    if (!this.#answer.draw(this.#rewind.at(this.#log.events, count))) this.#draw();
    this.#events.draw(this.#log, count);
    this.#timeline.draw(this.#log, position, count, this.#views);
    this.#transport.draw(this.#heardAt, this.#follower);
    this.usersSwitch.hidden = !may(...SEES_ALL);
    setText(this.seenAs, this.#log.isPart ? "As the user saw it" : "As operators see it");
    setText(this.masked, this.#masked.length > 0 ? `Masked for this key: ${this.#masked.join(", ")}` : "");
    this.#paintFrame();
  }

  /** Everything that changes only with the record and the seal. */
  #paintFrame() {
    const shown = JSON.stringify([this.#record, this.#seal ?? String(this.#seal), allowed()]);
    if (this.details.dataset.shown === shown) return;
    this.details.dataset.shown = shown;
    this.details.hidden = false;
    drawHead(this.facts, this.badges, this.#record, sealBadge(this.#seal, hasEnded(this.#record)));
    drawDetails(this.details, this.#record, this.#seal);
    this.#paintActions(Boolean(this.#record.erased_at), hasEnded(this.#record));
  }

  /** Not redrawn while they stay the same: one of them may have the focus. */
  #paintActions(isErased, ended) {
    const shown = JSON.stringify([isErased, ended, allowed()]);
    if (this.actions.dataset.shown === shown) return;
    this.actions.dataset.shown = shown;
    fill(this.actions, [
      !isErased && h("a", { class: "button", href: `#/playground?stream=${this.id}` }, "Playground"),
      !ended && may(CANCELS) && this.cancelButton,
      !isErased && may(...AUDITS) && this.exportButton,
      ended && !isErased && may(ERASES) && this.eraseButton,
    ]);
  }
}

const allowed = () => [CANCELS, ERASES, ...AUDITS].map((scope) => may(scope));

/** Asked again at the next poll, the answer may be another: what is known until then is still right. */
const mayPass = (problem) => problem.status === undefined || problem.status === 0 || problem.status >= 429;

function confirmErasure(id) {
  const content = h("p", {}, [
    "The events, the request and the usage of ",
    h("code", {}, id),
    " will be erased permanently, here and in the archive. A tombstone with its seal remains.",
  ]);
  return ask("Erase this stream?", content, { confirm: "Erase", cancel: "Keep it", confirmClass: "danger" });
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
