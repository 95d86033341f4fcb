// The playground: a prompt and its answer, over a network that one can cut.

import * as api from "./api.js";
import { AnswerView } from "./answer.js";
import { eachFrame, fill, h, notice, setAttribute, setText } from "./dom.js";
import { Follower } from "./follower.js";
import { bytes, duration, number, promptOf, visible } from "./format.js";
import { problemNotice } from "./problem.js";
import { bind } from "./shortcuts.js";
import { firstTokenMs, stateBadge, streamAddress } from "./stream.js";
import { Transcript } from "./transcript.js";

export const title = "Playground";
export const name = "playground";

const OPTIONS = [
  ["model", "Model", "server default", "text"],
  ["max_tokens", "Max tokens", "server default", "number"],
  ["session_id", "Session", "a new one", "text"],
  ["user_id", "User", "none", "text"],
];
/** Directives of the stand-in; a model would read them as part of the prompt, so they only fill the field. */
const EXAMPLES = [
  ["A long answer", "Explain how tides work. [[tokens=400 rate=25 thinking=40]]"],
  ["A restart", "Tell me about lighthouses. [[tokens=120 rate=20 cut_at=60]]"],
  ["An error", "Tell me about storms. [[tokens=80 rate=20 error_at=50]]"],
  ["A silence", "Tell me about fog. [[tokens=80 rate=20 stall_at=40]]"],
];
const NETWORK = {
  connecting: "Connecting",
  open: "Connected",
  waiting: "Connection lost",
  cut: "Network cut",
  ended: "Complete",
  failed: "Refused",
};

export function mount(container, _, query) {
  const view = new Playground(container);
  if (query.get("stream")) view.open(query.get("stream"), { seen: true });
  return view;
}

class Playground {
  #follower = null;
  #transcript = new Transcript();
  #answer = new AnswerView();
  #record = null;
  #firstTextMs = null;
  #askedAt = null;
  #busy = false;
  #draw = eachFrame(() => this.#paint());

