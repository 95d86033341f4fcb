// An answer on the page: draws a Transcript, and updates only the parts that have changed.

import { h, isolated, setAttribute, setText } from "./dom.js";
import { duration, number, visible } from "./format.js";

const NEAR_THE_END_PX = 40;

export class AnswerView {
  #drawn = [];
  #epoch = -1;

  constructor() {
    this.blocks = h("div", { class: "answer-blocks" });
    this.status = h("p", { class: "answer-status" });
    this.ending = h("p", { class: "answer-ending" });
    this.element = h("div", { class: "answer", tabindex: "0", role: "region", "aria-label": "Answer" }, [
      this.blocks,
      this.status,
      this.ending,
    ]);
  }

  draw(transcript) {
    const box = this.element;
    const follows = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_THE_END_PX;
    const onlyGrew = transcript.epoch === this.#epoch;
    this.#epoch = transcript.epoch;
    transcript.blocks.forEach((block, at) => this.#drawBlock(at, block, onlyGrew));
    for (const surplus of this.#drawn.splice(transcript.blocks.length)) surplus.element.remove();
    this.#drawStatus(transcript);
    setText(this.ending, transcript.ending ? visible(transcript.ending.text) : "");
    this.ending.className = `answer-ending ${transcript.ending?.state ?? ""}`;
    if (follows) box.scrollTop = box.scrollHeight;
  }

  #drawBlock(at, block, onlyGrew) {
    let drawn = this.#drawn[at];
    if (drawn?.kind !== block.kind) {
      const made = new BLOCKS[block.kind]();
      made.kind = block.kind;
      if (drawn) drawn.element.replaceWith(made.element);
      else this.blocks.append(made.element);
      drawn = this.#drawn[at] = made;
    }
    drawn.draw(block, onlyGrew);
  }

  #drawStatus(transcript) {
    const waits = !transcript.ending && !transcript.hasText;
    const fallback = transcript.state === "queued" ? "Queued" : "Waiting for the first text";
    setText(this.status, visible(transcript.status || (waits ? fallback : "")));
    setAttribute(this.element, "aria-busy", transcript.ending ? "false" : "true");
  }
}

/** One text node. While the text only grows, it is appended to, so a selection in it survives. */
class Text {
  node = document.createTextNode("");

  draw(text, onlyGrew) {
    if (onlyGrew && text.length >= this.node.length) {
      if (text.length > this.node.length) this.node.appendData(text.slice(this.node.length));
    } else if (this.node.data !== text) {
      this.node.data = text;
    }
  }
}

class TextBlock {
  text = new Text();
  element = h("div", { class: "answer-text", dir: "auto" }, this.text.node);

  draw(block, onlyGrew) {
    this.text.draw(block.text, onlyGrew);
  }
}

class ThinkingBlock {
  text = new Text();
  size = h("span", { class: "muted" });
  element = h("details", { class: "answer-thinking" }, [
    h("summary", {}, "Thinking ", this.size),
    h("div", { class: "answer-text", dir: "auto" }, this.text.node),
  ]);

  draw(block, onlyGrew) {
    this.text.draw(block.text, onlyGrew);
    setText(this.size, `${number(block.text.length)} characters`);
  }
}

class ToolBlock {
  name = isolated("");
  phase = h("span", { class: "muted" });
  element = h("p", { class: "answer-tool" }, "Tool ", this.name, " ", this.phase);

  draw(block) {
    setText(this.name, visible(block.text));
    const took = typeof block.ms === "number" ? ` in ${duration(block.ms)}` : "";
    setText(this.phase, `${block.phase ?? "called"}${took}`);
    setAttribute(this.element, "data-phase", block.phase);
  }
}

class NoticeBlock {
  element = h("p", { class: "answer-notice" });

  draw(block) {
    setText(this.element, visible(block.text));
    setAttribute(this.element, "data-tone", block.tone);
  }
}

const BLOCKS = { text: TextBlock, thinking: ThinkingBlock, tool: ToolBlock, notice: NoticeBlock };
