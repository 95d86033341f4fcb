// The blocks of a document, made line by line. Everything revolves around `Blocks`: what is open, innermost last. What was
// closed is in the page, final, and forgotten here: so a line costs what is open, not what came before it.

import { inline, lex } from "./inline.js";
import { cells, read } from "./lines.js";
import { append, draw, paragraph, takeDefinitions } from "./paragraph.js";
import { inside, put, trim, write } from "./place.js";

/**
 * @typedef {import("./place.js").Place} Place
 * @typedef {import("./lines.js").Line} Line
 * @typedef {import("./paragraph.js").Growing} Growing
 *
 * @typedef {Place & { type: "root" | "quote" | "list" | "item", mark?: string, indent?: number, empty?: boolean }} Container
 *
 * @typedef {object} Leaf the block that takes text
 * @property {"text" | "fence" | "code" | "html" | "table"} type
 * @property {Place | null} place where its nodes go
 * @property {string} text of a paragraph, what is not final yet; of indented code, blank lines that may not belong to it
 * @property {string} [mark] of a fence
 * @property {number} [indent] of a fence
 * @property {RegExp | null} [ends] of HTML
 * @property {Text} [node] the text of code or HTML
 * @property {string[]} [columns] of a table: how they are aligned
 * @property {boolean} [bare] the first text of an item has no element of its own
 * @property {boolean} [cut] the beginning of the paragraph is final
 * @property {boolean} [defines] the paragraph may begin with link definitions
 * @property {number} tried where the next piece of the paragraph may end, at the earliest
 * @property {number} last where its last line begins, if that may be a table's head; else -1
 *
 * @typedef {object} Blocks
 * @property {Container[]} stack
 * @property {Leaf | null} leaf
 * @property {import("marked").Links} links those that are defined so far
 * @property {boolean} half the line that is shown has no end yet
 */

const NONE = { text: "", tried: 0, last: -1 };

/** @param {Element} element @returns {Blocks} */
export const begin = (element) => ({
  stack: [{ type: "root", ...inside(element) }],
  leaf: null,
  links: Object.create(null),
  half: false,
});

/** A whole line. @param {Blocks} blocks @param {string} text */
export function line(blocks, text) {
  apply(blocks, /** @type {Line} */ (read(blocks, text)));
}

/**
 * Take the beginning of a line for good, if it is known to be a paragraph's whatever follows.
 * @param {Blocks} blocks @param {string} text @returns {boolean} whether it was taken
 */
export function anticipate(blocks, text) {
  const line = read(blocks, text, true);
  if (line?.kind !== "text" && line?.kind !== "lazy") return false;
  const leaf = goesOn(blocks, line) && blocks.leaf ? { ...blocks.leaf } : paragraph(line.text, false);
  append({ ...blocks, leaf, half: true }, line.text);
  if (!leaf.defines) apply(blocks, line);
  return !leaf.defines;
}

/** Show what is open, and the line that has no end yet. @param {Blocks} blocks @param {string} text */
export function show(blocks, text) {
  const { stack, leaf } = blocks;
  /** @type {Blocks} */
  const guess = {
    ...blocks,
    half: true,
    stack: stack.map((container) => ({ ...container, first: null })),
    leaf: leaf && { ...leaf, place: leaf.place && { ...leaf.place, first: null } },
  };
  const shown = [...guess.stack];
  const own = guess.leaf?.place;
  const line = read(guess, text, true);
  if (line) apply(guess, line);
  if (guess.leaf?.type === "text") draw(/** @type {Growing} */ (guess));
  for (const place of [...shown, own, ...guess.stack, guess.leaf?.place]) if (place) trim(place);
  stack.forEach((container, index) => (container.at = shown[index].first ?? null));
  if (leaf?.place) leaf.place.at = own?.first ?? null;
}

/** There is no further line. @param {Blocks} blocks */
export function finish(blocks) {
  close(blocks);
  for (const container of blocks.stack) trim(container);
}

