// The filters of the sessions: the fields, the address that stores them, and the query for the API.

import { keep } from "./address.js";
import { h } from "./dom.js";
import { STATES } from "./stream.js";

const TYPING_MS = 300;
const RANGES = [
  ["", "Any time"],
  ["900", "Last 15 minutes"],
  ["3600", "Last hour"],
  ["86400", "Last 24 hours"],
  ["604800", "Last 7 days"],
  ["custom", "Between…"],
];

export class Filters {
  #typing = 0;

  /** `onChange()`: the filters have changed; typing must pause first. */
  constructor(query, onChange) {
    this.onChange = onChange;
    const states = STATES.map((state) => [state, state[0].toUpperCase() + state.slice(1)]);
    this.fields = {
      state: this.#select("State", [["", "Any state"], ...states]),
      range: this.#select("Created", RANGES),
      after: this.#input("Created after (UTC)", "datetime-local"),
      before: this.#input("Created before (UTC)", "datetime-local"),
      session_id: this.#input("Session"),
      user_id: this.#input("User"),
      model: this.#input("Model"),
    };
    for (const [name, field] of Object.entries(this.fields)) field.value = query.get(name) ?? "";
    const { state, range, after, before, session_id, user_id, model } = this.fields;
    const between = { class: "filter-range", role: "group", "aria-label": "Created between" };
    this.between = h("div", between, after, "–", before, "UTC");
    this.clearButton = h("button", { type: "button", class: "quiet", onclick: () => this.clear() }, "Clear");
    this.element = h("div", { class: "filters", role: "search", "aria-label": "Filter streams" }, [
      state,
      range,
      this.between,
      session_id,
      user_id,
      model,
      this.clearButton,
    ]);
    this.#show();
  }

  close() {
    clearTimeout(this.#typing);
  }

  focus() {
    this.fields.state.focus();
  }

  get isEmpty() {
    return Object.values(this.fields).every((field) => !field.value.trim());
  }

  /** As parameters of the API. A range counts back from now. */
  query() {
    const { state, range, after, before, session_id, user_id, model } = this.#chosen();
    const query = { state, session_id, user_id, model };
    if (range === "custom") {
      if (after) query.created_after = new Date(`${after}Z`).toISOString();
      if (before) query.created_before = new Date(`${before}Z`).toISOString();
    } else if (range) {
      query.created_after = new Date(Date.now() - Number(range) * 1000).toISOString();
    }
    return query;
  }

  set(name, value) {
    this.fields[name].value = value;
    this.#changed();
  }

  clear() {
    for (const field of Object.values(this.fields)) field.value = "";
    this.#changed();
  }

  #chosen() {
    return Object.fromEntries(Object.entries(this.fields).map(([name, field]) => [name, field.value.trim()]));
  }

  #changed() {
    this.#show();
    const query = new URLSearchParams(Object.entries(this.#chosen()).filter(([, value]) => value)).toString();
    keep(`#/sessions${query ? `?${query}` : ""}`);
    this.onChange();
  }

  #typed() {
    clearTimeout(this.#typing);
    this.#typing = setTimeout(() => this.#changed(), TYPING_MS);
  }

  #show() {
    this.between.hidden = this.fields.range.value !== "custom";
    this.clearButton.hidden = this.isEmpty;
  }

  #select(label, options) {
    const items = options.map(([value, text]) => h("option", { value }, text));
    return h("select", { "aria-label": label, onchange: () => this.#changed() }, items);
  }

  #input(label, type = "search") {
    const oninput = () => this.#typed();
    return h("input", { type, "aria-label": label, placeholder: label, spellcheck: "false", oninput });
  }
}
