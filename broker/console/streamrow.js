// A stream as a row of the sessions' table: drawn once, then updated only where something has changed.

import { fill, h, isolated, setAttribute, setText } from "./dom.js";
import { duration, exact, moment, visible } from "./format.js";
import { knownPrompt } from "./prompts.js";
import { durationOf, firstTokenMs, shownState, stateBadge, streamLink } from "./stream.js";

export class StreamRow {
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
      const only = `Show only ${label} ${visible(value)}`;
      const choose = () => filterBy(field, value);
      return h("button", { type: "button", class: "link", title: only, onclick: choose }, isolated(value));
    };
    const link = streamLink(record.id, this.prompt, h("code", { class: "id" }, record.id));
    link.className = "stream-link";
    this.element = h("tr", { "data-id": record.id, "data-created": record.created_at }, [
      this.state,
      h("td", { class: "cell-stream" }, link),
      h("td", { class: "cell-session", "data-label": "Session" }, filter("session_id", "session")),
      h("td", { class: "cell-user", "data-label": "User" }, filter("user_id", "user")),
      h("td", { class: "cell-model", "data-label": "Model" }, answeredBy(record) ?? filter("model", "model")),
      h("td", { class: "cell-created", title: exact(record.created_at) }, moment(record.created_at)),
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
    this.drawPrompt();
    setText(this.duration, durationOf(record));
    setText(this.firstToken, duration(firstTokenMs(record)));
    setText(this.events, String(record.last_event_id));
  }

  /** Empty until the prompt has been read. */
  drawPrompt() {
    const prompt = this.record.erased_at ? "" : knownPrompt(this.record.id);
    const shown = prompt === "" ? insteadOfPrompt(this.record) : (prompt ?? "").split("\n", 1)[0];
    setText(this.prompt, visible(shown));
    setAttribute(this.prompt, "data-quiet", prompt === "");
  }
}

/** An agent's models are its own: its record has none. */
const answeredBy = ({ agent }) => (agent ? h("span", {}, "agent ", isolated(agent)) : null);

function insteadOfPrompt(record) {
  if (record.erased_at) return "Erased";
  return record.producer === "external" ? "External producer" : "No prompt";
}
