/**
 * The blocks of a document, made line by line. Everything revolves around `Blocks`: what is open, innermost last. What
 * was closed is in the page, final, and forgotten here: so a line costs what is open, not what came before it.
 *
 * @typedef {object} Blocks
 * @property {Container[]} stack
 * @property {Leaf} leaf
 * @property {Links} links those that are defined so far
 * @property {boolean} half the line that is shown has no end yet
 *
 * @typedef {Place & ContainerOnly} Container
 * @typedef {object} ContainerOnly
 * @property {"quote" | "list" | "item"} [type] none: the whole document
 * @property {string} [mark] of a list
 * @property {number} [indent] of an item
 * @property {boolean} [empty] nothing stands in it yet
 *
 * @typedef {Partial<Place> & LeafOnly} Leaf the block that takes text, and the place of its nodes if it has one already
 * @typedef {object} LeafOnly
 * @property {"text" | "code" | "html" | "table"} [type] none: there is none
 * @property {string} text of a paragraph, what is not final; of indented code, blank lines that may not belong to it
 * @property {string} [mark] of fenced code
 * @property {number} [indent] of fenced code
 * @property {RegExp} [ends] of HTML
 * @property {Text} [node] the text of code or HTML
 * @property {string[]} [aligned] the columns of a table
 * @property {boolean} [bare] the paragraph has no element of its own
 * @property {boolean} [cut] its beginning is final
 * @property {boolean} [defines] it may begin with link definitions
 * @property {number} tried where its next piece may end, at the earliest
 * @property {number} last where its last line begins, if that may be a table's head; else -1
 */

import { fill, lex } from "./inline.js";
import { LONG, read } from "./lines.js";
import { PIECE, append, draw, innermost, takeDefinitions } from "./paragraph.js";
import { inside, put, trim, write } from "./place.js";
import { half } from "./settle.js";
import { columns, row } from "./table.js";

/** @import { Links } from "marked" */
/** @import { Line, Opens } from "./lines.js" */
/** @import { Place } from "./place.js" */

const LONGEST = 4096; // characters of a line that are shown before it has its end: it is read anew with each update
const TASK = /^\[([ xX])\][ \t]+(?=\S)/;

/** @returns {Leaf} */
const none = () => ({ text: "", tried: PIECE, last: -1 });

/** @param {Element} element @returns {Blocks} */
export const begin = (element) => ({ stack: [inside(element)], leaf: none(), links: Object.create(null), half: false });

/** A whole line. @param {Blocks} blocks @param {string} text */
export const line = (blocks, text) => apply(blocks, /** @type {Line} */ (read(blocks, text)));

/**
 * Show what is open, and the line that has no end yet. If that is long, and a paragraph's whatever comes, it is taken.
 *
 * @param {Blocks} blocks
 * @param {string} text
 * @returns {boolean} whether it was
 */
export function show(blocks, text) {
  const open = [...blocks.stack, blocks.leaf];
  const copies = open.map((one) => ({ ...one, first: null }));
  const guess = /** @type {Blocks} */ ({ ...blocks, half: true, leaf: copies.at(-1), stack: copies.slice(0, -1) });
  const line = read(guess, text, true);
  if (line) apply(guess, line);
  const sure = text.length > LONG && line?.kind === "text" && guess.leaf.type === "text" && !guess.leaf.defines;
  if (!sure && guess.leaf.type === "text") draw(guess);
  [...copies, ...guess.stack, guess.leaf].forEach(trim);
  open.forEach((one, index) => (one.at = copies[index].first));
  if (sure) {
    apply(blocks, line);
    show(blocks, "");
  }
  return sure;
}

/** There is no further line. @param {Blocks} blocks */
export function finish(blocks) {
  close(blocks);
  blocks.stack.forEach(trim);
}

