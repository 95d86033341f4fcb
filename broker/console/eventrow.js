// An event as a row of the list, and as raw JSON.

import { h, setAttribute, setText } from "./dom.js";
import { clock, visible } from "./format.js";

const PREVIEW = 200;

export class EventRow {
  constructor(parent, slot) {
    this.id = h("span", { class: "event-id" });
    this.at = h("span", { class: "event-at" });
    this.dot = h("span", { class: "dot" });
    this.kind = h("span", { class: "event-kind" });
    this.preview = h("bdi", { class: "event-preview" });
    const cells = [this.id, this.at, this.dot, this.kind, this.preview];
    this.element = h("div", { class: "event-row", role: "option", id: `event-row-${slot}` }, cells);
    parent.append(this.element);
  }

  draw(log, shown, place, current, count) {
    const index = shown[place];
    const event = log.events[index];
    setText(this.id, String(event.id));
    setText(this.at, clock(log.at(index)));
    setText(this.kind, visible(event.event));
    setText(this.preview, preview(event));
    setAttribute(this.dot, "class", `dot ${tone(event.event)}`);
    const row = this.element;
    setAttribute(row, "data-index", index);
    setAttribute(row, "aria-selected", String(place === current));
    setAttribute(row, "aria-posinset", place + 1);
    setAttribute(row, "aria-setsize", shown.length);
    row.classList.toggle("ahead", index >= count);
  }
}

const TONES = new Map(
  Object.entries({
    error: "bad",
    cancelled: "warn",
    restart: "warn",
    done: "good",
    tool_error: "bad",
    "internal.tool_error": "bad",
    approval_request: "warn",
    text_delta: "text",
    thinking_delta: "thinking",
    "internal.thinking_delta": "thinking",
  }),
);
export const tone = (kind) => TONES.get(kind) ?? (/^(internal\.)?(tool|agent)_/.test(kind) ? "tool" : "plain");

function preview({ data }) {
  const isText = data !== null && typeof data === "object" && typeof data.text === "string";
  return visible((isText ? data.text : JSON.stringify(data)).slice(0, PREVIEW));
}

const UNSEEN = /[\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;

/** The same JSON, with invisible characters and those that would reverse the line written as escapes. */
export const rawJson = (value) =>
  JSON.stringify(value, null, 2).replace(UNSEEN, (each) => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`);
