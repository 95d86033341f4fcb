"""An exported file against its seal. This needs only the file and a public key: no server, no database.

The file is NDJSON: the events, a line each, then {"redacted": […]} if masks were applied, then {"seal": …}, and nothing
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from broker.archive import seal as seals
from broker.archive.seal import Seal
from broker.archive.signing import PublicKeys
from broker.log.event import KIND

VERIFIED, REDACTED, NOT_SEALED, BROKEN = "verified", "redacted", "not_sealed", "broken"

EVENT_FIELDS = ["id", "event", "data", "t"]
SEAL_FIELDS = {"statement", "signature"}
OPENED_FIELDS = {"statement", "signature", "salt", "record"}


class Checked(NamedTuple):
    """`verdict`: verified, redacted (the seal is valid, but masked events cannot be checked), not_sealed or broken.

    `statement`: the seal's claims. `findings`: what is wrong. `masks`: the names of the masks that were applied.
    """

    verdict: str
    statement: dict[str, Any]
    findings: list[str]
    masks: list[str]


class _Parts(NamedTuple):
    lines: list[bytes]
    events: list[dict[str, Any]]
    masks: list[str] | None
    sealed: dict[str, Any] | None


def check_export(content: bytes, keys: PublicKeys) -> Checked:
    """The verdict on a file's content, which may be any bytes at all. `keys`: key id → public key."""
    try:
        parts = _parts(content)
    except (ValueError, TypeError, KeyError) as error:
        return Checked(BROKEN, {}, [f"this file does not have the form of an export: {error}"], [])
    if parts.sealed is None:
        return Checked(NOT_SEALED, {}, [], parts.masks or [])
    try:
        seal = Seal(parts.sealed["statement"].encode(), bytes.fromhex(parts.sealed["signature"]))
        findings = _check_seal(seal, keys) + _check_outline(parts.events, seal)
        if parts.masks is None:
            findings += _check_content(parts, seal)
    except (KeyError, TypeError, AttributeError, ValueError):
        return Checked(BROKEN, {}, ["the line of the seal does not have the form of an export"], parts.masks or [])
    verdict = BROKEN if findings else VERIFIED if parts.masks is None else REDACTED
    return Checked(verdict, seal.claims(), findings, parts.masks or [])


def _parts(content: bytes) -> _Parts:
    """Raises ValueError, TypeError or KeyError for any other form."""
    *lines, rest = content.split(b"\n")
    if rest or not all(lines):
        raise ValueError("each line must end with a line feed, and no line may be empty")
    values = [orjson.loads(line) for line in lines]
    sealed = values.pop()["seal"] if values and list(values[-1]) == ["seal"] else None
    masks = values.pop()["redacted"] if values and list(values[-1]) == ["redacted"] else None
    if masks is not None and not (isinstance(masks, list) and all(isinstance(mask, str) for mask in masks)):
        raise ValueError("the masks are not a list of names")
    for number, value in enumerate(values, start=1):
        if list(value) != EVENT_FIELDS or not KIND.fullmatch(value["event"]):
            raise ValueError(f"line {number} is not an event")
    if sealed is not None and set(sealed) != (OPENED_FIELDS if masks is None else SEAL_FIELDS):
        raise ValueError("the line of the seal has unexpected fields")
    return _Parts([line + b"\n" for line in lines[: len(values)]], values, masks, sealed)


def _check_seal(seal: Seal, keys: PublicKeys) -> list[str]:
    claims = seal.claims()
    if not seals.is_signed(seal, keys):
        return ["none of the given keys has signed this seal in this form"]
    if claims.get("kind") != seals.STREAM or not seal.is_known:
        return ["the seal is not a stream's"]
    return []


def _check_outline(events: Sequence[dict[str, Any]], seal: Seal) -> list[str]:
    """The number of events and the last event's id and kind, which masks do not change."""
    claims = seal.claims()
    last = (events[-1]["id"], events[-1]["event"], len(events)) if events else ()
    if last != (claims["last_event_id"], claims["state"], claims["events"]):
        return ["the number of events, or the last event, differs from what was sealed"]
    return []


def _check_content(parts: _Parts, seal: Seal) -> list[str]:
    assert parts.sealed
    claims, salt, record = seal.claims(), bytes.fromhex(parts.sealed["salt"]), parts.sealed["record"]
    findings = []
    if seals.lines_digest(salt, parts.lines) != claims["log"]:
        findings.append("the events are not those that were sealed")
    if seals.record_digest(salt, record.encode()) != claims["record"]:
        findings.append("the record (request, times, usage …) is not the one that was sealed")
    if orjson.loads(record)["id"] != claims["stream"]:
        findings.append("the record is another stream's")
    return findings
