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
  let isText = false;
  let whole = 0; // where the last whole character of a text ends
  let kept = ""; // the longest beginning that can be closed, closed
  for (let at = 0; at < json.length; at++) {
    const sign = json[at];
    if (sign === '"') {
      isText = !isText;
      whole = at + 1;
      if (!isText && !isKey) kept = json.slice(0, whole) + open;
    } else if (isText) {
      if (sign === "\\") at += json[at + 1] === "u" ? 5 : 1;
      if (at < json.length) whole = at + 1;
    } else if (sign === ":") isKey = false;
    else if (sign === ",") {
      isKey = open[0] === "}";
      kept = json.slice(0, at) + open;
    } else if ("{}[]".includes(sign)) {
      isKey = sign === "{";
      open = isKey ? "}" + open : sign === "[" ? "]" + open : open.slice(1);
      kept = json.slice(0, at + 1) + open;
    }
  }
  if (isText && !isKey) kept = json.slice(0, whole) + '"' + open;
  try {
    return JSON.parse(kept);
  } catch {
    return null;
  }
}
