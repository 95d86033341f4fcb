// Runs tests/conformance/conformance.json on the package: `node conformance.mjs conformance.json [step [part of a name]]`.
// It writes one line of JSON: how many cases and runs, and what was not as expected. How a case is read, its `format`
// says. With a step of 10, `cut: every` is each tenth byte.
import { readFileSync } from "node:fs";
import { empty, fold, follow, partial, start } from "lastevent";
import { COLLECTION, EVENTS, scripted } from "./scripted.mjs";
import { world } from "./world.mjs";

const WALL = Date.parse("2026-11-29T05:00:00Z");
const AFTERWARDS_MS = 600_000; // in which nothing may happen any more
const LONG_MS = 7_200_000;
const STORAGE_MS = 5;
const KEY = "lastevent:k";
/** The ends of chance; the second one with a storage that takes its time, and an app that never asks for `finished`. */
const CHANCES = [0, 0.999999];

// -- folds, cut JSON -------------------------------------------------------------------------------------------------

function foldCase({ fold: events, expect }) {
  const wrong = [];
  let answer = frozen(empty());
  for (const [id, event, data] of events) {
    const next = fold(answer, frozen({ id, event, data }));
    if (next !== answer && JSON.stringify(next) === JSON.stringify(answer)) wrong.push(`${id} made a new answer that is the same`);
    for (const name of Object.keys(answer)) {
      const isItsOwn = name === "tools" && event.startsWith("tool_"); // of a piece without text all is copied but the text
      if (!isItsOwn && next[name] !== answer[name] && JSON.stringify(next[name]) === JSON.stringify(answer[name])) {
        wrong.push(`${id} copied ${name}`);
      }
    }
    answer = frozen(next);
  }
  return [...wrong, ...differences(expect.answer, answer, "answer")];
}

function partialCase({ partial: pairs }) {
  return pairs.flatMap(([json, said]) => {
    const found = partial(json);
    return JSON.stringify(found ?? null) === JSON.stringify(said) ? [] : [`${json} says ${JSON.stringify(found)}`];
  });
}

/** What is written into throws. */
function frozen(value) {
  if (value && typeof value === "object" && !Object.isFrozen(value)) {
    Object.freeze(value);
    Object.values(value).forEach(frozen);
  }
  return value;
}

// -- runs ------------------------------------------------------------------------------------------------------------

function* runsOf(test, length) {
  if (!test.script?.some((entry) => entry.cut === "every")) yield* CHANCES.map((random, n) => ({ random, n }));
  else for (let cut = 0; cut < length; cut += step) yield { random: CHANCES[cut % 2], n: cut % 2, cut };
}

async function runCase(test) {
  const { length } = await run(test, { random: 0, n: 0 });
  const wrong = [];
  let runs = 0;
  for (const how of runsOf(test, length)) {
    runs++;
    const found = await run(test, how);
    if (found.wrong.length) wrong.push({ ...how, wrong: found.wrong });
  }
  return { runs, wrong: runs ? wrong : ["it was never run"] };
}

async function run(test, { random, n, cut }) {
  const { client = {}, expect } = test;
  const wall = test.wall ? Date.parse(test.wall) : WALL;
  const time = world({ wall, random, signs: test.signs, jumps: test.wall_jumps });
  const server = scripted(test, time, cut);
  const storage = storageOf(test, wall, n === 1, time);
  const tokens = tokensOf(client, time, () => stream.stop());
  const stopping = new AbortController();
  const seen = { ids: [], painted: null, outcome: null, connections: [], told: null };
  const errors = catching();
  const wrong = [];
  let stream;

  const options = {
    ...(client.start ? { url: client.to ?? COLLECTION, body: client.start } : { url: client.url === undefined ? EVENTS : client.url }),
    fetch: async (url, init) => {
      seen.painted ??= stream?.answer.text;
      seen.before ??= stored(storage);
      return server.fetch(url, init);
    },
    token: tokens.give, user: client.user, storage, key: client.key === undefined ? "k" : client.key, env: time.env, signal: stopping.signal,
    ...(client.silence_ms && { silence: client.silence_ms }), ...(client.hidden && { hidden: client.hidden }),
    ...(client.headers && { headers: client.headers }),
  };
  stream = client.start ? start(options) : follow(options);

  const settled = () => seen.outcome !== null;
  if (n === 0 || client.leaves_after) stream.finished.then(() => (seen.outcome ??= stream.connection.state), (error) => (seen.outcome ??= failed(error)));
  if (!client.leaves_after) stream.subscribe((snapshot) => {
    const { state, error } = snapshot.connection;
    if (n === 1 && ["ended", "stopped", "failed"].includes(state)) seen.outcome ??= state === "failed" ? failed(error) : state;
    if (time.now() === seen.toldAt) wrong.push("it was told twice at one time");
    seen.toldAt = time.now();
    seen.told = snapshot;
  });
  iterate(stream, seen, client, time).then(() => (seen.iterated = null), (error) => (seen.iterated = failed(error).failed));
  if (expect.told_at_ms) time.after(expect.told_at_ms[0], () => (seen.text = seen.told.answer.text));
  for (const [ms] of expect.connection_at_ms ?? []) time.after(ms, () => seen.connections.push(stream.connection));
  if (expect.storage_at_ms) time.after(expect.storage_at_ms[0], () => (seen.stored = stored(storage)));
  if (test.stop_at_ms !== undefined) time.after(test.stop_at_ms, () => (n === 0 ? stream.stop() : stopping.abort()));

  try {
    await time.run(LONG_MS, settled);
    const told = server.requests.length;
    await time.run(time.now() + AFTERWARDS_MS);
    if (settled()) {
      if (server.requests.length > told) wrong.push("a request came afterwards");
      if (server.isOpen()) wrong.push("a connection is left open");
      wrong.push(...time.left().map((what) => `${what} is left`));
      const { answer, connection } = stream;
      if (seen.told) wrong.push(...differences({ answer, connection }, seen.told, "what was told last"));
      wrong.push(...differences(seen.outcome.failed ?? null, seen.iterated, "what the iterator threw"));
    }
  } catch (error) {
    wrong.push(error.message);
  }
  wrong.push(...server.wrong, ...errors.over().map((error) => `nobody caught ${error}`));
  wrong.push(...compare(expect, { stream, seen, server, storage, tokens }));
  return { wrong, length: server.length() };
}

