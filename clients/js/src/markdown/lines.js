/**
 * What a line is, by CommonMark's rules for blocks and GitHub's for tables. It is read against what is open, and
 * changes nothing.
 *
 * @typedef {object} Line
 * @property {number} depth how many of the open containers it continues
 * @property {Opens[]} opens the containers that begin with it
 * @property {"text" | "more" | "blank" | "heading" | "underline" | "table" | "rule" | "code" | "html"} kind
 * @property {string} text what is left of it
 * @property {number} [level] of a heading
 * @property {string} [mark] of fenced code
 * @property {number} [indent] of fenced code
 * @property {RegExp} [ends] what ends the HTML, if it is no blank line
 *
 * @typedef {object} Opens a block quote, or with a mark an item of a list
 * @property {string} [mark] what the items of one list share
 * @property {string} [start] the number
 * @property {number} [indent] how far is indented what belongs to it
 */

import { Lexer } from "marked";

import { define } from "./inline.js";
import { DELIMITERS, cells } from "./table.js";

/** @import { Blocks, Container, Leaf } from "./blocks.js" */

export const LONG = 1024; // characters of a line that is no head of a table any more
const WIDEST = 32; // columns: an item's text is indented by 17 at most
const DEEPEST = 32; // containers within each other: a line costs its depth, and `>>>>…` is cheap to write

// None of these may look at a run of characters more than once: a line is read with each update, and it may be long.
/** A line that may still become a marker, a rule, a fence, an underline or a table's second line: nothing shows yet. */
const HALF = /^(?:\d{1,9}[.)]?[ \t]*|[-+*_#=`~|: \t]+)$/;
const HALF_HTML = /^<[!?/]?[\w[-]*$/;
const HALF_TAG = /^<\/?[a-z][\w-]*(?:[\s/][^<>]*)?(?:>\s*)?$/i;

const BLANK = /^[ \t]*$/;
const UNDERLINE = /^(?:=+|-+)\s*$/;
const ITEM = /^(?:[-+*]|(\d{1,9})[.)])(?=[ \t]|$)/;
const MARKED = Lexer.rules.block.gfm;

/** What ends HTML that begins so. @type {[RegExp, RegExp][]} */
const ENDS = [
  [/^<(?:script|pre|style|textarea)[\s>]/i, /<\/(?:script|pre|style|textarea)>/i],
  [/^<!--/, /-->/],
  [/^<\?/, /\?>/],
  [/^<!\[/, /]]>/],
  [/^<!/, />/],
];

/**
 * Read a line. One that has no end yet (`half`) is null as long as it is not known what it is, or shows nothing.
 *
 * @param {Blocks} blocks
 * @param {string} text
 * @param {boolean} [half]
 * @returns {Line | null}
 */
