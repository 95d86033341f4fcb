/** Text with emphasis, code and links: marked finds them, and they become nodes. Never a string of HTML. */

import { Lexer, Tokenizer, getDefaults } from "marked";

import { allowed, decode } from "./links.js";
import { inside, put, trim, write } from "./place.js";

/** @import { Links, Token, Tokens } from "marked" */
/** @import { Place } from "./place.js" */

const LONGEST = 8192; // characters, of a heading or a cell: marked's time grows with their square, if they are garbage

// An app's settings of marked are for its own use of it.
const tokenizer = new Tokenizer(getDefaults());
const lexer = () => new Lexer({ ...getDefaults(), tokenizer });

/**
 * @param {string} text
 * @param {Links} links those that are defined so far
 * @returns {Token[]}
 */
export function lex(text, links) {
  if (text.length > LONGEST) return [plainly(text)];
  const own = lexer();
  own.tokens.links = links;
  try {
    return own.inlineTokens(text);
  } catch {
    return [plainly(text)]; // thousands of markers within each other: marked calls itself for each
  }
}

/**
 * The link definitions that a paragraph begins with, and what is left of it.
 *
 * @param {string} text
 */
export function define(text) {
  lexer(); // gives the tokenizer its rules
  /** @type {Links} */
  const links = Object.create(null);
  for (let found; (found = tokenizer.def(text)); ) {
    links[found.tag] ??= found;
    text = text.slice(found.raw.length).replace(/^\n/, "");
  }
  return { links, rest: text };
}

/**
 * The element with these tokens in it, and nothing else.
 *
 * @param {Element} element
 * @param {Token[]} tokens
 * @param {boolean} [linked] within a link
 */
export function fill(element, tokens, linked) {
  const place = inside(element);
  inline(place, tokens, linked);
  trim(place);
}

/**
 * Tokens as nodes, at the place.
 *
 * @param {Place} place
 * @param {Token[]} tokens
 * @param {boolean} [linked]
 */
export function inline(place, tokens, linked = false) {
  let text = "";
  tokens.forEach(show);
  flush();

  function flush() {
    if (text) write(place, text);
    text = "";
  }

  /** @param {Tokens.Generic} token */
  function show({ type, raw, text: said, tokens = [], href, title }) {
    if (type === "link" || type === "image") {
      // An image is a link to it: to show it would tell its host whatever the address says.
      const address = linked ? "" : allowed(decode(href));
      const children = said ? tokens : [plainly(href)];
      const hint = title && { title: decode(title) };
      if (!address) children.forEach(show);
      else element("a", children, { href: address, rel: "noopener noreferrer", ...hint });
    } else if (type === "codespan") element("code", [plainly(said)]);
    else if (/^(?:strong|em|del|br)$/.test(type)) element(type, tokens);
    else text += type === "text" ? decode(said) : type === "escape" ? said : raw;
  }

  /** @param {string} tag @param {Token[]} children @param {Record<string, string>} [attributes] */
  function element(tag, children, attributes) {
    flush();
    fill(put(place, tag, attributes), children, linked || tag === "a");
  }
}

/** @param {string} text @returns {Token} */
export const plainly = (text) => ({ type: "escape", raw: text, text });
