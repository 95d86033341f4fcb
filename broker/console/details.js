// A stream's record and seal: the facts under its name, and the panel of details.

import { badge, fill, h, isolated } from "./dom.js";
import { rawJson } from "./eventrow.js";
import { duration, exact, moment, number, promptOf, visible } from "./format.js";
import { noun } from "./rights.js";
import { durationOf, firstTokenMs, stateBadge, streamLink } from "./stream.js";

const PROMPT_SHOWN = 300;

export function drawHead(facts, badges, record, seal) {
  fill(badges, stateBadge(record), seal);
  const prompt = promptOf(record.request).trim();
  const fact = (label, value) => value && h("div", {}, h("dt", {}, label), h("dd", {}, value));
  fill(facts, [
    prompt &&
      h("p", { class: "player-prompt", dir: "auto" }, visible(prompt.replaceAll(/\s+/g, " ").slice(0, PROMPT_SHOWN))),
    h("dl", { class: "facts" }, [
      fact("Session", sessionLink(record.session_id)),
      fact("User", record.user_id && isolated(record.user_id)),
      fact("Agent", record.agent && isolated(record.agent)),
      fact("Model", record.model ? isolated(record.model) : record.producer === "external" && "external producer"),
      fact("Created", h("time", { datetime: record.created_at, title: exact(record.created_at) }, moment(record.created_at))),
      fact("Duration", durationOf(record)),
      fact("First token", duration(firstTokenMs(record))),
      record.attempt !== null && fact("Attempts", number(record.attempt)),
      record.cost_usd != null && fact("Cost", `$${record.cost_usd}${record.usage_incomplete ? " or more" : ""}`),
      fact(
        "Regenerates",
        record.regenerates && streamLink(record.regenerates, h("code", {}, record.regenerates.slice(0, 8))),
      ),
    ]),
  ]);
}

const sessionLink = (id) =>
  id && h("a", { href: `#/sessions?${new URLSearchParams({ session_id: id })}` }, isolated(id));

/** `seal`: as returned by `/verify`; undefined while it is not known, null if this reader is refused. */
export function sealBadge(seal, hasEnded) {
  if (!seal) return null;
  if (seal.verdict === "verified") return badge("seal verified", "Seal verified");
  if (seal.verdict === "broken") return badge("seal broken", "Seal broken");
  if (seal.verdict === "differs") return badge("seal broken", "Redis differs from the seal");
  if (seal.verdict === "erased") return badge("seal", "Sealed, erased");
  return badge("seal", hasEnded ? "Not sealed yet" : "Sealed after it ends");
}

export function drawDetails(panel, record, seal) {
  const openBefore = new Set([...panel.querySelectorAll("details[open]")].map((each) => each.className));
  const focused = panel.contains(document.activeElement) && document.activeElement.parentElement.className;
  fill(panel, [
    h("div", { class: "details-columns" }, [times(record), usage(record), sealSection(seal)]),
    json("request", "Request", record.request),
    json("metadata", "Metadata", record.metadata && Object.keys(record.metadata).length > 0 ? record.metadata : null),
    json("record", "Record", { ...record, events_url: record.events_url?.split("?", 1)[0] }),
  ]);
  for (const each of panel.querySelectorAll("details")) {
    each.open = openBefore.has(each.className);
    if (each.className === focused) each.querySelector("summary").focus({ preventScroll: true });
  }
}

const section = (title, pairs, none) =>
  h("section", {}, [
    h("h2", {}, title),
    pairs.length > 0
      ? h(
          "dl",
          { class: "pairs" },
          pairs.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value))),
        )
      : h("p", { class: "hint" }, none),
  ]);

function times(record) {
  const labels = {
    created: "Created",
    started: "Started",
    first_text: "First text",
    finished: "Finished",
    archived: "Archived",
    erased: "Erased",
  };
  const pairs = Object.entries(labels)
    .filter(([name]) => record[`${name}_at`])
    .map(([name, label]) => [label, h("time", { datetime: record[`${name}_at`] }, exact(record[`${name}_at`]))]);
  return section("Times", pairs, "");
}

function usage(record) {
  const pairs = Object.entries(record.usage ?? {}).filter(([, value]) => typeof value !== "object");
  return section(
    "Usage",
    pairs.map(([label, value]) => [
      visible(label.replaceAll("_", " ")),
      typeof value === "number" ? number(value) : visible(value),
    ]),
    "None recorded.",
  );
}

function sealSection(seal) {
  if (!seal) return section("Seal", [], seal === null ? `Not with this ${noun()}.` : "Loading");
  const shown = ["number", "sealed_at", "tenant", "key", "hash", "previous", "log", "record"];
  const pairs = shown
    .filter((name) => seal.seal?.[name] != null)
    .map((name) => {
      const value = visible(name === "sealed_at" ? exact(seal.seal[name]) : seal.seal[name]);
      return [name.replace("_", " "), h("span", { class: "hash", title: value }, value)];
    });
  const element = section("Seal", pairs, "A stream is sealed when it is archived, some seconds after it ends.");
  if (seal.findings?.length > 0) {
    element.append(
      h(
        "ul",
        { class: "findings" },
        seal.findings.map(({ what, detail }) => h("li", {}, h("b", {}, visible(what)), " ", visible(detail))),
      ),
    );
  }
  return element;
}

function json(name, label, value) {
  if (value == null) return null;
  return h(
    "details",
    { class: `json ${name}` },
    h("summary", {}, label),
    h("pre", { class: "raw", tabindex: "0", "aria-label": label }, rawJson(value)),
  );
}