export function read({ stack, leaf }, text, half = false) {
  let column = 0;
  let depth = 1;
  while (depth < stack.length && continues(stack[depth])) depth++;
  const whole = depth === stack.length;

  /** @type {Opens[]} */
  const opens = [];
  /** @param {Line["kind"]} kind @param {Partial<Line>} [more] @returns {Line} */
  const is = (kind, more) => ({ depth, opens, kind, text, ...more });
  /** @type {Line | null | undefined} */
  let found = whole ? inside(leaf) : undefined;
  while (found === undefined) found = begins();
  return half && found?.kind !== "text" && found?.kind !== "heading" ? null : found;

  /** @param {Container} container */
  function continues({ type, indent = 0, empty }) {
    if (type === "list") return true;
    if (type === "quote") return quoted();
    if (BLANK.test(text) ? empty : width() < indent) return false;
    take(indent);
    return true;
  }

  /** What continues a block that takes lines as they are. @param {Leaf} leaf */
  function inside({ type, mark, indent = 0, ends }) {
    const blank = BLANK.test(text);
    if (type === "html") return is(blank && !ends ? "blank" : "more");
    if (type !== "code" || !(mark || blank || width() > 3)) return undefined;
    const [, end] = /^ {0,3}(`{3,}|~{3,})[ \t]*$/.exec(text) ?? [];
    if (mark && end?.startsWith(mark)) return is("blank");
    take(mark ? indent : 4);
    return is("more");
  }

  /** What begins here; undefined if it is a container, so that more may begin in it. */
  function begins() {
    const indent = width();
    const tip = opens.length ? undefined : leaf.type; // what the line could go on
    const rest = text.replace(/^[ \t]+/, "");
    if (!rest) return is("blank");
    if (indent < 4) {
      if (half && HALF.test(rest)) return null;
      const deep = depth + opens.length >= DEEPEST;
      if (!deep && quoted()) return void opens.push({});
      const paragraph = tip === "text" && whole ? leaf : null;
      const block = leafBlock(rest, indent, paragraph) ?? (rest[0] === "<" ? html(rest, tip === "text") : undefined);
      if (block !== undefined || (!deep && item(rest, indent, !!paragraph))) return block;
    } else if (tip !== "text") {
      take(4);
      return is("code");
    }
    text = rest;
    return is("text");
  }

  /** @param {string} rest @param {number} indent @param {Leaf | null} paragraph that goes on before it */
  function leafBlock(rest, indent, paragraph) {
    const [, hashes, title] = MARKED.heading.exec(rest) ?? [];
    if (hashes) return is("heading", { level: hashes.length, text: withoutHashes(title.trim()) });
    const [, mark, info] = MARKED.fences.exec(rest) ?? [];
    if (mark) return is("code", { mark, indent, text: info });
    if (paragraph && UNDERLINE.test(rest) && !paragraph.cut && !(paragraph.defines && !define(paragraph.text).rest)) {
      return is("underline", { level: rest[0] === "=" ? 1 : 2 });
    }
    if (paragraph && paragraph.last >= 0 && /[|:]/.test(rest) && DELIMITERS.test(rest.trim())) {
      if (cells(paragraph.text.slice(paragraph.last)).length === cells(rest).length) return is("table");
    }
    return MARKED.hr.test(rest) ? is("rule") : undefined;
  }

  /** @param {string} rest @param {boolean} paragraph */
  function html(rest, paragraph) {
    if (half && (HALF_HTML.test(rest) || (!paragraph && HALF_TAG.test(rest)))) return null;
    // Not all that begins HTML breaks off a paragraph: marked's rule for paragraphs knows what does.
    const more = paragraph && MARKED.paragraph.exec(`.\n${rest}\n`)?.[0].includes(rest);
    const [, ends] = ENDS.find(([begins]) => begins.test(rest)) ?? [];
    return MARKED.html.test(rest) && !more ? is("html", { text: rest, ends }) : undefined;
  }

  /** @param {string} rest @param {number} indent @param {boolean} paragraph */
  function item(rest, indent, paragraph) {
    const [bullet, number] = ITEM.exec(rest) ?? [];
    if (!bullet) return false;
    const blank = BLANK.test(rest.slice(bullet.length));
    if (paragraph && (blank || (number && +number !== 1))) return false; // it goes on: "… in the year\n1984. It …"
    skip(rest, indent, bullet.length);
    const gap = blank || width() > 4 ? 1 : width();
    take(gap);
    const mark = bullet[bullet.length - 1];
    return opens.push({ mark, start: number, indent: indent + bullet.length + gap });
  }

  function quoted() {
    const indent = width();
    const rest = text.replace(/^[ \t]+/, "");
    if (indent > 3 || rest[0] !== ">") return false;
    skip(rest, indent, 1);
    take(1);
    return true;
  }

  /** @param {string} rest @param {number} indent @param {number} marker how long it is */
  function skip(rest, indent, marker) {
    column += indent + marker;
    text = rest.slice(marker);
  }

  /** How many columns of white space the text begins with, if not very many: a tab goes to the next multiple of four. */
  function width() {
    let at = column;
    for (let i = 0; i < WIDEST && /[ \t]/.test(text[i]); i++) at += text[i] === " " ? 1 : 4 - (at % 4);
    return at - column;
  }

  /** Take off up to so many of them. Of a tab that is cut, spaces are left. @param {number} columns */
  function take(columns) {
    const to = column + Math.min(columns, width());
    let used = 0;
    for (; column < to; used++) column += text[used] === " " ? 1 : 4 - (column % 4);
    text = " ".repeat(column - to) + text.slice(used);
    column = to;
  }
}

/** A heading's text without those that close it, or may do so. @param {string} text */
function withoutHashes(text) {
  let end = text.length;
  while (text[end - 1] === "#") end--;
  return /\S/.test(text[end - 1] ?? "") ? text : text.slice(0, end).trimEnd();
}
