// What a person tells an agent while it runs, and whether the agent has taken it.

import { h, setText } from "./dom.js";
import { plural } from "./format.js";

export class Told {
  #waiting = new Set(); // ids of inputs that no `input` event has named
  #taken = new Set(); // the event may be here before the answer to the call
  #isSending = false;

  /** `onTell(body)`, async: false if it did not arrive. */
  constructor(onTell) {
    this.onTell = onTell;
    const label = "Tell the agent";
    this.text = h("input", { type: "text", dir: "auto", "aria-label": label, placeholder: label });
    this.interrupt = h("input", { type: "checkbox" });
    this.state = h("p", { class: "hint", role: "status" });
    this.element = h("form", { class: "tell", onsubmit: (event) => this.#tell(event) }, [
      this.text,
      h("label", { class: "switch" }, this.interrupt, "Interrupt"),
      h("button", { type: "submit" }, "Tell"),
      this.state,
    ]);
  }

  focus() {
    if (!this.element.hidden) this.text.focus();
  }

  reset() {
    this.#waiting.clear();
    this.#taken.clear();
    this.#draw();
  }

  wait(id) {
    if (!this.#taken.has(id)) this.#waiting.add(id);
    this.#draw();
  }

  taken(id) {
    this.#taken.add(id);
    this.#waiting.delete(id);
    this.#draw();
  }

  #draw() {
    const count = this.#waiting.size;
    setText(this.state, count > 0 ? `${plural(count, "message")} waiting: the agent has not come to it yet.` : "");
  }

  async #tell(event) {
    event.preventDefault();
    const text = this.text.value;
    if (!text.trim() || this.#isSending) return;
    this.#isSending = true; // a disabled button would lose the focus
    const arrived = await this.onTell({ text, ...(this.interrupt.checked && { interrupt: true }) });
    this.#isSending = false;
    if (arrived && this.text.value === text) this.text.value = "";
  }
}
