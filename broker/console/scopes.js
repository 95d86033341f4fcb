// What each scope of a credential opens, in words. As docs/API.md has them.

export const SCOPES = {
  "streams:write": "start, regenerate, tell agents, decide approvals",
  "streams:append": "write the events of external streams",
  "streams:read": "events, texts, and of a record what viewers see",
  "streams:inspect": "whole records, listings, sessions, internal events, who follows",
  "streams:cancel": "cancel",
  "streams:erase": "erase streams, and people",
  "audit:read": "export, replay, views, verify, deeds",
  "audit:masked": "the same and records of what has ended, with masks",
  "tokens:mint": "mint tokens, revoke those of its own tenant",
  "metrics:read": "metrics",
  admin: "keys, limits, revocations, and everything else",
};
