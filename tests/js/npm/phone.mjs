// `node --import ./phone.mjs program`: takes away what React Native's engine and its polyfills lack, before anything is
// loaded. What is left is more than a phone has, but a program that runs with this uses none of the names below.

const LACKING = {
  "": ["ReadableStream", "TransformStream", "WritableStream", "TextDecoderStream", "TextEncoderStream", "CompressionStream",
    "structuredClone", "DOMException", "crypto", "BroadcastChannel", "FinalizationRegistry", "navigator"],
  Promise: ["withResolvers", "try"],
  Array: ["fromAsync"],
  Object: ["groupBy"],
  Map: ["groupBy"],
  Intl: ["Segmenter"],
  AbortSignal: ["any", "timeout", "abort"],
  "AbortSignal.prototype": ["throwIfAborted", "reason"],
  "Array.prototype": ["toReversed", "toSorted", "toSpliced", "with"],
  "String.prototype": ["isWellFormed", "toWellFormed"],
  "Set.prototype": ["union", "intersection", "difference", "isSubsetOf"],
};

new Headers(); // Node makes it on first use, of some of them

for (const [path, names] of Object.entries(LACKING)) {
  const holder = path.split(".").reduce((held, name) => (name ? held[name] : held), globalThis);
  for (const name of names) if (!Reflect.deleteProperty(holder, name)) throw new Error(`${path}.${name} stays`);
}

/** Whole UTF-8 only. */
const Whole = globalThis.TextDecoder;
globalThis.TextDecoder = class extends Whole {
  decode(bytes, options) {
    if (options?.stream) throw new TypeError("no streaming TextDecoder here");
    return super.decode(bytes);
  }
};

/** It can be made and written, and says nothing of its parts. */
const Real = globalThis.URL;
globalThis.URL = class {
  #real;
  constructor(url, base) { this.#real = new Real(url, base); }
  get href() { return this.#real.href; }
  toString() { return this.#real.href; }
};
