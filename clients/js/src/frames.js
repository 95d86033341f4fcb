/** Server-Sent Events (WHATWG HTML, 9.2.6), from bytes that are cut anywhere. */

const LF = 10;
const CR = 13;
const BOM = "\uFEFF";

/**
 * Lines are cut as bytes and decoded whole: React Native's TextDecoder keeps no half characters.
 *
 * @param {(frame: { id: number | null, event: string, data: any }) => void} take each frame whose blank line is there
 *   and that has data. Without an `id:` of its own it is a notice.
 * @param {(ms: number) => void} retry what `retry:` says
 * @returns {(bytes: Uint8Array) => void} throws a SyntaxError at data that is no JSON
 */
export function frames(take, retry) {
  const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  /** @type {Uint8Array[]} */
  let begun = []; // of a line
  let isFirst = true;
  let wasCR = false; // and the LF that belongs to it may be the next byte
  /** @type {string[]} */
  let data = [];
  let event = "";
  /** @type {number | null} */
  let id = null;

  function takeLine(/** @type {string} */ line) {
    if (isFirst && line.startsWith(BOM)) line = line.slice(1);
    isFirst = false;
    if (line === "") return dispatch();
    const [, field, value = ""] = /** @type {string[]} */ (/^([^:]*)(?:: ?(.*))?$/s.exec(line));
    if (field === "data") data.push(value);
    else if (field === "event") event = value;
    else if (field === "id" && /^\d+$/.test(value)) id = Number(value);
    else if (field === "retry" && /^\d+$/.test(value)) retry(Number(value));
  }

  function dispatch() {
    const frame = { id, event: event || "message", data };
    [data, event, id] = [[], "", null];
    if (frame.data.length > 0) take({ ...frame, data: JSON.parse(frame.data.join("\n")) });
  }

  return (bytes) => {
    let from = wasCR && bytes[0] === LF ? 1 : 0;
    if (bytes.length > 0) wasCR = false;
    for (let at = from; at < bytes.length; at++) {
      if (bytes[at] !== LF && bytes[at] !== CR) continue;
      const end = bytes.subarray(from, at);
      takeLine(utf8.decode(begun.length > 0 ? joined([...begun, end]) : end));
      begun = [];
      if (bytes[at] === CR && bytes[at + 1] === LF) at++;
      else wasCR = bytes[at] === CR && at + 1 === bytes.length;
      from = at + 1;
    }
    if (from < bytes.length) begun.push(bytes.slice(from));
  };
}

function joined(/** @type {Uint8Array[]} */ parts) {
  const all = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
