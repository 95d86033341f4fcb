// The player's tools, sub-agents and approvals: a lane for each, with a bar from beginning to end of each time.

import { atPart, lane } from "./axis.js";
import { fill, h, isolated, setAttribute, setText } from "./dom.js";
import { clock, duration, number, visible } from "./format.js";

const SHOWN = 12;
const BARS = 400; // in a lane: more are no bars any more on any screen
const DEEPEST = 4; // so many at the same time are drawn below each other
const HEIGHT = 18; // as in views.css

const NOUNS = { tool: "call", agent: "run", approval: "approval" };
const OUTCOMES = { unfinished: "not finished", replayed: "replayed, not run again" };

export class Lanes {
  #rows = new Map(); // what names a lane → it
  #showsAll = false;
  #log = null;

  /** `onEvent(index)`: the beginning of one was chosen. */
  constructor(onEvent) {
    this.onEvent = onEvent;
    this.list = h("ol", {});
    this.more = h("button", { type: "button", class: "quiet", onclick: () => this.#showAll() });
    const title = lane(h("h3", {}, "Tools and agents"));
    this.element = h("div", { class: "lanes", hidden: true }, title, this.list, this.more);
  }

  draw(log) {
    this.#log = log;
    const spans = grouped(log.spans);
    const names = [...spans.keys()].slice(0, this.#showsAll ? Infinity : SHOWN);
    if (names.join() !== [...this.#rows.keys()].join()) {
      const row = (name) => this.#rows.get(name) ?? new Row(spans.get(name)[0], this.onEvent);
      this.#rows = new Map(names.map((name) => [name, row(name)]));
      fill(this.list, [...this.#rows.values()].map((row) => row.element));
    }
    for (const [name, row] of this.#rows) row.draw(spans.get(name), log);
    this.element.hidden = spans.size === 0;
    this.more.hidden = names.length === spans.size;
    setText(this.more, `Show all ${number(spans.size)}`);
  }

  #showAll() {
    this.#showsAll = true;
    this.draw(this.#log);
  }
}

function grouped(spans) {
  const lanes = new Map();
  for (const span of spans) {
    const name = JSON.stringify([span.kind, span.name, span.agent]);
    if (lanes.has(name)) lanes.get(name).push(span);
    else lanes.set(name, [span]);
  }
  return lanes;
}

class Row {
  #spans = [];
  #next = 0; // the one that the label leads to

  /** `first`: of its spans. */
  constructor({ kind, name, agent }, onEvent) {
    this.kind = kind;
    this.onEvent = onEvent;
    const whose = kind !== "agent" && agent ? isolated(agent, { class: "muted lane-agent" }) : null;
    this.summary = h("span", { class: "muted" });
    const label = [isolated(name, { class: "lane-name" }), " ", whose, " ", this.summary];
    const sign = h("span", { class: `span-sign ${kind}` });
    this.label = h("button", { type: "button", class: "lane-go", onclick: () => this.#goOn() }, sign, label);
    this.bars = h("div", { class: "span-bars", "aria-hidden": "true", onclick: (event) => this.#click(event) });
    this.row = lane(this.label, this.bars);
    this.row.classList.add("spans");
    this.element = h("li", {}, this.row);
  }

  draw(spans, log) {
    this.#spans = spans;
    setText(this.summary, summary(spans, log));
    setAttribute(this.label, "title", `${this.label.textContent}. Go to the next ${NOUNS[this.kind]}.`);
    const rows = stacked(spans);
    const height = HEIGHT / Math.min(DEEPEST, Math.max(...rows) + 1);
    fill(
      this.bars,
      spans.slice(0, BARS).map((span, at) => {
        const name = `span-bar ${this.kind} ${span.outcome}`;
        const bar = h("span", { class: name, "data-at": at, title: told(span, log) });
        bar.classList.toggle("void", span.isVoid);
        bar.style.width = `${(100 * (endOf(span, log) - span.at)) / Math.max(log.end, 1)}%`;
        bar.style.top = `${(rows[at] % DEEPEST) * height}px`;
        bar.style.height = `${height - 1}px`;
        return atPart(bar, span.at, log);
      }),
    );
  }

  #click({ target }) {
    const bar = target.closest("[data-at]");
    if (bar) this.onEvent(this.#spans[Number(bar.dataset.at)].index);
  }

  #goOn() {
    this.onEvent(this.#spans[this.#next % this.#spans.length].index);
    this.#next += 1;
  }
}

const endOf = (span, log) => span.until ?? log.end;
const wordFor = (outcome) => OUTCOMES[outcome] ?? outcome;

const told = (span, log) =>
  visible(
    `${span.name}: ${wordFor(span.outcome)}, ${duration(endOf(span, log) - span.at)} from ${clock(span.at)}` +
      (span.isVoid ? ", before a restart" : ""),
  );

/** "3× · 1.20 s · 1 failed"; of one alone "1.20 s", or "1.20 s · failed". */
function summary(spans, log) {
  const ms = duration(spans.reduce((sum, span) => sum + endOf(span, log) - span.at, 0));
  const [{ outcome }] = spans;
  if (spans.length === 1) return outcome === "done" ? ms : `${ms} · ${wordFor(outcome)}`;
  const count = (outcome) => spans.filter((span) => span.outcome === outcome).length;
  const others = ["failed", "replayed", "refused", "running"].map((outcome) => [count(outcome), outcome]);
  const said = others.filter(([times]) => times > 0).map(([times, outcome]) => `${times} ${outcome}`);
  return [`${number(spans.length)}×`, ms, ...said].join(" · ");
}

/** For each the first row in which nothing else is at that time. */
function stacked(spans) {
  const ends = [];
  return spans.map((span) => {
    const free = ends.findIndex((end) => end <= span.at);
    const row = free < 0 ? ends.length : free;
    ends[row] = span.until ?? Infinity;
    return row;
  });
}
