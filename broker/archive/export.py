"""An exported file against its seal, with nothing but the file and a public key: no server, no database.

The file is NDJSON: the events, a line each, then {"redacted": […]} if masks were laid over it, then {"seal": …}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from broker.archive import seal as seals
from broker.archive.seal import Seal
from broker.archive.signing import PublicKeys
from broker.event import TERMINAL

VERIFIED, REDACTED, NOT_SEALED, BROKEN = "verified", "redacted", "not_sealed", "broken"


class Checked(NamedTuple):
    """`redacted`: the seal is a good one, but what it speaks of was masked: the events cannot be checked with it."""

    verdict: str
    statement: dict[str, Any]
    findings: list[str]
    masks: list[str]


def check_export(content: bytes, keys: PublicKeys) -> Checked:
    """Any file at all may be given."""
    lines = [line + b"\n" for line in content.split(b"\n") if line]
    try:
        values = [orjson.loads(line) for line in lines]
    except orjson.JSONDecodeError:
        return Checked(BROKEN, {}, ["this is not NDJSON: a line is no JSON"], [])
    closing = [value for value in values if isinstance(value, dict) and "id" not in value]
    masks: list[str] = next((value["redacted"] for value in closing if "redacted" in value), [])
    sealed = next((value["seal"] for value in closing if "seal" in value), None)
    events = lines[: len(lines) - len(closing)]
    if sealed is None:
        return Checked(NOT_SEALED, {}, [], masks)
    try:
        seal = Seal(sealed["statement"].encode(), bytes.fromhex(sealed["signature"]))
        findings = _check_seal(seal, keys)
        if not masks:
            findings += _check_content(events, values[: len(events)], seal, sealed)
    except (KeyError, TypeError, AttributeError, ValueError):
        return Checked(BROKEN, {}, ["the line of the seal is not as an export writes it"], masks)
    verdict = BROKEN if findings else REDACTED if masks else VERIFIED
    return Checked(verdict, seal.says(), findings, masks)


def _check_seal(seal: Seal, keys: PublicKeys) -> list[str]:
    if seals.is_signed(seal, keys):
        return []
    return ["no key that was given has signed this seal as it is"]


def _check_content(lines: Sequence[bytes], events: Sequence[Any], seal: Seal, sealed: dict[str, Any]) -> list[str]:
    said, salt = seal.says(), bytes.fromhex(sealed["salt"])
    findings = []
    if seals.lines_digest(salt, lines) != said["log"]:
        findings.append("the events are not those that were sealed")
    if seals.record_digest(salt, sealed["record"].encode()) != said["record"]:
        findings.append("the record (request, times, usage …) is not the one that was sealed")
    ending = (events[-1]["id"], events[-1]["event"], len(events)) if events else ()
    if ending != (said["last_event_id"], said["state"], said["events"]) or said["state"] not in TERMINAL:
        findings.append("the last event is not the one that was sealed")
    if orjson.loads(sealed["record"])["id"] != said["stream"]:
        findings.append("the record is another stream's")
    return findings