  constructor(container) {
    this.#build(container);
    this.unbind = bind("Playground", [
      { keys: ["/"], does: "Write a prompt (Ctrl+Enter sends it)", run: () => this.prompt.focus() },
      { keys: ["c"], does: "Cut the network, and restore it", run: () => this.#toggleNetwork() },
      { keys: ["s"], does: "Stop the generation", run: () => this.#stop() },
      { keys: ["r"], does: "Regenerate", run: () => this.#regenerate() },
    ]);
    this.#paint();
  }

  close() {
    this.#follower?.stop();
    this.#draw.cancel();
    clearInterval(this.ticking);
    this.unbind();
  }

  // -- what it does

  async #send(event) {
    event?.preventDefault();
    const body = { prompt: this.prompt.value };
    for (const [field, , , type] of OPTIONS) {
      const value = this.options[field].value.trim();
      if (value) body[field] = type === "number" ? Number(value) : value;
    }
    if (this.system.value.trim()) body.system = this.system.value;
    if (body.prompt.trim()) await this.#start(() => api.createStream(body, randomKey()));
    else this.prompt.focus();
  }

  #regenerate() {
    if (this.#transcript.ending) return this.#start(() => api.regenerate(this.#record.id));
  }

  async #start(create) {
    if (this.#busy) return;
    this.#busy = true;
    fill(this.problem);
    this.#draw();
    const askedAt = performance.now();
    try {
      const record = await create();
      history.replaceState(null, "", `#/playground?stream=${record.id}`);
      this.#follow(record, { askedAt });
    } catch (problem) {
      this.#say(problem, () => this.#start(create));
    } finally {
      this.#busy = false;
      this.#draw();
    }
  }

  /** After a reload: the log tells everything again, from its first event, and goes on from there. */
  async open(id, { seen }) {
    fill(this.problem, notice("loading", "Opening the stream"));
    try {
      const record = await api.stream(id);
      this.prompt.value = promptOf(record.request);
      this.#follow(record, { seen });
    } catch (problem) {
      this.#say(problem, () => this.open(id, { seen }));
    }
  }

  #follow(record, { seen = false, askedAt = null }) {
    this.#follower?.stop();
    fill(this.problem);
    this.#record = record;
    this.#askedAt = askedAt;
    this.#firstTextMs = null;
    this.#transcript.reset();
    this.#follower = new Follower(record.id, {
      seen,
      onEvent: (event) => this.#take(event),
      onGap: (gap, text) => {
        const why = `Events after ${gap.requested} no longer exist (${gap.reason}). This is the text that is left.`;
        this.#transcript.replaceText(text, why);
      },
      onChange: () => this.#changed(record.id),
    });
    this.#follower.run();
    this.#draw();
  }

  #changed(id) {
    if (this.#follower.state === "failed") this.#say(this.#follower.problem, () => this.open(id, { seen: true }));
    this.#draw();
  }

  #take(event) {
    this.#transcript.apply(event);
    if (event.event === "text_delta" && this.#firstTextMs === null && this.#askedAt !== null) {
      this.#firstTextMs = performance.now() - this.#askedAt;
    }
    if (this.#transcript.ending) this.#refresh();
  }

  /** The times and the usage are in the record, once the stream has ended. */
  async #refresh() {
    const { id } = this.#record;
    const record = await api.stream(id).catch(() => null);
    if (record && this.#record.id === id) this.#record = record;
    this.#draw();
  }

  #toggleNetwork() {
    if (this.#follower?.state === "cut") this.#follower.restore();
    else if (this.#isFollowing()) this.#follower.cut();
  }

  async #stop() {
    if (!this.#record || this.#transcript.ending) return;
    try {
      await api.cancel(this.#record.id);
    } catch (problem) {
      this.#say(problem, () => this.#stop());
    }
  }

  #isFollowing() {
    return this.#follower && !["ended", "failed"].includes(this.#follower.state);
  }

  #say(problem, retry) {
    fill(this.problem, problemNotice(problem, retry));
  }

  // -- what it shows

  #build(container) {
    this.problem = h("div", { class: "problem" });
    container.append(
      h("h1", { tabindex: "-1", class: "sr-only" }, "Playground"),
      h("div", { class: "playground" }, this.#composer(), this.problem, this.#deliveryPanel(), this.#answerPanel()),
    );
  }

  #composer() {
    const keys = (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && this.#send(event);
    this.prompt = h("textarea", { id: "prompt", rows: "3", dir: "auto", placeholder: "Ask something", onkeydown: keys });
    this.system = h("textarea", { id: "system", rows: "2", dir: "auto" });
    this.options = {};
    const fields = OPTIONS.map(([field, label, placeholder, type]) => {
      this.options[field] = h("input", { id: field, type, placeholder, min: type === "number" ? "1" : null });
      return h("div", { class: "field" }, h("label", { for: field }, label), this.options[field]);
    });
    this.sendButton = h("button", { class: "primary", type: "submit" }, "Send");
    const examples = EXAMPLES.map(([label, prompt]) => {
      const use = () => {
        this.prompt.value = prompt;
        this.prompt.focus();
      };
      return h("button", { type: "button", class: "chip", onclick: use }, label);
    });
    return h("form", { class: "composer panel", onsubmit: (event) => this.#send(event) }, [
      h("label", { for: "prompt", class: "sr-only" }, "Prompt"),
      this.prompt,
      h("div", { class: "composer-row" }, [
        h("div", { class: "chips", role: "group", "aria-label": "Examples for the stand-in" }, h("span", { class: "hint" }, "For the stand-in"), examples),
        this.sendButton,
      ]),
      h("details", { class: "options" }, [
        h("summary", {}, "Options"),
        h("div", { class: "fields" }, fields),
        h("div", { class: "field" }, h("label", { for: "system" }, "System prompt"), this.system),
      ]),
    ]);
  }

  #answerPanel() {
    this.heading = h("div", { class: "answer-heading" });
    this.stopButton = h("button", { type: "button", onclick: () => this.#stop() }, "Stop");
    this.toPlayer = h("a", { class: "button" }, "Open in player");
    this.again = h("button", { type: "button", onclick: () => this.#regenerate() }, "Regenerate");
    this.empty = notice(
      "empty",
      "No stream yet",
      "Send a prompt, cut the network while the answer comes, and restore it: the answer goes on at the very next event.",
    );
    this.answerPanel = h("section", { class: "panel answer-panel", "aria-label": "Stream" }, [
      h("header", { class: "panel-head" }, this.heading, h("div", { class: "actions" }, this.stopButton, this.again, this.toPlayer)),
      this.#answer.element,
    ]);
    return h("div", { class: "playground-answer" }, this.empty, this.answerPanel);
  }

  #deliveryPanel() {
    this.network = h("p", { class: "network", role: "status" });
    this.networkHint = h("p", { class: "hint" });
    this.cutButton = h("button", { type: "button", class: "wide", onclick: () => this.#toggleNetwork() });
    this.metrics = {};
    const metric = (name_, label, help) => {
      this.metrics[name_] = h("dd", { "data-metric": name_ });
      return h("div", { title: help }, h("dt", {}, label), this.metrics[name_]);
    };
    this.connections = h("ol", { class: "connections" });
    return h("aside", { class: "panel delivery", "aria-label": "Delivery" }, [
      h("div", { class: "network-box" }, this.network, this.networkHint, this.cutButton),
      h("dl", { class: "metrics" }, [
        metric("cursor", "Cursor", "The id of the last event received; sent as Last-Event-ID to resume"),
        metric("received", "Received", "Events received, over all connections"),
        metric("replayed", "Replayed", "Events that were already in the log when this page reconnected"),
        metric("reconnects", "Reconnects", "Connections after the first one"),
        metric("bytes", "Bytes", "Bytes of the event stream"),
        metric("first-token", "First token", "From the request to the first text"),
      ]),
      h("h2", {}, "Connections"),
      this.connections,
    ]);
  }

  #paint() {
    this.empty.hidden = this.#record !== null;
    this.answerPanel.hidden = this.#record === null;
    this.sendButton.disabled = this.#busy;
    this.#paintNetwork();
    this.#paintMetrics();
    this.#paintConnections();
    if (!this.#record) return;
    this.#answer.draw(this.#transcript);
    this.#paintHeading();
  }

  #paintHeading() {
    const { ending, state } = this.#transcript;
    const shown = `${this.#record.id} ${state}`;
    if (this.heading.dataset.shown !== shown) {
      this.heading.dataset.shown = shown;
      fill(this.heading, stateBadge({ state }), h("code", {}, this.#record.id));
      this.toPlayer.href = streamAddress(this.#record.id);
    }
    this.stopButton.hidden = ending !== null;
    this.again.hidden = ending === null;
  }

  #paintNetwork() {
    const state = this.#follower?.state ?? "none";
    setAttribute(this.network, "data-network", state);
    setText(this.network, NETWORK[state] ?? "Not connected");
    setText(this.networkHint, this.#hint(state));
    this.cutButton.disabled = !this.#isFollowing();
    setText(this.cutButton, state === "cut" ? "Restore the network" : "Cut the network");
    this.cutButton.classList.toggle("primary", state === "cut");
    clearInterval(this.ticking);
    if (state === "waiting") this.ticking = setInterval(this.#draw, 250);
  }

  #hint(state) {
    const { cursor, retryAt, connections } = this.#follower ?? {};
    if (state === "cut") return `The generation goes on without this page. Restoring resumes after event ${cursor}.`;
    if (state === "waiting") return `Trying again in ${duration(Math.max(0, retryAt - Date.now()))}.`;
    if (state === "open" && connections.length > 1) return `Resumed after event ${connections.at(-1).from}.`;
    if (state === "ended") return "The terminal event is here; nothing follows it.";
    return "";
  }

  #paintMetrics() {
    const { cursor = 0, received = 0, replayed = 0, reconnects = 0, bytes: size = 0 } = this.#follower ?? {};
    const firstToken = this.#firstTextMs ?? (this.#record && firstTokenMs(this.#record));
    setText(this.metrics.cursor, String(cursor)); // an id, and no number of anything
    for (const [name_, count] of Object.entries({ received, replayed, reconnects })) {
      setText(this.metrics[name_], number(count));
    }
    setText(this.metrics.bytes, bytes(size));
    setText(this.metrics["first-token"], duration(firstToken));
  }

  #paintConnections() {
    const connections = this.#follower?.connections ?? [];
    while (this.connections.children.length > connections.length) this.connections.lastChild.remove();
    connections.forEach((connection, at) => {
      if (!this.connections.children[at]) this.connections.append(h("li", {}, h("b"), h("span")));
      const [from, what] = this.connections.children[at].children;
      setText(from, connection.from ? `after ${connection.from}` : "from the start");
      const counted = [
        connection.replayed > 0 && `${number(connection.replayed)} replayed`,
        `${number(connection.live)} live`,
        connection.end,
      ];
      setText(what, visible(counted.filter(Boolean).join(" · ")));
    });
  }
}

/** Not crypto.randomUUID, which a page has only over https or on loopback. */
function randomKey() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
