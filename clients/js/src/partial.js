/**
 * What JSON that was cut says so far: open texts, lists and objects are closed; half keys, numbers and words are left
 * out.
 *
 * @param {string} json
 * @returns {any} null: nothing yet, or no JSON
 */
export function partial(json) {
  let open = ""; // what closes the lists and objects that are open, the innermost first
  let isKey = false;
  let kept = ""; // the longest beginning that can be closed, closed
  for (let at = 0; at < json.length; at++) {
    const sign = json[at];
    if (sign === '"') {
      const end = endOfText(json, at + 1);
      if (json[end] !== '"') {
        if (!isKey) kept = json.slice(0, end) + '"' + open;
        break;
      }
      at = end;
      if (!isKey) kept = json.slice(0, end + 1) + open;
    } else if (sign === "{" || sign === "[") {
      isKey = sign === "{";
      open = (isKey ? "}" : "]") + open;
      kept = json.slice(0, at + 1) + open;
    } else if (sign === "}" || sign === "]") {
      open = open.slice(1);
      kept = json.slice(0, at + 1) + open;
    } else if (sign === ",") {
      isKey = open[0] === "}";
      kept = json.slice(0, at) + open;
    } else if (sign === ":") isKey = false;
  }
  try {
    return JSON.parse(kept);
  } catch {
    return null;
  }
}

/** Where the text that begins at `at` ends: at its quotation mark, or behind its last whole character. */
function endOfText(/** @type {string} */ json, /** @type {number} */ at) {
  while (at < json.length && json[at] !== '"') {
    const width = json[at] !== "\\" ? 1 : json[at + 1] === "u" ? 6 : 2;
    if (at + width > json.length) break;
    at += width;
  }
  return at;
}
