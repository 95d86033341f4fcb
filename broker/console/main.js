// The frame: the view that the address names, what the key in use opens, the help.

import { arrive } from "./address.js";
import { askAgain, key, onUnauthorized } from "./api.js";
import { connect } from "./connect.js";
import { fill } from "./dom.js";
import { askForKey, showEntry } from "./entry.js";
import * as keys from "./keys.js";
import * as opened from "./opened.js";
import * as player from "./player.js";
import * as playground from "./playground.js";
import { claims, learn, may, onRights, rights } from "./rights.js";
import * as sessions from "./sessions.js";
import { bind, help, listen } from "./shortcuts.js";

const VIEWS = { playground, sessions, keys, stream: player };
const main = document.querySelector("main");
const links = [...document.querySelectorAll("nav a")];
let shown = { close() {} };
let holder = null;

/** `#/sessions?state=running` → ["sessions", "", URLSearchParams]. */
function address() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  return [name || (may("streams:write") ? "playground" : "sessions"), rest.join("/"), new URLSearchParams(query)];
}

/** With a token there is nothing to list, to start or to administer. */
function viewOf(name, query) {
  const view = VIEWS[name] ?? playground;
  const isOfStream = view === player || (view === playground && query.has("stream"));
  return claims() && !isOfStream ? opened : view;
}

function show({ focus = true } = {}) {
  const [name, argument, query] = address();
  const view = viewOf(name, query);
  shown.close();
  arrive();
  askAgain();
  learn();
  fill(main);
  document.title = `${view.title} · Lastevent`;
  for (const link of links) {
    const isHere = link.hash === `#/${view === player ? "sessions" : view.name}`;
    if (isHere) link.setAttribute("aria-current", view === player ? "true" : "page");
    else link.removeAttribute("aria-current");
  }
  shown = view.mount(main, argument, query);
  scrollTo(0, 0);
  if (focus) main.querySelector("h1")?.focus({ preventScroll: true });
}

/** Only what the key in use opens. */
function offer() {
  const [toPlayground, toSessions, toKeys] = links;
  toPlayground.hidden = !may("streams:write");
  toSessions.textContent = claims() ? "Streams" : "Sessions";
  toKeys.hidden = !rights.isAdmin;
}

const holderNow = () => (key.get() === null ? null : claims() ? "token" : "key");

/** A view that is open goes on with a new key. But with a token there are other views, and nobody is shown what was. */
function changeHolder() {
  offer();
  const [before, now] = [holder, holderNow()];
  holder = now;
  if (now !== before && (now !== "key" || before === "token")) show();
}

onUnauthorized(askForKey);
showEntry(document.querySelector("#key-button"), document.querySelector("#expiry"));
document.querySelector("#connect").addEventListener("click", connect);
document.querySelector("#help").addEventListener("click", help);
bind("Everywhere", [
  { keys: ["1"], does: "Playground", run: () => (location.hash = "#/playground") },
  { keys: ["2"], does: "Sessions", run: () => (location.hash = "#/sessions") },
  { keys: ["3"], does: "Keys, for administrators", run: () => rights.isAdmin && (location.hash = "#/keys") },
  { keys: ["?"], does: "Show this list", run: help },
]);
listen();
holder = holderNow();
onRights(changeHolder);
offer();
addEventListener("hashchange", () => show());
show({ focus: false });
