// Making and changing elements. A string becomes a text node and nothing else: no markup is ever parsed here.

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

/** A node that is already right is left alone: a selection in it survives, and nothing is laid out again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value == null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value === true ? "" : value);
}

/** What a model or a user wrote, on one line: its direction stays its own, and its control characters are seen. */
export const said = (text, attributes) => h("bdi", attributes, visible(text));

/** A function that runs `draw` in the next animation frame, however often it is called before. */
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

/** An empty, loading or error state: a title, a sentence, and what can be done. */
export function notice(kind, title, detail, ...actions) {
  const role = kind === "error" ? "alert" : null;
  return h("div", { class: `notice ${kind}`, role }, [
    h("p", { class: "notice-title" }, title),
    detail && h("p", { class: "notice-detail" }, detail),
    present(actions).length > 0 && h("div", { class: "notice-actions" }, actions),
  ]);
}

export const badge = (kind, text, attributes) => h("span", { ...attributes, class: `badge ${kind}` }, text);
