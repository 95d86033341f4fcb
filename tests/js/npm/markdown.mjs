// lastevent/markdown in a page: what it shows as a text grows, what it touches, and what it reads for it.

import { Lexer, getDefaults, setOptions } from "marked";
import { markdown } from "lastevent/markdown";
import { ANSWER, NASTY, answer, cuts, dice, long, scrambled } from "./markdown-texts.mjs";

/** An element with the whole text, given at once. */
export function whole(text) {
  const element = document.createElement("div");
  const view = markdown(element);
  view.set(text);
  view.end();
  return element;
}

/** An element with the text in pieces: of so many characters, or cut at the places. `seen` is told after each. */
export function inPieces(text, cuts, seen = () => {}, element = document.createElement("div")) {
  const view = markdown(element);
  const every = typeof cuts === "number" ? cuts : 0;
  const places = every ? Array.from({ length: Math.floor(text.length / every) }, (_, i) => (i + 1) * every) : cuts;
  for (const place of [...places, text.length]) {
    view.set(text.slice(0, place));
    seen(element, place);
  }
  view.end();
  seen(element, text.length);
  return element;
}

/** Of the texts, those that in pieces give other nodes than as a whole. */
export function differing(texts, sizes) {
  const rolled = dice(9);
  return texts.filter((text) => {
    const element = whole(text);
    return [...sizes, cuts(rolled, text)].some((how) => !inPieces(text, how).isEqualNode(element));
  });
}

/** Updates that showed a character of which the final page has no more, or before which it has another; spaces aside. */
export function takenBack(text, size) {
  const shown = [];
  const element = inPieces(text, size, ({ textContent }) => shown.push(words(textContent)));
  const final = words(element.textContent);
  return { updates: shown.length, flashes: shown.filter((seen) => !within(seen, final)).length,
           inserted: shown.filter((seen) => !final.startsWith(seen.trimEnd())).length };
}

const words = (text) => text.replace(/\s+/g, " ");

/** Whether all characters of `part` stand in `text` in this order. */
function within(part, text) {
  let at = 0;
  for (const char of text) if (part.startsWith(char, at)) at += char.length;
  return at >= part.length;
}

/** Changes of nodes that were final: of a child of the element that had another one behind it. */
export function touched(text, size) {
  const element = document.createElement("div");
  const observer = new MutationObserver(() => {});
  observer.observe(element, { subtree: true, childList: true, characterData: true, attributes: true });
  let final = [];
  let count = 0;
  inPieces(text, size, () => {
    for (const { target, removedNodes } of observer.takeRecords()) {
      const gone = [...removedNodes].some((node) => final.includes(node));
      if (gone || final.some((node) => node.contains(target))) count += 1;
    }
    final = [...element.childNodes].slice(0, -1);
  }, element);
  return count;
}

// -- what an update costs ------------------------------------------------------------------------------------------------

let lexed = 0;
const inlineTokens = Lexer.prototype.inlineTokens;
let depth = 0;
Lexer.prototype.inlineTokens = function (source, ...more) {
  if (!depth) lexed += source.length;
  depth += 1;
  try {
    return inlineTokens.call(this, source, ...more);
  } finally {
    depth -= 1;
  }
};

/** The most that one update of so many characters read anew, changed in the page, and took: of each quarter of a text. */
export function cost(text, size) {
  const element = document.createElement("div");
  const observer = new MutationObserver(() => {});
  observer.observe(element, { subtree: true, childList: true, characterData: true, attributes: true });
  const quarters = [0, 1, 2, 3].map(() => ({ lexed: 0, changes: 0, ms: 0, updates: 0 }));
  const view = markdown(element);
  for (let place = size; place <= text.length; place += size) {
    const given = text.slice(0, place);
    const quarter = quarters[Math.min(3, Math.floor((4 * place) / text.length))];
    lexed = 0;
    const began = performance.now();
    view.set(given);
    quarter.ms += performance.now() - began;
    quarter.updates += 1;
    quarter.lexed = Math.max(quarter.lexed, lexed);
    quarter.changes = Math.max(quarter.changes, observer.takeRecords().length);
  }
  view.end();
  return quarters;
}

/** Milliseconds of an update, without its layout, on the average of the last characters before each length. */
export function pace(text, size, lengths, stretch) {
  const element = document.body.appendChild(document.createElement("div"));
  const paces = lengths.map((length) => {
    const view = markdown(element);
    view.set(text.slice(0, length - stretch));
    let ms = 0;
    let updates = 0;
    for (let place = length - stretch + size; place <= length; place += size, updates += 1) {
      const given = text.slice(0, place);
      element.offsetHeight;
      const began = performance.now();
      view.set(given);
      ms += performance.now() - began;
    }
    return ms / updates;
  });
  element.remove();
  return paces;
}

