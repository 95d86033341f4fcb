"""Server-Sent Events (WHATWG HTML, 9.2.6), from bytes that are cut anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

_BOM = b"\xef\xbb\xbf"
_LONGEST_NUMBER = 16

_value_of = json.JSONDecoder().decode
"""As json.loads, without a look at what it was given: a twentieth of what an event costs."""


class Frame(NamedTuple):
    """Without an `id:` of its own it is a notice."""

    id: int | None
    event: str
    data: Any


class Frames:
    def __init__(self) -> None:
        self.retry_ms: int | None = None
        """What `retry:` said last, outside of a frame. One in a frame is for clients that do not stop at the ending."""
        self._rest = b""
        self._was_cr = False
        self._is_first = True
        self._id: int | None = None
        self._event = ""
        self._data: list[bytes] = []

    def push(self, piece: bytes) -> Iterator[Frame]:
        """Each frame whose blank line is there and that has data. Raises ValueError at data that is no JSON.

        Lines are cut as bytes and decoded whole. What follows a frame is not looked at before the next one is asked
        for; then the iterator is to be taken to its end.
        """
        if self._was_cr and piece[:1] == b"\n":  # the CR of a CRLF has ended the line
            piece = piece[1:]
            self._was_cr = False
        if not piece:
            return
        lines = (self._rest + piece).splitlines()  # of bytes: at LF, CR and CRLF, and nowhere else
        self._was_cr = piece.endswith(b"\r")
        self._rest = b"" if self._was_cr or piece.endswith(b"\n") else lines.pop()
        for line in lines:
            if line:
                self._take(line)
            elif self._data:
                yield self._framed()
            else:
                self._id, self._event = None, ""

    def _take(self, line: bytes) -> None:
        if self._is_first:
            line = line.removeprefix(_BOM)
            self._is_first = False
        field, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._event = value.decode(errors="replace")
        elif field == b"id":
            self._id = _number(value)
        elif field == b"retry" and not self._event:
            retry_ms = _number(value)
            self.retry_ms = self.retry_ms if retry_ms is None else retry_ms

    def _framed(self) -> Frame:
        text = b"\n".join(self._data).decode(errors="replace")
        number, event = self._id, self._event or "message"
        self._id, self._event, self._data = None, "", []
        try:
            return Frame(number, event, _value_of(text))
        except RecursionError:
            raise ValueError("data is nested too deeply") from None


def _number(digits: bytes) -> int | None:
    return int(digits) if digits.isdigit() and len(digits) <= _LONGEST_NUMBER else None
