// Keyboard shortcuts: each view binds its own while it is open; `?` lists the bound ones. They can be switched off.

import { ask } from "./dialog.js";
import { h } from "./dom.js";

const OFF = "lastevent.shortcuts-off";
const NAMES = { " ": "Space", ArrowLeft: "←", ArrowRight: "→", Escape: "Esc" };
const bound = [];

/** `entries`: [{ keys: [...], does: "sentence", run }]. Returns a function that unbinds them. */
export function bind(title, entries) {
  const group = { title, entries };
  bound.push(group);
  return () => void bound.splice(bound.indexOf(group), 1);
}

export function listen() {
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || isTaken(event)) return;
    const entry = bound.flatMap((group) => group.entries).find((each) => each.keys.includes(event.key));
    if (!entry) return;
    event.preventDefault();
    entry.run(event);
  });
}

/** Typing goes to a field, Space and Enter to a button, and an open dialog receives every key. */
function isTaken(event) {
  if (localStorage.getItem(OFF) || document.querySelector("dialog[open]")) return true;
  const { target } = event;
  if (target.matches("textarea, select, input:not([type=range], [type=checkbox])")) return true;
  if (target.matches("[role=listbox], input[type=range]") && event.key.startsWith("Arrow")) return true;
  if (target.matches(".answer, pre") && ["Home", "End"].includes(event.key)) return true;
  return [" ", "Enter"].includes(event.key) && target.matches("button, a, summary, input[type=checkbox]");
}

export function help() {
  const toggle = h("input", { type: "checkbox", checked: !localStorage.getItem(OFF) });
  toggle.addEventListener("change", () => {
    if (toggle.checked) localStorage.removeItem(OFF);
    else localStorage.setItem(OFF, "1");
  });
  const groups = bound.map(({ title, entries }) =>
    h("section", {}, h("h3", {}, title), h("dl", { class: "keys" }, entries.map(row))),
  );
  return ask("Keyboard", [groups, h("label", { class: "check" }, toggle, "Single-key shortcuts")], {
    confirm: "Close",
  });
}

const row = ({ keys, does }) =>
  h("div", {}, [
    h(
      "dt",
      {},
      keys.map((key) => h("kbd", {}, NAMES[key] ?? key)),
    ),
    h("dd", {}, does),
  ]);
