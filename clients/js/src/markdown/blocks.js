// The blocks of a document, made line by line. Everything revolves around `Blocks`: what is open, innermost last. What was
// closed is in the page, final, and forgotten here: so a line costs what is open, not what came before it.

import { fill, lex } from "./inline.js";
import { LONG, cells, read } from "./lines.js";
import { PIECE, append, draw, innermost, takeDefinitions } from "./paragraph.js";
import { inside, put, trim, write } from "./place.js";
import { half } from "./settle.js";

/**
 * @typedef {import("./place.js").Place} Place
 * @typedef {import("./lines.js").Line} Line
 *
 * @typedef {Place & { type?: "quote" | "list" | "item", mark?: string, indent?: number, empty?: boolean }} Container
 *
 * @typedef {object} LeafOnly
 * @property {"text" | "code" | "html" | "table"} [type] none: there is none
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
 * @property {Leaf} leaf
 * @property {import("marked").Links} links those that are defined so far
 * @property {boolean} half the line that is shown has no end yet
 */

const LONGEST = 4096; // characters of a line that are shown before it has its end, as it is read anew with each update
const ALIGNED = ["", "left", "right", "center"];
/** @type {Leaf} */
const NONE = { text: "", tried: PIECE, last: -1 };
const TASK = /^\[([ xX])\][ \t]+(?=\S)/;

/** @param {Element} element @returns {Blocks} */
export const begin = (element) => ({ stack: [inside(element)], leaf: NONE, links: Object.create(null), half: false });

/** A whole line. @param {Blocks} blocks @param {string} text */
export const line = (blocks, text) => apply(blocks, /** @type {Line} */ (read(blocks, text)));

/**
 * Show what is open, and the line that has no end yet. If that is long, and a paragraph's whatever follows, it is taken.
 * @param {Blocks} blocks @param {string} text @returns {boolean} whether it was
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
  const { stack } = blocks;
  const { kind, depth, opens, level, mark, indent, ends } = line;
  const text = blocks.half ? line.text.slice(0, LONGEST) : line.text;
  if (!goesOn(blocks, line)) {
    close(blocks);
    const { type, mark } = stack[depth - 1];
    const over = type === "list" && (opens.length ? opens[0].mark !== mark : kind !== "blank");
    while (stack.length > depth - +over) trim(/** @type {Container} */ (stack.pop()));
    opens.forEach(open);
  }
  const { leaf } = blocks;
  if (kind === "text") {
    if (leaf.type === "table") return row(leaf, "td", cells(text), leaf.columns);
    append(blocks, leaf.type ? text : start());
  } else if (kind === "heading") heading(text);
  else if (kind === "rule") block("hr");
  else if (kind === "code") {
    const language = mark && /\S*/.exec(text.trim())?.[0];
    const place = inside(put(inside(block("pre")), "code", language ? { class: "language-" + language } : {}));
    take("code", place, { mark, indent });
    if (!mark) grow(text + "\n");
  } else if (kind === "html") {
    take("html", inside(block("p")), { ends });
    grow(text);
  } else if (kind === "more") more(leaf);
  else if (kind === "underline") {
    takeDefinitions(blocks);
    blocks.leaf = NONE;
    heading(leaf.text.trimEnd());
  } else if (kind === "table") {
    const head = cells(leaf.text.slice(leaf.last));
    leaf.text = leaf.text.slice(0, leaf.last);
    leaf.last = -1;
    close(blocks);
    table(head);
  }

  /** A paragraph. The first text of an item has no element of its own: so nothing changes when a list turns out loose. */
  function start() {
    const top = innermost(stack);
    const bare = top.type === "item" && !!top.empty;
    const [task, check] = (bare && TASK.exec(text)) || [""];
    if (task) put(top, "input", { type: "checkbox", disabled: "", ...(check !== " " && { checked: "" }) });
    top.empty = false;
    const rest = text.slice(task.length);
    take("text", {}, { bare, defines: rest[0] === "[" });
    return rest;
  }

  /** @param {import("./lines.js").Opens} what */
  function open({ mark, start, indent }) {
    if (mark && innermost(stack).type !== "list") {
      const list = block(start ? "ol" : "ul", start && +start !== 1 ? { start } : {});
      stack.push({ type: "list", mark, ...inside(list) });
    }
    stack.push({ type: mark ? "item" : "quote", indent, empty: true, ...inside(block(mark ? "li" : "blockquote")) });
  }

  /** @param {string} tag @param {Record<string, string>} [attributes] */
  function block(tag, attributes) {
    const top = innermost(stack);
    top.empty = false;
    return put(top, tag, attributes);
  }

  /** @param {Leaf["type"]} type @param {Partial<Place>} place @param {Partial<Leaf>} more */
  function take(type, place, more) {
    blocks.leaf = { ...NONE, type, ...place, ...more };
  }

  /** @param {string} source */
  function heading(source) {
    fill(block("h" + level), (blocks.half ? half : lex)(source, blocks.links));
  }

  /** Code or HTML, in one text. @param {string} more */
  function grow(more) {
    const leaf = /** @type {Leaf & Place} */ (blocks.leaf);
    if (leaf.node) leaf.node.appendData(more);
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
    const place = inside(block("table"));
    const columns = cells(text).map((dashes) => ALIGNED[+dashes.startsWith(":") + 2 * +dashes.endsWith(":")]);
    row(inside(put(place, "thead")), "th", head, columns);
    take("table", inside(put(place, "tbody")), { columns });
    trim(place);
  }

  /** @param {Partial<Place>} place @param {string} tag @param {string[]} texts @param {string[]} [columns] */
  function row(place, tag, texts, columns = []) {
    const row = inside(put(/** @type {Place} */ (place), "tr"));
    columns.forEach((align, index) => {
      const open = blocks.half && index === texts.length - 1;
      const moves = open && align && align !== "left"; // with each character, so it waits for its end
      const text = moves ? "" : (texts[index] ?? "");
      fill(put(row, tag, align ? { align } : {}), (open ? half : lex)(text, blocks.links));
    });
    trim(row);
  }
}

/** Whether it goes on what is open, rather than begin something. @param {Blocks} blocks @param {Line} line */
function goesOn({ stack, leaf }, { kind, depth, opens }) {
  if (kind !== "text") return /^(?:more|underline|table)$/.test(kind);
  // A paragraph goes on also where the containers that it stands in are not said again.
  return !opens.length && (leaf.type === "text" || (leaf.type === "table" && depth === stack.length));
}

/** @param {Blocks} blocks */
function close(blocks) {
  const { leaf } = blocks;
  if (leaf.type === "text") {
    takeDefinitions(blocks);
    draw(blocks, true);
  }
  trim(leaf);
  blocks.leaf = NONE;
}
