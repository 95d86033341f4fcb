// The HTTP API: every request of the console is made here, with the key (or token) if there is one.

import * as lastevent from "./lastevent/index.js";

const KEY = "lastevent.key";
const AWAY = new Set(["redis_unavailable", "draining", undefined]); // codes of a 503 that /readyz answers too

/**
 * A problem response (RFC 9457). Status 0: no server answered. `scopes`: one of them would have opened it (RFC 6750,
 * section 3).
 */
export class Problem extends Error {
  constructor(status, { title, detail, code, request_id: requestId } = {}, scopes = []) {
    super(title ?? (status ? `The server answered ${status}` : "The server does not answer"));
    Object.assign(this, { status, code, requestId, scopes });
    this.detail = detail ?? (status ? "" : "It is down, or there is no network connection.");
  }

  /** The server cannot be reached, or says that it is not ready: nothing about the request itself. */
  get isAway() {
    return [0, 502, 504].includes(this.status) || (this.status === 503 && AWAY.has(this.code));
  }
}

let changedKey = () => {};
let lacking = () => {};

/** `run()`: another key is used from now on, or none. */
export function onChangedKey(run) {
  changedKey = run;
}

/** `run(scopes)`: the key that is used has none of these. */
export function onLacking(run) {
  lacking = run;
}

/** The key, or the token, is kept for this tab only, and sent to this origin only. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  forget() {
    sessionStorage.removeItem(KEY);
    changedKey();
  },
  keep(value) {
    sessionStorage.setItem(KEY, value);
    changedKey();
  },
};

let askForKey = async () => null;
let asking = null;
let declined = false;

/** `ask`: an async function (problem, or null) → the user's key or token, or null if the user declines. */
export function onUnauthorized(ask) {
  askForKey = ask;
}

/** A user who declined is not asked for a key again until this is called. */
export function askAgain() {
  declined = false;
}

/** As `fetch`, but the response has a status below 400. Raises Problem, or AbortError. */
export async function request(path, init = {}) {
  for (;;) {
    const bearer = key.get();
    const response = await send(path, init, bearer);
    if (response.ok) return response;
    const problem = await problemOf(response, bearer);
    if (response.status !== 401 || !(await newKey(bearer, problem))) throw problem;
  }
}

/** As `fetch`, for a caller that brings `bearer` and takes any response. `refused(problem)`: why it is none below 400. */
export async function once(path, init, bearer, refused) {
  const response = await fetch(path, { ...init, ...BARE });
  if (!response.ok) refused(await problemOf(response.clone(), bearer));
  return response;
}

async function problemOf(response, bearer) {
  const [, scope = ""] = response.headers.get("WWW-Authenticate")?.match(/ scope="([^"]*)"/) ?? [];
  const problem = new Problem(response.status, await response.json().catch(() => ({})), scope.split(" ").filter(Boolean));
  if (response.status === 403 && key.get() === bearer) lacking(problem.scopes);
  return problem;
}

/** Why a call is refused, or null if it is not. Nobody is asked for a key because of it. */
export async function refusal(method, path) {
  const bearer = key.get();
  try {
    const response = await send(path, { method }, bearer);
    return response.ok ? null : await problemOf(response, bearer);
  } catch (problem) {
    return problem;
  }
}

const BARE = { cache: "no-store", credentials: "omit" };

function send(path, { headers, ...init }, bearer) {
  const all = bearer ? { ...headers, Authorization: `Bearer ${bearer}` } : { ...headers };
  return arriving(fetch(path, { ...init, headers: all, ...BARE }));
}

/** A response, or its body, on its way: whatever breaks it, to the user the server has gone. */
async function arriving(promise) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" || error instanceof Problem ? error : new Problem(0);
  }
}

/** The names that a model may be asked for by, as far as workers say. */
export const modelNames = async () => ((await offered("/v1/models"))?.data ?? []).map(({ id }) => id);

/** As workers announce them: [{name, input_schema, tools, …}]. */
export const agents = async () => (await offered("/v1/agents"))?.agents ?? [];