/** @param {Blocks} blocks @param {Line} line */
function apply(blocks, line) {
  const { stack } = blocks;
  const { kind, opens, text } = line;
  if (!goesOn(blocks, line)) {
    close(blocks);
    const list = stack[line.depth - 1];
    const ends = list.type === "list" && kind !== "blank" && opens[0]?.mark !== list.mark;
    while (stack.length > line.depth - (ends ? 1 : 0)) trim(/** @type {Place} */ (stack.pop()));
    opens.forEach(open);
  }
  const { leaf } = blocks;
  if (kind === "text" || kind === "lazy") {
    if (!leaf) {
      const { type, empty } = stack[stack.length - 1];
      blocks.leaf = paragraph(text, type === "item" && !!empty);
      stack[stack.length - 1].empty = false;
    }
    append(/** @type {Growing} */ (blocks), text);
  } else if (kind === "heading") heading(text, line.level);
  else if (kind === "rule") block("hr");
  else if (kind === "fence") code(line);
  else if (kind === "code") grow((blocks.leaf = code(line)), text + "\n");
  else if (kind === "html") {
    blocks.leaf = { type: "html", place: block("p"), ...NONE, ends: line.ends };
    grow(blocks.leaf, text);
    if (line.ends?.test(text)) close(blocks);
  } else if (leaf && kind === "more") more(leaf);
  else if (leaf && kind === "underline") {
    if (leaf.defines) takeDefinitions(/** @type {Growing} */ (blocks));
    blocks.leaf = null;
    heading(leaf.text.trimEnd(), line.level);
  } else if (leaf && kind === "table") {
    const head = cells(leaf.text.slice(leaf.last));
    leaf.text = leaf.text.slice(0, leaf.last);
    leaf.last = -1;
    close(blocks);
    table(head);
  } else if (leaf && kind === "row") row(leaf, text);

  /** @param {import("./lines.js").Opens} what */
  function open({ type, start, ...more }) {
    if (type === "item" && stack[stack.length - 1].type !== "list") {
      const list = block(start === undefined ? "ul" : "ol", start === undefined || start === 1 ? {} : { start: `${start}` });
      stack.push({ type: "list", mark: more.mark, ...list });
    }
    stack.push({ type, ...more, empty: true, ...block(type === "quote" ? "blockquote" : "li") });
  }

  /** @param {string} tag @param {Record<string, string>} [attributes] */
  function block(tag, attributes) {
    const top = stack[stack.length - 1];
    top.empty = false;
    return inside(put(top, tag, attributes));
  }

  /** @param {string} source @param {number} [level] */
  function heading(source, level) {
    const place = block("h" + level);
    inline(place, lex(source, blocks.links, blocks.half));
    trim(place);
  }

  /** @param {Line} line @returns {Leaf} */
  function code({ mark, indent, text: info }) {
    const [language] = mark ? /\S*/.exec(info.trim()) ?? [""] : [""];
    const pre = block("pre");
    const place = inside(put(pre, "code", language ? { class: "language-" + language } : {}));
    return (blocks.leaf = { type: mark ? "fence" : "code", place, ...NONE, mark, indent });
  }

  /** @param {Leaf} leaf */
  function more(leaf) {
    if (leaf.type === "fence") grow(leaf, text + "\n");
    else if (leaf.type === "html") {
      if (blocks.half && leaf.place) write(leaf.place, "\n" + text);
      else grow(leaf, "\n" + text);
      if (leaf.ends?.test(text)) close(blocks);
    } else if (!text.trim()) leaf.text += text + "\n";
    else {
      grow(leaf, leaf.text + text + "\n");
      leaf.text = "";
    }
  }

  /** @param {string[]} head */
  function table(head) {
    const place = block("table");
    const columns = cells(text).map((dashes) => (dashes.at(-1) !== ":" ? (dashes[0] === ":" ? "left" : "") : dashes[0] === ":" ? "center" : "right"));
    fill(inside(put(place, "thead")), "th", head, columns);
    blocks.leaf = { type: "table", place: inside(put(place, "tbody")), ...NONE, columns };
    trim(place);
  }

  /** @param {Leaf} leaf @param {string} source */
  function row({ place, columns = [] }, source) {
    if (place) fill(place, "td", cells(source), columns);
  }

  /** @param {Place} place @param {string} tag @param {string[]} texts @param {string[]} columns */
  function fill(place, tag, texts, columns) {
    const row = inside(put(place, "tr"));
    columns.forEach((align, index) => {
      const cell = inside(put(row, tag, align ? { align } : {}));
      const source = texts[index] ?? "";
      const half = blocks.half && tag === "td" && index === texts.length - 1;
      inline(cell, lex(source, blocks.links, half));
      trim(cell);
    });
    trim(row);
  }
}

/** Whether it goes on what is open, rather than begin something. @param {Blocks} blocks @param {Line} line */
function goesOn({ stack, leaf }, { kind, depth, opens }) {
  if (kind === "lazy" || kind === "more" || kind === "row" || kind === "underline" || kind === "table") return true;
  return kind === "text" && leaf?.type === "text" && depth === stack.length && !opens.length;
}

/** More of code or HTML, in one text. @param {Leaf} leaf @param {string} text */
function grow(leaf, text) {
  if (leaf.node) leaf.node.appendData(text);
  else if (leaf.place) leaf.node = write(leaf.place, text);
}

/** @param {Blocks} blocks */
function close(blocks) {
  const { leaf } = blocks;
  if (leaf?.type === "text") {
    if (leaf.defines) takeDefinitions(/** @type {Growing} */ (blocks));
    draw(/** @type {Growing} */ (blocks), true);
  }
  if (leaf?.place) trim(leaf.place);
  blocks.leaf = null;
}
