// What stands on the player's time axis: a lane with its label beside it, and a place on it.

import { h } from "./dom.js";

/** A label, and beside it what stands on the time axis. */
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
