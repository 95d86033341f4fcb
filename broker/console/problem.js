// What went wrong in a view: the server's title and detail, and a button that names what it tries again.

import { askAgain, isReady } from "./api.js";
import { fill, h, notice } from "./dom.js";

const READ_MS = 3000; // so long a notice stays at least: somebody is reading it
const PROBE_MS = 1000;

/** `again`: a label such as "Stop again", with `run`. Nobody remembers what "Try again" was about. */
export function problemNotice(problem, { again, run }) {
  const tryAgain = () => {
    askAgain();
    run();
  };
  const label = problem.status === 401 ? "Enter a key" : again;
  const isFinal = problem.status === 404 || problem.status === 410 || problem.code === "approval_decided";
  const action = !isFinal && h("button", { type: "button", onclick: tryAgain }, label);
  const reported = problem.status >= 500 && problem.requestId ? ` Request id: ${problem.requestId}.` : "";
  return notice("error", problem.message, `${problem.detail}${reported}`, action);
}

/** A view's place for a problem, which goes when its cause goes: a server that was away is asked until it is back. */
export class Problems {
  element = h("div", { class: "problem" });
  #shown = null;
  #timer = 0;

  /**
   * `reads`: trying again changes nothing, so it happens by itself when the server is back. Anything else is left to
   * the user, who may not want it any more: its button, and the notice, just go.
   */
  show(problem, { again, run, reads = false }) {
    this.clear();
    this.#shown = { again, run, reads };
    fill(this.element, problemNotice(problem, this.#shown));
    if (problem.isAway) this.#wait(READ_MS);
  }

  /** The notice of this action, or any. */
  clear(again = this.#shown?.again) {
    if (!this.#shown || this.#shown.again !== again) return;
    this.#shown = null;
    clearTimeout(this.#timer);
    fill(this.element);
  }

  #wait(ms) {
    this.#timer = setTimeout(() => this.#probe(this.#shown), ms);
  }

  async #probe(shown) {
    const isBack = !document.hidden && (await isReady());
    if (this.#shown !== shown) return;
    if (!isBack) return this.#wait(PROBE_MS);
    this.clear();
    if (shown.reads) shown.run();
  }
}
