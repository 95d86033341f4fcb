// A log over time on one axis: its pace, a slider to seek, the faults, the tools, and the viewers with their times.

import { atPart, lane } from "./axis.js";
import { fill, h, setAttribute, setText, svg } from "./dom.js";
import { clock, duration, number, visible } from "./format.js";
import { Lanes } from "./lanes.js";
import { Viewers } from "./viewers.js";

const BINS = 120;
const CHART_HEIGHT = 44;
const TICKS = 8;
const STEPS_MS = [
  50, 100, 200, 500, 1000, 2000, 5000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000,
];
const MARKS_LISTED = 60; // in a log with more, a list would not explain the fault
const MARKS_DRAWN = 1000; // more have no place of their own on any screen
const REDRAW_MS = 250; // while the log grows: a new chart for each frame is more than anybody sees
const SEEK_PART = 20; // PageUp and PageDown move by a twentieth of the whole

export class Timeline {
  #log = null;
  #drawn = ""; // its size when the rarely changing parts were drawn
  #drawnAt = -Infinity;
  #later = 0;
  #viewers = new Viewers();
  #lanes;

  /** `onSeek(ms)`: the slider moved; `onStep(±1)`: an arrow key on it; `onEvent(index)`: a mark was chosen. */
  constructor({ onSeek, onStep, onEvent }) {
    Object.assign(this, { onSeek, onStep, onEvent });
    this.bars = svg("path", { class: "chart-bars" });
    this.firstToken = svg("line", { class: "chart-first", y1: "0", y2: CHART_HEIGHT });
    this.chart = svg(
      "svg",
      {
        class: "chart",
        role: "img",
        viewBox: `0 0 1000 ${CHART_HEIGHT}`,
        preserveAspectRatio: "none",
      },
      this.bars,
      this.firstToken,
    );
    this.peak = h("span", { class: "chart-peak" });
    this.firstLabel = h("span", { class: "chart-label" });
    this.slider = h("input", {
      type: "range",
      min: "0",
      step: "1",
      "aria-label": "Time",
      oninput: () => this.onSeek(Number(this.slider.value)),
      onkeydown: (event) => this.#key(event),
    });
    this.#lanes = new Lanes(onEvent);
    this.marks = h("div", { class: "marks", "aria-hidden": "true" });
    this.ticks = h("div", { class: "ticks", "aria-hidden": "true" });
    this.playhead = h("div", { class: "playhead", "aria-hidden": "true" });
    this.list = h("ul", { class: "mark-list", "aria-label": "Marks" });
    this.element = h("div", { class: "timeline" }, [
      lane(h("span", {}, "Events per second, ", this.peak), this.chart, this.firstLabel),
      h(
        "div",
        { class: "lane track" },
        h("span", { class: "lane-label" }),
        h("div", { class: "axis" }, h("div", { class: "inset" }, this.marks), this.slider),
      ),
      lane("", this.ticks),
      this.list,
      this.#lanes.element,
      this.#viewers.element,
      h(
        "div",
        { class: "lane playhead-lane" },
        h("span", { class: "lane-label" }),
        h("div", { class: "axis" }, h("div", { class: "inset" }, this.playhead)),
      ),
    ]);
  }

  close() {
    clearTimeout(this.#later);
    this.#later = 0;
  }

  draw(log, position, count, views) {
    setAttribute(this.slider, "max", Math.max(log.end, 1));
    this.#drawLog(log);
    this.#viewers.draw(log, views);
    const part = `${(100 * position) / Math.max(log.end, 1)}%`;
    if (this.playhead.style.left !== part) this.playhead.style.left = part;
    if (Number(this.slider.value) !== Math.round(position)) this.slider.value = Math.round(position);
    const place = `${clock(position)} of ${clock(log.end)}, event ${count} of ${log.events.length}`;
    setAttribute(this.slider, "aria-valuetext", place);
  }

  #key(event) {
    const page = Number(this.slider.max) / SEEK_PART;
    const seekBy = (ms) => {
      this.slider.value = Number(this.slider.value) + ms; // now: the next key may arrive before the next frame
      this.onSeek(Number(this.slider.value));
    };
    const actions = {
      ArrowRight: () => this.onStep(1),
      ArrowUp: () => this.onStep(1),
      ArrowLeft: () => this.onStep(-1),
      ArrowDown: () => this.onStep(-1),
      PageUp: () => seekBy(page),
      PageDown: () => seekBy(-page),
    };
    if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
  }

