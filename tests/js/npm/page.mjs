/**
 * Follows one answer, or starts it, as the JSON in the page's address says. It notes what a test asks about, and tests
 * call what it has put into `window`.
 */

import { follow, start } from "/lastevent/index.js";

const { iterate, hurry, held, unseen, lockless, socket, beside = [], ...options } = JSON.parse(decodeURIComponent(location.search.slice(1)));
const output = document.getElementById("text");
const state = document.getElementById("state");
if (unseen) output.hidden = true;

const noted = (window.noted = {
  openedAt: performance.now(),
  paintedAt: null,
  requests: [], // of the client: when, and the text that was in the page then
  signs: [],
  ids: [], // of events that an iterator had
  takenBack: 0, // texts that do not go on from the one before
  errors: [],
});

for (const name of ["visibilitychange", "freeze", "resume", "online", "offline", "pageshow", "pagehide"])
  window.addEventListener(name, () => noted.signs.push({ name, at: performance.now() }), true);
document.addEventListener("securitypolicyviolation", ({ effectiveDirective, blockedURI }) =>
  noted.errors.push(`${effectiveDirective}: ${blockedURI}`),
);
window.addEventListener("error", ({ message }) => noted.errors.push(message));
window.addEventListener("unhandledrejection", ({ reason }) => noted.errors.push(String(reason)));

/** Timers run that many times as fast. */
function hurried(ms, run) {
  const timer = setTimeout(run, ms / hurry);
  return () => clearTimeout(timer);
}

if (lockless) navigator.locks.request = () => Promise.reject(new DOMException("denied", "SecurityError"));

const env = hurry ? { timer: hurried } : {};
const sending = socket ? (await import("/lastevent/socket.js")).connect({ url: socket, env }).fetch : fetch;

/** Other streams of the same page. */
window.beside = beside.map((url) => follow({ url, fetch: sending, env }));

const stream = (window.stream = (options.body ? start : follow)({
  storage: localStorage,
  ...options,
  env,
  async fetch(url, init) {
    const isFirst = noted.requests.push({ at: performance.now(), text: output.textContent }) === 1;
    const response = await sending(url, init);
    if (held && isFirst) hold();
    return response;
  },
}));

stream.subscribe(({ answer }) => {
  if (!answer.text.startsWith(output.textContent)) noted.takenBack++;
  if (answer.text && noted.paintedAt === null) noted.paintedAt = performance.now();
  output.textContent = answer.text;
  state.textContent = answer.state;
});

/** Take events; after `many` of them none, until `go` is called. */
window.take = async (many = Infinity) => {
  const go = new Promise((resolve) => (window.go = resolve));
  for await (const { id } of stream) if (noted.ids.push(id) >= many) await go;
};
if (iterate) window.take(iterate === true ? Infinity : iterate);

/** When the page had everything up to this cursor. */
window.reached = (cursor) =>
  new Promise((resolve) => {
    const off = stream.subscribe(({ answer }) => {
      if (answer.cursor < cursor) return;
      resolve(performance.now());
      setTimeout(() => off());
    });
  });

/** Nothing runs in this page until the site answers. */
function hold() {
  const request = new XMLHttpRequest();
  request.open("GET", "/hold", false);
  request.send();
}
window.hold = () => setTimeout(hold); // the caller has its answer first