// -- in a page that is painted ---------------------------------------------------------------------------------------------

/** The layout shift while the text grows, a piece a frame. */
export async function shift(text, size) {
  let total = 0;
  const note = (list) => list.getEntries().forEach(({ value }) => (total += value));
  const observer = new PerformanceObserver(note);
  observer.observe({ type: "layout-shift" });
  const element = document.body.appendChild(document.createElement("div"));
  const view = markdown(element);
  for (let place = size; place < text.length + size; place += size) {
    view.set(text.slice(0, place));
    await new Promise(requestAnimationFrame);
  }
  view.end();
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  note({ getEntries: () => observer.takeRecords() });
  element.remove();
  return total;
}

// -- what marked makes of it -----------------------------------------------------------------------------------------------

/** The whole text as marked reads it, with the nodes that stand for its tokens: HTML, without `<p>` for an item's first text. */
export function asMarked(text) {
  const element = document.createElement("div");
  blocks(new Lexer(getDefaults()).lex(text), element, false);
  return spaced(element);
}

/** HTML of what is shown, without the spaces that marked leaves at the ends of lines. */
export function spaced(element) {
  const copy = element.cloneNode(true);
  copy.normalize();
  const texts = document.createTreeWalker(copy, NodeFilter.SHOW_TEXT);
  for (let node; (node = texts.nextNode()); ) {
    if (!node.parentElement.closest("pre")) node.data = node.data.replace(/ *\n */g, "\n").replace(/^ +(?=\S)|(?<=\S) +$/g, " ");
  }
  return copy.innerHTML;
}

function blocks(tokens, parent, item) {
  let bare = item;
  for (const token of tokens) {
    const { type } = token;
    if (type === "space" || type === "def") continue;
    if (type === "checkbox") {
      box(token, parent);
      continue;
    }
    if (type === "paragraph" || type === "text") inline(token.tokens, bare ? parent : make("p", parent));
    else if (type === "heading") inline(token.tokens, make(`h${token.depth}`, parent));
    else if (type === "hr") make("hr", parent);
    else if (type === "code") {
      const [language] = /^\S*/.exec(token.lang ?? "");
      const code = make("code", make("pre", parent), language ? { class: `language-${language}` } : {});
      code.append(token.text && token.text.replace(/\n$/, "") + "\n");
    } else if (type === "blockquote") blocks(token.tokens, make("blockquote", parent), false);
    else if (type === "html") make("p", parent).append(token.raw.trimEnd());
    else if (type === "list") {
      const list = make(token.ordered ? "ol" : "ul", parent, token.ordered && token.start !== 1 ? { start: token.start } : {});
      for (const one of token.items) blocks(one.tokens, make("li", list), true);
    } else if (type === "table") {
      const table = make("table", parent);
      row(token.header, make("thead", table), "th");
      const body = make("tbody", table);
      for (const cells of token.rows) row(cells, body, "td");
    }
    bare = false;
  }
}

function row(cells, parent, tag) {
  const row = make("tr", parent);
  for (const { tokens, align } of cells) inline(tokens, make(tag, row, align ? { align } : {}));
}

function inline(tokens, parent) {
  for (const token of tokens ?? []) {
    if (["strong", "em", "del"].includes(token.type)) inline(token.tokens, make(token.type, parent));
    else if (token.type === "codespan") make("code", parent).append(token.text);
    else if (token.type === "br") make("br", parent);
    else if (token.type === "checkbox") box(token, parent);
    else if (token.type === "link" || token.type === "image") {
      const link = { href: token.href, rel: "noopener noreferrer", ...(token.title && { title: token.title }) };
      inline(token.tokens, make("a", parent, link));
    } else parent.append(token.type === "text" || token.type === "escape" ? token.text : token.raw);
  }
}

function box({ checked }, parent) {
  make("input", parent, { type: "checkbox", disabled: "", ...(checked && { checked: "" }) });
}

function make(tag, parent, attributes = {}) {
  const element = parent.appendChild(document.createElement(tag));
  for (const name in attributes) element.setAttribute(name, attributes[name]);
  return element;
}

const many = (seed, count, make) => {
  const rolled = dice(seed);
  return Array.from({ length: count }, () => make(rolled));
};
const texts = {
  ANSWER,
  NASTY,
  long,
  scrambled: (seed, count) => many(seed, count, scrambled),
  answers: (seed, count, length) => many(seed, count, (rolled) => answer(rolled, length)),
};

Object.assign(globalThis, { asMarked, cost, differing, inPieces, markdown, pace, shift, spaced, takenBack, texts, touched, whole });
globalThis.setOptions = setOptions;
