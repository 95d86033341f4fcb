"""The wire between a worker and its app's process: a JSON object a line, in both directions of a socket pair.

A line has a limit, since each is joined and parsed in the loop that all streams of the worker share. One beyond it is
skipped, not kept; what can still be told of it is whose it was.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

LINE_BYTES = 4 * 2**20
"""Sixteen times the largest result of a tool; at 1 GB/s its parsing holds the loop for some ms."""

HEAD_BYTES = 512
"""Of a line that is too long: in these its sender names what it belongs to."""


MANY_DIGITS = 21
"""An integer with fewer is read as it is, or as a double if it has more than 64 bits. Python would take seconds for one
with a million digits, and refuses 4,300."""


class LineTooLong(Exception):
    """A message that cannot be sent: it would be longer than LINE_BYTES."""


class BadLine(Exception):
    """What came is no JSON object: the process at the other end does not speak this protocol."""


class TooLong(NamedTuple):
    """A line that was skipped, and what its beginning says of it."""

    run: str | None
    reply_to: int | None


def encode(message: Mapping[str, Any]) -> bytes:
    """A line. Raises LineTooLong, or TypeError for what JSON cannot hold."""
    line = orjson.dumps(message)
    if len(line) >= LINE_BYTES:
        raise LineTooLong
    return line + b"\n"


class Lines:
    """Cuts what is received into messages."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._size = 0

    def feed(self, received: bytes) -> Iterator[dict[str, Any] | TooLong]:
        """The messages that are whole now. Raises BadLine."""
        *ends, rest = received.split(b"\n")
        for end in ends:
            self._keep(end)
            begun, size = self._begun, self._size
            self._begun, self._size = [], 0
            yield _parsed(b"".join(begun)) if size < LINE_BYTES else _told(begun[0])
        self._keep(rest)

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size < LINE_BYTES:
            self._begun.append(piece)
        else:
            self._begun = [b"".join([*self._begun, piece])[:HEAD_BYTES]]


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError:
        message = _python_json(line)
    if not isinstance(message, dict):
        raise BadLine
    return message


def _python_json(line: bytes) -> Any:
    """Python's own json writes NaN, numbers beyond a double, and halves of surrogate pairs, which are no JSON that
    everybody reads: null, null, and `?`."""
    try:
        given = json.loads(line, parse_constant=lambda _: None, parse_int=_integer, parse_float=_finite)
        return orjson.loads(json.dumps(given, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        raise BadLine from None


def _integer(digits: str) -> int | float | None:
    return int(digits) if len(digits) < MANY_DIGITS else _finite(digits)


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _told(head: bytes) -> TooLong:
    run = re.search(rb'"run": ?"((?:[^"\\]){1,200})"', head)
    reply = re.match(rb'\{"op": ?"reply",.*?"id": ?(\d{1,15})', head)
    return TooLong(run[1].decode(errors="replace") if run else None, int(reply[1]) if reply else None)
