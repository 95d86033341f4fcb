// The streams that a token opens: those it names by their ids. Others are opened by an id, since a token lists nothing.

import * as api from "./api.js";
import { fill, h, isolated, notice } from "./dom.js";
import { moment, plural, visible } from "./format.js";
import { Goto } from "./goto.js";
import { problemNotice } from "./problem.js";
import { claims } from "./rights.js";
import { SCOPES } from "./scopes.js";
import { bind } from "./shortcuts.js";
import { durationOf, hasEnded, stateBadge, streamLink } from "./stream.js";

export const title = "Streams";
export const name = "sessions";

const POLL_MS = 2000;

export const mount = (container) => new Opened(container, claims());

class Opened {
  #goto = new Goto();
  #abort = new AbortController();
  #waiting = new Map(); // id → its row, of those that are not known to have ended

  constructor(container, token) {
    this.unbind = bind("Streams", [{ keys: ["/"], does: "Go to a stream by its id", run: () => this.#goto.focus() }]);
    this.problem = h("div", {});
    container.append(
      h("div", { class: "sessions-head" }, [h("h1", { tabindex: "-1" }, "Streams"), this.#goto.element]),
      facts(token),
      this.problem,
      token.streams ? this.#table(token.streams) : cannotList(token),
    );
    this.#read();
  }

  close() {
    this.#abort.abort();
    clearTimeout(this.polling);
    this.unbind();
  }

  #table(ids) {
    const rows = ids.map((id) => {
      const cells = { state: h("td", { class: "cell-state" }), more: h("td", { class: "end cell-more" }) };
      this.#waiting.set(id, cells);
      const link = streamLink(id, h("code", {}, visible(id)));
      link.className = "stream-link";
      return h("tr", {}, cells.state, h("td", { class: "cell-id" }, link), cells.more);
    });
    return h("table", { class: "streams opened" }, [
      h("caption", { class: "sr-only" }, "The streams that this token names"),
      h("tbody", {}, rows),
    ]);
  }

  /** At once, then again those that still run. */
  async #read() {
    const { signal } = this.#abort;
    try {
      if (!document.hidden) await Promise.all([...this.#waiting].map((row) => this.#readOne(row, signal)));
      fill(this.problem);
    } catch (problem) {
      if (signal.aborted) return;
      fill(this.problem, problemNotice(problem, { again: "Read again", run: () => this.#read() }));
      if (!problem.isAway) return;
    }
    if (this.#waiting.size > 0 && !signal.aborted) this.polling = setTimeout(() => this.#read(), POLL_MS);
  }

  async #readOne([id, { state, more }], signal) {
    const record = await api.stream(id, signal).catch((problem) => {
      if (problem.status !== 404 && problem.status !== 410) throw problem;
      return null;
    });
    if (record === null || record.erased_at || hasEnded(record)) this.#waiting.delete(id);
    fill(state, record ? stateBadge(record) : h("span", { class: "muted" }, "not there"));
    fill(more, record ? `${moment(record.created_at)} · ${durationOf(record)}` : "");
  }
}

function facts({ subject, scopes, expiresAt }) {
  const fact = (label, ...value) => h("div", {}, h("dt", {}, label), h("dd", {}, value));
  const may = [...scopes].map((scope) => h("code", { title: SCOPES[scope] }, scope));
  return h("dl", { class: "facts token-facts" }, [
    subject && fact("Token of", isolated(subject)),
    fact("May", may.flatMap((each, at) => (at === 0 ? [each] : [" ", each]))),
    expiresAt && fact("Expires", moment(expiresAt)),
  ]);
}

function cannotList({ sessions }) {
  const [opens, detail] = sessions
    ? [`This token opens ${plural(sessions.length, "session")}`, sessions.map(visible).join(", ")]
    : ["This token opens the streams of its user", null];
  return notice("empty", opens, [
    detail && h("span", { class: "token-names" }, detail),
    "A token lists nothing: paste the id of a stream above.",
  ]);
}
