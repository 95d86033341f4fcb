"""A log's lines (NDJSON: an event, a notice or nothing), from bytes that are cut anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple


class Line(NamedTuple):
    """Without an `id` it is a notice, and has no `t`: ms since 1970."""

    id: int | None
    event: str
    data: Any
    t: int | None


class Lines:
    retry_ms: int | None = None
    """Nobody says it here: what is not to be had has a status, and a Retry-After."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, piece: bytes) -> Iterator[Line]:
        """Each line whose end is there; an empty one is a sign of life. Raises ValueError at one that is no event."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line:
                yield _read(line)


def _read(line: bytes) -> Line:
    try:
        said = json.loads(line)
        return Line(said.get("id"), said["event"], said["data"], said.get("t"))
    except (RecursionError, AttributeError, KeyError):
        raise ValueError("a line is no event") from None