  // -- parts that change only when the log grows

  #drawLog(log) {
    const shown = `${log.events.length} ${log.end}`;
    const isNew = this.#log !== log;
    if (isNew) this.close(); // what it waits to draw is another one
    this.#log = log;
    if (!isNew && (this.#drawn === shown || this.#later)) return;
    const wait = isNew ? 0 : this.#drawnAt + REDRAW_MS - performance.now();
    if (wait > 0) {
      this.#later = setTimeout(() => {
        this.#later = 0;
        this.#drawLog(this.#log);
      }, wait);
      return;
    }
    this.#drawn = shown;
    this.#drawnAt = performance.now();
    this.#drawChart(log);
    this.#drawTicks(log);
    this.#drawMarks(log);
    this.#lanes.draw(log);
  }

  #drawChart(log) {
    const rates = log.rates(BINS);
    const peak = Math.max(...rates, 1);
    const width = 1000 / rates.length;
    const bars = rates.map((rate, at) => {
      const [left, height] = [(at * width).toFixed(2), ((rate / peak) * (CHART_HEIGHT - 2)).toFixed(2)];
      return rate ? `M${left} ${CHART_HEIGHT}v-${height}h${(width - 1.4).toFixed(2)}V${CHART_HEIGHT}z` : "";
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
    const firstText = first === null ? "no text" : `first token ${duration(first)}`;
    setText(this.firstLabel, firstText);
    setAttribute(this.chart, "aria-label", `Events per second: at most ${Math.round(peak)}; ${firstText}`);
  }

  #drawTicks(log) {
    const step = STEPS_MS.find((each) => log.end / each <= TICKS) ?? log.end / TICKS;
    const ticks = [];
    for (let at = 0; at <= log.end; at += step) ticks.push(at);
    fill(
      this.ticks,
      ticks.map((at) => {
        const label = step < 1000 ? `${(at / 1000).toFixed(step < 100 ? 2 : 1)} s` : clock(at).slice(0, -4);
        return atPart(h("span", {}, label), at, log);
      }),
    );
  }

  #drawMarks(log) {
    const marks = log.marks();
    fill(
      this.marks,
      marks.slice(0, MARKS_DRAWN).map((mark) => {
        const element = atPart(h("span", { class: `mark ${mark.kind}` }), mark.at, log);
        if (mark.until) element.style.width = `${(100 * (mark.until - mark.at)) / Math.max(log.end, 1)}%`;
        return element;
      }),
    );
    this.list.hidden = marks.length === 0;
    const more = marks.length - MARKS_LISTED;
    fill(
      this.list,
      marks
        .slice(0, MARKS_LISTED)
        .map((mark) =>
          h(
            "li",
            {},
            h("button", { type: "button", class: "chip", onclick: () => this.onEvent(mark.index) }, [
              h("span", { class: `mark-sign ${mark.kind}` }),
              h("span", { class: "muted" }, clock(mark.at)),
              h("span", {}, visible(describe(mark))),
            ]),
          ),
        ),
      more > 0 && h("li", { class: "hint" }, `and ${number(more)} more`),
    );
  }
}

function describe(mark) {
  if (mark.kind === "stall") return `Silence of ${duration(mark.until - mark.at)}`;
  if (mark.kind === "restart") return `Restart, attempt ${mark.attempt}: ${mark.reason}`;
  if (mark.kind === "jump") return `Another writer: ids jump from ${mark.from} to ${mark.to}`;
  return `Missing: ids ${mark.from + 1} to ${mark.to - 1}`;
}
