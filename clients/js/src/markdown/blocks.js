// The blocks of a document, made line by line. Everything revolves around `Blocks`: what is open, innermost last. What was
// closed is in the page, final, and forgotten here: so a line costs what is open, not what came before it.

import { inline, lex } from "./inline.js";
import { cells, read } from "./lines.js";
import { append, draw, paragraph, takeDefinitions } from "./paragraph.js";
import { inside, put, trim, write } from "./place.js";
import { half } from "./settle.js";

/**
 * @typedef {import("./place.js").Place} Place
 * @typedef {import("./lines.js").Line} Line
 * @typedef {import("./paragraph.js").Growing} Growing
 *
 * @typedef {Place & { type?: "quote" | "list" | "item", mark?: string, indent?: number, empty?: boolean }} Container
 *
 * @typedef {object} LeafOnly
 * @property {"text" | "code" | "html" | "table"} type
 * @property {string} text of a paragraph, what is not final yet; of indented code, blank lines that may not belong to it
 * @property {string} [mark] of fenced code
 * @property {number} [indent] of fenced code
 * @property {RegExp} [ends] of HTML
 * @property {Text} [node] the text of code or HTML
 * @property {string[]} [columns] of a table: how they are aligned
 * @property {boolean} [bare] the first text of an item has no element of its own
 * @property {boolean} [cut] the beginning of the paragraph is final
 * @property {boolean} [defines] the paragraph may begin with link definitions
 * @property {number} tried where the next piece of the paragraph may end, at the earliest
 * @property {number} last where its last line begins, if that may be a table's head; else -1
 *
 * @typedef {LeafOnly & Partial<Place>} Leaf the block that takes text, and the place of its nodes, if it has one already
 *
 * @typedef {object} Blocks
 * @property {Container[]} stack
 * @property {Leaf | null} leaf
 * @property {import("marked").Links} links those that are defined so far
 * @property {boolean} half the line that is shown has no end yet
 */

const TASK = /^\[([ xX])\][ \t]+(?=\S)/;

/** @param {Element} element @returns {Blocks} */
export const begin = (element) => ({ stack: [inside(element)], leaf: null, links: Object.create(null), half: false });

/** A whole line. @param {Blocks} blocks @param {string} text */
export const line = (blocks, text) => apply(blocks, /** @type {Line} */ (read(blocks, text)));

/**
 * Take the beginning of a line for good, if it is known to be a paragraph's whatever follows.
 * @param {Blocks} blocks @param {string} text @returns {boolean} whether it was taken
 */
export function anticipate(blocks, text) {
  const line = read(blocks, text, true);
  if (line?.kind !== "text" || blocks.leaf?.type === "table") return false;
  const leaf = blocks.leaf && goesOn(blocks, line) ? { ...blocks.leaf } : paragraph(line.text, false);
  append({ ...blocks, leaf, half: true }, line.text);
  if (!leaf.defines) apply(blocks, line);
  return !leaf.defines;
}

/** Show what is open, and the line that has no end yet. @param {Blocks} blocks @param {string} text */
export function show(blocks, text) {
  const open = [...blocks.stack, blocks.leaf];
  const copies = open.map((one) => one && { ...one, first: null });
  const guess = /** @type {Blocks} */ ({ ...blocks, half: true, leaf: copies.at(-1), stack: copies.slice(0, -1) });
  const line = read(guess, text, true);
  if (line) apply(guess, line);
  if (guess.leaf?.type === "text") draw(/** @type {Growing} */ (guess));
  for (const place of [...copies, ...guess.stack, guess.leaf]) if (place) trim(place);
  open.forEach((one, index) => one && (one.at = copies[index]?.first));
}

/** There is no further line. @param {Blocks} blocks */
export function finish(blocks) {
  close(blocks);
  blocks.stack.forEach(trim);
}