/** Null where it cannot be had: the page goes on without it, and nobody is asked for a key because of it. */
async function offered(path, signal) {
  const response = await send(path, { signal }, key.get()).catch(() => null);
  return response?.ok ? response.json().catch(() => null) : null;
}

/** How far the log goes; 0 if that cannot be had, since it is only for a count. */
export const lastEventId = async (id, signal) => (await offered(at(id), signal))?.last_event_id ?? 0;

/** Whether the server would serve a request now. Without the key: this one needs none. */
export async function isReady() {
  const response = await fetch("/readyz", BARE).catch(() => null);
  return response?.ok === true;
}

/**
 * Whether there is another key than this one, which was refused. Requests refused at the same time share one question. A
 * request refused after it was answered uses that answer.
 */
export async function newKey(bearer, problem) {
  if (key.get() !== bearer) return true;
  return declined ? false : enterKey(bearer === null ? null : problem);
}

/** Let the user enter another key or token. `problem`: why this one does not do. False if the user declines. */
export async function enterKey(problem = null) {
  asking ??= askForKey(problem).finally(() => {
    asking = null;
  });
  const given = await asking;
  declined = given === null;
  if (given) key.keep(given);
  return given !== null;
}

const json = async (path, init) => {
  const response = await request(path, init);
  return arriving(response.json());
};
const post = (path, body, headers) =>
  json(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers } });
const told = (call, options) => arriving(lastevent[call]({ ...options, fetch: request }));
const at = (id, rest = "") => `/v1/streams/${encodeURIComponent(id)}${rest}`;

export const createStream = (body, idempotencyKey) => post("/v1/streams", body, { "Idempotency-Key": idempotencyKey });
export const stream = (id, signal) => json(at(id), { signal });
export const cancel = (id) => told("cancel", { url: events(id), reason: "stopped in the console" });
export const regenerate = (id) => json(at(id, "/regenerate"), { method: "POST" });
/** `input`: {text} or {data}, and `interrupt`. Each call adds one, also one that is sent again after a lost answer. */
export const tell = (id, input) => told("send", { url: events(id), input });
export const decide = (id, approvalId, body) => post(at(id, `/approvals/${encodeURIComponent(approvalId)}`), body);
export const erase = (id) => request(at(id), { method: "DELETE" });
export const exportLog = async (id) => arriving((await request(at(id, "/export"))).blob());
export const events = (id) => at(id, "/events");

/**
 * The whole log as it arrives, in pieces of text: `onText` may take each before the next is read. `exports`: with its
 * seal, which takes a key that audits.
 */
export async function readLog(id, onText, { exports, audience, signal }) {
  const place = exports ? "/export" : "/events?follow=0";
  const only = audience ? `${exports ? "?" : "&"}audience=${audience}` : "";
  const headers = { Accept: "application/x-ndjson" };
  const response = await request(at(id, `${place}${only}`), { headers, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await arriving(reader.read());
    if (done) return;
    onText(value);
  }
}

/** A page of streams, without their requests. */
export function streams(query, signal) {
  const given = Object.entries(query).filter(([, value]) => value != null && value !== "");
  return json(`/v1/streams?${new URLSearchParams(given)}`, { signal });
}

/** A stream as it is now, without its request, found by the time of its creation. Null if it is gone. */
export async function listed({ id, created_at: created }, signal) {
  let cursor = null;
  do {
    const page = await streams({ created_after: created, created_before: created, limit: 200, cursor }, signal);
    const found = page.streams.find((each) => each.id === id);
    if (found) return found;
    cursor = page.next;
  } while (cursor);
  return null;
}

/** All of them, page after page. */
export async function views(id, signal) {
  const found = [];
  let cursor = null;
  do {
    const page = await json(at(id, `/views${cursor ? `?cursor=${cursor}` : ""}`), { signal });
    found.push(...page.views);
    cursor = page.next;
  } while (cursor);
  return { views: found };
}

/** The API keys of all tenants. */
export const keys = async (signal) => (await json("/v1/keys", { signal })).keys;
export const revokeKey = (id) => request(`/v1/keys/${encodeURIComponent(id)}`, { method: "DELETE" });

export const verify = (id, signal) => json(at(id, "/verify"), { signal });
