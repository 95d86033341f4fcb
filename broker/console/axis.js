// The player's time axis: a lane with its label, and a position on it.

import { h } from "./dom.js";

/** A label, and beside it the content on the time axis. */
export function lane(label, ...content) {
  return h(
    "div",
    { class: "lane" },
    h("div", { class: "lane-label" }, label),
    h("div", { class: "axis" }, h("div", { class: "inset" }, content)),
  );
}

export function atPart(element, at, log) {
  element.style.left = `${(100 * at) / Math.max(log.end, 1)}%`;
  return element;
}
