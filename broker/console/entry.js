// Where a key or a token is pasted, and what the frame says of the one in use: its button, and that it is about to expire.

import { enterKey, key } from "./api.js";
import { ask } from "./dialog.js";
import { fill, h } from "./dom.js";
import { EXPIRING } from "./follower.js";
import { moment } from "./format.js";
import { wordsOf } from "./problem.js";
import { claims, noun, onRights, rights } from "./rights.js";

/** For api.onUnauthorized. `problem`: why the one in use does not do. */
export async function askForKey(problem) {
  const isReplaced = key.get() !== null;
  const field = h("input", {
    type: "password",
    id: "key",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
    pattern: "\\s*([Bb]earer\\s+)?[!-~]+\\s*", // a header cannot carry anything else
    title: "Visible ASCII characters only",
    "aria-describedby": "key-hint",
    "aria-invalid": problem ? "true" : null,
  });
  const content = [
    problem && h("p", { class: "field-error", role: "alert" }, whyNot(problem)),
    h("label", { for: "key" }, "API key or token"),
    field,
    h("p", { class: "hint", id: "key-hint" }, [
      "A key of ",
      h("code", {}, "lastevent keys create"),
      " or LASTEVENT_API_KEYS, or a token. It is stored for this tab only.",
    ]),
  ];
  const title = isReplaced ? "Another key or token" : "This server requires a key or a token";
  const isGiven = await ask(title, content, { confirm: "Use it", cancel: "Not now" });
  return isGiven ? field.value.trim().replace(/^bearer\s+/i, "") : null;
}

function whyNot(problem) {
  if (problem.code === "unauthorized") return "The server does not accept this key.";
  const [title, detail] = wordsOf(problem);
  return `${title.replace(/\.$/, "")}. ${detail}`;
}

/** `button`: enters a key, or forgets the one in use. `place`: where it is said that a token is about to expire. */
export function showEntry(button, place) {
  const draw = () => {
    button.hidden = key.get() === null && !rights.isAsked;
    button.textContent = key.get() === null ? "Enter key" : `Forget ${noun()}`;
  };
  button.addEventListener("click", () => (key.get() === null ? enterKey() : key.forget()));
  let about = null;
  onRights(() => {
    draw();
    if (about !== key.get()) fill(place);
  });
  document.addEventListener(EXPIRING, () => {
    if (about === key.get() && place.childElementCount > 0) return;
    about = key.get();
    fill(place, expiryNotice(claims()?.expiresAt));
  });
  draw();
}

const expiryNotice = (at) =>
  h("div", { class: "expiring" }, [
    h("p", {}, `This token expires at ${moment(at)}.`),
    h("button", { type: "button", onclick: () => enterKey() }, "Paste a new one"),
  ]);
