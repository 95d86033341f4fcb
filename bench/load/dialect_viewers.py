"""python -m bench.load.dialect_viewers: the same viewers, of whatever form passes texts on (viewers.py)."""

from __future__ import annotations

import time

from bench.load.agent import raise_descriptor_limit
from bench.load.stamp import FIRST_N, MARK, WORDS_N, WORDS_SENT, WORDS_SPAN
from bench.load.viewers import Viewer, Viewers


class DialectViewers(Viewers):
    def _take(self, fd: int, viewer: Viewer, data: bytearray | bytes, size: int) -> bytes:
        now_ns = time.time_ns()
        at = data.find(MARK, 0, size)
        while at >= 0:
            if at + WORDS_SPAN > size:
                return bytes(data[at:size])
            n = int(data[at + WORDS_N.start : at + WORDS_N.stop]) - FIRST_N
            if n != viewer.last_n + 1:
                self._note_disorder(viewer, n)
            viewer.last_n = n
            self._events += 1
            if (n + fd) % self._timed == 0:
                self._delays_us.append((now_ns - int(data[at + WORDS_SENT.start : at + WORDS_SENT.stop])) // 1000)
            at = data.find(MARK, at + WORDS_SPAN, size)
        return b""


if __name__ == "__main__":
    raise_descriptor_limit()
    DialectViewers().serve()
