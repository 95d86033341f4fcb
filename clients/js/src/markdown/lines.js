// What a line is, by CommonMark's rules for blocks and GitHub's for tables: read against what is open, changing nothing.

import { define } from "./inline.js";

/**
 * @typedef {import("./blocks.js").Blocks} Blocks
 *
 * @typedef {object} Opens a block quote, or an item of a list
 * @property {"quote" | "item"} type
 * @property {string} [mark] what the items of one list share
 * @property {number} [start] the number of an ordered list's item
 * @property {number} [indent] how far what belongs to the item is indented
 *
 * @typedef {object} Line
 * @property {number} depth how many of the open containers it continues
 * @property {Opens[]} opens those that begin with it
 * @property {"text" | "lazy" | "row" | "more" | "close" | "blank" | "heading" | "underline" | "table" | "rule" | "fence" |
 *   "code" | "html"} kind
 * @property {string} text what is left of it
 * @property {number} [level] of a heading
 * @property {string} [mark] the fence
 * @property {number} [indent] of the fence
 * @property {RegExp | null} [ends] what ends the HTML; null: a blank line
 */

const DEEPEST = 32; // containers within each other: a line costs its depth, and `>>>>…` is cheap to write
export const LONG = 1024; // characters of a line that cannot be a table's head any more
const LONGEST_ROW = 4096; // characters of a line that is looked at again with each update, before it has its end

