// A modal dialog that asks one question and is then removed.

import { h } from "./dom.js";

/** True when the user confirmed; false for anything else (the other button, Escape). Focus returns to where it was. */
export async function ask(title, content, { confirm, cancel, confirmClass = "primary" }) {
  const dialog = h("dialog", { class: "dialog", "aria-labelledby": "dialog-title" }, [
    h("h2", { id: "dialog-title" }, title),
    h(
      "form",
      { method: "dialog" },
      content,
      h("div", { class: "dialog-actions" }, [
        cancel && h("button", { type: "button", onclick: () => dialog.close() }, cancel),
        h("button", { class: confirmClass, value: "confirmed" }, confirm),
      ]),
    ),
  ]);
  document.body.append(dialog);
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  dialog.remove();
  return dialog.returnValue === "confirmed";
}
