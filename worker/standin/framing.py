"""How the bytes of an answer reach the client: with which line ends, in which pieces, compressed or not."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from worker.standin.directives import Directives

LINE_ENDS = {"lf": b"\n", "cr": b"\r", "crlf": b"\r\n", "torn": b"\r\n"}
GZIP = 31
"""zlib's name for gzip's header, and the largest window."""


class Framing:
    def __init__(self, asked: Directives, line_end: str) -> None:
        """`line_end`: the wire's own, unless another was asked for."""
        line_end = asked.line_end or line_end
        self.is_plain = line_end == "lf" and not asked.piece and not asked.gzip
        self._line_end = LINE_ENDS[line_end]
        self._is_torn = line_end == "torn"
        self._piece_bytes = asked.piece
        self._compressor = zlib.compressobj(wbits=GZIP) if asked.gzip else None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"content-encoding", b"gzip")] if self._compressor else []

    def pieces(self, body: bytes) -> Iterator[bytes]:
        """`body`, as what is written one after the other. The JSON in it has no line end."""
        body = body.replace(b"\n", self._line_end)
        for part in re.split(rb"(?<=\r)", body) if self._is_torn else [body]:
            if self._compressor:
                # Flushed, so that each event can be read as it comes.
                part = self._compressor.compress(part) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
            size = self._piece_bytes or len(part) or 1
            yield from (part[at : at + size] for at in range(0, len(part), size))

    def end(self) -> bytes:
        return self._compressor.flush() if self._compressor else b""