const failed = (error) => ({ failed: error.code ?? `${error}` });

/** What is thrown where nobody hears it. */
function catching() {
  const caught = [];
  const listener = (error) => caught.push(error);
  process.on("unhandledRejection", listener);
  return { over: () => { process.off("unhandledRejection", listener); return caught; } };
}

async function iterate(stream, seen, { slow_ms, leaves_after }, time) {
  for await (const { id } of stream) {
    if (id <= seen.ids.at(-1)) seen.ids.push("again");
    seen.ids.push(id);
    if (seen.ids.length === leaves_after) break;
    if (slow_ms) await new Promise((resolve) => time.after(slow_ms, resolve));
  }
}

function tokensOf({ token, tokens, token_ms, token_fails = [], token_never = [], token_empty = [], token_stops = [] }, time, stop) {
  const whys = [];
  if (token !== undefined && token_ms === undefined) return { give: token, whys };
  if (token === undefined && tokens === undefined) return { give: undefined, whys };
  const given = tokens ?? [token];
  let at = 0;
  const give = async (why) => {
    whys.push(why ?? null);
    if (token_stops.includes(whys.length)) stop();
    if (why) at++;
    if (token_ms) await new Promise((resolve) => time.after(token_ms, resolve));
    if (token_never.includes(whys.length)) await new Promise(() => {});
    if (token_fails.includes(whys.length)) { at -= why ? 1 : 0; throw new TypeError("network"); }
    if (token_empty.includes(whys.length)) { at -= why ? 1 : 0; return whys.length % 2 ? "" : "<h1>\nBad gateway"; }
    return given[Math.min(at, given.length - 1)];
  };
  return { give, whys };
}

// -- storage -----------------------------------------------------------------------------------------------------

function storageOf({ kept, log = [], storage_fails: fails }, wall, isSlow, time) {
  const saves = [];
  const held = new Map(kept ? [[KEY, record(kept, log, wall)]] : []);
  const doing = (name, act) => (...given) => {
    const now = () => {
      if (fails === "all" || fails === name) throw new Error("no room");
      return act(...given);
    };
    if (fails === "never") return new Promise(() => {});
    return isSlow ? later(now, time) : now();
  };
  return {
    getItem: doing("get", (key) => held.get(key) ?? null),
    setItem: doing("set", (key, value) => { held.set(key, String(value)); saves.push(key); }),
    removeItem: doing("remove", (key) => { held.delete(key); }),
    held, saves,
  };
}

/** A promise, but not of the engine's own class: libraries bring their own, and Angular puts one in its place. */
const later = (act, time) => {
  const promise = new Promise((resolve) => time.after(STORAGE_MS, resolve)).then(act);
  return { then: (...both) => promise.then(...both) };
};

const stored = ({ held }) => JSON.parse(held.get(KEY) ?? "null");

function record({ text, raw, events = 0, start: asked, user = null, v = 1, url = EVENTS }, log, wall) {
  if (text !== undefined) return text;
  const answer = raw ?? log.slice(0, events).reduce((answer, [id, event, data]) => fold(answer, { id, event, data }), empty());
  const kept = { v, user, url, idem: null, answer, at: wall };
  return JSON.stringify(asked ? { ...kept, url: asked.url ?? null, idem: asked.idem, body: asked.body, to: asked.to ?? COLLECTION } : kept);
}

// -- what was expected ---------------------------------------------------------------------------------------------

