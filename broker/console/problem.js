// What went wrong in a view: the server's title and detail, and a button that names what it tries again.

import { askAgain, enterKey, isReady, Problem } from "./api.js";
import { fill, h, notice } from "./dom.js";
import { claims, noun } from "./rights.js";
import { SCOPES } from "./scopes.js";

const READ_MS = 3000; // so long a notice stays at least: somebody is reading it
const PROBE_MS = 1000;

/** "streams:cancel (cancel) or …" */
export const inWords = (scopes) =>
  scopes.map((scope) => (SCOPES[scope] ? `${scope} (${SCOPES[scope]})` : scope)).join(", or ");

/** A refusal of the key or token as somebody understands it who has just pasted it: [title, detail]. */
export function wordsOf({ code, message, detail, scopes }) {
  if (code === "token_expired") return ["This token has expired", "With a new one you continue where you are."];
  if (code === "token_revoked") return ["This token has been revoked", "It lets nobody in any more."];
  if (code === "invalid_token") return ["The server does not accept this token.", detail];
  if (code === "insufficient_scope" && scopes.length > 0) {
    const isForKeys = claims() !== null && detail.includes("no token opens it");
    const takes = `This takes ${isForKeys ? "an API key with " : ""}the scope ${inWords(scopes)}.`;
    return [`Not with this ${noun()}`, takes];
  }
  return [message, detail];
}

/** `again`: a label such as "Stop again", with `run`. Nobody remembers what "Try again" was about. */
export function problemNotice(problem, { again, run }) {
  const [title, detail] = problem instanceof Problem ? wordsOf(problem) : [problem.message, problem.detail];
  const reported = problem.status >= 500 && problem.requestId ? ` Request id: ${problem.requestId}.` : "";
  return notice("error", title, `${detail}${reported}`, wayOut(problem, again, run));
}

function wayOut({ status, code }, again, run) {
  if (status === 404 || status === 410 || code === "approval_decided") return null;
  const button = (label, onclick) => h("button", { type: "button", onclick }, label);
  if (code === "insufficient_scope") return button("Use another key", async () => (await enterKey()) && run());
  const tryAgain = () => {
    askAgain();
    run();
  };
  return button(status === 401 ? "Enter a key" : again, tryAgain);
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
