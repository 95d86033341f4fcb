/** Tables, as GitHub has them. */

import { fill, lex } from "./inline.js";
import { inside, put, trim } from "./place.js";
import { half } from "./settle.js";

/** @import { Links } from "marked" */
/** @import { Place } from "./place.js" */

export const DELIMITERS = /^\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?$/;
const ALIGNED = ["", "left", "right", "center"];

/** The cells of a row. @param {string} row */
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

/** How its columns are aligned. @param {string} delimiters */
export const columns = (delimiters) =>
  cells(delimiters).map((dashes) => ALIGNED[+dashes.startsWith(":") + 2 * +dashes.endsWith(":")]);

/**
 * @param {Place} place
 * @param {string} tag of its cells
 * @param {string[]} aligned
 * @param {string} source
 * @param {Links} links
 * @param {boolean} open its last cell has no end yet
 */
export function row(place, tag, aligned, source, links, open) {
  const texts = cells(source);
  const row = inside(put(place, "tr"));
  aligned.forEach((align, index) => {
    const last = open && index === texts.length - 1;
    const moves = last && align && align !== "left"; // with each character: so it waits for its end
    fill(put(row, tag, align ? { align } : {}), (last ? half : lex)((!moves && texts[index]) || "", links));
  });
  trim(row);
}
