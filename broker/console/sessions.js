// Sessions: every stream that this key may see, newest first, with filters. Running streams update automatically.

import * as api from "./api.js";
import { fill, h, notice, setAttribute, setText } from "./dom.js";
import { Filters } from "./filters.js";
import { number, plural } from "./format.js";
import { Goto } from "./goto.js";
import { problemNotice } from "./problem.js";
import { Prompts } from "./prompts.js";
import { may } from "./rights.js";
import { bind } from "./shortcuts.js";
import { hasEnded } from "./stream.js";
import { StreamRow } from "./streamrow.js";

export const title = "Sessions";
export const name = "sessions";

const LISTS = ["streams:inspect", "audit:masked"];
const PAGE = 50;
const POLL_MS = 2000;
const POLL_LIMIT = 200; // the API's longest page
const STRAGGLERS = 20; // running streams older than that page, read one by one

export function mount(container, _, query) {
  return new Sessions(container, query);
}

class Sessions {
  #rows = new Map(); // id → StreamRow
  #next = null;
  #abort = new AbortController();
  #prompts = new Prompts((id) => this.#rows.get(id)?.drawPrompt());
  #filters;
  #isBusy = false;
  #isLoaded = false; // the first page of the present filters is here
  #goto = new Goto();

  constructor(container, query) {
    this.#filters = new Filters(query, () => this.#reload());
    this.#build(container);
    this.unbind = bind("Sessions", [
      { keys: ["/"], does: "Go to a stream by its id", run: () => this.#goto.focus() },
      { keys: ["f"], does: "Go to the filters", run: () => this.#filters.focus() },
      { keys: ["j"], does: "Next stream", run: () => this.#move(1) },
      { keys: ["k"], does: "Previous stream", run: () => this.#move(-1) },
    ]);
    document.addEventListener("visibilitychange", this.#wake);
    this.#reload();
    this.#poll();
  }

  close() {
    this.#abort.abort();
    this.#prompts.close();
    this.#filters.close();
    clearTimeout(this.polling);
    document.removeEventListener("visibilitychange", this.#wake);
    this.unbind();
  }

  // -- reading

  async #reload() {
    this.#abort.abort();
    this.#abort = new AbortController();
    this.#next = null;
    this.#isLoaded = false;
    if (this.#rows.size === 0) this.#state(notice("loading", "Loading streams"));
    await this.#more({ first: true });
  }

  /** The rows of the previous filters stay until the new rows have arrived. */
  async #more({ first = false } = {}) {
    const { signal } = this.#abort;
    this.#setBusy(true);
    try {
      const found = await this.#page(signal);
      if (first) this.#forget();
      for (const record of found) this.#add(record);
      this.#isLoaded = true;
      this.#state(null);
    } catch (problem) {
      if (signal.aborted) return;
      if (first) this.#forget();
      const again = first ? "Load again" : "Load more again";
      this.#state(problemNotice(problem, { again, run: () => (first ? this.#reload() : this.#more()) }));
    } finally {
      this.#setBusy(false);
    }
  }

  #setBusy(isBusy) {
    this.#isBusy = this.moreButton.disabled = isBusy;
    setAttribute(this.table, "aria-busy", isBusy);
  }

  /** A page may hold fewer streams than its limit, or none, and still have a next. */
  async #page(signal) {
    for (;;) {
      const page = await api.streams({ ...this.#filters.query(), limit: PAGE, cursor: this.#next }, signal);
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
      if (!document.hidden && may(...LISTS)) await this.#refresh();
      if (!this.#abort.signal.aborted) this.#poll();
    }, POLL_MS);
  }

  /** Read new streams, and those that were running at the last look; or all of them, if that failed before. */
  async #refresh() {
    if (!this.#isLoaded) return this.#isBusy ? undefined : this.#more({ first: true });
    const { signal } = this.#abort;
    const query = this.#filters.query();
    const rows = Array.from(this.body.children, (element) => this.#rows.get(element.dataset.id));
    const running = rows.filter((row) => !hasEnded(row.record));
    // With a filter on one state: any stream, however old, may have reached that state by now.
    const since = query.state ? rows.at(-1) : (running.at(-1) ?? rows[0]);
    if (since) query.created_after = since.record.created_at;
    try {
      const { streams } = await api.streams({ ...query, limit: POLL_LIMIT }, signal);
      if (signal.aborted) return;
      for (const record of streams) this.#add(record);
      const seen = new Set(streams.map((record) => record.id));
      const stragglers = running.filter((row) => !seen.has(row.record.id)).slice(0, STRAGGLERS);
      await Promise.all(stragglers.map((row) => this.#refreshOne(row, signal)));
      this.#state(null);
      this.#goto.isBack();
    } catch (problem) {
      if (!signal.aborted) this.#state(problemNotice(problem, { again: "Refresh now", run: () => this.#refresh() }));
    }
  }

  /** A stream that is no longer on the filtered page: it has ended, or it is gone. */
  async #refreshOne(row, signal) {
    const record = await api.listed(row.record, signal);
    if (signal.aborted) return;
    const { state } = this.#filters.query();
    if (record && (!state || record.state === state)) row.draw(record);
    else this.#remove(row);
  }

  #add(record) {
    const known = this.#rows.get(record.id);
    if (known) return known.draw(record);
    const row = new StreamRow(record, (filter, value) => this.#filters.set(filter, value));
    this.#rows.set(record.id, row);
    const older = Array.from(this.body.children).find((each) => each.dataset.created < record.created_at);
    this.body.insertBefore(row.element, older ?? null);
    if (!record.erased_at) this.#prompts.watch(row.element);
  }

  #remove(row) {
    this.#rows.delete(row.record.id);
    row.element.remove();
  }

  // -- actions

  #move(by) {
    const links = [...this.body.querySelectorAll("a.stream-link")];
    const at = links.indexOf(document.activeElement);
    links[Math.min(Math.max(at + by, 0), links.length - 1)]?.focus();
  }

  // -- drawing

  #state(shown) {
    const isEmpty = this.#rows.size === 0;
    this.#filters.element.hidden = !may(...LISTS);
    this.table.hidden = isEmpty;
    this.moreButton.hidden = isEmpty || !this.#next;
    const running = [...this.#rows.values()].filter((row) => !hasEnded(row.record)).length;
    const counted = `${plural(this.#rows.size, "stream")}${this.#next ? " so far" : ""}, ${number(running)} running`;
    setText(this.count, isEmpty ? "" : counted);
    if (shown?.textContent === this.state.textContent) return;
    if (shown) return fill(this.state, shown);
    if (!isEmpty) return fill(this.state);
    if (!this.state.querySelector(".empty"))
      fill(this.state, this.#filters.isEmpty ? this.#noneYet() : this.#noMatch());
  }

  #noMatch() {
    const clear = h("button", { type: "button", onclick: () => this.#filters.clear() }, "Clear filters");
    return notice(
      "empty",
      "No streams match",
      "Finished streams are kept only for the server's retention period.",
      clear,
    );
  }

  #noneYet() {
    if (!may("streams:write")) return notice("empty", "No streams yet", "They are started with POST /v1/streams.");
    const link = h("a", { class: "button", href: "#/playground" }, "Open the playground");
    return notice("empty", "No streams yet", "Start one with POST /v1/streams, or in the playground.", link);
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
      h("div", { class: "sessions-head" }, [h("h1", { tabindex: "-1" }, "Sessions"), this.count, this.#goto.element]),
      this.#filters.element,
      this.state,
      this.table,
      this.moreButton,
    );
  }
}
