// The form that starts a generation: a prompt, and the other fields of POST /v1/streams.

import { modelNames } from "./api.js";
import { fill, h } from "./dom.js";

const OPTIONS = [
  { field: "model", label: "Model", placeholder: "server default", list: "model-names" },
  { field: "max_tokens", label: "Max tokens", placeholder: "server default", type: "number" },
  { field: "session_id", label: "Session", placeholder: "new session" },
  { field: "user_id", label: "User", placeholder: "none" },
];
/** With directives for the stand-in. A model would read them as part of the prompt, so they only fill the field. */
const EXAMPLES = [
  ["A long answer", "Explain how tides work. [[tokens=400 rate=25 thinking=40]]"],
  ["A restart", "Tell me about lighthouses. [[tokens=120 rate=20 cut_at=60 cut_times=1]]"],
  ["An error", "Tell me about storms. [[tokens=80 rate=20 error_at=50 error=invalid_request_error]]"],
  ["A silence", "Tell me about fog. [[tokens=80 rate=20 stall_at=40 stall_ms=6000]]"],
];

export class Composer {
  /** `onSend(body)`: the body of the request. */
  constructor(onSend) {
    this.onSend = onSend;
    this.prompt = h("textarea", {
      id: "prompt",
      rows: "3",
      dir: "auto",
      placeholder: "Ask something",
      onkeydown: (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && this.#send(event),
    });
    this.system = h("textarea", { id: "system", rows: "2", dir: "auto" });
    this.button = h("button", { class: "primary", type: "submit" }, "Send");
    this.models = h("datalist", { id: "model-names" });
    this.inputs = OPTIONS.map(({ field, type = "text", placeholder, list }) =>
      h("input", { id: field, type, placeholder, list, min: type === "number" ? "1" : null }),
    );
    this.element = h("form", { class: "composer panel", onsubmit: (event) => this.#send(event) }, [
      h("label", { for: "prompt", class: "sr-only" }, "Prompt"),
      this.prompt,
      h("div", { class: "composer-row" }, this.#examples(), this.button),
      this.#options(),
    ]);
  }

  set isBusy(isBusy) {
    this.button.disabled = isBusy;
  }

  #send(event) {
    event.preventDefault();
    if (this.prompt.value.trim()) this.onSend(this.#body());
    else this.prompt.focus();
  }

  #body() {
    const body = { prompt: this.prompt.value };
    OPTIONS.forEach(({ field, type }, at) => {
      const value = this.inputs[at].value.trim();
      if (value) body[field] = type === "number" ? Number(value) : value;
    });
    if (this.system.value.trim()) body.system = this.system.value;
    return body;
  }

  #examples() {
    const chips = EXAMPLES.map(([label, prompt]) => {
      const use = () => {
        this.prompt.value = prompt;
        this.prompt.focus();
      };
      return h("button", { type: "button", class: "chip", onclick: use }, label);
    });
    const hint = h("span", { class: "hint" }, "For the stand-in");
    return h("div", { class: "chips", role: "group", "aria-label": "Examples for the stand-in" }, hint, chips);
  }

  #options() {
    const fields = OPTIONS.map(({ field, label }, at) =>
      h("div", { class: "field" }, h("label", { for: field }, label), this.inputs[at]),
    );
    return h("details", { class: "options", ontoggle: (event) => event.target.open && this.#offerModels() }, [
      h("summary", {}, "Options"),
      h("div", { class: "fields" }, fields, this.models),
      h("div", { class: "field" }, h("label", { for: "system" }, "System prompt"), this.system),
    ]);
  }

  /** Other names may be typed too: workers know not all that a provider has. */
  async #offerModels() {
    const names = await modelNames();
    fill(
      this.models,
      names.map((value) => h("option", { value })),
    );
  }
}
