// The form that opens a stream by its id, or by an address that has it.

import * as api from "./api.js";
import { h, setText } from "./dom.js";
import { claims } from "./rights.js";
import { streamAddress } from "./stream.js";

export class Goto {
  #isAway = false; // its problem is that the server is

  constructor() {
    this.problem = h("p", { class: "field-error", role: "alert", id: "goto-problem" });
    this.field = h("input", {
      type: "search",
      "aria-label": "Stream id",
      "aria-describedby": "goto-problem",
      placeholder: "Paste a stream id",
      spellcheck: "false",
      autocomplete: "off",
      oninput: () => this.#say(""),
    });
    this.element = h("form", { class: "goto", onsubmit: (event) => this.#go(event) }, [
      this.field,
      h("button", { type: "submit" }, "Open"),
      this.problem,
    ]);
  }

  focus() {
    this.field.focus();
  }

  /** The server has answered something else. */
  isBack() {
    if (this.#isAway) this.#say("");
  }

  async #go(event) {
    event.preventDefault();
    const id = this.field.value
      .trim()
      .replace(/^.*\/(streams?|s)\//, "")
      .replace(/[/?#].*$/, "");
    if (!id) return;
    this.#say("");
    try {
      await api.stream(id);
      this.#show(id);
    } catch (problem) {
      if (problem.status === 410) this.#show(id);
      else this.#say(problem.status === 404 ? notThere() : problem.message, problem.isAway);
    }
  }

  #show(id) {
    if (this.element.isConnected) location.hash = streamAddress(id); // else the reader has gone elsewhere meanwhile
  }

  #say(text, isAway = false) {
    this.#isAway = isAway;
    setText(this.problem, text);
  }
}

const notThere = () =>
  claims() ? "There is no such stream, or this token does not open it." : "There is no stream with this id.";
