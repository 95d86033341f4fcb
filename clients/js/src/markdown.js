// Markdown that is shown as it grows: what is final is never touched again, what is open is shown as it will mostly end.

import { anticipate, begin, finish, line, show } from "./markdown/blocks.js";
import { LONG } from "./markdown/lines.js";
import { extend } from "./markdown/paragraph.js";

/** @param {Element} element @returns {import("./markdown.d.ts").MarkdownView} */
export function markdown(element) {
  let text = ""; // as it was given last
  let held = ""; // its last character, if it is half of one, or of a line end
  let rest = ""; // of the line that has no end yet, what was not taken
  let taken = false; // the beginning of that line was
  let ended = false;
  let blocks = begin(element);
  restart();
  return { set, end };

  /** @param {string} next */
  function set(next) {
    if (next === text) return;
    if (ended || !next.startsWith(text)) restart();
    const more = held + next.slice(text.length);
    text = next;
    [held] = /** @type {RegExpExecArray} */ (/[\r\ud800-\udbff]?$/.exec(more));
    take(more.slice(0, more.length - held.length));
    show(blocks, rest);
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
    text = held = rest = "";
    taken = ended = false;
    blocks = begin(element);
  }

  /** @param {string} more */
  function take(more) {
    const lines = (rest + more.replace(/\r\n?/g, "\n")).split("\n");
    rest = /** @type {string} */ (lines.pop());
    for (const whole of lines) {
      if (taken) extend(/** @type {any} */ (blocks), whole);
      else line(blocks, whole);
      taken = false;
    }
    if (!taken && rest.length > LONG) {
      taken = anticipate(blocks, rest);
      if (taken) rest = "";
    } else if (taken) {
      extend(/** @type {any} */ (blocks), rest);
      rest = "";
    }
  }
}
