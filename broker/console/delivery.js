// The delivery of a stream to this page: the network and its switch, the cursor, the counts, each connection.

import { h, setAttribute, setText } from "./dom.js";
import { bytes, duration, number, visible } from "./format.js";

const NETWORK = {
  connecting: "Connecting",
  open: "Connected",
  waiting: "Connection lost",
  cut: "Network cut",
  hidden: "Paused",
  ended: "Complete",
  failed: "Refused",
};
const METRICS = [
  ["cursor", "Cursor", "The id of the last event received; sent as Last-Event-ID to resume"],
  ["received", "Received", "Events received, over all connections"],
  ["replayed", "Replayed", "Events that were already in the log when this page reconnected"],
  ["reconnects", "Reconnects", "Connections after the first one"],
  ["bytes", "Bytes", "Bytes received, over all connections"],
  ["first-token", "First token", "From the request to the first text"],
];
const COUNTDOWN_MS = 250;

export class Delivery {
  #follower = null;
  #firstTokenMs = null;
  #countdown = 0;

  /** `onToggle()`: the user wants to cut or restore the network; `onTryNow()`: to reconnect without waiting. */
  constructor(onToggle, onTryNow) {
    this.network = h("p", { class: "network", role: "status" });
    this.hint = h("p", { class: "hint" });
    this.toggle = h("button", { type: "button", class: "wide", onclick: onToggle });
    this.tryNow = h("button", { type: "button", class: "wide", onclick: onTryNow }, "Try now");
    this.metrics = {};
    this.connections = h("ol", { class: "connections" });
    this.element = h("aside", { class: "panel delivery", "aria-label": "Delivery" }, [
      h("div", { class: "network-box" }, this.network, this.hint, this.tryNow, this.toggle),
      h(
        "dl",
        { class: "metrics" },
        METRICS.map((metric) => this.#metric(...metric)),
      ),
      h("h2", {}, "Connections"),
      this.connections,
    ]);
  }

  close() {
    clearInterval(this.#countdown);
  }

  /** `follower`: null while there is no stream. */
  draw(follower, firstTokenMs) {
    this.#follower = follower;
    this.#firstTokenMs = firstTokenMs;
    this.#drawNetwork();
    this.#drawMetrics();
    this.#drawConnections();
  }

  #metric(name, label, explained) {
    this.metrics[name] = h("dd", { "data-metric": name });
    return h("div", { title: explained }, h("dt", {}, label), this.metrics[name]);
  }

  #drawNetwork() {
    const state = this.#follower?.state ?? "none";
    setAttribute(this.network, "data-network", state);
    setText(this.network, NETWORK[state] ?? "Not connected");
    setText(this.hint, this.#hint(state));
    this.tryNow.hidden = (this.#follower?.lostAt ?? null) === null;
    this.toggle.disabled = !this.#follower || this.#follower.isOver;
    setText(this.toggle, state === "cut" ? "Restore the network" : "Cut the network");
    this.toggle.classList.toggle("primary", state === "cut");
    clearInterval(this.#countdown);
    if (state === "waiting") this.#countdown = setInterval(() => setText(this.hint, this.#hint(state)), COUNTDOWN_MS);
  }

  #hint(state) {
    const { cursor, retryAt, connections } = this.#follower ?? {};
    if (state === "cut") return `The generation continues without this page. Restoring resumes after event ${cursor}.`;
    if (state === "waiting") return `Trying again in ${duration(Math.max(0, retryAt - Date.now()))}.`;
    if (state === "hidden") return `A hidden tab holds no connection. It resumes after event ${cursor} when it is shown.`;
    const from = connections?.at(-1)?.from;
    if (state === "open" && from > 0) return `Resumed after event ${from}.`;
    if (state === "ended") return "The terminal event has arrived. Nothing follows it.";
    return "";
  }

  #drawMetrics() {
    const { cursor = 0, received = 0, replayed = 0, reconnects = 0, bytes: size = 0 } = this.#follower ?? {};
    setText(this.metrics.cursor, String(cursor)); // an id, not a count
    for (const [name, count] of Object.entries({ received, replayed, reconnects })) {
      setText(this.metrics[name], number(count));
    }
    setText(this.metrics.bytes, bytes(size));
    setText(this.metrics["first-token"], duration(this.#firstTokenMs));
  }

  #drawConnections() {
    const connections = this.#follower?.connections ?? [];
    while (this.connections.children.length > connections.length) this.connections.lastChild.remove();
    connections.forEach((connection, at) => {
      if (!this.connections.children[at]) this.connections.append(h("li", {}, h("b"), h("span")));
      const [from, counts] = this.connections.children[at].children;
      setText(from, connection.from ? `after ${connection.from}` : "from the start");
      setText(counts, visible(summary(connection)));
    });
  }
}

function summary({ replayed, live, end }) {
  return [replayed > 0 && `${number(replayed)} replayed`, `${number(live)} live`, end].filter(Boolean).join(" · ");
}
