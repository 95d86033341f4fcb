"""Server-sent events as a provider sends them (WHATWG HTML §9.2.6), with a bound that is looked at as bytes come.

In bytes, since JSON is parsed from bytes. With the SDK's splitting an event costs half as much again, and there is no
bound: it joins a long line again with each chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

from worker.providers.bounds import OutOfBounds

BOM = b"\xef\xbb\xbf"


class EventSplitter:
    """One answer's. Fed with bytes as they come and awaiting nothing, so that the events of one read cost no more."""

    def __init__(self, event_bytes: int) -> None:
        self._event_bytes = event_bytes
        self._name = b""
        self._data: list[bytes] = []
        self._taken = 0  # of this event's complete lines, comments too
        self._pieces: list[bytes] = []  # of a line that is not complete
        self._waiting = 0
        self._after_cr = False
        self._is_first = True

    def feed(self, some: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(its name, its data) of each event that is complete with these bytes. To be read to its end.

        Raises OutOfBounds for an event of more than `event_bytes`, after those before it.
        """
        for line in self._lines(some):
            if self._is_first:
                self._is_first, line = False, line.removeprefix(BOM)
            if not line:
                if self._data:
                    yield self._name, self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                    self._taken = 0
                self._name, self._data = b"", []
            self._taken += len(line) or 1  # of empty lines, or comments, without end too
            if self._taken > self._event_bytes:
                raise OutOfBounds("An event is too long.")
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif field == b"event":
                self._name = value.removeprefix(b" ")
        if self._taken + self._waiting > self._event_bytes:
            raise OutOfBounds("A line is too long.")

    def _lines(self, some: bytes) -> list[bytes]:
        """Those that are complete now, without their ends; the rest waits."""
        if self._after_cr and some.startswith(b"\n"):  # it belongs to the CR that ended a line
            some = some[1:]
        self._after_cr = some.endswith(b"\r")
        if b"\r" in some:
            some = some.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = some.split(b"\n")
        if lines and self._pieces:
            lines[0] = b"".join([*self._pieces, lines[0]])
            self._pieces, self._waiting = [], 0
        if rest:
            self._pieces.append(rest)
            self._waiting += len(rest)
        return lines
