/** Server-Sent Events (WHATWG HTML, 9.2.6), from bytes that are cut anywhere. */

const LF = 10;
const CR = 13;
const DIGITS = /^\d+$/;

/**
 * Lines are cut as bytes and decoded whole: React Native's TextDecoder keeps no half characters.
 *
 * @param {(frame: { id: number | null, event: string, data: any }) => void} take each frame whose blank line is there
 *   and that has data. Without an `id:` of its own it is a notice.
 * @param {(ms: number) => void} retry what `retry:` says outside of a frame. The one in the last frame is for clients
 *   that do not stop there.
 * @returns {(bytes: Uint8Array) => void} throws a SyntaxError at data that is no JSON
 */
export function frames(take, retry) {
  const utf8 = new TextDecoder();
  let rest = new Uint8Array(0); // of a line that has begun
  let wasCR = false;
  /** @type {string[]} */
  let data = [];
  let event = "";
  /** @type {number | null} */
  let id = null;

  function takeLine(/** @type {string} */ line) {
    if (line === "") return dispatch();
    const [, field, value = ""] = /** @type {string[]} */ (/^([^:]*)(?:: ?(.*))?$/s.exec(line));
    if (field === "data") data.push(value);
    else if (field === "event") event = value;
    else if (field === "id") id = DIGITS.test(value) ? Number(value) : null;
    else if (field === "retry" && DIGITS.test(value) && !event) retry(Number(value));
  }

  function dispatch() {
    const frame = { id, event: event || "message", data };
    [data, event, id] = [[], "", null];
    if (frame.data.length > 0) take({ ...frame, data: JSON.parse(frame.data.join("\n")) });
  }

  return (bytes) => {
    const all = new Uint8Array(rest.length + bytes.length);
    all.set(rest);
    all.set(bytes, rest.length);
    let from = 0;
    for (let at = rest.length; at < all.length; at++) {
      const isCR = all[at] === CR;
      if (isCR || all[at] === LF) {
        if (isCR || !wasCR) takeLine(utf8.decode(all.subarray(from, at))); // the CR of a CRLF has ended the line
        from = at + 1;
      }
      wasCR = isCR;
    }
    rest = all.slice(from);
  };
}
