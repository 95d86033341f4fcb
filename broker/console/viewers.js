// The viewers of a stream: when they were connected, which events they received, and who only read it (access record).

import { lane } from "./axis.js";
import { fill, h, isolated } from "./dom.js";
import { agentName, duration, plural, visible } from "./format.js";

const SHOWN = 5;
const RIGHT_PART = 0.55; // a bar that starts this late has its text before its end, not after its start

export class Viewers {
  #views = null;
  #drawn = "";
  #showsAll = false;

  constructor() {
    this.element = h("div", { class: "viewers" });
  }

  /** `views`: as the API lists them, or a string: a notice to show while they are not known. */
  draw(log, views) {
    const place = `${log.start} ${log.end} ${this.#showsAll}`;
    if (this.#drawn === place && this.#views === views) return;
    this.#drawn = place;
    this.#views = views;
    fill(this.element, this.#rows(log));
  }

  #rows(log) {
    const views = this.#views;
    const title = h("h3", {}, "Viewers");
    const only = (text) => lane(title, h("p", { class: "hint" }, text));
    if (typeof views === "string") return only(views);
    const followed = views.filter((view) => !READINGS.has(formOf(view)));
    const read = readings(views);
    if (followed.length === 0) return only(["No viewer has followed this stream.", read].filter(Boolean).join(" "));
    const rows = (this.#showsAll ? followed : followed.slice(0, SHOWN)).map((view) => viewRow(view, log));
    const more = followed.length > rows.length && this.#moreButton(log, followed.length);
    return [lane(title), h("ol", {}, rows), more, read && h("p", { class: "hint readings" }, read)];
  }

  #moreButton(log, count) {
    const showAll = () => {
      this.#showsAll = true;
      this.draw(log, this.#views);
    };
    const label = `Show all ${plural(count, "viewer")}`;
    return h("button", { type: "button", class: "quiet", onclick: showAll }, label);
  }
}

const READINGS = new Map(
  Object.entries({ text: "its text", export: "an export", record: "its record", listing: "a listing" }),
);

/** `public-text` is a text too: as users see it. */
const formOf = ({ format }) => format?.replace(/^public-/, "");

function readings(views) {
  const counts = [...READINGS].map(([format, name]) => [name, views.filter((view) => formOf(view) === format).length]);
  const found = counts.filter(([, count]) => count > 0).map(([name, count]) => `${name} (${count})`);
  return found.length > 0 && `Read without following: ${found.join(", ")}.`;
}

const HOW = new Map(
  Object.entries({
    finished: "finished",
    left: "left",
    drained: "disconnected by a drain",
    too_slow: "cut: too slow",
    token_expired: "cut: its token expired",
    revoked: "cut: its key or token was revoked",
    vanished: "vanished",
    server_lost: "server lost",
    many: "summed up",
  }),
);

const tone = (view) => (view.closed_at === null ? "connected" : HOW.has(view.how) ? view.how : "");

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
  const text = h("span", { class: `viewer-text ${tone(view)}` }, visible(summary(view, isLate && opened - log.end)));
  if (from > RIGHT_PART) text.style.right = `${100 * (1 - to)}%`;
  else text.style.left = `${100 * from}%`;
  const agent = isolated(agentName(view.user_agent), { title: visible(view.user_agent ?? ""), class: "muted" });
  const row = lane(h("span", {}, isolated(view.who), " ", agent), bar, text);
  row.classList.add("viewer");
  return h("li", { class: isLate ? "late" : null }, row);
}

function summary(view, late) {
  const range = view.first_id === null ? "no event" : `${view.first_id}–${view.last_id}`;
  const ended = view.closed_at ? (HOW.get(view.how) ?? view.how ?? "closed") : "connected";
  return [
    late !== false && `${duration(late)} after the end`,
    view.requested > 0 && `after ${view.requested}`,
    view.count > 1 && `${view.count} connections`,
    range,
    ended,
  ]
    .filter(Boolean)
    .join(" · ");
}
