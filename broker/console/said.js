// The blocks of an answer that are text: what the model says and thinks, and what the console says about it.

import { h, setAttribute, setText } from "./dom.js";
import { number, visible } from "./format.js";

/** A run of text, each of its parts in an element of its own: the browser lays out those that are seen. */
export class Run {
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

export class ThinkingBlock {
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

export class NoticeBlock {
  element = h("p", { class: "answer-notice" });

  draw(block) {
    setText(this.element, visible(block.text));
    setAttribute(this.element, "data-tone", block.tone);
  }
}
