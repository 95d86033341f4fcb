// What all views show about a stream in the same way: its state as a badge, its times, its address.

import { badge, h } from "./dom.js";
import { duration } from "./format.js";

export const STATES = ["queued", "running", "done", "error", "cancelled"];
const ENDED = new Set(["done", "error", "cancelled"]);

export const hasEnded = (record) => ENDED.has(record.state);

export const stateBadge = (record) => badge(`state ${shownState(record)}`, shownState(record));

export const shownState = (record) => (record.erased_at ? "erased" : record.state);

export const streamAddress = (id) => `#/stream/${encodeURIComponent(id)}`;
export const streamLink = (id, ...content) => h("a", { href: streamAddress(id) }, ...content);

const between = (from, to) => (from && to ? Date.parse(to) - Date.parse(from) : null);

export const firstTokenMs = (record) => between(record.created_at, record.first_text_at);

/** From its creation to its end; of a running stream, until now. Null if it was erased and has no times. */
export function durationMs(record, now = Date.now()) {
  if (hasEnded(record)) return between(record.created_at, record.finished_at);
  return Math.max(0, now - Date.parse(record.created_at));
}

export const durationOf = (record) => duration(durationMs(record));
