/**
 * A page of page.mjs in a browser that nobody drives: it tells the site what it does. It is loaded again in the middle;
 * then it asks to be cut; then another tab is opened in front, which closes itself in the middle.
 */

import "/page.mjs";

const RELOADS = 5;
const MORE = 20; // events

const { text: kept } = JSON.parse(localStorage.getItem("lastevent:chat") ?? "{}").answer ?? { text: "" };
const isSecond = location.hash === "#second";
const reloads = Number(sessionStorage.getItem("reloads"));
const shown = () => document.getElementById("text").textContent;
const more = () => window.reached(stream.answer.cursor + MORE);
const tell = (what, said = {}) =>
  fetch(`/report?${encodeURIComponent(JSON.stringify({ what, isSecond, state: stream.connection.state, ...said }))}`);

stream.finished.then(() => tell("finished", { text: shown(), ...noted }));

if (isSecond) {
  await more();
  await tell("second");
  await more();
  window.close();
} else {
  await tell("loaded", { kept, painted: shown(), requests: noted.requests.length, ms: noted.paintedAt - noted.openedAt });
  await more();
  if (reloads < RELOADS) {
    sessionStorage.setItem("reloads", reloads + 1);
    location.reload();
  } else {
    await tell("cut me");
    await more();
    const inFront = new Promise((resolve) => {
      document.addEventListener("visibilitychange", () => document.hidden || resolve());
    });
    window.open(`${location.href}#second`);
    await inFront;
    await more();
    await tell("in front");
  }
}
