// Who may what: the API keys of all tenants, for administrators. They are made elsewhere; here they are revoked.

import * as api from "./api.js";
import { ask } from "./dialog.js";
import { badge, fill, h, isolated, notice } from "./dom.js";
import { exact, moment, number, plural, visible } from "./format.js";
import { Problems } from "./problem.js";
import { SCOPES } from "./scopes.js";

export const title = "Keys";
export const name = "keys";

const RANK = { active: 0, expired: 1, revoked: 2 };

export const mount = (container) => new Keys(container);

class Keys {
  #problems = new Problems();
  #abort = new AbortController();

  constructor(container) {
    this.count = h("p", { class: "count", role: "status" });
    this.state = h("div", {}, notice("loading", "Loading keys"));
    this.body = h("tbody", {});
    const columns = ["Key", "Tenant", "May", "Created", "Expires", "State"];
    const head = columns.map((column) => h("th", { scope: "col" }, column));
    this.table = h("table", { class: "streams keys-table", hidden: true }, [
      h("caption", { class: "sr-only" }, "API keys: the active ones first, the oldest first"),
      h("thead", {}, h("tr", {}, head, h("th", { scope: "col" }, h("span", { class: "sr-only" }, "Revoke")))),
      this.body,
    ]);
    container.append(
      h("div", { class: "sessions-head" }, [h("h1", { tabindex: "-1" }, "Keys"), this.count]),
      this.#problems.element,
      this.state,
      this.table,
      h("p", { class: "hint keys-hint" }, [
        h("code", {}, "lastevent keys create"),
        " makes keys. Tokens are in no list: servers check them without keeping them.",
      ]),
      legend(),
    );
    this.#read();
  }

  close() {
    this.#abort.abort();
    this.#problems.clear();
  }

  async #read() {
    const { signal } = this.#abort;
    try {
      const keys = await api.keys(signal);
      if (!signal.aborted) this.#draw(keys);
    } catch (problem) {
      if (signal.aborted) return;
      fill(this.state);
      this.#problems.show(problem, { again: "Load again", run: () => this.#again(() => this.#read()), reads: true });
    }
  }

  #draw(keys) {
    const states = keys.map((key) => [key, stateOf(key)]);
    states.sort(([, a], [, b]) => RANK[a] - RANK[b]);
    const active = states.filter(([, state]) => state === "active").length;
    this.count.textContent = keys.length > 0 ? `${plural(keys.length, "key")}, ${number(active)} active` : "";
    fill(this.body, states.map(([key, state]) => this.#row(key, state)));
    this.table.hidden = keys.length === 0;
    fill(this.state, keys.length === 0 && notice("empty", "No keys", "Until there is one, this server is open to its own machine."));
  }

  #row(key, state) {
    const { id, name: label, tenant, scopes, created_at: created, expires_at: expires, revoked_at: revoked } = key;
    const time = (at) => (at ? h("time", { datetime: at, title: exact(at) }, moment(at)) : null);
    const isGiven = created === null;
    const named = [h("code", {}, visible(id)), label && isolated(label, { class: "key-name" })];
    return h("tr", { class: state === "active" ? null : "is-over", "data-id": id }, [
      h("td", { class: "key-id" }, named, isThisOne(id) && badge("running", "in use here")),
      h("td", { class: "key-tenant", "data-label": "Tenant" }, isolated(tenant)),
      h("td", { class: "key-scopes" }, h("div", {}, scopes.map(scopeName))),
      h("td", { class: "key-time", "data-label": "Created" }, time(created) ?? h("span", { class: "muted" }, "–")),
      h("td", { class: "key-time", "data-label": "Expires" }, time(expires) ?? h("span", { class: "muted" }, "never")),
      h("td", { class: "key-state" }, stateBadge(state), revoked && time(revoked)),
      h("td", { class: "key-act end" }, [
        isGiven && h("span", { class: "hint" }, "Ends when taken out of the settings"),
        !isGiven && state !== "revoked" && this.#revokeButton(key),
      ]),
    ]);
  }

  #revokeButton(key) {
    const label = `Revoke the key ${key.id}`;
    return h("button", { type: "button", class: "danger", "aria-label": label, onclick: () => this.#ask(key) }, "Revoke…");
  }

  async #ask(key) {
    if (await confirmed(key)) await this.#revoke(key.id);
  }

  async #revoke(id) {
    this.#problems.clear();
    try {
      await api.revokeKey(id);
    } catch (problem) {
      if (this.#abort.signal.aborted) return;
      this.#problems.show(problem, { again: "Revoke again", run: () => this.#revoke(id) });
    }
    await this.#read();
  }

  #again(run) {
    this.#problems.clear();
    return run();
  }
}

/** A key of the form `lek_<id>_<secret>` says its id. */
const isThisOne = (id) => api.key.get()?.startsWith(`lek_${id}_`) ?? false;

function stateOf({ expires_at: expires, revoked_at: revoked }) {
  if (revoked) return "revoked";
  return expires && Date.parse(expires) <= Date.now() ? "expired" : "active";
}

const stateBadge = (state) => (badge(state === "active" ? "done" : state, state));

const scopeName = (scope) => h("code", { title: SCOPES[scope] }, visible(scope));

const legend = () =>
  h("section", { class: "panel scopes", "aria-label": "Scopes" }, [
    h("h2", {}, "What a scope opens"),
    h(
      "dl",
      {},
      Object.entries(SCOPES).map(([scope, opens]) => h("div", {}, h("dt", {}, h("code", {}, scope)), h("dd", {}, opens))),
    ),
  ]);

function confirmed({ id, name: label, tenant }) {
  const named = label ? [" (", isolated(label), ")"] : [];
  const content = [
    h("p", {}, ["The key ", h("code", {}, visible(id)), named, " of the tenant ", isolated(tenant), "."]),
    h("p", { class: "dialog-text" }, [
      "Within 10 s no server lets it in, and its connections are cut. It cannot be put back.",
    ]),
    isThisOne(id) && h("p", { class: "dialog-text field-error" }, "It is the key that you use here."),
  ];
  return ask("Revoke this key?", content, { confirm: "Revoke", cancel: "Keep it", confirmClass: "danger" });
}
