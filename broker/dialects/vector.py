"""Where a viewer of several streams stands: one cursor for all of them. Pure functions, no framework.

    s1.<at>.<stream>-<n>.<stream>-x. … .<stream>-<n>

"Every stream that was created until `at` was given to its end, but for those named." `at`: ms since 1970, by Redis'
clock. Named are those that are not at their end (`n`: the last event given, 0: none yet), and those at their end (`x`)
that were created in the SLACK_MS before `at`, or after it: a stream is listed some time after its creation, so one that
is not named, and not older than that, is new. The last part is the stream and the id of the event that this stands at.

A cursor has MAX_BYTES, and MAX_NAMED parts at most. Where more are at their end the oldest are left out. Then the first
part is `0-x`, and the slack reaches back to the oldest at its end that is named, and no further: what was left out is
not given twice. (One of more than 40 in a minute that is also listed late, in an absence, is not found: the price.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from broker.dialects.cursor import MAX_CURSOR
from broker.errors import BadCursor

AT_END = None
"""Where a stream stands that was given to its end: `x`."""

SLACK_MS = 60_000
"""So long after its creation a stream is listed, at the latest."""

MAX_NAMED = 40
MAX_NAMED_IN_JSON = 200
"""A socket's client names each stream whose last id it has."""

MAX_BYTES = 2048

_WHOLE = re.compile(r"s1\.(?P<at>0|[1-9][0-9]{0,15})(?P<named>(?:\.[0-9A-Za-z_]{1,64}-(?:x|0|[1-9][0-9]{0,15}))*)")
_SID = re.compile(r"[0-9A-Za-z_]{1,64}")

_LEFT_OUT = "0"
"""No stream has this id."""

_EXPECTED = "The cursor of several streams must be the `id` of the last event received."


class Vector(NamedTuple):
    """`named`: stream → the last event given of it, or AT_END; in the order in which they are written. `is_cut`: of
    those at their end the oldest were left out.
    """

    at: int
    named: Mapping[str, int | None]
    is_cut: bool = False

    def encode(self) -> str:
        return self._head + "".join(map(_part, self.named.items()))

    def prefix(self, sid: str) -> str:
        """What stands before the id of an event of this stream; the other streams as they are named here."""
        others = "".join(_part(pair) for pair in self.named.items() if pair[0] != sid)
        return f"{self._head}{others}.{sid}-"

    @property
    def _head(self) -> str:
        return f"s1.{self.at}.{_LEFT_OUT}-x" if self.is_cut else f"s1.{self.at}"


def _part(pair: tuple[str, int | None]) -> str:
    sid, n = pair
    return f".{sid}-x" if n is AT_END else f".{sid}-{n}"


def parse(text: str) -> Vector:
    """Raises BadCursor for whatever `encode` cannot have written: misread, it would repeat or skip events."""
    found = _WHOLE.fullmatch(text) if len(text) <= MAX_BYTES else None
    if not found or int(found["at"]) > MAX_CURSOR:
        raise BadCursor(_EXPECTED)
    named: dict[str, int | None] = {}
    parts = found["named"].split(".")[1:]
    for part in parts:
        sid, _, n = part.partition("-")
        named[sid] = _position(n)
    if len(named) < len(parts) or len(named) > MAX_NAMED:
        raise BadCursor(_EXPECTED)
    is_cut = bool(parts) and parts[0] == f"{_LEFT_OUT}-x"
    if is_cut:
        del named[_LEFT_OUT]
    if _LEFT_OUT in named:
        raise BadCursor(_EXPECTED)
    return Vector(int(found["at"]), named, is_cut)


def _position(n: str) -> int | None:
    if n == "x":
        return AT_END
    if int(n) > MAX_CURSOR:
        raise BadCursor(_EXPECTED)
    return int(n)


def newest(texts: Iterable[str]) -> Vector | None:
    """Of these cursors of one viewer the one that is furthest; None if there is none. Empty ones do not count.

    A client that keeps its cursor in the address, and learns newer ones, sends both for ever. Raises BadCursor.
    """
    return max((parse(text) for text in texts if text), key=_progress, default=None)


def _progress(vector: Vector) -> tuple[int, int]:
    # Both grow with each event, unless more than MAX_NAMED streams run at once.
    return vector.at, sum(MAX_CURSOR if n is AT_END else n for n in vector.named.values())


def from_json(value: Any) -> Vector:
    """{"at": T, "streams": {stream: n or "x"}}, as `to_json` gave it and a socket's client has gone on. Raises
    BadCursor.
    """
    if not isinstance(value, dict) or value.keys() != {"at", "streams"} or not isinstance(value["streams"], dict):
        raise BadCursor('`cursors` must be {"at": the `at` of the last notice, "streams": {stream: its last id}}.')
    at, streams = value["at"], value["streams"]
    if not _is_position(at) or len(streams) > MAX_NAMED_IN_JSON:
        raise BadCursor(f"`at` is a number from a notice; at most {MAX_NAMED_IN_JSON} streams are named.")
    for sid, n in streams.items():
        if not _SID.fullmatch(sid) or not (n == "x" or _is_position(n)):
            raise BadCursor("Each of `cursors.streams` is the id of a stream's last event, or `x`: it has ended.")
    is_cut = streams.get(_LEFT_OUT) == "x"
    return Vector(at, {sid: AT_END if n == "x" else n for sid, n in streams.items() if sid != _LEFT_OUT}, is_cut)


def to_json(vector: Vector) -> dict[str, Any]:
    """What `from_json` reads."""
    left_out = {_LEFT_OUT: "x"} if vector.is_cut else {}
    named = {sid: "x" if n is AT_END else n for sid, n in vector.named.items()}
    return {"at": vector.at, "streams": {**left_out, **named}}


def _is_position(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_CURSOR
