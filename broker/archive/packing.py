"""How an archived log is stored: events ⇄ one compressed block; and a record without its request. Pure functions.

Column by column (ids and times as differences), since what is alike compresses best side by side: about a seventh of
its NDJSON, where the lines as they stand give a fifth. Data is the last column: a reader needs the others whole, and
takes the data as it goes.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from broker.archive.seal import canonical
from broker.log.event import Event

_COLUMNS = b"\n\n"  # none of the columns has an empty line: ids, times and kinds have none, and data is JSON


FEED_BYTES, PIECE_BYTES = 16 * 1024, 64 * 1024
"""How much is inflated at a time, compressed and inflated: a tenth of a millisecond's work."""


def pack(events: Sequence[Event]) -> bytes:
    columns = (
        b" ".join(b"%d" % step for step in _steps([event.id for event in events])),
        b" ".join(b"%d" % step for step in _steps([event.t for event in events])),
        b" ".join(event.kind.encode() for event in events),
        b"\n".join(event.data for event in events),
    )
    return compress(_COLUMNS.join(columns))


def unpack(block: bytes) -> list[Event]:
    """Raises ValueError for what `pack` has not made."""
    ids, times, kinds, data = decompress(block).split(_COLUMNS)
    columns = (
        accumulate(map(int, ids.split(b" "))),
        kinds.decode().split(" "),
        data.split(b"\n"),
        accumulate(map(int, times.split(b" "))),
    )
    return [Event(*row) for row in zip(*columns, strict=True)]


class Unpacking:
    """The events of a block page by page, each read once; what was not read yet stays compressed.

    To read all of a log so costs about one `unpack`, however many pages it takes. A reader that waits holds the block,
    and the ids, times and kinds as text: some 16 bytes an event.
    """

    def __init__(self, block: bytes) -> None:
        """Reads the whole block once, to check it: meant for a thread.

        Raises ValueError for what `pack` has not made.
        """
        self._inflating = _Inflating(block)
        ids, times, kinds, self._data = self._inflating.columns()
        self.left = _lines(block)
        """How many events were not taken yet."""
        if not self.left == ids.count(b" ") + 1 == times.count(b" ") + 1 == kinds.count(b" ") + 1:
            raise ValueError("its columns do not have the same length")
        self._ids, self._times, self._kinds = _Column(ids), _Column(times), _Column(kinds)
        self._id = self._t = 0

    def take(self, count: int, size: int) -> list[Event]:
        """The next events: `count` at most, and one at least, but none beyond `size` bytes of data. [] at the end.

        Raises ValueError.
        """
        data = self._take_data(min(count, self.left), size)
        self.left -= len(data)
        events = []
        columns = zip(*(column.take(len(data)) for column in (self._ids, self._kinds, self._times)), data, strict=True)
        for id_step, kind, t_step, datum in columns:
            self._id += int(id_step)
            self._t += int(t_step)
            events.append(Event(self._id, kind.decode(), datum, self._t))
        return events

    def _take_data(self, count: int, size: int) -> list[bytes]:
        whole = self._data.count(b"\n")
        while whole < count and (not whole or len(self._data) < size):
            piece = self._inflating.pull()
            if not piece:  # the last line has no line break
                data, self._data = self._data.split(b"\n"), b""
                return data[:count]
            self._data += piece
            whole = self._data.count(b"\n")
        *data, self._data = self._data.split(b"\n", min(count, whole))
        return data


class _Column:
    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0

    def take(self, count: int) -> list[bytes]:
        """The next values, as many as that."""
        if not count:
            return []
        found = re.compile(rb"(?:[^ ]+ ){%d}[^ ]+" % (count - 1)).match(self._text, self._at)
        if not found:
            raise ValueError("a column ends too early")
        self._at = found.end() + 1
        return found[0].split(b" ")


class _Inflating:
    """The content of a block, piece by piece."""

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._fed = 0
        self._inflate = zlib.decompressobj()

    def pull(self) -> bytes:
        """The next PIECE_BYTES at most; b"" at the end. Raises ValueError for a block that was changed."""
        while not self._inflate.eof:
            piece = self._inflate.unconsumed_tail
            if not piece:
                piece = self._block[self._fed : self._fed + FEED_BYTES]
                self._fed += len(piece)
            if not piece:
                raise ValueError("the block was cut short")
            try:
                if content := self._inflate.decompress(piece, PIECE_BYTES):
                    return content
            except zlib.error as error:
                raise ValueError(str(error)) from None
        if self._inflate.unused_data or self._fed < len(self._block):
            raise ValueError("the block does not end where it should")
        return b""

    def columns(self) -> list[bytes]:
        """Ids, times and kinds whole; of the data, the beginning. Raises ValueError."""
        content = b""
        while content.count(_COLUMNS) < 3:
            piece = self.pull()
            if not piece:
                raise ValueError("the block does not hold four columns")
            content += piece
        return content.split(_COLUMNS, 3)


def pack_brief(fields: Mapping[str, str]) -> bytes:
    """The record's fields without its request: what listings and reconnects read."""
    return compress(_brief(fields))


def is_brief_of(brief: bytes, fields: Mapping[str, str]) -> bool:
    """Raises ValueError for what is no compressed block."""
    return decompress(brief) == _brief(fields)


def _brief(fields: Mapping[str, str]) -> bytes:
    return canonical({name: value for name, value in fields.items() if name != "request"})


def _lines(block: bytes) -> int:
    """How many lines of data a block has. It is read to its end, and so checked against its checksum."""
    inflating = _Inflating(block)
    *_, data = inflating.columns()
    lines = 1 + data.count(b"\n")
    while piece := inflating.pull():
        lines += piece.count(b"\n")
    return lines


def compress(content: bytes) -> bytes:
    return zlib.compress(content, 9)


def decompress(block: bytes) -> bytes:
    """Raises ValueError also for a block that was cut short, or that something was added to."""
    whole = zlib.decompressobj()
    try:
        content = whole.decompress(block)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not whole.eof or whole.unused_data:
        raise ValueError("the block does not end where it should")
    return content


def _steps(numbers: Sequence[int]) -> list[int]:
    return [numbers[0], *(after - before for before, after in pairwise(numbers))]
