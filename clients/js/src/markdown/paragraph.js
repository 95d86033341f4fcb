/**
 * A paragraph that grows. Its text is lexed again with every update, so what can be final in a long one becomes final:
 * a piece of it, up to the gap between two words where nothing is open that more text could close.
 */

import { define, inline, lex } from "./inline.js";
import { LONG } from "./lines.js";
import { inside, put } from "./place.js";
import { half, settle } from "./settle.js";

/** @import { Blocks, Leaf } from "./blocks.js" */
/** @import { Place } from "./place.js" */

export const PIECE = 1024; // characters: most paragraphs have no more, and are lexed as one
const STEP = 512; // from a gap that will not do, to the next that is tried
const LONGEST = 4096; // then a piece ends wherever it is: what is open in it is shown as it is written
const GAP = /[^\s\\][ \n](?=\S)|[。，](?=\S)/g;

/** Text that may be a link definition, or the beginning of one; or of a task. */
const DEFINITION =
  /^\[(?:[^\\[\]]|\\.){0,999}(?:\]\s*(?::\s*(?:(?:<[^\n<>]*>?|[^\s<]\S*)(?:\s+(?:["'(][^]{0,999})?)?)?)?)?$/;

/** One more line. @param {Blocks} blocks @param {string} line */
export function append(blocks, line) {
  const { leaf } = blocks;
  // What may be a title belongs to the definition before it.
  if (leaf.defines && leaf.text && !/^["'(]/.test(line) && !define(leaf.text).rest) {
    takeDefinitions(blocks);
    leaf.defines = line[0] === "[";
  }
  leaf.text += (leaf.text && "\n") + line;
  leaf.last = line.includes("|") && line.length <= LONG ? leaf.text.length - line.length : -1;
  leaf.defines &&= DEFINITION.test(leaf.text);
  if (!blocks.half) advance(blocks);
}

/** More of the line that was appended last. @param {Blocks} blocks @param {string} text */
export function extend(blocks, text) {
  blocks.leaf.text += text;
  advance(blocks);
}

/** Take the link definitions off its beginning. @param {Blocks} blocks */
export function takeDefinitions(blocks) {
  const { leaf } = blocks;
  if (!leaf.defines) return;
  const { links, rest } = define(leaf.text);
  if (blocks.half) blocks.links = Object.assign(Object.create(null), blocks.links);
  for (const name in links) blocks.links[name] ??= links[name]; // the first of a name counts
  leaf.text = rest;
  leaf.defines = false;
}

/** Make final what can be. Where a piece ends depends on the text alone, not on how it came. @param {Blocks} blocks */
function advance(blocks) {
  const { leaf } = blocks;
  const ready = () => (leaf.last < 0 ? leaf.text.length : leaf.last);
  while (!leaf.defines && ready() > PIECE) {
    GAP.lastIndex = leaf.tried;
    const gap = GAP.test(leaf.text) ? GAP.lastIndex : Infinity;
    const forced = gap > LONGEST;
    if (ready() < (forced ? LONGEST + 2 : gap)) return;
    const source = leaf.text.slice(0, forced ? LONGEST : gap);
    const piece = source.trimEnd();
    const { tokens, done } = settle(source, blocks.links);
    if (done || forced) {
      inline(home(blocks), done ? tokens : lex(piece, blocks.links));
      const used = piece.length || source.length - 1; // of nothing but space, one stays
      leaf.text = leaf.text.slice(used);
      leaf.last = Math.max(-1, leaf.last - used);
      leaf.tried = PIECE;
      leaf.cut = true;
    } else leaf.tried = gap + STEP;
  }
}

/** Show what is not final. @param {Blocks} blocks @param {boolean} [ended] and make it so */
export function draw(blocks, ended = false) {
  const { leaf, links } = blocks;
  let { text } = leaf;
  if (ended) text = text.trimEnd();
  else {
    // A definition is not shown. What may be a table's head waits for the next line.
    if (leaf.defines) return;
    if (leaf.last >= 0) text = text.slice(0, text.indexOf("|", leaf.last));
  }
  const tokens = (ended ? lex : half)(text, links);
  if (tokens.length) inline(home(blocks), tokens);
}

/** Where its nodes go: the first text of an item has no element of its own. @param {Blocks} blocks @returns {Place} */
function home({ stack, leaf }) {
  const top = innermost(stack);
  if (leaf.bare) return top;
  if (!leaf.el) Object.assign(leaf, inside(put(top, "p")));
  return /** @type {Place & Leaf} */ (leaf);
}

/** The container that lines stand in now. @param {Blocks["stack"]} stack */
export const innermost = (stack) => stack[stack.length - 1];
