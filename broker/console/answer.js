// An answer on the page: draws a Transcript, and updates only the parts that have changed.

import { h, setAttribute, setText } from "./dom.js";
import { visible } from "./format.js";
import { AgentBlock, ApprovalBlock, InputBlock, ResultBlock, ToolBlock, TraceBlock, TurnBlock } from "./acts.js";
import { NoticeBlock, Run, ThinkingBlock } from "./said.js";

const NEAR_THE_END_PX = 40;
const NEW_A_FRAME = 1000; // blocks: thousands of tools are drawn over several frames, not in one long one

export class AnswerView {
  #list;

  /** `onDecide(approval, approve, reason)`, async, false if it failed; without it approvals have no buttons. */
  constructor(onDecide = null) {
    this.onDecide = onDecide;
    this.#list = new Blocks(this, "answer-blocks");
    this.blocks = this.#list.element;
    this.status = h("p", { class: "answer-status" });
    this.ending = h("p", { class: "answer-ending" });
    this.element = h("div", { class: "answer", tabindex: "0", role: "region", "aria-label": "Answer" }, [
      this.blocks,
      this.status,
      this.ending,
    ]);
  }

  /** False if there is more to draw in the next frame. */
  draw(transcript) {
    const box = this.element;
    const follows = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_THE_END_PX;
    const isWhole = this.#list.draw(transcript.blocks, NEW_A_FRAME);
    this.#drawStatus(transcript);
    setText(this.ending, transcript.ending ? visible(transcript.ending.text) : "");
    this.ending.className = `answer-ending ${transcript.ending?.state ?? ""}`;
    if (follows) box.scrollTop = box.scrollHeight;
    return isWhole;
  }

  #drawStatus(transcript) {
    const waits = !transcript.ending && !transcript.hasText && transcript.waiting().length === 0;
    const fallback = transcript.state === "queued" ? "Queued" : "Waiting for the first text";
    setText(this.status, visible(transcript.status || (waits ? fallback : "")));
    setAttribute(this.element, "aria-busy", transcript.ending ? "false" : "true");
  }
}

/** A list of blocks: those of the answer, or those of a sub-agent in it. */
class Blocks {
  #drawn = [];

  constructor(view, name) {
    this.view = view;
    this.element = h("div", { class: name });
  }

  /** At most `most` more than there are. False if that was too few. */
  draw(blocks, most) {
    const end = Math.min(blocks.length, this.#drawn.length + most);
    for (let at = 0; at < end; at += 1) this.#drawBlock(at, blocks[at]);
    for (const surplus of this.#drawn.splice(end)) surplus.element.remove();
    return end === blocks.length;
  }

  #drawBlock(at, block) {
    let drawn = this.#drawn[at];
    if (drawn?.block === block) return;
    if (drawn?.block.kind !== block.kind) {
      const made = new BLOCKS[block.kind](this.view, () => new Blocks(this.view, "agent-blocks"));
      if (drawn) drawn.element.replaceWith(made.element);
      else this.element.append(made.element);
      drawn = this.#drawn[at] = made;
    }
    drawn.block = block;
    drawn.draw(block);
  }
}

const BLOCKS = {
  text: Run,
  thinking: ThinkingBlock,
  notice: NoticeBlock,
  tool: ToolBlock,
  turn: TurnBlock,
  agent: AgentBlock,
  approval: ApprovalBlock,
  input: InputBlock,
  result: ResultBlock,
  trace: TraceBlock,
};