/** Lines that may still become a marker, a rule, a fence, an underline or a table's second line: nothing shows yet. */
const HELD = /^(?:(?:\+|\d{1,9}[.)]?|#+|=+|`+|~+)[ \t]*|([-_*])(?:[ \t]*\1)*[ \t]*|`{3,}[^`]*|~{3,}.*|[|:\- \t]+)$/;
const HELD_HTML = /^<(?:[!?/]?[a-z\d-]*|!-|!\[[A-Z]*)$/i;
const HELD_TAG = /^<\/?[a-z][a-z\d-]*(?:[ \t][^<>]*)?\/?>?[ \t]*$/i;

const HEADING = /^(#{1,6})(?:[ \t]+(.*))?$/;
const CLOSING_HASHES = /(?:^|[ \t]+)#*[ \t]*$/;
const FENCE = /^(?:(`{3,})([^`]*)|(~{3,})(.*))$/;
const RULE = /^([-_*])[ \t]*(?:\1[ \t]*){2,}$/;
const UNDERLINE = /^(=+|-+)[ \t]*$/;
const ITEM = /^(?:[-+*]|(\d{1,9})[.)])(?=[ \t]|$)/;
const DELIMITERS = /^\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

const TAG =
  /^<(?:\/[a-z][a-z\d-]*\s*|[a-z][a-z\d-]*(?:\s+[a-z_:][\w.:-]*(?:\s*=\s*(?:[^\s"'=<>`]+|'[^']*'|"[^"]*"))?)*\s*\/?)>[ \t]*$/i;
/** @type {[RegExp, RegExp | null][]} what begins a block of HTML, and what ends it */
const HTML = [
  [/^<(?:script|pre|style|textarea)(?:[\s>]|$)/i, /<\/(?:script|pre|style|textarea)>/i],
  [/^<!--/, /-->/],
  [/^<\?/, /\?>/],
  [/^<![a-z]/i, />/],
  [/^<!\[CDATA\[/, /\]\]>/],
  [
    /^<\/?(?:address|article|aside|base|basefont|blockquote|body|caption|center|col|colgroup|dd|details|dialog|dir|div|dl|dt|fieldset|figcaption|figure|footer|form|frame|frameset|h[1-6]|head|header|hr|html|iframe|legend|li|link|main|menu|menuitem|nav|noframes|ol|optgroup|option|p|param|search|section|summary|table|tbody|td|tfoot|th|thead|title|tr|track|ul)(?:[ \t]|\/?>|$)/i,
    null,
  ],
];

/**
 * Read a line. One that has no end yet (`half`) is null as long as it is not known what it is, or shows nothing.
 * @param {Blocks} blocks @param {string} line @param {boolean} [half]
 * @returns {Line | null}
 */
export function read({ stack, leaf }, line, half = false) {
  let column = 0;
  let text = line;
  let depth = 1;
  while (depth < stack.length && continues(stack[depth])) depth++;
  const whole = depth === stack.length;
  if (half && BLANK.test(text)) return null;

  /** @type {Opens[]} */
  const opens = [];
  /** @param {Line["kind"]} kind @param {Partial<Line>} [more] @returns {Line} */
  const is = (kind, more) => ({ depth, opens, kind, text, ...more });
  const taken = whole && leaf && inside(leaf);
  return taken ? (half && leaf.type !== "html" ? null : taken) : begins();

  /** @param {Blocks["stack"][number]} container */
  function continues({ type, indent = 0, empty }) {
    if (type === "quote") return quoted();
    if (type === "list") return true;
    if (BLANK.test(text) ? empty : width() < indent) return false;
    take(indent);
    return true;
  }

  /** What continues a block that takes lines as they are. @param {NonNullable<Blocks["leaf"]>} leaf */
  function inside({ type, mark = "", indent = 0, ends }) {
    if (type === "fence") {
      const [, end = ""] = /^ {0,3}(`{3,}|~{3,})[ \t]*$/.exec(text) ?? [];
      if (end.startsWith(mark)) return is("close");
      take(indent);
      return is("more");
    }
    const blank = BLANK.test(text);
    if (type === "html") return blank && !ends ? is("close") : is("more");
    if (type !== "code" || !(blank || width() > 3)) return null;
    take(4);
    return is("more");
  }

  function begins() {
    for (;;) {
      const indent = width();
      const tip = opens.length ? undefined : leaf?.type; // what the line would go on, also lazily
      const paragraph = tip === "text" && whole;
      const rest = text.replace(/^[ \t]+/, "");
      if (!rest) return half ? null : is("blank");
      if (indent > 3 && tip !== "text") {
        take(4);
        return half ? null : is("code");
      }
      if (indent < 4) {
        if (half && HELD.test(rest)) return null;
        const deep = depth + opens.length >= DEEPEST;
        if (!deep && quoted()) {
          opens.push({ type: "quote" });
          continue;
        }
        const found = block(rest, indent, paragraph) || (rest[0] === "<" && html(rest, tip === "text"));
        if (found !== false) return found;
        if (!deep && item(rest, indent, paragraph)) continue;
      }
      text = rest;
      if (tip === "text" && !whole) return is("lazy");
      if (tip !== "table" || !whole) return is("text");
      return half && rest.length > LONGEST_ROW ? null : is("row");
    }
  }

  /** @param {string} rest @param {number} indent @param {boolean} paragraph */
  function block(rest, indent, paragraph) {
    const heading = HEADING.exec(rest);
    if (heading) {
      if (half && rest.length > LONGEST_ROW) return null;
      return is("heading", { level: heading[1].length, text: (heading[2] ?? "").replace(CLOSING_HASHES, "") });
    }
    const [, ticks, name, tildes, other] = FENCE.exec(rest) ?? [];
    if (ticks || tildes) return is("fence", { mark: ticks ?? tildes, indent, text: name ?? other });
    if (paragraph && leaf && !leaf.cut && UNDERLINE.test(rest) && !(leaf.defines && !define(leaf.text).rest)) {
      return is("underline", { level: rest[0] === "=" ? 1 : 2, text: rest });
    }
    if (paragraph && leaf && leaf.last >= 0 && /[|:]/.test(rest) && DELIMITERS.test(rest)) {
      if (cells(leaf.text.slice(leaf.last)).length === cells(rest).length) return is("table", { text: rest });
    }
    return RULE.test(rest) && is("rule");
  }

  /** @param {string} rest @param {boolean} tip */
  function html(rest, tip) {
    if (half && HELD_HTML.test(rest)) return null;
    const [, ends] = HTML.find(([begin]) => begin.test(rest)) ?? [];
    if (ends !== undefined) return is("html", { text: rest, ends });
    if (tip) return false;
    if (half && HELD_TAG.test(rest)) return null;
    return TAG.test(rest) && is("html", { text: rest, ends: null });
  }

  /** @param {string} rest @param {number} indent @param {boolean} paragraph */
  function item(rest, indent, paragraph) {
    const [bullet, number] = ITEM.exec(rest) ?? [];
    if (!bullet) return false;
    const blank = BLANK.test(rest.slice(bullet.length));
    if (paragraph && (blank || (number && +number !== 1))) return false; // it goes on: "… in the year\n1984. It …"
    column += indent + bullet.length;
    text = rest.slice(bullet.length);
    const gap = width();
    const space = blank || gap > 4 ? 1 : gap;
    take(space);
    const mark = bullet[bullet.length - 1];
    opens.push({ type: "item", mark, start: number ? +number : undefined, indent: indent + bullet.length + space });
    return true;
  }

  function quoted() {
    const indent = width();
    const rest = text.replace(/^[ \t]+/, "");
    if (indent > 3 || rest[0] !== ">") return false;
    column += indent + 1;
    text = rest.slice(1);
    take(1);
    return true;
  }

  /** How many columns of white space the text begins with: a tab goes to the next multiple of four. */
  function width() {
    let at = column;
    for (const char of text) {
      if (char !== " " && char !== "\t") break;
      at += char === " " ? 1 : 4 - (at % 4);
    }
    return at - column;
  }

  /** Up to so many of them are taken off; of a tab that is cut, spaces are left. @param {number} columns */
  function take(columns) {
    const to = column + columns;
    let at = column;
    let used = 0;
    for (; at < to && (text[used] === " " || text[used] === "\t"); used++) at += text[used] === " " ? 1 : 4 - (at % 4);
    text = " ".repeat(Math.max(0, at - to)) + text.slice(used);
    column = Math.min(at, to);
  }
}

const BLANK = /^[ \t]*$/;

/** The cells of a table's row. @param {string} row */
export function cells(row) {
  const all = [""];
  for (const [part] of row.matchAll(/\\[^]|[^\\|]+|[^]/g)) {
    if (part === "|") all.push("");
    else all[all.length - 1] += part === "\\|" ? "|" : part;
  }
  if (!all[0].trim()) all.shift();
  if (all.length && !all[all.length - 1].trim()) all.pop();
  return all.map((cell) => cell.trim());
}
