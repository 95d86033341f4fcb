// What a token says of itself. Its claims are no secret to who holds it; whether they are true, the server checks.

const OF_TOKENS = new Set(["streams:read", "streams:cancel", "streams:append", "streams:input", "streams:viewers"]);

/**
 * {subject, scopes, expiresAt, streams, sessions, own} of a JSON Web Token, null of anything else (an API key).
 * `expiresAt` in ms, or null; one of `streams`, `sessions` (lists) and `own` (true) says what it opens.
 */
export function claimsOf(credential) {
  const claims = payloadOf(credential);
  if (claims === null) return null;
  const { sub, scope, exp, streams, sessions, own } = claims;
  return {
    subject: typeof sub === "string" ? sub : null,
    scopes: new Set(typeof scope === "string" ? scope.split(" ").filter((each) => OF_TOKENS.has(each)) : []),
    expiresAt: Number.isFinite(exp) ? exp * 1000 : null,
    streams: namesIn(streams),
    sessions: namesIn(sessions),
    own: own === true,
  };
}

const namesIn = (list) => (Array.isArray(list) ? list.filter((each) => typeof each === "string") : null);

function payloadOf(credential) {
  const parts = credential?.split(".") ?? [];
  if (parts.length !== 3) return null;
  try {
    const binary = atob(parts[1].replaceAll("-", "+").replaceAll("_", "/"));
    const json = new TextDecoder().decode(Uint8Array.from(binary, (character) => character.charCodeAt(0)));
    const claims = JSON.parse(json);
    return typeof claims === "object" && claims !== null && !Array.isArray(claims) ? claims : null;
  } catch {
    return null;
  }
}
