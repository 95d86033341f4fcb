// Creating and changing elements. A string always becomes a text node: no markup is ever parsed here.

import { visible } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";

/** h("button", { class: "primary", onclick: send }, "Send"): absent for null and false, empty for true. */
export const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...present(children));
  return element;
}

const present = (children) => children.flat(Infinity).filter((child) => child != null && child !== false);

export const fill = (element, ...children) => element.replaceChildren(...present(children));

/** Leave a node alone if it is already right: a selection in it survives, and the layout stays valid. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value == null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value === true ? "" : value);
}

/** Text of a model or a user, on one line: its direction is isolated, and its control characters are visible. */
export const isolated = (text, attributes) => h("bdi", attributes, visible(text));

/** A function that runs `draw` once in the next animation frame, however often it is called until then. */
export function eachFrame(draw) {
  let asked = 0;
  const ask = () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      draw();
    });
  };
  ask.cancel = () => cancelAnimationFrame(asked);
  return ask;
}

/** An empty, loading or error state: a title, a sentence, and the possible actions. */
export function notice(kind, title, detail, ...actions) {
  const role = kind === "error" ? "alert" : null;
  return h("div", { class: `notice ${kind}`, role }, [
    h("p", { class: "notice-title" }, title),
    detail && h("p", { class: "notice-detail" }, detail),
    present(actions).length > 0 && h("div", { class: "notice-actions" }, actions),
  ]);
}

export const badge = (kind, text, attributes) => h("span", { ...attributes, class: `badge ${kind}` }, text);
