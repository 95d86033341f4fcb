// A paragraph that grows. Its text is lexed again with every update, so what can be final in a long one becomes final:
// a piece of it, up to the gap between two words where nothing is open that more text could close.

import { define, inline, lex } from "./inline.js";
import { LONG } from "./lines.js";
import { inside, put } from "./place.js";
import { settle } from "./settle.js";

/**
 * @typedef {import("./blocks.js").Blocks} Blocks
 * @typedef {import("./blocks.js").Leaf} Leaf
 */

const PIECE = 1024; // characters: most paragraphs have no more, and are lexed as one
const STEP = 512; // from a gap that will not do, to the next that is tried
const LONGEST = 4096; // then a piece ends wherever it is, and what is open is closed in it and goes on in the next
const GAP = /[^\s\\][ \n](?=\S)|[、。，！？；：](?=\S)/g;

/** Text that may be the beginning of a link definition, or the whole of one. */
const DEFINITION = /^\[(?:[^\\[\]]|\\.)*(?:\](?::\s*(?:(?:<[^\n<>]*>?|[^\s<]\S*)(?:\s+(?:["'(][^]*)?)?)?)?)?$/;
const LONGEST_DEFINITION = 2048;

const TASK = /^\[([ xX])\][ \t]+(?=\S)/;
const HALF_TASK = /^\[(?:[ xX]\]?[ \t]*)?$/;

/** @param {string} text its first line @param {boolean} bare @returns {Leaf} */
export const paragraph = (text, bare) => ({
  type: "text",
  place: null,
  text: "",
  bare,
  defines: text[0] === "[",
  tried: PIECE,
  last: -1,
});

/** @param {Blocks & { leaf: Leaf }} blocks @param {string} line */
export function append(blocks, line) {
  const { leaf } = blocks;
  if (leaf.defines && leaf.text && !/^["'(]/.test(line)) {
    const { rest } = define(leaf.text);
    if (!rest) takeDefinitions(blocks); // else it may have a title of several lines
    leaf.defines = !!leaf.text || line[0] === "[";
  }
  leaf.text += (leaf.text && "\n") + line;
  leaf.last = line.includes("|") && line.length <= LONG ? leaf.text.length - line.length : -1;
  leaf.defines &&= DEFINITION.test(leaf.text);
  if (blocks.half) return;
  if (leaf.defines && leaf.text.length > LONGEST_DEFINITION) takeDefinitions(blocks);
  advance(blocks);
}

/** More of the line that was appended last. @param {Blocks & { leaf: Leaf }} blocks @param {string} text */
export function extend(blocks, text) {
  blocks.leaf.text += text;
  advance(blocks);
}

/** @param {Blocks & { leaf: Leaf }} blocks */
export function takeDefinitions(blocks) {
  const { leaf } = blocks;
  const { links, rest } = define(leaf.text);
  blocks.links = Object.assign(Object.create(null), links, blocks.links); // the first of a name counts
  leaf.text = rest;
  leaf.defines = false;
}

/** Make final what can be. Where a piece ends depends on the text alone, not on how it came. @param {Blocks & { leaf: Leaf }} blocks */
function advance(blocks) {
  const { leaf } = blocks;
  const ready = () => (leaf.last < 0 ? leaf.text.length : leaf.last);
  while (!leaf.defines && ready() > PIECE) {
    GAP.lastIndex = leaf.tried ?? 0;
    const gap = GAP.exec(leaf.text) ? GAP.lastIndex : Infinity;
    if (gap <= LONGEST) {
      if (gap > ready()) return;
      const piece = leaf.text.slice(0, gap);
      if (!settle(piece).closed) leaf.tried = gap + STEP;
      else make(piece, "");
    } else {
      if (ready() < LONGEST + 2) return;
      const { text, end, carry } = settle(leaf.text.slice(0, LONGEST));
      // A piece that is nothing but markers, or a code span of its own length, is shown as it is.
      if (end < PIECE || carry.length > STEP) make(leaf.text.slice(0, LONGEST), "", LONGEST);
      else make(text, carry, end);
    }
  }

  /** @param {string} piece @param {string} carry @param {number} [end] */
  function make(piece, carry, end = piece.length) {
    const gap = /\s*/y;
    gap.lastIndex = end;
    const space = gap.exec(leaf.text)?.[0] ?? "";
    inline(home(blocks), [...lex(piece, blocks.links), { type: "escape", raw: space, text: space }]);
    leaf.text = carry + leaf.text.slice(end + space.length);
    if (leaf.last >= 0) leaf.last += carry.length - end - space.length;
    leaf.tried = PIECE;
    leaf.cut = true;
  }
}

/** Show what is not final. @param {Blocks & { leaf: Leaf }} blocks @param {boolean} [ended] and make it so */
export function draw(blocks, ended = false) {
  const { leaf, links } = blocks;
  let { text } = leaf;
  if (ended) text = text.trimEnd();
  else {
    // What may be a table's head waits for the next line, and a definition for its end: that is not shown at all.
    if (leaf.last >= 0) text = text.slice(0, text.indexOf("|", leaf.last));
    if (leaf.defines || (starts(leaf) && HALF_TASK.test(text))) return;
  }
  const [task, check] = (starts(leaf) && TASK.exec(text)) || [""];
  const source = text.slice(task.length);
  const tokens = lex(ended ? source : settle(source).text, links);
  if (!task && !tokens.length) return;
  const place = home(blocks);
  if (task) put(place, "input", { type: "checkbox", disabled: "", ...(check !== " " && { checked: "" }) });
  if (!ended) unlink(tokens);
  inline(place, tokens);
}

/** Whether a task's box may stand before it. @param {Leaf} leaf */
const starts = ({ bare, cut }) => bare && !cut;

/** An address that is not yet whole leads nowhere. @param {import("marked").Token[]} tokens */
function unlink(tokens) {
  const last = tokens[tokens.length - 1];
  if (last?.type === "link" && last.autolink && last.raw[0] !== "<") last.href = "";
}

/** Where its nodes go: the first text of an item has no element of its own. @param {Blocks & { leaf: Leaf }} blocks */
function home({ stack, leaf }) {
  const top = stack[stack.length - 1];
  return leaf.bare ? top : (leaf.place ??= inside(put(top, "p")));
}
