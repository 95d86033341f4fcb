// The playground: a prompt and its answer, over a network that the user can cut.

import { keep } from "./address.js";
import * as api from "./api.js";
import { AnswerView } from "./answer.js";
import { Composer } from "./composer.js";
import { Delivery } from "./delivery.js";
import { badge, eachFrame, fill, h, notice, setText } from "./dom.js";
import { Follower } from "./follower.js";
import { promptOf, visible } from "./format.js";
import { Problems } from "./problem.js";
import { claims, may, noun, onRights, SEES_ALL } from "./rights.js";
import { bind } from "./shortcuts.js";
import { firstTokenMs, stateBadge, streamAddress } from "./stream.js";
import { Told } from "./told.js";
import { Transcript } from "./transcript.js";

export const title = "Playground";
export const name = "playground";

const WRITE = "streams:write";
const CANCEL = "streams:cancel";
const STOP = "Stop again";
const TELL = "Tell again";
const DECIDE = "Decide again";

export function mount(container, _, query) {
  const view = new Playground(container);
  if (query.get("stream")) view.open(query.get("stream"));
  return view;
}

class Playground {
  #record = null;
  #follower = null;
  #transcript = new Transcript();
  #composer = new Composer((body) => this.#send(body));
  #delivery = new Delivery(
    () => this.#toggleNetwork(),
    () => this.#follower.tryNow(),
  );
  #problems = new Problems();
  #unsent = {}; // the body and the key of the last request that was not answered
  #answer = new AnswerView((...decision) => this.#decide(...decision));
  #told = new Told((body) => this.#tell(body));
  #askedAt = null;
  #firstTextMs = null; // on this page's clock; null for a stream that another page started
  #isBusy = false;
  #isClosed = false;
  #draw = eachFrame(() => this.#paint());

  constructor(container) {
    this.#build(container);
    this.unwatch = onRights(this.#draw);
    this.unbind = bind("Playground", [
      { keys: ["/"], does: "Write a prompt (Ctrl+Enter sends it)", run: () => this.#composer.prompt.focus() },
      { keys: ["c"], does: "Cut or restore the network", run: () => this.#toggleNetwork() },
      { keys: ["s"], does: "Stop the generation", run: () => this.#stop() },
      { keys: ["r"], does: "Regenerate", run: () => this.#regenerate() },
      { keys: ["a"], does: "Go to the approval that waits", run: () => this.#goToApproval() },
      { keys: ["t"], does: "Tell the running agent something", run: () => this.#told.focus() },
    ]);
    this.#paint();
  }

  close() {
    this.#isClosed = true;
    this.#follower?.stop();
    this.#delivery.close();
    this.#problems.clear();
    this.#draw.cancel();
    this.unwatch();
    this.unbind();
  }

  // -- actions

  /** A retry after a lost response must reach the same stream, so the key stays the same. */
  #send(body) {
    const text = JSON.stringify(body);
    if (this.#unsent.text !== text) this.#unsent = { text, key: randomKey() };
    const { key } = this.#unsent;
    return this.#start("Send again", async () => {
      const record = await api.createStream(body, key);
      this.#unsent = {};
      return record;
    });
  }

  async #start(again, create) {
    if (this.#isBusy) return;
    this.#isBusy = true;
    this.#problems.clear();
    this.#draw();
    const askedAt = performance.now();
    try {
      const record = await create();
      if (!this.#isClosed) keep(`#/playground?stream=${record.id}`);
      this.#follow(record, { askedAt });
    } catch (problem) {
      this.#showProblem(problem, { again, run: () => this.#start(again, create) });
    } finally {
      this.#isBusy = false;
      this.#draw();
    }
  }

  /** After a reload: replay the log from its first event, then follow it. */
  async open(id) {
    try {
      const record = await api.stream(id);
      this.#composer.show(record, promptOf(record.request));
      this.#follow(record, { seen: true });
    } catch (problem) {
      this.#showProblem(problem, { again: "Open again", run: () => this.open(id), reads: true });
    }
  }

  async #follow(record, { seen = false, askedAt = null }) {
    if (this.#isClosed) return; // the user left while the request was running
    this.#follower?.stop();
    this.#problems.clear();
    this.#record = record;
    this.#askedAt = askedAt;
    this.#firstTextMs = null;
    this.#transcript.reset();
    this.#told.reset();
    const isPublic = this.usersView.checked;
    this.#answer.onDecide = isPublic || !may(WRITE) ? null : (...decision) => this.#decide(...decision);
    const follower = new Follower(record.id, {
      seen,
      audience: isPublic ? "public" : null,
      onEvent: (event) => this.#take(event),
      onGap: (after, text) => this.#transcript.replaceText(text, after),
      onAgain: () => this.#transcript.reset(),
      onChange: this.#draw,
    });
    this.#follower = follower;
    this.#draw();
    await follower.run();
    if (follower.state !== "failed" || this.#follower !== follower) return;
    this.#showProblem(follower.problem, { again: "Follow again", run: () => this.open(record.id) });
  }

  #take(event) {
    this.#transcript.apply(event);
    if (this.#transcript.ending) [STOP, TELL, DECIDE].forEach((again) => this.#problems.clear(again)); // it is too late
    if (event.event === "input") this.#told.taken(event.data?.input_id);
    if (event.event === "text_delta" && this.#firstTextMs === null && this.#askedAt !== null) {
      this.#firstTextMs = performance.now() - this.#askedAt;
    }
  }

  #regenerate() {
    if (this.#transcript.ending && may(WRITE)) this.#start("Regenerate again", () => api.regenerate(this.#record.id));
  }

  async #stop() {
    if (!this.#record || this.#transcript.ending || !may(CANCEL)) return;
    const { id } = this.#record;
    this.#problems.clear(STOP);
    try {
      await api.cancel(id);
    } catch (problem) {
      if (this.#record.id === id && !this.#transcript.ending) {
        this.#showProblem(problem, { again: STOP, run: () => this.#stop() });
      }
    }
  }

  // -- what people say to an agent

  /** True if it has arrived. */
  #tell(body) {
    return this.#attempt(TELL, () => api.tell(this.#record.id, body), { then: (given) => this.#told.wait(given.id) });
  }

  #decide(approval, approve, reason) {
    const body = { approve, ...(reason && { reason }) };
    return this.#attempt(DECIDE, () => api.decide(this.#record.id, approval.id, body));
  }

  async #attempt(again, ask, { then = () => {} } = {}) {
    const { id } = this.#record;
    this.#problems.clear(again);
    try {
      const answer = await ask();
      if (this.#record.id === id) then(answer);
      return true;
    } catch (problem) {
      const run = () => this.#attempt(again, ask, { then });
      if (this.#record.id === id && !this.#transcript.ending) this.#showProblem(problem, { again, run });
      return false;
    }
  }

  #goToApproval() {
    this.#answer.element.querySelector(".answer-decide:not([hidden]) button")?.focus();
  }

  /** The whole log again, for the other audience. */
  #changeAudience() {
    if (this.#record) this.#follow(this.#record, { seen: true });
  }

  #toggleNetwork() {
    if (this.#follower?.state === "cut") this.#follower.restore();
    else if (this.#follower && !this.#follower.isOver) this.#follower.cut();
  }

  #showProblem(problem, action) {
    if (!this.#isClosed) this.#problems.show(problem, action);
  }

  // -- drawing

  #build(container) {
    this.heading = h("div", { class: "answer-heading" });
    this.stopButton = h("button", { type: "button", onclick: () => this.#stop() }, "Stop");
    this.again = h("button", { type: "button", onclick: () => this.#regenerate() }, "Regenerate");
    this.toPlayer = h("a", { class: "button" }, "Open in player");
    this.empty = notice(
      "empty",
      "No stream yet",
      "Send a prompt, cut the network while the answer arrives, and restore it. It resumes at the very next event.",
    );
    this.usersView = h("input", { type: "checkbox", role: "switch", onchange: () => this.#changeAudience() });
    this.usersSwitch = h("label", { class: "switch" }, this.usersView, "What users see");
    this.startsNone = h("p", { class: "panel starts-none", hidden: true });
    const actions = h("div", { class: "actions" }, this.usersSwitch, this.stopButton, this.again, this.toPlayer);
    this.waits = h("p", { class: "sr-only", role: "status" });
    this.panel = h("section", { class: "panel answer-panel", "aria-label": "Stream" }, [
      h("header", { class: "panel-head" }, this.heading, actions),
      this.waits,
      this.#answer.element,
      this.#told.element,
    ]);
    container.append(
      h("h1", { tabindex: "-1", class: "sr-only" }, "Playground"),
      h("div", { class: "playground" }, [
        this.#composer.element,
        this.startsNone,
        this.#problems.element,
        this.#delivery.element,
        h("div", { class: "playground-answer" }, this.empty, this.panel),
      ]),
    );
  }

  #paint() {
    this.#composer.isBusy = this.#isBusy;
    this.#delivery.draw(this.#follower, this.#firstTextMs ?? (this.#record && firstTokenMs(this.#record)));
    const mayStart = may(WRITE);
    this.#composer.element.hidden = !mayStart;
    this.startsNone.hidden = mayStart;
    setText(this.startsNone, `This ${noun()} starts no streams${claims() ? "" : `: that takes ${WRITE}`}. It can open them.`);
    this.empty.hidden = this.#record !== null || !mayStart;
    this.panel.hidden = this.#record === null;
    if (!this.#record) return;
    if (!this.#answer.draw(this.#transcript)) this.#draw();
    this.#paintHeading();
  }

  #paintHeading() {
    const { ending, state, agent } = this.#transcript;
    const waiting = this.#transcript.waiting();
    const shown = `${this.#record.id} ${state} ${waiting.length}`;
    if (this.heading.dataset.shown !== shown) {
      this.heading.dataset.shown = shown;
      const waits = waiting.length > 0 && badge("waits", "waits for approval");
      fill(this.heading, stateBadge({ state }), waits, h("code", {}, this.#record.id));
      this.toPlayer.href = streamAddress(this.#record.id);
    }
    setText(this.waits, waiting.map(({ text, title }) => `Approval needed: ${visible(title || text)}.`).join(" "));
    this.#told.element.hidden = ending !== null || (agent ?? this.#record.agent ?? null) === null;
    if (!may(WRITE, "streams:input")) this.#told.element.hidden = true;
    this.stopButton.hidden = ending !== null || !may(CANCEL);
    this.again.hidden = ending === null || !may(WRITE);
    this.usersSwitch.hidden = !may(...SEES_ALL);
  }
}

/** Not crypto.randomUUID, which exists only over https or on loopback. */
function randomKey() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
