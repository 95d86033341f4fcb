// The form that starts a generation: a prompt, or an agent's input, and the other fields of POST /v1/streams.

import { agents, modelNames } from "./api.js";
import { fill, h, setText } from "./dom.js";
import { rawJson } from "./eventrow.js";
import { visible } from "./format.js";
import { beginningOf, formsOf } from "./schema.js";

const OPTIONS = [
  { field: "model", label: "Model", placeholder: "server default", list: "model-names", isOfModels: true },
  { field: "max_tokens", label: "Max tokens", placeholder: "server default", type: "number", isOfModels: true },
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

const TOOLS_OFFERED = 4;
const ROWS = 3;
const MOST_ROWS = 12;
const FORMS = { prompt: "Prompt", text: "Text", json: "JSON" };

export class Composer {
  #agents = new Map(); // name → as it is announced
  #began = ""; // what the page itself has written into the field

  /** `onSend(body)`: the body of the request. */
  constructor(onSend) {
    this.onSend = onSend;
    this.prompt = h("textarea", {
      id: "prompt",
      rows: ROWS,
      dir: "auto",
      placeholder: "Ask something",
      "aria-describedby": "prompt-error",
      onfocus: () => this.offerAgents(), // one that is new since the page was opened, or a key that was given since
      oninput: () => this.#refuse(""),
      onkeydown: (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && this.#send(event),
    });
    this.label = h("label", { for: "prompt", class: "sr-only" }, "Prompt");
    this.error = h("p", { class: "field-error", id: "prompt-error", role: "alert" });
    this.agent = h("select", { "aria-label": "Answered by", hidden: true, onchange: () => this.#choose() });
    this.form = h("select", { "aria-label": "Input as", hidden: true, onchange: () => this.#chooseForm() });
    this.schemaText = h("pre", { class: "raw", tabindex: "0", "aria-label": "JSON Schema of the input" });
    this.schema = h("details", { hidden: true }, h("summary", {}, "Schema of the input"), this.schemaText);
    this.chips = h("div", { class: "chips", role: "group" });
    this.system = h("textarea", { id: "system", rows: "2", dir: "auto" });
    this.button = h("button", { class: "primary", type: "submit" }, "Send");
    this.models = h("datalist", { id: "model-names" });
    this.inputs = OPTIONS.map(({ field, type = "text", placeholder, list }) =>
      h("input", { id: field, type, placeholder, list, min: type === "number" ? "1" : null }),
    );
    this.element = h("form", { class: "composer panel", onsubmit: (event) => this.#send(event) }, [
      this.label,
      this.prompt,
      this.error,
      h("div", { class: "composer-row" }, [
        this.chips,
        h("div", { class: "composer-send" }, this.agent, this.form, this.button),
      ]),
      this.schema,
      this.#options(),
    ]);
    this.#choose();
    this.offerAgents();
  }

  /** Without any, the page is as if there were no agents. */
  async offerAgents() {
    const found = await agents();
    if (JSON.stringify(found) === JSON.stringify([...this.#agents.values()])) return;
    const [chosen, form] = [this.agent.value, this.form.value];
    this.#agents = new Map(found.map((agent) => [agent.name, agent]));
    this.#fillAgents(chosen);
    if (!chosen) return;
    this.#choose();
    this.#setForm(form);
  }

  /** As a stream was asked for that is opened again. */
  show(record, prompt) {
    const { agent, input, messages } = record.request ?? {};
    this.#fillAgents(agent ?? "");
    this.#choose();
    if (agent) this.#setForm(messages ? "prompt" : typeof input === "string" ? "text" : "json");
    this.prompt.value = agent && !messages && typeof input !== "string" ? JSON.stringify(input, null, 2) : prompt;
  }

  set isBusy(isBusy) {
    this.button.disabled = isBusy;
  }

  #send(event) {
    event.preventDefault();
    if (!this.prompt.value.trim()) return void this.prompt.focus();
    try {
      this.onSend(this.#body());
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      this.#refuse(`This is not JSON. ${error.message}`);
      this.prompt.focus();
    }
  }

  /** May throw a SyntaxError. */
  #body() {
    const agent = this.agent.value;
    const body = agent ? { agent, ...this.#given() } : { prompt: this.prompt.value };
    OPTIONS.forEach(({ field, type, isOfModels }, at) => {
      const value = this.inputs[at].value.trim();
      if (value && !(agent && isOfModels)) body[field] = type === "number" ? Number(value) : value;
    });
    if (this.system.value.trim() && !agent) body.system = this.system.value;
    return body;
  }

  #given() {
    const { value } = this.prompt;
    if (this.form.value === "prompt") return { prompt: value };
    return { input: this.form.value === "text" ? value : JSON.parse(value) };
  }

  #refuse(why) {
    setText(this.error, visible(why));
    this.prompt.setAttribute("aria-invalid", String(why !== ""));
  }

  // -- agents

  #fillAgents(chosen) {
    const names = [...this.#agents.keys()];
    if (chosen && !this.#agents.has(chosen)) names.push(chosen); // no worker has it any more: the server will say so
    this.agent.hidden = names.length === 0;
    const options = names.map((name) => h("option", { value: name }, visible(name)));
    fill(this.agent, h("option", { value: "" }, "A model"), h("optgroup", { label: "Agents" }, options));
    this.agent.value = chosen;
  }

  #choose() {
    const name = this.agent.value;
    const schema = this.#agents.get(name)?.input_schema ?? null;
    for (const field of this.ofModels) field.hidden = name !== "";
    this.schema.hidden = schema === null;
    setText(this.schemaText, schema === null ? "" : rawJson(schema));
    const forms = name ? formsOf(schema) : ["prompt"];
    fill(
      this.form,
      forms.map((form) => h("option", { value: form }, FORMS[form])),
    );
    this.#chooseForm();
  }

  #setForm(form) {
    if (![...this.form.options].some((option) => option.value === form)) {
      this.form.append(h("option", { value: form }, FORMS[form]));
    }
    this.form.value = form;
    this.#chooseForm();
  }

  #chooseForm() {
    const form = this.form.value;
    this.form.hidden = this.form.options.length < 2;
    setText(this.label, form === "prompt" ? "Prompt" : form === "text" ? "Input" : "Input, as JSON");
    this.prompt.placeholder = form === "prompt" ? "Ask something" : form === "text" ? "A text" : "JSON";
    this.prompt.classList.toggle("json", form === "json");
    this.#refuse("");
    this.#begin(form);
    this.#offer(form);
  }

  /** What somebody has written stays. */
  #begin(form) {
    if (this.prompt.value.trim() && this.prompt.value !== this.#began) return;
    const schema = this.#agents.get(this.agent.value)?.input_schema ?? null;
    this.#began = form === "json" && schema !== null ? JSON.stringify(beginningOf(schema), null, 2) : "";
    this.prompt.value = this.#began;
    this.prompt.rows = Math.min(Math.max(ROWS, this.#began.split("\n").length), MOST_ROWS);
  }

  #offer(form) {
    const agent = this.#agents.get(this.agent.value);
    const calls = (agent?.tools ?? []).slice(0, TOOLS_OFFERED).map(({ name }) => [
      `Call ${visible(name)}`,
      `Please use ${name}. [[call=${name}]]`,
    ]);
    const examples = !this.agent.value ? EXAMPLES : form === "prompt" ? calls : [];
    this.chips.setAttribute("aria-label", "Examples for the stand-in");
    fill(this.chips, examples.length > 0 && h("span", { class: "hint" }, "For the stand-in"), examples.map(this.#chip));
  }

  #chip = ([label, prompt]) => {
    const use = () => {
      this.prompt.value = prompt;
      this.prompt.focus();
    };
    return h("button", { type: "button", class: "chip", onclick: use }, label);
  };

  #options() {
    const fields = OPTIONS.map(({ field, label }, at) =>
      h("div", { class: "field" }, h("label", { for: field }, label), this.inputs[at]),
    );
    const system = h("div", { class: "field" }, h("label", { for: "system" }, "System prompt"), this.system);
    this.ofModels = [...fields.filter((_, at) => OPTIONS[at].isOfModels), system];
    return h("details", { class: "options", ontoggle: (event) => event.target.open && this.#offerModels() }, [
      h("summary", {}, "Options"),
      h("div", { class: "fields" }, fields, this.models),
      system,
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
