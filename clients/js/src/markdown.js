/** Markdown, shown as it grows: what is final is never touched again, what is open is shown as it will mostly end. */

import { begin, finish, line, show } from "./markdown/blocks.js";
import { extend } from "./markdown/paragraph.js";

/** @import { MarkdownView } from "./markdown.js" */

/** @param {Element} element @returns {MarkdownView} */
export function markdown(element) {
  let text = ""; // as it was given last
  let held = ""; // its last character, if that is half of one, or of a line's end
  let rest = ""; // of the line that has no end yet, what was not taken
  let taken = false; // the beginning of that line was
  let ended = true; // or has not begun
  let blocks = begin(element);
  return { set, end };

  /** @param {string} next */
  function set(next) {
    if (next === text && (next || !ended)) return;
    const goesOn = next.slice(0, text.length) === text; // startsWith takes fifty times as long
    if (ended || !goesOn) restart();
    const more = held + next.slice(text.length);
    text = next;
    [held] = /** @type {RegExpExecArray} */ (/[\r\ud800-\udbff]?$/.exec(more));
    take(more.slice(0, more.length - held.length));
    if (show(blocks, rest)) {
      taken = true;
      rest = "";
    }
  }

  function end() {
    if (ended) return;
    take(held);
    if (rest) line(blocks, rest);
    finish(blocks);
    ended = true;
  }

  function restart() {
    element.replaceChildren();
    blocks = begin(element);
    text = held = rest = "";
    taken = ended = false;
  }

  /** @param {string} more */
  function take(more) {
    const lines = (rest + more.replace(/\r\n?/g, "\n")).split("\n");
    rest = /** @type {string} */ (lines.pop());
    for (const whole of lines) {
      if (taken) extend(blocks, whole);
      else line(blocks, whole);
      taken = false;
    }
    if (taken) {
      extend(blocks, rest);
      rest = "";
    }
  }
}
