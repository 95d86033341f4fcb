/**
 * Text that has no end yet, as it can be shown: what may still become syntax is held back, what is open is closed.
 *
 * `see **the` is shown as `see **the**`, `see [the](htt` as `see the`, and `see *` as `see`: an answer mostly goes on
 * as it should. What marked leaves as text, in `2*3` and `[sic]`, is looked at. A wrong guess ends with the paragraph.
 */

import { lex, plainly } from "./inline.js";

/** @import { Links, Token } from "marked" */

/** What may be the beginning, or the first half, of something else. */
const HELD = /(?:[!\\*_~`[\ud800-\udbff]+|&#?\w{0,31}|<[!-;=?-~]*)$/;
const FAR = 1000; // characters from the end where it is looked for
const MARKER = /`+|!?\[|\*+|_+|~+/g;
/** A link that has no end: its text, and what is there of its target. */
const HALF_LINK =
  /^(!?\[(?:\\.|[^\\[\]]|\[(?:\\.|[^\\[\]])*\])*)(?:\](?:\(\s*(?:(?:<[^\n<>]*>?|[^\s<]\S*)(?:\s+(?:["'(][^]{0,300})?)?)?|\[[^\]]*)?)?$/;
const DEEPEST = 32; // markers that are open at once: marked looks through all that follows for the end of each

/**
 * What to show, and whether that is so whatever follows.
 *
 * @param {string} source
 * @param {Links} links
 * @returns {{ tokens: Token[], done: boolean }}
 */
export function settle(source, links) {
  const text = hold(source);
  const tokens = lex(text, links);
  /** @type {{ at: number, marker: string, closer: string }[]} */
  const open = [];
  let end = text.length;
  let code = end; // where code begins that is open: no marker counts in it
  let from = 0;
  for (const { type, raw } of tokens) {
    if (type === "text") for (const { 0: marker, index } of raw.matchAll(MARKER)) look(marker, from + index);
    from += raw.length;
  }
  if (open.length > DEEPEST) return { tokens: [plainly(source.trimEnd())], done: true };
  if (!open.length) return { tokens, done: text === source.trimEnd() };

  let shown = text.slice(0, end);
  let closers = "";
  for (const { at, marker, closer } of open.reverse()) {
    if (/\[/.test(marker)) shown = shown.slice(0, at) + shown.slice(at + marker.length);
    closers += closer;
  }
  return { tokens: lex(shown + closers, links), done: false };

  /** Look at a marker that is no part of anything yet. @param {string} marker @param {number} at */
  function look(marker, at) {
    if (at >= Math.min(code, end)) return;
    const before = text.slice(Math.max(0, at - 2), at);
    const after = text.slice(at + marker.length);
    const letter = /[^\s\p{P}\p{S}]$/u.test(before);
    let closer = "";
    if (marker[0] === "`") {
      code = at;
      // With a space at both ends, code is shown without them. A backtick before the end is none of it.
      closer = (after[0] === " " || text.endsWith("`") ? " " : "") + marker;
    } else if (/\[/.test(marker)) {
      const half = HALF_LINK.exec(text.slice(at));
      if (!half) return;
      end = Math.min(end, at + half[1].length);
    } else if (letter ? marker[0] === "_" || !/^[^\s\p{P}\p{S}]/u.test(after) : !/^\S/.test(after)) return;
    // One alone in `2*3`, `~5` or `}_i` is mostly no emphasis: it stays as it is until it is closed.
    else if (marker[1] || (marker !== "~" && !letter && !/[\p{Pe}$|^]$/u.test(before))) closer = marker;
    open.push({ at, marker, closer });
  }
}

/** What to show. @param {string} source @param {Links} links */
export function half(source, links) {
  const { tokens } = settle(source, links);
  /** @type {any} */
  let last = { tokens };
  while (last.tokens?.length && !last.href) last = last.tokens.at(-1);
  if (/^[^[<!]/.test(last.raw)) last.href = ""; // an address in the text may go on: it leads nowhere yet
  return tokens;
}

/** Spaces at the end of a line are not shown, and a backslash there is none. @param {string} text */
function hold(text) {
  const trimmed = text.trimEnd();
  if (text.includes("\n", trimmed.length)) return trimmed.replace(/\\$/, "");
  if (trimmed !== text) return trimmed;
  return (text.slice(0, -FAR) + text.slice(-FAR).replace(HELD, "")).trimEnd();
}