/** @param {Blocks} blocks @param {Line} line */
function apply(blocks, line) {
  const { stack } = blocks;
  const { kind, depth, opens, text, level, mark, indent, ends } = line;
  if (!goesOn(blocks, line)) {
    close(blocks);
    const { type, mark } = stack[depth - 1];
    const over = type === "list" && kind !== "blank" && opens[0]?.mark !== mark;
    while (stack.length > depth - +over) trim(/** @type {Container} */ (stack.pop()));
    opens.forEach(open);
  }
  const { leaf } = blocks;
  if (kind === "text") {
    if (leaf?.type === "table") return row(leaf, "td", cells(text), leaf.columns);
    append(/** @type {Growing} */ (blocks), leaf ? text : start());
  } else if (kind === "heading") heading(text);
  else if (kind === "rule") block("hr");
  else if (kind === "code") {
    const language = mark && /\S*/.exec(text.trim())?.[0];
    const place = inside(put(block("pre"), "code", language ? { class: "language-" + language } : {}));
    blocks.leaf = { type: "code", text: "", tried: 0, last: 0, mark, indent, ...place };
    if (!mark) grow(text + "\n");
  } else if (kind === "html") {
    blocks.leaf = { type: "html", text: "", tried: 0, last: 0, ends, ...block("p") };
    grow(text);
  } else if (leaf && kind === "more") more(leaf);
  else if (leaf && kind === "underline") {
    if (leaf.defines) takeDefinitions(/** @type {Growing} */ (blocks));
    blocks.leaf = null;
    heading(leaf.text.trimEnd());
  } else if (leaf && kind === "table") {
    const head = cells(leaf.text.slice(leaf.last));
    leaf.text = leaf.text.slice(0, leaf.last);
    leaf.last = -1;
    close(blocks);
    table(head);
  }

  /** A paragraph. The first text of an item has no element of its own: so nothing changes when a list turns out loose. */
  function start() {
    const top = stack[stack.length - 1];
    const bare = top.type === "item" && !!top.empty;
    const [task, check] = (bare && TASK.exec(text)) || [""];
    if (task) put(top, "input", { type: "checkbox", disabled: "", ...(check !== " " && { checked: "" }) });
    top.empty = false;
    const rest = text.slice(task.length);
    blocks.leaf = paragraph(rest, bare);
    return rest;
  }

  /** @param {import("./lines.js").Opens} what */
  function open({ mark, start, indent }) {
    if (mark && stack[stack.length - 1].type !== "list") {
      const list = block(start === undefined ? "ul" : "ol", (start ?? 1) === 1 ? {} : { start: `${start}` });
      stack.push({ type: "list", mark, ...list });
    }
    stack.push({ type: mark ? "item" : "quote", indent, empty: true, ...block(mark ? "li" : "blockquote") });
  }

  /** @param {string} tag @param {Record<string, string>} [attributes] */
  function block(tag, attributes) {
    const top = stack[stack.length - 1];
    top.empty = false;
    return inside(put(top, tag, attributes));
  }

  /** @param {string} source */
  function heading(source) {
    const place = block("h" + level);
    inline(place, (blocks.half ? half : lex)(source, blocks.links));
    trim(place);
  }

  /** Code or HTML, in one text. @param {string} more */
  function grow(more) {
    const leaf = /** @type {Leaf & Place} */ (blocks.leaf);
    if (leaf.node && !blocks.half) leaf.node.appendData(more);
    else leaf.node = write(leaf, more);
    if (leaf.ends?.test(more)) close(blocks);
  }

  /** @param {Leaf} leaf */
  function more(leaf) {
    if (leaf.type === "html") grow("\n" + text);
    else if (leaf.mark) grow(text + "\n");
    else if (!text.trim()) leaf.text += text + "\n";
    else {
      grow(leaf.text + text + "\n");
      leaf.text = "";
    }
  }

  /** @param {string[]} head */
  function table(head) {
    const place = block("table");
    const columns = cells(text).map((dashes) => {
      const left = dashes[0] === ":";
      return !dashes.endsWith(":") ? (left ? "left" : "") : left ? "center" : "right";
    });
    row(inside(put(place, "thead")), "th", head, columns);
    blocks.leaf = { type: "table", text: "", tried: 0, last: 0, columns, ...inside(put(place, "tbody")) };
    trim(place);
  }

  /** @param {Partial<Place>} place @param {string} tag @param {string[]} texts @param {string[]} [columns] */
  function row(place, tag, texts, columns = []) {
    const row = inside(put(/** @type {Place} */ (place), "tr"));
    columns.forEach((align, index) => {
      const cell = inside(put(row, tag, align ? { align } : {}));
      const open = blocks.half && tag === "td" && index === texts.length - 1;
      inline(cell, (open ? half : lex)(texts[index] ?? "", blocks.links));
      trim(cell);
    });
    trim(row);
  }
}

/** Whether it goes on what is open, rather than begin something. @param {Blocks} blocks @param {Line} line */
function goesOn({ stack, leaf }, { kind, depth, opens }) {
  if (kind !== "text") return kind === "more" || kind === "underline" || kind === "table";
  // A paragraph goes on also where the containers that it stands in are not said again.
  return !opens.length && (leaf?.type === "text" || (leaf?.type === "table" && depth === stack.length));
}

/** @param {Blocks} blocks */
function close(blocks) {
  const { leaf } = blocks;
  if (leaf?.type === "text") {
    if (leaf.defines) takeDefinitions(/** @type {Growing} */ (blocks));
    draw(/** @type {Growing} */ (blocks), true);
  }
  if (leaf) trim(leaf);
  blocks.leaf = null;
}
