// A log over time on one axis: its pace, a slider to go anywhere, what went wrong, and who was connected when.

import { fill, h, said, setAttribute, setText, svg } from "./dom.js";
import { agentName, clock, duration, number, plural, visible } from "./format.js";

const BINS = 120;
const CHART_HEIGHT = 44;
const TICKS = 8;
const STEPS_MS = [50, 100, 200, 500, 1000, 2000, 5000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000];
const VIEWERS_SHOWN = 5;
const MARKS_LISTED = 60; // a log with more has a fault that a list does not explain
const SEEK_PART = 20; // PageUp and PageDown go a twentieth of the whole

export class Timeline {
  #drawn = ""; // what the parts that change seldom were drawn for
  #views = null;
  #allViews = false;

  /** `onSeek(ms)` when the slider is moved, `onStep(±1)` by its arrow keys, `onEvent(index)` when a mark is chosen. */
  constructor({ onSeek, onStep, onEvent }) {
    Object.assign(this, { onSeek, onStep, onEvent });
    this.bars = svg("path", { class: "chart-bars" });
    this.firstToken = svg("line", { class: "chart-first", y1: "0", y2: CHART_HEIGHT });
    this.chart = svg("svg", {
      class: "chart", role: "img", viewBox: `0 0 1000 ${CHART_HEIGHT}`, preserveAspectRatio: "none",
    }, this.bars, this.firstToken);
    this.peak = h("span", { class: "chart-peak" });
    this.firstLabel = h("span", { class: "chart-label" });
    this.slider = h("input", {
      type: "range", min: "0", step: "1", "aria-label": "Time",
      oninput: () => this.onSeek(Number(this.slider.value)),
      onkeydown: (event) => this.#key(event),
    });
    this.marks = h("div", { class: "marks", "aria-hidden": "true" });
    this.ticks = h("div", { class: "ticks", "aria-hidden": "true" });
    this.playhead = h("div", { class: "playhead", "aria-hidden": "true" });
    this.list = h("ul", { class: "mark-list", "aria-label": "Marks" });
    this.viewers = h("div", { class: "viewers" });
    this.element = h("div", { class: "timeline" }, [
      lane(h("span", {}, "Events per second, ", this.peak), this.chart, this.firstLabel),
      h("div", { class: "lane track" }, h("span", { class: "lane-label" }),
        h("div", { class: "axis" }, h("div", { class: "inset" }, this.marks), this.slider)),
      lane("", this.ticks),
      this.list,
      this.viewers,
      h("div", { class: "lane playhead-lane" }, h("span", { class: "lane-label" }),
        h("div", { class: "axis" }, h("div", { class: "inset" }, this.playhead))),
    ]);
  }

  draw(log, position, count) {
    this.#drawLog(log);
    const part = `${(100 * position) / Math.max(log.end, 1)}%`;
    if (this.playhead.style.left !== part) this.playhead.style.left = part;
    if (Number(this.slider.value) !== Math.round(position)) this.slider.value = Math.round(position);
    const told = `${clock(position)} of ${clock(log.end)}, event ${count} of ${log.events.length}`;
    setAttribute(this.slider, "aria-valuetext", told);
  }

  /** `views`: as the API lists them; null where the server keeps no access record; a string while it is not known. */
  drawViews(log, views) {
    this.#views = views;
    const shown = JSON.stringify([views, log.start, log.end, this.#allViews]);
    if (this.viewers.dataset.shown === shown) return;
    this.viewers.dataset.shown = shown;
    fill(this.viewers, this.#viewRows(log));
  }

  #key(event) {
    const page = Number(this.slider.max) / SEEK_PART;
    const value = Number(this.slider.value);
    const actions = {
      ArrowRight: () => this.onStep(1),
      ArrowUp: () => this.onStep(1),
      ArrowLeft: () => this.onStep(-1),
      ArrowDown: () => this.onStep(-1),
      PageUp: () => this.onSeek(value + page),
      PageDown: () => this.onSeek(value - page),
    };
    if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
  }

  // -- what changes only when the log grows

  #drawLog(log) {
    const shown = `${log.events.length} ${log.end}`;
    if (this.#drawn === shown) return;
    this.#drawn = shown;
    this.slider.max = String(Math.max(log.end, 1));
    this.#drawChart(log);
    this.#drawTicks(log);
    this.#drawMarks(log);
  }

  #drawChart(log) {
    const rates = log.rates(BINS);
    const peak = Math.max(...rates, 1);
    const width = 1000 / rates.length;
    const bars = rates.map((rate, at) => {
      const height = (rate / peak) * (CHART_HEIGHT - 2);
      return rate ? `M${(at * width).toFixed(2)} ${CHART_HEIGHT}v${-height.toFixed(2)}h${(width - 1.4).toFixed(2)}V${CHART_HEIGHT}z` : "";
    });
    this.bars.setAttribute("d", bars.join(""));
    setText(this.peak, `at most ${number(Math.round(peak))}`);
    const first = log.firstTextAt();
    const part = first === null ? 0 : first / Math.max(log.end, 1);
    setAttribute(this.firstToken, "x1", 1000 * part);
    setAttribute(this.firstToken, "x2", 1000 * part);
    this.firstToken.style.display = this.firstLabel.style.display = first === null ? "none" : "";
    this.firstLabel.style.left = `${100 * part}%`;
    this.firstLabel.classList.toggle("leftwards", part > 0.6);
    const told = first === null ? "no text" : `first token ${duration(first)}`;
    setText(this.firstLabel, told);
    setAttribute(this.chart, "aria-label", `Events per second: at most ${Math.round(peak)}; ${told}`);
  }

  #drawTicks(log) {
    const step = STEPS_MS.find((each) => log.end / each <= TICKS) ?? log.end / TICKS;
    const ticks = [];
    for (let at = 0; at <= log.end; at += step) ticks.push(at);
    fill(this.ticks, ticks.map((at) => {
      const tick = h("span", {}, step < 1000 ? `${(at / 1000).toFixed(step < 100 ? 2 : 1)} s` : clock(at).slice(0, -4));
      return atPart(tick, at, log);
    }));
  }

