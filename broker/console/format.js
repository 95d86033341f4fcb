// Numbers, times and untrusted strings, formatted for people. Pure functions.

export function duration(ms) {
  if (ms == null) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** A position on a timeline, 1:02.345. */
export function clock(ms) {
  const whole = Math.max(0, Math.round(ms));
  const seconds = Math.floor(whole / 1000) % 60;
  const pad = (number, width) => String(number).padStart(width, "0");
  return `${Math.floor(whole / 60_000)}:${pad(seconds, 2)}.${pad(whole % 1000, 3)}`;
}

export const number = (value) => value.toLocaleString("en");

export const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

export function bytes(count) {
  if (count < 1024) return `${count} B`;
  if (count < 1024 * 1024) return `${(count / 1024).toFixed(1)} KiB`;
  return `${(count / 1024 / 1024).toFixed(2)} MiB`;
}

// All times are UTC, as in the API, the seals and the exports: whoever compares two of them, or sends one to a
// colleague far away, must not have to know which zone each was in. The year only if it is not this one's.
const TIME = new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", day: "numeric", month: "short" });
const DATE = new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", dateStyle: "medium" });

/** "11:20:10 UTC"; with the day if it is not today's. */
export function moment(at) {
  if (!at) return "–";
  const [date, now] = [new Date(at), new Date()];
  const time = `${TIME.format(date)} UTC`;
  if (DATE.format(date) === DATE.format(now)) return time;
  const isThisYear = date.getUTCFullYear() === now.getUTCFullYear();
  return `${(isThisYear ? DAY : DATE).format(date)}, ${time}`;
}

/** "2026-11-29 11:20:10.215 UTC" */
export const exact = (iso) => iso.replace("T", " ").replace("Z", " UTC");

const BIDI = {
  "\u061c": "ALM",
  "\u200e": "LRM",
  "\u200f": "RLM",
  "\u202a": "LRE",
  "\u202b": "RLE",
  "\u202c": "PDF",
  "\u202d": "LRO",
  "\u202e": "RLO",
  "\u2066": "LRI",
  "\u2067": "RLI",
  "\u2068": "FSI",
  "\u2069": "PDI",
};
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;

/** The same text with visible control and bidi characters, so a name cannot reorder or break its line. */
export function visible(text) {
  return String(text).replace(INVISIBLE, (character) => {
    const code = character.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "␡";
    return BIDI[character] ? `⟨${BIDI[character]}⟩` : "␤";
  });
}

const BROWSERS = [
  ["Edge", /\bEdg(?:e|A|iOS)?\/(\d+)/],
  ["Opera", /\bOPR\/(\d+)/],
  ["Firefox", /\b(?:Firefox|FxiOS)\/(\d+)/],
  ["Chrome", /\b(?:HeadlessChrome|Chrome|CriOS)\/(\d+)/],
  ["Safari", /\bVersion\/(\d+).*Safari\//],
];
const SYSTEMS = [
  ["iPhone", /iPhone/],
  ["iPad", /iPad/],
  ["Android", /Android/],
  ["Mac", /Mac OS X/],
  ["Windows", /Windows/],
  ["Linux", /Linux/],
];

/** "Chrome 143, Linux" for a browser, else the first product: "curl/8.5". The full string belongs in a title. */
export function agentName(userAgent) {
  if (!userAgent) return "no user agent";
  const system = SYSTEMS.find(([, pattern]) => pattern.test(userAgent))?.[0];
  for (const [name, pattern] of BROWSERS) {
    const version = userAgent.match(pattern)?.[1];
    if (version) return system ? `${name} ${version}, ${system}` : `${name} ${version}`;
  }
  return userAgent.split(" ", 1)[0];
}

/** The prompt as one text: the last user message of a request, or what an agent was given. */
export function promptOf(request) {
  const input = request?.input;
  if (input !== undefined) return typeof input === "string" ? input : JSON.stringify(input);
  const message = request?.messages?.findLast((each) => each.role === "user");
  if (!message) return "";
  if (typeof message.content === "string") return message.content;
  return message.content.map((block) => block.text ?? `[${block.type}]`).join("\n");
}
