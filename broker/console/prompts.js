// The prompts of the sessions' rows: each is read once, when its row is on the page or close to it.

import * as api from "./api.js";
import { promptOf } from "./format.js";

const AT_ONCE = 2; // of the six connections that a browser makes to one server
const NEAR = "200px";
const KEPT = 300; // characters: more than a row is wide

const kept = new Map(); // id → prompt, "" if the stream has none; for as long as the page lives
let reader = null; // the key that they were read with: another one may be shown masks, or nothing

function prompts() {
  if (reader !== api.key.get()) kept.clear();
  reader = api.key.get();
  return kept;
}

/** The beginning of a stream's prompt; undefined if it has not been read. */
export const knownPrompt = (id) => prompts().get(id);

/** A listing has no prompts, as a request with photos has megabytes. */
export class Prompts {
  #waiting = new Set(); // rows near the viewport
  #reading = new Set(); // ids
  #abort = new AbortController();
  #near = new IntersectionObserver((entries) => this.#moved(entries), { rootMargin: NEAR });

  /** `onPrompt(id)`: it is known now. */
  constructor(onPrompt) {
    this.onPrompt = onPrompt;
  }

  /** Read this row's prompt as soon as the row is near. If that fails, the row stays without. */
  watch(row) {
    if (!prompts().has(row.dataset.id)) this.#near.observe(row);
  }

  close() {
    this.#near.disconnect();
    this.#waiting.clear();
    this.#abort.abort();
  }

  #moved(entries) {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) this.#waiting.add(target);
      else this.#waiting.delete(target);
    }
    this.#readNext();
  }

  #readNext() {
    const newestFirst = [...this.#waiting].sort((a, b) => b.dataset.created.localeCompare(a.dataset.created));
    for (const row of newestFirst) {
      if (this.#reading.size === AT_ONCE) return;
      this.#waiting.delete(row);
      this.#near.unobserve(row);
      const { id } = row.dataset;
      if (!prompts().has(id) && !this.#reading.has(id)) this.#read(id);
    }
  }

  async #read(id) {
    const { signal } = this.#abort;
    this.#reading.add(id);
    try {
      const { request } = await api.stream(id, signal);
      prompts().set(id, beginning(promptOf(request).trim()));
      if (!signal.aborted) this.onPrompt(id);
    } catch (problem) {
      // A prompt is a convenience: whatever else is wrong with the server, the listing says.
      if (!(problem instanceof api.Problem) && !signal.aborted) throw problem;
    } finally {
      this.#reading.delete(id);
      this.#readNext();
    }
  }
}

/** A copy, in whole characters: a slice would keep the megabytes that it was cut from. */
const beginning = (text) =>
  Array.from(text.slice(0, 2 * KEPT))
    .slice(0, KEPT)
    .join("");
