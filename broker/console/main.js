// The frame: the view that the address names, the key, the help.

import { askAgain, key, onUnauthorized } from "./api.js";
import { ask } from "./dialog.js";
import { fill, h } from "./dom.js";
import * as player from "./player.js";
import * as playground from "./playground.js";
import * as sessions from "./sessions.js";
import { bind, help, listen } from "./shortcuts.js";

const VIEWS = { playground, sessions, stream: player };
const main = document.querySelector("main");
const forget = document.querySelector("#forget-key");
let shown = { close() {} };

/** `#/sessions?state=running` → ["sessions", "", URLSearchParams]. */
function address() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  return [name || "playground", rest.join("/"), new URLSearchParams(query)];
}

function show({ focus = true } = {}) {
  const [name, argument, query] = address();
  const view = VIEWS[name] ?? playground;
  shown.close();
  askAgain();
  fill(main);
  document.title = `${view.title} · Lastevent`;
  for (const link of document.querySelectorAll("nav a")) {
    const isHere = link.hash === `#/${view === player ? "sessions" : view.name}`;
    if (isHere) link.setAttribute("aria-current", view === player ? "true" : "page");
    else link.removeAttribute("aria-current");
  }
  shown = view.mount(main, argument, query);
  scrollTo(0, 0);
  if (focus) main.querySelector("h1")?.focus({ preventScroll: true });
}

async function askForKey(wrong) {
  const field = h("input", {
    type: "password",
    id: "key",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
    pattern: "[!-~]+", // a header cannot carry anything else
    title: "Visible ASCII characters only",
    "aria-describedby": "key-hint",
    "aria-invalid": wrong ? "true" : null,
  });
  const content = [
    wrong && h("p", { class: "field-error", role: "alert" }, "The server does not accept this key."),
    h("label", { for: "key" }, "API key"),
    field,
    h("p", { class: "hint", id: "key-hint" }, "One of LASTEVENT_API_KEYS. It is stored for this tab only."),
  ];
  const isGiven = await ask("This server requires a key", content, { confirm: "Use this key", cancel: "Not now" });
  forget.hidden = !isGiven;
  return isGiven ? field.value.trim() : null;
}

onUnauthorized(askForKey);
forget.hidden = !key.get();
forget.addEventListener("click", () => {
  key.forget();
  forget.hidden = true;
  show();
});
document.querySelector("#help").addEventListener("click", help);
bind("Everywhere", [
  { keys: ["1"], does: "Playground", run: () => (location.hash = "#/playground") },
  { keys: ["2"], does: "Sessions", run: () => (location.hash = "#/sessions") },
  { keys: ["?"], does: "Show this list", run: help },
]);
listen();
addEventListener("hashchange", () => show());
show({ focus: false });
