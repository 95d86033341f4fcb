// Sessions: every stream that this key may see, newest first, filtered; what still runs updates by itself.

import * as api from "./api.js";
import { fill, h, notice, said, setAttribute, setText } from "./dom.js";
import { duration, moment, number, plural, promptOf, visible } from "./format.js";
import { problemNotice } from "./problem.js";
import { bind } from "./shortcuts.js";
import { STATES, durationOf, firstTokenMs, hasEnded, shownState, stateBadge, streamAddress, streamLink } from "./stream.js";

export const title = "Sessions";
export const name = "sessions";

const PAGE = 50;
const POLL_MS = 2000;
const POLL_LIMIT = 200; // the API's longest page
const STRAGGLERS = 20; // running streams older than that page, asked for one by one
const TYPING_MS = 300;
const RANGES = [
  ["", "Any time"],
  ["900", "Last 15 minutes"],
  ["3600", "Last hour"],
  ["86400", "Last 24 hours"],
  ["604800", "Last 7 days"],
  ["custom", "Between…"],
];
const FILTERS = ["state", "range", "after", "before", "session_id", "user_id", "model"];

export function mount(container, _, query) {
  return new Sessions(container, query);
}

class Sessions {
  #rows = new Map(); // id → Row, in the order of the page: newest first
  #next = null;
  #abort = new AbortController();
  #typing = 0;

  constructor(container, query) {
    this.#build(container);
    for (const filter of FILTERS) this.filters[filter].value = query.get(filter) ?? "";
    this.#showRange();
    this.unbind = bind("Sessions", [
      { keys: ["/"], does: "Go to a stream by its id", run: () => this.goto.focus() },
      { keys: ["f"], does: "Filter", run: () => this.filters.state.focus() },
      { keys: ["j"], does: "Next stream", run: () => this.#move(1) },
      { keys: ["k"], does: "Previous stream", run: () => this.#move(-1) },
    ]);
    document.addEventListener("visibilitychange", this.#wake);
    this.#reload();
    this.#poll();
  }

  close() {
    this.#abort.abort();
    clearTimeout(this.#typing);
    clearTimeout(this.polling);
    document.removeEventListener("visibilitychange", this.#wake);
    this.unbind();
  }

  // -- what it reads

  /** The filters as the API takes them. A range counts back from now. */
  #query() {
    const { state, range, after, before, session_id, user_id, model } = this.#chosen();
    const query = { state, session_id, user_id, model };
    if (range === "custom") {
      if (after) query.created_after = new Date(after).toISOString();
      if (before) query.created_before = new Date(before).toISOString();
    } else if (range) {
      query.created_after = new Date(Date.now() - Number(range) * 1000).toISOString();
    }
    return query;
  }

  #chosen() {
    return Object.fromEntries(FILTERS.map((filter) => [filter, this.filters[filter].value.trim()]));
  }

  async #reload() {
    this.#abort.abort();
    this.#abort = new AbortController();
    this.#next = null;
    if (this.#rows.size === 0) this.#state(notice("loading", "Loading streams"));
    await this.#more({ first: true });
  }

  /** The rows of the filters before stay until the new ones are here. */
  async #more({ first = false } = {}) {
    const { signal } = this.#abort;
    setAttribute(this.table, "aria-busy", "true");
    this.moreButton.disabled = true;
    try {
      const found = await this.#page(signal);
      if (first) this.#forget();
      for (const record of found) this.#add(record, { last: true });
      this.#state(null);
    } catch (problem) {
      if (signal.aborted) return;
      if (first) this.#forget();
      this.#state(this.#problem(problem));
    } finally {
      this.moreButton.disabled = false;
      setAttribute(this.table, "aria-busy", null);
    }
  }

  /** A page may hold fewer than asked for, or none, and still have a next. */
  async #page(signal) {
    for (;;) {
      const page = await api.streams({ ...this.#query(), limit: PAGE, cursor: this.#next }, signal);
      signal.throwIfAborted();
      this.#next = page.next;
      if (page.streams.length > 0 || !page.next) return page.streams;
    }
  }

  #forget() {
    this.#rows.clear();
    fill(this.body);
  }

  #wake = () => {
    if (!document.hidden) this.#refresh();
  };

  #poll() {
    this.polling = setTimeout(async () => {
      if (!document.hidden) await this.#refresh();
      if (!this.#abort.signal.aborted) this.#poll();
    }, POLL_MS);
  }

  /** New streams, and those that still ran when last seen. */
  async #refresh() {
    const { signal } = this.#abort;
    const rows = [...this.#rows.values()];
    const running = rows.filter((row) => !hasEnded(row.record));
    const oldest = running.at(-1) ?? rows[0];
    try {
      const query = this.#query();
      if (oldest) query.created_after = oldest.record.created_at;
      const { streams } = await api.streams({ ...query, limit: POLL_LIMIT }, signal);
      if (signal.aborted) return;
      for (const record of streams.reverse()) this.#add(record, { last: false });
      const seen = new Set(streams.map((record) => record.id));
      const stragglers = running.filter((row) => !seen.has(row.record.id)).slice(0, STRAGGLERS);
      await Promise.all(stragglers.map((row) => this.#refreshOne(row, signal)));
      this.#state(null);
    } catch (problem) {
      if (!signal.aborted) this.#state(this.#problem(problem));
    }
  }

  /** A stream that the filtered page does not hold any more: it has ended, or it is gone. */
  async #refreshOne(row, signal) {
    const record = await api.stream(row.record.id, signal).catch((problem) => {
      if (problem.status === 404 || problem.status === 410) return null;
      throw problem;
    });
    const { state } = this.#chosen();
    if (record && (!state || record.state === state)) row.draw(record);
    else this.#remove(row);
  }

  #add(record, { last }) {
    const known = this.#rows.get(record.id);
    if (known) return known.draw(record);
    const row = new Row(record, (filter, value) => this.#filterBy(filter, value));
    if (last) {
      this.#rows.set(record.id, row);
      this.body.append(row.element);
    } else {
      this.#rows = new Map([[record.id, row], ...this.#rows]);
      this.body.prepend(row.element);
    }
  }

  #remove(row) {
    this.#rows.delete(row.record.id);
    row.element.remove();
  }

  // -- what one does with it

  #filterBy(filter, value) {
    this.filters[filter].value = value;
    this.#filtersChanged();
  }