function compare(expect, { stream, seen, server: { requests }, storage, tokens }) {
  const wrong = [];
  const same = (name, wanted, found) => wrong.push(...differences(wanted, found, name));
  const within = ([from, to], ms, name) => { if (!(ms >= from && ms <= to)) wrong.push(`${name}: ${ms}`); };
  const gaps = requests.slice(1).map(({ at_ms }, n) => at_ms - requests[n].at_ms);
  const outcome = seen.outcome?.failed ? "failed" : seen.outcome ?? stream.connection.state;

  if (expect.answer) same("answer", expect.answer, stream.answer);
  if (expect.ids) same("ids", expect.ids, seen.ids);
  if (seen.ids.includes("again")) wrong.push(`the iterator gave ${seen.ids}`);
  same("outcome", expect.outcome ?? (expect.answer?.state === "done" ? "ended" : outcome), outcome);
  if (expect.code) same("code", expect.code, seen.outcome?.failed);
  if (expect.url !== undefined) same("url", expect.url, stream.url);
  if (expect.requests) compareRequests(expect.requests, requests, same, within);
  if (expect.count !== undefined) same("count", expect.count, requests.length);
  if (expect.requests_gap_ms) gaps.forEach((gap, n) => within(expect.requests_gap_ms, gap, `gap ${n + 1}`));
  if (expect.last_gap_ms) within(expect.last_gap_ms, gaps.at(-1), "the last gap");
  if (expect.same_key) same("keys", 1, new Set(requests.filter(({ method }) => method === "POST").map(({ key }) => key)).size);
  if (expect.storage !== undefined) same("storage", expect.storage, stored(storage));
  if (expect.storage_before !== undefined) same("storage_before", expect.storage_before, seen.before);
  if (expect.saves) within(expect.saves, storage.saves.length, "the number of saves");
  if (expect.told_at_ms) same("told_at_ms", expect.told_at_ms[1], seen.text);
  if (expect.storage_at_ms) same("storage_at_ms", expect.storage_at_ms[1], seen.stored);
  if (expect.painted !== undefined) same("painted", expect.painted, seen.painted ?? stream.answer.text);
  expect.connection_at_ms?.forEach(([ms, wanted], n) => same(`connection at ${ms} ms`, wanted, seen.connections[n]));
  if (expect.token_whys) same("token_whys", expect.token_whys, tokens.whys);
  const between = ([from, to]) => requests.some(({ at_ms }) => at_ms >= from && at_ms <= to);
  if (expect.has_request_at_ms && !between(expect.has_request_at_ms)) wrong.push("no request in has_request_at_ms");
  if (expect.no_request_between_ms && between(expect.no_request_between_ms)) wrong.push("a request in no_request_between_ms");
  return wrong;
}

function compareRequests(wanted, requests, same, within) {
  same("requests", wanted.length, requests.length);
  wanted.slice(0, requests.length).forEach(({ at_ms, path_ends, key, key_not, ...rest }, n) => {
    const found = requests[n];
    const name = `request ${n + 1}`;
    if (at_ms) within(at_ms, found.at_ms, name);
    if (path_ends) same(`${name}.path`, path_ends, found.path.split("?")[0].slice(-path_ends.length));
    if (key === true) same(`${name} has a key`, true, Boolean(found.key));
    else if (key !== undefined) same(`${name}.key`, key, found.key);
    if (key_not !== undefined) same(`${name} has another key`, true, Boolean(found.key) && found.key !== key_not);
    for (const [field, value] of Object.entries(rest)) same(`${name}.${field}`, value, found[field]);
  });
}

/** Objects: at least these, but `{}` is empty; lists: as long, each at least these; null: also what is not there. */
function differences(wanted, found = null, name) {
  if (wanted === null || typeof wanted !== "object" || found === null || typeof found !== "object") {
    return Object.is(wanted, found) ? [] : [`${name} is ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`];
  }
  const isEmpty = !Object.keys(wanted).length;
  if (Array.isArray(wanted) ? wanted.length !== found.length : isEmpty && Object.keys(found).length) {
    return [`${name} is ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`];
  }
  return Object.entries(wanted).flatMap(([key, value]) => differences(value, found[key], `${name}.${key}`));
}

// -- all of it -------------------------------------------------------------------------------------------------------

Error.stackTraceLimit = 0; // thousands are thrown, and none of their stacks is looked at
const [, , file, bytes = "1", part = ""] = process.argv;
const step = Number(bytes);
const { cases } = JSON.parse(readFileSync(file, "utf8"));
const chosen = cases.filter(({ name }) => name.includes(part));
const result = { cases: chosen.length, runs: 0, wrong: [] };
for (const test of chosen) {
  const pure = test.fold ? foldCase(test) : test.partial ? partialCase(test) : null;
  const { runs, wrong } = pure ? { runs: 1, wrong: pure } : await runCase(test);
  result.runs += runs;
  if (wrong.length) result.wrong.push({ name: test.name, runs: wrong.length, first: wrong[0] });
}
console.log(JSON.stringify(result));
process.exit(0);
