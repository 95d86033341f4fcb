// What the credential of this tab may do. A token says it itself; of a key, the API's answers do.

import { key, onChangedKey, onLacking, refusal } from "./api.js";
import { SCOPES } from "./scopes.js";
import { claimsOf } from "./token.js";

const NO_STREAM = "/v1/streams/-"; // no stream has this id
/** A call is refused for its scope before a stream is looked up: these find that out, and can do nothing. */
const TRIALS = [
  ["POST", `${NO_STREAM}/regenerate`],
  ["POST", `${NO_STREAM}/cancel`],
  ["DELETE", NO_STREAM],
  ["GET", `${NO_STREAM}/verify`],
  ["GET", "/v1/streams?limit=1"],
];
export const SEES_ALL = ["streams:inspect", "audit:read", "audit:masked"]; // others see what users see
export const AUDITS = ["audit:read", "audit:masked"];

let lacks = new Set();
let learning = null;
const listeners = new Set();

export const rights = {
  isAdmin: false,
  isAsked: false, // the server wants a credential, and there is none
};

/** Of the token that is used; null: it is a key, or nothing. */
export const claims = () => claimsOf(key.get());
export const noun = () => (claims() ? "token" : "key");

/** Whether one of these scopes is held, as far as it is known: nobody is kept from what may turn out to be allowed. */
export function may(...scopes) {
  const own = claims();
  return scopes.some((scope) => !lacks.has(scope) && (own === null ? scope in SCOPES : own.scopes.has(scope)));
}

/** `run()` is called when something of it has changed. Returns a function that ends that. */
export function onRights(run) {
  listeners.add(run);
  return () => listeners.delete(run);
}

const tell = () => listeners.forEach((run) => run());

/** Find it out, once for each credential. Resolves when it is known, or cannot be for the moment. */
export const learn = () => (learning ??= findOut());

async function findOut() {
  if (claims()) return;
  const asked = key.get();
  const problem = await refusal("GET", "/v1/keys");
  if (key.get() !== asked) return;
  if (problem !== null && ![401, 403].includes(problem.status)) {
    learning = null;
    return;
  }
  rights.isAsked = problem?.status === 401 && asked === null;
  rights.isAdmin = problem === null;
  tell();
  if (problem?.status === 403) await Promise.all(TRIALS.map(([method, path]) => refusal(method, path)));
}

onLacking((scopes) => {
  const before = lacks.size;
  scopes.forEach((scope) => lacks.add(scope));
  if (lacks.size > before) tell();
});

onChangedKey(() => {
  lacks = new Set();
  learning = null;
  rights.isAdmin = rights.isAsked = false;
  tell();
  learn();
});
