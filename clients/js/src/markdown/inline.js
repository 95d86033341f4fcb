// Text with emphasis, code and links: marked finds them, and they become nodes. Never a string of HTML.

import { Lexer, getDefaults } from "marked";
import { allowed, decode } from "./links.js";
import { inside, put, trim, write } from "./place.js";

/** @typedef {import("marked").Token} Token */
/** @typedef {import("marked").Links} Links */

/** @param {string} text @param {Links} links those that are defined so far @returns {Token[]} */
export function lex(text, links) {
  const lexer = new Lexer(getDefaults()); // an app's settings of marked are for its own use of it
  lexer.tokens.links = links;
  return lexer.inlineTokens(text);
}

/**
 * The link definitions that a paragraph begins with, and what is left of it.
 * @param {string} text @returns {{ links: Links, rest: string }}
 */
export function define(text) {
  const lexer = new Lexer(getDefaults());
  let end = 0;
  for (const token of lexer.blockTokens(text, lexer.tokens)) {
    if (token.type !== "def") break;
    end += token.raw.length;
  }
  return { links: lexer.tokens.links, rest: text.slice(end) };
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
    else if (type === "codespan") element("code", [plain(token.text)]);
    else if (type === "br") element("br", []);
    else if (type === "link" || type === "image") link(token);
    else text += type === "text" ? decode(token.text) : type === "escape" ? token.text : token.raw;
  };
  /** @param {Token} token an image is a link to it: its address could carry the answer away */
  const link = ({ type, href, title, tokens, autolink }) => {
    const [to, hint] = [href, title ?? ""].map((said) => (autolink ? said : decode(said)));
    const address = allowed(to);
    const children = autolink || (type === "image" && !tokens?.length) ? [plain(to)] : (tokens ?? []);
    if (linked || !address) children.forEach(show);
    else element("a", children, { href: address, rel: "noopener noreferrer", ...(hint && { title: hint }) });
  };
  tokens.forEach(show);
  flush();
}

/** @param {string} text @returns {Token} */
const plain = (text) => ({ type: "escape", raw: text, text });
