// Text with emphasis, code and links: marked finds them, and they become nodes. Never a string of HTML.

import { Lexer, Tokenizer, getDefaults } from "marked";
import { allowed, decode } from "./links.js";
import { inside, put, trim, write } from "./place.js";

/** @typedef {import("marked").Token} Token */
/** @typedef {import("marked").Links} Links */

// An app's settings of marked are for its own use of it.
const tokenizer = new Tokenizer(getDefaults());
const lexer = () => new Lexer({ ...getDefaults(), tokenizer });

/** @param {string} text @param {Links} links those that are defined so far @returns {Token[]} */
export function lex(text, links) {
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
 * @param {string} text @returns {{ links: Links, rest: string }}
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
 * Tokens as nodes, at the place.
 * @param {import("./place.js").Place} place @param {Token[]} tokens @param {boolean} [linked] within a link
 */
export function inline(place, tokens, linked = false) {
  let text = "";
  const flush = () => {
    if (text) write(place, text);
    text = "";
  };
  /** @param {string} tag @param {Token[]} children @param {Record<string, string>} [attributes] */
  const element = (tag, children, attributes) => {
    flush();
    const child = inside(put(place, tag, attributes));
    inline(child, children, linked || tag === "a");
    trim(child);
  };
  /** @param {Token} token */
  const show = (token) => {
    const { type } = token;
    if (type === "strong" || type === "em" || type === "del") element(type, token.tokens ?? []);
    else if (type === "codespan") element("code", [plainly(token.text)]);
    else if (type === "br") element("br", []);
    else if (type === "link" || type === "image") link(token);
    else text += type === "text" ? decode(token.text) : type === "escape" ? token.text : token.raw;
  };
  /** @param {import("marked").Tokens.Generic} token an image is a link to it: its address could carry the answer away */
  const link = ({ type, href, title, text, tokens, autolink }) => {
    const [to, hint] = [href, title ?? ""].map((said) => (autolink ? said : decode(said)));
    const address = allowed(to);
    const children = autolink || !text ? [plainly(text || to)] : (tokens ?? []);
    if (linked || !address) children.forEach(show);
    else element("a", children, { href: address, rel: "noopener noreferrer", ...(hint && { title: hint }) });
  };
  tokens.forEach(show);
  flush();
}

/** @param {string} text @returns {Token} */
export const plainly = (text) => ({ type: "escape", raw: text, text });
