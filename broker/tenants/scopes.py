"""What a credential may do, by name (docs/API.md, keys and tokens). Each route says what it takes (web/grants.py)."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

WRITE, APPEND, INPUT = "streams:write", "streams:append", "streams:input"
READ, INSPECT, VIEWERS = "streams:read", "streams:inspect", "streams:viewers"
CANCEL, ERASE = "streams:cancel", "streams:erase"
AUDIT, MASKED = "audit:read", "audit:masked"
MINT, METRICS, ADMIN = "tokens:mint", "metrics:read", "admin"

OF_KEYS: dict[str, str] = {
    WRITE: "start, regenerate, tell agents, decide approvals",
    APPEND: "write the events of external streams",
    READ: "events, texts, and of a record what viewers see",
    INSPECT: "whole records, listings, sessions, internal events, who follows",
    CANCEL: "cancel",
    ERASE: "erase streams, and people",
    AUDIT: "export, replay, views, verify, deeds",
    MASKED: "the same and records of what has ended, with masks",
    MINT: "mint tokens, revoke those of its own tenant",
    METRICS: "metrics",
    ADMIN: "keys, limits, revocations, and everything else",
}
"""Every scope, and what it opens."""

OF_TOKENS = frozenset({READ, CANCEL, APPEND, INPUT, VIEWERS})

PRESETS: dict[str, frozenset[str]] = {
    "backend": frozenset({WRITE, APPEND, READ, INSPECT, CANCEL, MINT}),
    "auditor": frozenset({AUDIT, INSPECT, READ}),
    "masked": frozenset({MASKED}),
    "scraper": frozenset({METRICS}),
}
"""Names for what is mostly wanted together. `backend` is the default of `lastevent keys create`."""

EVERYTHING = frozenset({ADMIN})


def opens(held: frozenset[str], *wanted: str) -> bool:
    """Whether one of these scopes is held. `admin` holds all of them, and is never masked."""
    return ADMIN in held or any(scope in held for scope in wanted)


def key_scopes(names: Iterable[str]) -> frozenset[str]:
    """What a key may have of them. Raises ValueError, which says what is wrong with which."""
    scopes = frozenset(names)
    for name in sorted(scopes - set(OF_KEYS)):
        near = get_close_matches(name, OF_KEYS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(OF_KEYS)}."
        raise ValueError(f"{name} is no scope of a key. {hint}")
    if not scopes:
        raise ValueError("a key without a scope opens nothing")
    if MASKED in scopes and not scopes <= {MASKED, METRICS}:
        raise ValueError(f"{MASKED} stands alone (with {METRICS} at most): others would show what it masks")
    return scopes