  #filtersChanged() {
    this.#showRange();
    const chosen = Object.entries(this.#chosen()).filter(([, value]) => value);
    const query = new URLSearchParams(chosen).toString();
    history.replaceState(null, "", `#/sessions${query ? `?${query}` : ""}`);
    this.#reload();
  }

  #typed() {
    clearTimeout(this.#typing);
    this.#typing = setTimeout(() => this.#filtersChanged(), TYPING_MS);
  }

  #clear() {
    for (const filter of FILTERS) this.filters[filter].value = "";
    this.#filtersChanged();
  }

  #showRange() {
    this.custom.hidden = this.filters.range.value !== "custom";
  }

  async #goTo(event) {
    event.preventDefault();
    const id = this.goto.value.trim().replace(/^.*\/(streams?|s)\//, "").replace(/[/?#].*$/, "");
    if (!id) return;
    fill(this.gotoProblem);
    try {
      await api.stream(id);
      location.hash = streamAddress(id);
    } catch (problem) {
      if (problem.status === 410) location.hash = streamAddress(id);
      else fill(this.gotoProblem, problem.status === 404 ? "There is no stream of that id." : problem.message);
    }
  }

  #move(by) {
    const links = [...this.body.querySelectorAll("a.stream-link")];
    const at = links.indexOf(document.activeElement);
    links[Math.min(Math.max(at + by, 0), links.length - 1)]?.focus();
  }

  // -- what it shows

  #state(shown) {
    const isEmpty = this.#rows.size === 0;
    const { length } = Object.values(this.#chosen()).filter(Boolean);
    this.table.hidden = isEmpty;
    this.moreButton.hidden = isEmpty || !this.#next;
    this.clearButton.hidden = length === 0;
    const running = [...this.#rows.values()].filter((row) => !hasEnded(row.record)).length;
    const counted = `${plural(this.#rows.size, "stream")}${this.#next ? " so far" : ""}, ${number(running)} running`;
    setText(this.count, isEmpty ? "" : counted);
    if (shown?.textContent === this.state.textContent) return;
    if (shown) return fill(this.state, shown);
    if (!isEmpty) return fill(this.state);
    if (!this.state.querySelector(".empty")) fill(this.state, length ? this.#noMatch() : this.#noneYet());
  }

  #noMatch() {
    const clear = h("button", { type: "button", onclick: () => this.#clear() }, "Clear the filters");
    return notice("empty", "No stream matches", "A finished stream is kept for as long as the server's retention says.", clear);
  }

  #noneYet() {
    const link = h("a", { class: "button", href: "#/playground" }, "Open the playground");
    return notice("empty", "No streams yet", "Start one with POST /v1/streams, or in the playground.", link);
  }

  #problem(problem) {
    return problemNotice(problem, () => this.#reload());
  }

  #build(container) {
    this.state = h("div", {});
    this.count = h("p", { class: "count", role: "status" });
    this.body = h("tbody", {});
    const columns = ["State", "Stream", "Session", "User", "Model", "Created", "Duration", "First token", "Last event"];
    const head = columns.map((column, at) => h("th", { scope: "col", class: at > 5 ? "end" : null }, column));
    this.table = h("table", { class: "streams" }, [
      h("caption", { class: "sr-only" }, "Streams, newest first"),
      h("thead", {}, h("tr", {}, head)),
      this.body,
    ]);
    this.moreButton = h("button", { type: "button", class: "more", onclick: () => this.#more() }, "More");
    container.append(
      h("div", { class: "sessions-head" }, [h("h1", { tabindex: "-1" }, "Sessions"), this.count, this.#gotoForm()]),
      this.#filterForm(),
      this.state,
      this.table,
      this.moreButton,
    );
  }

  #gotoForm() {
    this.gotoProblem = h("p", { class: "field-error", role: "alert", id: "goto-problem" });
    this.goto = h("input", {
      type: "search",
      "aria-label": "Stream id",
      "aria-describedby": "goto-problem",
      placeholder: "Paste a stream id",
      spellcheck: "false",
      autocomplete: "off",
    });
    return h("form", { class: "goto", onsubmit: (event) => this.#goTo(event) }, [
      this.goto,
      h("button", { type: "submit" }, "Open"),
      this.gotoProblem,
    ]);
  }

  #filterForm() {
    const change = () => this.#filtersChanged();
    const select = (label, options) =>
      h("select", { "aria-label": label, onchange: change }, options.map(([value, text]) => h("option", { value }, text)));
    const input = (label, type = "search") =>
      h("input", { type, "aria-label": label, placeholder: label, spellcheck: "false", oninput: () => this.#typed() });
    const states = STATES.map((state) => [state, state[0].toUpperCase() + state.slice(1)]);
    this.filters = {
      state: select("State", [["", "Any state"], ...states]),
      range: select("Created", RANGES),
      after: input("Created after", "datetime-local"),
      before: input("Created before", "datetime-local"),
      session_id: input("Session"),
      user_id: input("User"),
      model: input("Model"),
    };
    const { state, range, after, before, session_id, user_id, model } = this.filters;
    this.custom = h("div", { class: "filter-range", role: "group", "aria-label": "Created between" }, after, "–", before);
    this.clearButton = h("button", { type: "button", class: "quiet", onclick: () => this.#clear() }, "Clear");
    const fields = [state, range, this.custom, session_id, user_id, model, this.clearButton];
    return h("div", { class: "filters", role: "search", "aria-label": "Filter streams" }, fields);
  }
}

/** A stream in the table. `draw` changes only the cells whose text has changed. */
class Row {
  constructor(record, filterBy) {
    this.record = record;
    this.state = h("td", { class: "cell-state" });
    this.prompt = h("bdi", { class: "prompt" });
    this.duration = h("td", { class: "end cell-duration" });
    this.firstToken = h("td", { class: "end cell-first", "data-label": "First token" });
    this.events = h("td", { class: "end cell-events", "data-label": "Last event" });
    const filter = (field, label) => {
      const value = record[field];
      if (!value) return h("span", { class: "muted" }, "–");
      const describe = `Only ${label} ${visible(value)}`;
      return h("button", { type: "button", class: "link", title: describe, onclick: () => filterBy(field, value) }, said(value));
    };
    const link = streamLink(record.id, this.prompt, h("code", { class: "id" }, record.id));
    link.className = "stream-link";
    this.element = h("tr", { "data-id": record.id }, [
      this.state,
      h("td", { class: "cell-stream" }, link),
      h("td", { class: "cell-session", "data-label": "Session" }, filter("session_id", "session")),
      h("td", { class: "cell-user", "data-label": "User" }, filter("user_id", "user")),
      h("td", { class: "cell-model", "data-label": "Model" }, filter("model", "model")),
      h("td", { class: "cell-created", title: record.created_at }, moment(record.created_at)),
      this.duration,
      this.firstToken,
      this.events,
    ]);
    this.draw(record);
  }

  draw(record) {
    this.record = record;
    if (this.shown !== shownState(record)) {
      this.shown = shownState(record);
      fill(this.state, stateBadge(record));
    }
    setText(this.prompt, visible(firstLine(record)));
    setText(this.duration, durationOf(record));
    setText(this.firstToken, duration(firstTokenMs(record)));
    setText(this.events, String(record.last_event_id));
    setAttribute(this.prompt, "data-quiet", record.request === null || record.producer === "external");
  }
}

function firstLine(record) {
  if (record.erased_at) return "Erased";
  if (record.producer === "external") return "External producer";
  return promptOf(record.request).trim().split("\n", 1)[0] || "No prompt";
}