/** @param {Blocks} blocks @param {Line} line */
function apply(blocks, line) {
  const { links } = blocks;
  const { kind, level, mark, indent, ends } = line;
  const text = blocks.half ? line.text.slice(0, LONGEST) : line.text;
  if (!goesOn(blocks, line)) turn(blocks, line);
  const { leaf } = blocks;
  if (kind === "text" && leaf.type === "table") row(place(leaf), "td", leaf.aligned ?? [], text, links, blocks.half);
  else if (kind === "text") append(blocks, leaf.type ? text : start(blocks, text));
  else if (kind === "heading") heading(text);
  else if (kind === "rule") block(blocks, "hr");
  else if (kind === "more") more(blocks, text);
  else if (kind === "code") {
    const language = mark && /\S*/.exec(text.trim())?.[0];
    const code = put(inside(block(blocks, "pre")), "code", language ? { class: "language-" + language } : {});
    blocks.leaf = { ...none(), type: "code", mark, indent, ...inside(code) };
    if (!mark) grow(blocks, text + "\n");
  } else if (kind === "html") {
    blocks.leaf = { ...none(), type: "html", ends, ...inside(block(blocks, "p")) };
    grow(blocks, text);
  } else if (kind === "underline") {
    takeDefinitions(blocks);
    blocks.leaf = none();
    heading(leaf.text.trimEnd());
  } else if (kind === "table") {
    const head = leaf.text.slice(leaf.last);
    leaf.text = leaf.text.slice(0, leaf.last);
    leaf.last = -1;
    close(blocks);
    const aligned = columns(text);
    const table = inside(block(blocks, "table"));
    row(inside(put(table, "thead")), "th", aligned, head, links, false);
    blocks.leaf = { ...none(), type: "table", aligned, ...inside(put(table, "tbody")) };
    trim(table);
  }

  /** @param {string} source */
  function heading(source) {
    fill(block(blocks, "h" + level), (blocks.half ? half : lex)(source, links));
  }
}

/** Whether a line goes on what is open, rather than begin something. @param {Blocks} blocks @param {Line} line */
function goesOn({ stack, leaf }, { kind, depth, opens }) {
  if (kind !== "text") return /^(?:more|underline|table)$/.test(kind);
  // A paragraph goes on also where the containers that it stands in are not said again.
  return !opens.length && (leaf.type === "text" || (leaf.type === "table" && depth === stack.length));
}

/** Close what a line does not continue, and open what it opens. @param {Blocks} blocks @param {Line} line */
function turn(blocks, { depth, opens, kind }) {
  const { stack } = blocks;
  close(blocks);
  const { type, mark } = stack[depth - 1];
  const over = type === "list" && (opens.length ? opens[0].mark !== mark : kind !== "blank");
  while (stack.length > depth - +over) trim(/** @type {Container} */ (stack.pop()));
  for (const { mark, start, indent } of opens) {
    if (mark && innermost(stack).type !== "list") {
      const list = block(blocks, start ? "ol" : "ul", start && +start !== 1 ? { start } : {});
      stack.push({ type: "list", mark, ...inside(list) });
    }
    const element = block(blocks, mark ? "li" : "blockquote");
    stack.push({ type: mark ? "item" : "quote", indent, empty: true, ...inside(element) });
  }
}

/** @param {Blocks} blocks @param {string} tag @param {Record<string, string>} [attributes] */
function block({ stack }, tag, attributes) {
  const top = innermost(stack);
  top.empty = false;
  return put(top, tag, attributes);
}

/**
 * A paragraph. The first text of an item has no element of its own: so nothing changes when a list turns out loose.
 *
 * @param {Blocks} blocks
 * @param {string} text
 * @returns {string} what is left when a task has its box
 */
function start(blocks, text) {
  const top = innermost(blocks.stack);
  const bare = top.type === "item" && !!top.empty;
  const [task, check] = (bare && TASK.exec(text)) || [""];
  if (task) put(top, "input", { type: "checkbox", disabled: "", ...(check !== " " && { checked: "" }) });
  top.empty = false;
  const rest = text.slice(task.length);
  blocks.leaf = { ...none(), type: "text", bare, defines: rest[0] === "[" };
  return rest;
}

/** One more line of code or HTML. @param {Blocks} blocks @param {string} text */
function more(blocks, text) {
  const { leaf } = blocks;
  if (leaf.type === "html") grow(blocks, "\n" + text);
  else if (leaf.mark) grow(blocks, text + "\n");
  else if (!text.trim()) leaf.text += text + "\n";
  else {
    grow(blocks, leaf.text + text + "\n");
    leaf.text = "";
  }
}

/** Code and HTML have one text, that grows. @param {Blocks} blocks @param {string} more */
function grow(blocks, more) {
  const { leaf } = blocks;
  if (leaf.node) leaf.node.appendData(more);
  else leaf.node = write(place(leaf), more);
  if (leaf.ends?.test(more)) close(blocks);
}

/** @param {Blocks} blocks */
function close(blocks) {
  if (blocks.leaf.type === "text") {
    takeDefinitions(blocks);
    draw(blocks, true);
  }
  trim(blocks.leaf);
  blocks.leaf = none();
}

/** @param {Leaf} leaf */
const place = (leaf) => /** @type {Place & Leaf} */ (leaf);
