// The events of a log as a list of any length: only the visible rows exist.

import { eachFrame, fill, h, setAttribute, setText } from "./dom.js";
import { EventRow, rawJson, tone } from "./eventrow.js";
import { number, visible } from "./format.js";

const ROW_PX = 26; // as in views.css
const BEYOND_SIGHT = 4;

export class EventList {
  #log = null;
  #kinds = new Map(); // kind → count
  #chosen = new Set(); // empty: all
  #shown = []; // indexes into the log of the events that pass the filter
  #seen = 0; // the number of events of the log that were read so far
  #count = 0;
  #rows = [];
  #paintSoon = eachFrame(() => this.#paint());

  /** `onSelect(index)`: the user has selected an event. */
  constructor(onSelect) {
    this.onSelect = onSelect;
    this.space = h("div", { class: "events-space", role: "presentation" });
    this.rows = h("div", { class: "events-rows", role: "presentation" });
    this.space.append(this.rows);
    this.list = h(
      "div",
      {
        class: "events-list",
        role: "listbox",
        tabindex: "0",
        "aria-label": "Events",
        onkeydown: (event) => this.#key(event),
        onclick: (event) => this.#click(event),
        onscroll: this.#paintSoon,
      },
      this.space,
    );
    this.filter = h("div", { class: "chips events-filter", role: "group", "aria-label": "Kinds" });
    this.rawTitle = h("summary", {}, "Raw JSON");
    this.rawText = h("pre", { class: "raw", tabindex: "0", "aria-label": "Raw JSON of the event" });
    this.raw = h("details", { class: "inspector", ontoggle: () => this.#paintRaw() }, this.rawTitle, this.rawText);
    this.element = h("div", { class: "events" }, this.list, this.raw);
    this.observer = new ResizeObserver(this.#paintSoon);
    this.observer.observe(this.list);
  }

  close() {
    this.observer.disconnect();
    this.#paintSoon.cancel();
  }

  /** `count`: the number of events until the displayed instant. */
  draw(log, count) {
    if (this.#log !== log) this.#forget();
    this.#log = log;
    const grew = this.#takeNew();
    const moved = count !== this.#count;
    this.#count = count;
    if (moved || grew) this.#keepInSight();
    this.#paint();
    this.#paintRaw();
  }

  #forget() {
    this.#kinds.clear();
    this.#chosen.clear();
    this.#shown = [];
    this.#seen = 0;
    fill(this.filter);
  }

  #takeNew() {
    const before = this.#seen;
    for (; this.#seen < this.#log.events.length; this.#seen += 1) {
      const kind = this.#log.events[this.#seen].event;
      this.#kinds.set(kind, (this.#kinds.get(kind) ?? 0) + 1);
      if (this.#lets(kind)) this.#shown.push(this.#seen);
    }
    if (this.#seen !== before) this.#paintFilter();
    return this.#seen !== before;
  }

  #lets(kind) {
    return this.#chosen.size === 0 || this.#chosen.has(kind);
  }

  #toggle(kind) {
    if (!this.#chosen.delete(kind)) this.#chosen.add(kind);
    this.#shown = [];
    this.#log.events.forEach((event, index) => this.#lets(event.event) && this.#shown.push(index));
    this.#paintFilter();
    this.#keepInSight();
    this.#paint();
  }

  // -- the current event, as an index into the events that pass the filter; -1 before the first

  get #current() {
    let [low, high] = [0, this.#shown.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#shown[middle] < this.#count) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  #key(event) {
    const page = Math.floor(this.list.clientHeight / ROW_PX);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const place = Math.min(Math.max(this.#current + steps[event.key], 0), this.#shown.length - 1);
    this.onSelect(this.#shown[place]);
  }

  #click(event) {
    const row = event.target.closest("[data-index]");
    if (row) this.onSelect(Number(row.dataset.index));
  }

  #keepInSight() {
    const top = this.#current * ROW_PX;
    const { scrollTop, clientHeight } = this.list;
    this.space.style.height = `${this.#shown.length * ROW_PX}px`;
    const isSeen = top >= scrollTop && top + ROW_PX <= scrollTop + clientHeight;
    if (!isSeen) this.list.scrollTop = Math.max(0, top - clientHeight / 2);
  }

  // -- drawing

  #paint() {
    if (!this.#log) return;
    this.space.style.height = `${this.#shown.length * ROW_PX}px`;
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW_PX) - BEYOND_SIGHT);
    const inSight = Math.ceil(this.list.clientHeight / ROW_PX) + 2 * BEYOND_SIGHT;
    const needed = Math.min(inSight, this.#shown.length - first);
    while (this.#rows.length < needed) this.#rows.push(new EventRow(this.rows, this.#rows.length));
    for (const row of this.#rows.splice(Math.max(0, needed))) row.element.remove();
    this.rows.style.transform = `translateY(${first * ROW_PX}px)`;
    const current = this.#current;
    this.#rows.forEach((row, at) => row.draw(this.#log, this.#shown, first + at, current, this.#count));
    const active = this.#rows[current - first];
    setAttribute(this.list, "aria-activedescendant", active?.element.id);
  }

  #paintFilter() {
    const kinds = [...this.#kinds].sort(([a], [b]) => a.localeCompare(b));
    if (this.filter.children.length !== kinds.length) {
      fill(
        this.filter,
        kinds.map(([kind]) =>
          h(
            "button",
            {
              type: "button",
              class: "chip",
              "data-kind": kind,
              onclick: () => this.#toggle(kind),
            },
            h("span", { class: `dot ${tone(kind)}` }),
            h("span", {}, visible(kind)),
            " ",
            h("b"),
          ),
        ),
      );
    }
    for (const [at, [kind, count]] of kinds.entries()) {
      const button = this.filter.children[at];
      setAttribute(button, "aria-pressed", String(this.#chosen.has(kind)));
      setText(button.lastChild, number(count));
    }
  }

  #paintRaw() {
    const event = this.#log?.events[this.#count - 1];
    setText(this.rawTitle, event ? `Raw JSON of event ${event.id}` : "Raw JSON");
    if (this.raw.open) setText(this.rawText, event ? rawJson(event) : "");
  }
}
