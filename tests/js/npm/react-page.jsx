// A page for tests of lastevent/react. `show(answers)` is called from outside: [{name, source}], see sourceOf.
import { startTransition } from "react";
import { flushSync } from "react-dom";
import { createRoot, hydrateRoot } from "react-dom/client";
import { start } from "lastevent";
import { App, clock, commits } from "./react-app.jsx";

const element = document.getElementById("root");
const wrong = [];
const started = {};
let root = null;

/** Options, in which the storage is named; or `{started: name}`, a stream of `begin`'s; or null. */
function sourceOf(source) {
  if (source?.started) return started[source.started];
  return source && { ...source, storage: source.storage && window[source.storage], env: source.frames && frames };
}

/** Frames that come when the test says `frames.pass()`. */
const frames = {
  waiting: [],
  frame(run) {
    frames.waiting.push(run);
    return () => {};
  },
  pass: () => frames.waiting.splice(0).forEach((run) => run()),
};

const withSources = (answers) => answers.map(({ name, source }) => ({ name, source: sourceOf(source) }));
const live = (name) => commits.findLast((commit) => commit.name === name).live;

Object.assign(window, {
  commits,
  wrong,
  started,
  frames,
  live,
  show(answers, { inTransition = false, slow = 0 } = {}) {
    root ??= createRoot(element);
    const render = () => root.render(<App answers={withSources(answers)} slow={slow} />);
    inTransition ? startTransition(render) : render();
  },
  /** Away, and there again before the next task. */
  blink(answers) {
    flushSync(() => window.show([]));
    flushSync(() => window.show(answers));
  },
  hydrate(answers) {
    root = hydrateRoot(element, <App answers={withSources(answers)} />, { onRecoverableError: (error) => wrong.push(String(error)) });
  },
  begin(name, options) {
    started[name] = start(sourceOf(options));
  },
  leave() {
    root.unmount();
    root = null;
  },
});

// React says by console.error what it does not like: a server's HTML that differs, an update of what is gone.
const report = console.error;
console.error = (...said) => {
  wrong.push(said.map(String).join(" "));
  report(...said);
};

// What a person may see: after each task that has changed the page, what its answers say.
window.seen = [];
new MutationObserver(() => {
  const texts = [...element.querySelectorAll("output")].map((output) => output.textContent);
  if (texts.length > 0) seen.push(texts);
}).observe(element, { childList: true, subtree: true, characterData: true });

(function frame() {
  clock.frame++;
  requestAnimationFrame(frame);
})();
