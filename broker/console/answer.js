// An answer on the page: draws a Transcript, and updates only the parts that have changed.

import { h, isolated, setAttribute, setText } from "./dom.js";
import { duration, number, visible } from "./format.js";

const NEAR_THE_END_PX = 40;
const NEW_A_FRAME = 1000; // blocks: thousands of tools are drawn over several frames, not in one long one

export class AnswerView {
  #drawn = [];

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

  /** False if there is more to draw in the next frame. */
  draw(transcript) {
    const box = this.element;
    const follows = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_THE_END_PX;
    const end = Math.min(transcript.blocks.length, this.#drawn.length + NEW_A_FRAME);
    for (let at = 0; at < end; at += 1) this.#drawBlock(at, transcript.blocks[at]);
    for (const surplus of this.#drawn.splice(end)) surplus.element.remove();
    this.#drawStatus(transcript);
    setText(this.ending, transcript.ending ? visible(transcript.ending.text) : "");
    this.ending.className = `answer-ending ${transcript.ending?.state ?? ""}`;
    if (follows) box.scrollTop = box.scrollHeight;
    return end === transcript.blocks.length;
  }

  #drawBlock(at, block) {
    let drawn = this.#drawn[at];
    if (drawn?.block === block) return;
    if (drawn?.block.kind !== block.kind) {
      const made = new BLOCKS[block.kind]();
      if (drawn) drawn.element.replaceWith(made.element);
      else this.blocks.append(made.element);
      drawn = this.#drawn[at] = made;
    }
    drawn.block = block;
    drawn.draw(block);
  }

  #drawStatus(transcript) {
    const waits = !transcript.ending && !transcript.hasText;
    const fallback = transcript.state === "queued" ? "Queued" : "Waiting for the first text";
    setText(this.status, visible(transcript.status || (waits ? fallback : "")));
    setAttribute(this.element, "aria-busy", transcript.ending ? "false" : "true");
  }
}

/** A run of text, each of its parts in an element of its own: the browser lays out those that are seen. */
class Run {
  #drawn = [];
  #parts = null;
  #settled = 0;
  element = h("div", { class: "answer-text", dir: "auto" });

  draw({ parts, settled, tail }) {
    const known = parts === this.#parts ? Math.min(this.#settled, settled) : 0;
    this.#parts = parts;
    this.#settled = settled;
    for (let at = known; at <= settled; at += 1) this.#drawPart(at, at < settled ? parts[at] : tail);
    for (const surplus of this.#drawn.splice(settled + 1)) surplus.parentElement.remove();
  }

  #drawPart(at, text) {
    if (!this.#drawn[at]) {
      this.#drawn[at] = document.createTextNode("");
      this.element.append(h("div", { class: "answer-part" }, this.#drawn[at]));
    }
    setData(this.#drawn[at], text);
  }
}

/** Only what differs at the end is changed, so a selection in the rest survives. */
function setData(node, text) {
  const shown = node.data;
  if (text === shown) return;
  if (text.startsWith(shown)) node.appendData(text.slice(shown.length));
  else if (shown.startsWith(text)) node.deleteData(text.length, shown.length - text.length);
  else node.data = text;
}

class ThinkingBlock {
  text = new Run();
  size = h("span", { class: "muted" });
  element = h("details", { class: "answer-thinking" }, [
    h("summary", {}, "Thinking ", this.size),
    this.text.element,
  ]);

  draw(block) {
    this.text.draw(block);
    setText(this.size, `${number(block.length)} characters`);
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

const BLOCKS = { text: Run, thinking: ThinkingBlock, tool: ToolBlock, notice: NoticeBlock };