  #drawMarks(log) {
    const marks = log.marks();
    fill(this.marks, marks.map((mark) => {
      const element = atPart(h("span", { class: `mark ${mark.kind}` }), mark.at, log);
      if (mark.until) element.style.width = `${(100 * (mark.until - mark.at)) / Math.max(log.end, 1)}%`;
      return element;
    }));
    this.list.hidden = marks.length === 0;
    fill(this.list, marks.slice(0, MARKS_LISTED).map((mark) =>
      h("li", {}, h("button", { type: "button", class: "chip", onclick: () => this.onEvent(mark.index) }, [
        h("span", { class: `mark-sign ${mark.kind}` }),
        h("span", { class: "muted" }, clock(mark.at)),
        h("span", {}, visible(describe(mark))),
      ]))));
  }

  // -- who was connected when

  #viewRows(log) {
    const views = this.#views;
    const title = h("h3", {}, "Viewers");
    const said_ = (text) => lane(title, h("p", { class: "hint" }, text));
    if (typeof views === "string") return said_(views);
    if (views === null) return said_("No access record on this server.");
    if (views.length === 0) return said_("Nobody has followed this stream.");
    const rows = (this.#allViews ? views : views.slice(0, VIEWERS_SHOWN)).map((view) => viewRow(view, log));
    const more = views.length > rows.length && h("button", {
      type: "button",
      class: "quiet",
      onclick: () => {
        this.#allViews = true;
        this.drawViews(log, views);
      },
    }, `All ${plural(views.length, "viewer")}`);
    return [lane(title), h("ol", {}, rows), more];
  }
}

function atPart(element, at, log) {
  element.style.left = `${(100 * at) / Math.max(log.end, 1)}%`;
  return element;
}

function describe(mark) {
  if (mark.kind === "stall") return `Silence of ${duration(mark.until - mark.at)}`;
  if (mark.kind === "restart") return `Restart, attempt ${mark.attempt}: ${mark.reason}`;
  if (mark.kind === "jump") return `Another writer: ids jump from ${mark.from} to ${mark.to}`;
  return `Missing: ids ${mark.from + 1} to ${mark.to - 1}`;
}

const HOW = new Map(Object.entries({
  finished: "finished",
  left: "left",
  drained: "sent away by a drain",
  too_slow: "too slow, cut",
  vanished: "vanished",
  server_lost: "its server was lost",
}));

const tone = (view) => (view.closed_at === null ? "connected" : HOW.has(view.how) ? view.how : "");

const RIGHT_PART = 0.55; // a bar that starts so late has its text before its end, not after its start

function viewRow(view, log) {
  const end = Math.max(log.end, 1);
  const opened = Date.parse(view.opened_at) - log.start;
  const closed = view.closed_at ? Date.parse(view.closed_at) - log.start : Infinity;
  const isLate = opened > log.end;
  const from = Math.min(Math.max(opened / end, 0), 1);
  const to = Math.min(Math.max(closed / end, from), 1);
  const bar = h("div", { class: `viewer-bar ${tone(view)}` });
  bar.style.left = `${100 * from}%`;
  bar.style.width = `${100 * (to - from)}%`;
  const text = h("span", { class: `viewer-text ${tone(view)}` }, visible(told(view, isLate && opened - log.end)));
  if (from > RIGHT_PART) text.style.right = `${100 * (1 - to)}%`;
  else text.style.left = `${100 * from}%`;
  const agent = said(agentName(view.user_agent), { title: visible(view.user_agent ?? ""), class: "muted" });
  const row = lane(h("span", {}, said(view.who), " ", agent), bar, text);
  row.classList.add("viewer");
  return h("li", { class: isLate ? "late" : null }, row);
}

function told(view, late) {
  const seen = view.first_id === null ? "no event" : `${view.first_id}–${view.last_id}`;
  const ended = view.closed_at ? (HOW.get(view.how) ?? view.how ?? "closed") : "connected";
  return [
    late !== false && `${duration(late)} after the end`,
    view.requested > 0 && `after ${view.requested}`,
    seen,
    ended,
  ].filter(Boolean).join(" · ");
}

/** A label, and beside it what stands on the time axis. */
function lane(label, ...content) {
  return h("div", { class: "lane" }, h("div", { class: "lane-label" }, label),
    h("div", { class: "axis" }, h("div", { class: "inset" }, content)));
}
