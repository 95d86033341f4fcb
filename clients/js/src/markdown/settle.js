// Text that has no end yet, as it can be shown: what may still become syntax is held back, what is open is closed.
//
// `see **the` is shown as `see **the**`, `see [the](htt` as `see the`, and `see *` as `see`: an answer mostly goes on as it
// should. What marked leaves as text, in `2*3` and `[sic]`, is looked at; a wrong guess ends with the paragraph.

import { lex, plainly } from "./inline.js";

/** What may be the beginning, or the first half, of something else. */
const HELD = /(?:[!\\*_~`[\ud800-\udbff]+|&#?\w{0,31}|<(?:[a-z][\w+.-]*(?::[^\s<>]*|@[\w.-]*)?)?)$/i;
const MARKER = /`+|!?\[|\*+|_+|~+/g;
/** A link that has no end: its marker, its text, and what is there of its target. */
const HALF_LINK =
  /^(!?\[)((?:\\.|[^\\[\]]|\[(?:\\.|[^\\[\]])*\])*)(?:\](?:\(\s*(?:<[^\n<>]*>?|[^\s<]\S*)?(?:\s+(?:["'(][^]{0,300})?)?|\[[^\]]*)?)?$/;
const DEEPEST = 32; // markers that are open at once: marked looks through all that follows for the end of each

/**
 * @param {string} source @param {import("marked").Links} links
 * @returns {{ tokens: import("marked").Token[], done: boolean }} what to show; whether that is so whatever follows
 */
export function settle(source, links) {
  const text = hold(source);
  const tokens = lex(text, links);
  /** @type {{ at: number, marker: string, closer: string }[]} */
  const open = [];
  let end = text.length;
  let at = 0;
  for (const { type, raw } of tokens) {
    for (const { 0: marker, index } of type === "text" ? raw.matchAll(MARKER) : []) {
      if (at + index < end && !look(marker, at + index)) break;
    }
    at += raw.length;
  }
  if (open.length > DEEPEST) return { tokens: [plainly(source.trimEnd())], done: true };
  if (!open.length) return { tokens, done: text === source.trimEnd() };

  let shown = text.slice(0, end);
  let closers = "";
  for (const { at, marker, closer } of open.reverse()) {
    if (marker.endsWith("[")) shown = shown.slice(0, at) + shown.slice(at + marker.length);
    closers += closer;
  }
  return { tokens: lex(shown + closers, links), done: false };

  /** Look at a marker that is no part of anything yet. @param {string} marker @param {number} at */
  function look(marker, at) {
    const after = text.slice(at + marker.length);
    let closer = "";
    if (marker[0] === "`") {
      end = text.length;
      // With a space at both ends, code is shown without them. A backtick before the end is none of it.
      closer = (after[0] === " " || text.endsWith("`") ? " " : "") + marker;
    } else if (marker.endsWith("[")) {
      const half = HALF_LINK.exec(text.slice(at));
      if (!half) return true;
      end = Math.min(end, at + half[1].length + half[2].length);
    } else {
      const before = [...text.slice(Math.max(0, at - 2), at)].pop() ?? "";
      const [last, next] = [before, String.fromCodePoint(after.codePointAt(0) ?? 32)].map(kind);
      if (next === SPACE || (next === SIGN && last === LETTER) || (marker[0] === "_" && last === LETTER)) return true;
      // One alone in `2*3`, `~5` or `}_i` is mostly no emphasis: it stays as it is until it is closed.
      const guess = marker[1] || (marker !== "~" && last !== LETTER && !/[\p{Pe}$|^]/u.test(before));
      if (guess) closer = marker;
    }
    open.push({ at, marker, closer });
    return marker[0] !== "`";
  }
}

/** What to show of it. @param {string} source @param {import("marked").Links} links */
export function half(source, links) {
  const { tokens } = settle(source, links);
  const last = tokens[tokens.length - 1];
  if (last?.type === "link" && last.raw[0] !== "[" && last.raw[0] !== "<") last.href = ""; // the address may go on
  return tokens;
}

const [SPACE, SIGN, LETTER] = [0, 1, 2];
/** @param {string} char */
const kind = (char) => (!char.trim() ? SPACE : /[\p{P}\p{S}]/u.test(char) ? SIGN : LETTER);

/** Spaces at the end of a line are not shown, and a backslash there is none. @param {string} text */
function hold(text) {
  const trimmed = text.trimEnd();
  if (text.includes("\n", trimmed.length)) return trimmed.replace(/\\$/, "");
  return trimmed === text ? text.replace(HELD, "").trimEnd() : trimmed;
}
