// The blocks of an answer that are not its text: tools, turns, sub-agents, approvals, what the agent was told.

import { h, isolated, setAttribute, setText } from "./dom.js";
import { rawJson } from "./eventrow.js";
import { duration, number, visible } from "./format.js";

const PREVIEW = 120;
const PHASES = { unfinished: "not finished" };

const took = (ms) => (typeof ms === "number" ? ` in ${duration(ms)}` : "");
const phaseOf = ({ phase, ms, code }) =>
  ` · ${PHASES[phase] ?? phase}${took(ms)}${code == null || code === phase ? "" : `: ${visible(code)}`}`;

const onOneLine = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** A value on one line until it is opened. The rest is made when it is: there may be thousands of them. */
class Folded {
  #value;
  #shown;
  preview = h("bdi", { class: "muted folded-preview" });

  constructor(label, { toLine = onOneLine, toText = rawJson } = {}) {
    Object.assign(this, { toLine, toText });
    this.text = h("pre", { class: "raw", tabindex: "0", "aria-label": label });
    this.element = h("details", { class: "answer-folded", hidden: true, ontoggle: () => this.#drawText() }, [
      h("summary", {}, h("span", {}, label), " ", this.preview),
      this.text,
    ]);
  }

  /** undefined: there is none. */
  draw(value) {
    this.element.hidden = value === undefined;
    if (value === undefined || value === this.#value) return;
    this.#value = value;
    setText(this.preview, visible(this.toLine(value).slice(0, PREVIEW)));
    this.#drawText();
  }

  #drawText() {
    if (!this.element.open || this.#shown === this.#value) return;
    this.#shown = this.#value;
    setText(this.text, this.toText(this.#value));
  }
}

const UNSEEN = /[^\P{C}\n\t]/gu;

/** Of an exception in the team's code, for operators. It ends in its type and its message. */
const newTraceback = () =>
  new Folded("Traceback", {
    toLine: (text) => text.trimEnd().split("\n").at(-1),
    toText: (text) => text.replace(UNSEEN, visible),
  });

export class ToolBlock {
  name = isolated("");
  title = h("bdi", { class: "muted" });
  phase = h("span", { class: "muted" });
  notes = h("span", { class: "answer-notes" });
  progress = h("p", { class: "answer-progress", dir: "auto" });
  args = new Folded("Arguments");
  result = new Folded("Result");
  message = h("p", { class: "answer-message", dir: "auto" });
  traceback = newTraceback();
  element = h("div", { class: "answer-tool" }, [
    h("p", { class: "answer-act" }, "Tool ", this.name, this.title, this.phase, this.notes),
    this.progress,
    this.args.element,
    this.result.element,
    this.message,
    this.traceback.element,
  ]);

  draw(block) {
    const { text, title, phase, progress, args, output, message } = block;
    setText(this.name, visible(text));
    setText(this.title, title == null ? "" : ` · ${visible(title)}`);
    setText(this.phase, phaseOf(block));
    setText(this.notes, notesOf(block));
    setText(this.progress, visible(progress ?? ""));
    this.args.draw(args);
    this.result.draw(output);
    this.traceback.draw(block.traceback);
    setText(this.message, message == null ? "" : visible(message));
    setAttribute(this.element, "data-phase", phase);
  }
}

const notesOf = ({ replayed, hidden }) =>
  [replayed && " · replayed, not run again", hidden && " · not shown to users"].filter(Boolean).join("");

export class TurnBlock {
  element = h("p", { class: "answer-turn" });

  draw({ data }) {
    const { turn, provider, model, stop_reason: stop, usage, cost_usd: cost } = data;
    const tokens = usage && `${count(usage.input_tokens)} tokens in, ${count(usage.output_tokens)} out`;
    const name = [provider, model].filter((part) => part != null).join("/");
    const said = [`Turn ${turn}`, name, stop, tokens, cost != null && `$${cost}`];
    setText(this.element, visible(said.filter(Boolean).join(" · ")));
  }
}

const count = (tokens) => (typeof tokens === "number" ? number(tokens) : "?");

/** What a sub-agent says is none of the answer. */
export class AgentBlock {
  name = isolated("");
  phase = h("span", { class: "muted" });
  notes = h("span", { class: "answer-notes" });

  constructor(_, newBlocks) {
    this.said = newBlocks();
    this.element = h("details", { class: "answer-agent", open: true }, [
      h("summary", {}, "Agent ", this.name, this.phase, this.notes),
      this.said.element,
    ]);
  }

  draw(block) {
    setText(this.name, visible(block.path));
    setText(this.phase, phaseOf(block));
    setText(this.notes, notesOf(block));
    this.said.draw(block.blocks, Infinity);
    setAttribute(this.element, "data-phase", block.phase);
  }
}

const DECISIONS = {
  waiting: "waits for a decision",
  sent: "is being decided",
  approved: "approved",
  refused: "refused",
  decided: "decided",
  ended: "no longer waits",
};

export class ApprovalBlock {
  #decided = null; // its id, while the decision is on its way
  name = isolated("");
  title = h("bdi", { class: "muted" });
  decision = h("b", {});
  why = h("span", { class: "answer-notes" });
  args = new Folded("Arguments");
  reason = h("input", { type: "text", "aria-label": "Reason, for the agent", placeholder: "Reason, for the agent" });

  constructor(view) {
    this.view = view;
    const decide = (approve) => () => this.#decide(approve);
    this.buttons = h("form", { class: "answer-decide", onsubmit: (event) => event.preventDefault() }, [
      h("button", { type: "button", class: "primary", "data-approve": true, onclick: decide(true) }, "Approve"),
      h("button", { type: "button", onclick: decide(false) }, "Refuse"),
      this.reason,
    ]);
    this.said = h("p", { class: "answer-act", tabindex: "-1" }, [
      "Approval of ",
      this.name,
      this.title,
      " · ",
      this.decision,
      this.why,
    ]);
    this.element = h("div", { class: "answer-approval", role: "group", "aria-label": "Approval" }, [
      this.said,
      this.args.element,
      this.buttons,
    ]);
  }

  draw({ id, text, title, args, state, reason, by }) {
    const isSent = this.#decided === id && state === "waiting";
    const mayDecide = state === "waiting" && !isSent && this.view.onDecide !== null;
    setText(this.name, visible(text));
    setText(this.title, title && ` · ${visible(title)}`);
    setText(this.decision, DECISIONS[isSent ? "sent" : state]);
    setText(this.why, visible([by && ` by ${by}`, reason && `: ${reason}`].filter(Boolean).join("")));
    this.args.draw(args);
    setAttribute(this.element, "data-state", state);
    // Where the buttons go, the focus stays beside them.
    if (!mayDecide && this.buttons.contains(document.activeElement)) this.said.focus();
    this.buttons.hidden = !mayDecide;
  }

  async #decide(approve) {
    const { block } = this;
    this.#decided = block.id;
    this.draw(block);
    if (await this.view.onDecide(block, approve, this.reason.value.trim())) this.reason.value = "";
    else this.#decided = null;
    this.draw(this.block);
  }
}

export class InputBlock {
  label = h("span", { class: "muted" });
  text = h("p", { class: "answer-told", dir: "auto" });
  element = h("div", { class: "answer-input" }, this.label, this.text);

  draw({ text, data, interrupts, replayed }) {
    setText(this.label, `You ${interrupts ? "interrupted" : "said"}${replayed ? " · told again" : ""}`);
    setText(this.text, typeof text === "string" ? text : visible(JSON.stringify(data ?? text ?? null)));
  }
}

export class ResultBlock {
  json = new Folded("Result of the agent");
  element = h("div", { class: "answer-tool" }, this.json.element);

  draw({ value }) {
    this.json.draw(value);
  }
}

export class TraceBlock {
  traceback = newTraceback();
  element = h("div", { class: "answer-tool", "data-phase": "failed" }, this.traceback.element);

  draw(block) {
    this.traceback.draw(block.traceback);
  }
}
