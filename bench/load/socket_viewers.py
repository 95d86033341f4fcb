"""python -m bench.load.socket_viewers: the same viewers on sockets, each with one follow (viewers.py).

A frame's head may hold the mark's byte (0x7E stands for "two bytes of length follow"), so a longer mark is looked for.
"""

from __future__ import annotations

import json
import os
import select
import time

from bench.load.agent import raise_descriptor_limit
from bench.load.stamp import FIRST_N, SENT, SPAN, TEXT, N
from bench.load.viewers import Viewer, Viewers

LONG_MARK = TEXT.encode()[:4]

PING, PONG = b"\x89\x00", b"\x8a\x80\x00\x00\x00\x00"
"""Without a payload. Who does not answer is dead to a server."""


class SocketViewers(Viewers):
    def _request(self, fd: int, viewer: Viewer) -> None:
        head = (
            f"GET /v1/socket HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{self._headers}\r\n"
        )
        sid = viewer.path.split("/")[3]  # of /v1/streams/{id}/events
        cursor = self._first_event_id + viewer.last_n - 1 if viewer.last_n else 0
        os.write(fd, head.encode() + _frame({"op": "follow", "stream": sid, "cursor": cursor}))
        self._epoll.modify(fd, select.EPOLLIN)

    def _read_head(self, viewer: Viewer, data: bytes) -> bytes:
        """The head's end is that of the `ok`, from which on it follows: so do the others when they have their head."""
        assert viewer.head is not None
        if not viewer.first_byte_s:
            viewer.first_byte_s = time.monotonic()
        seen = viewer.head + data
        head, end, frames = seen.partition(b"\r\n\r\n")
        if end and not head.startswith(b"HTTP/1.1 101 "):
            raise SystemExit(f"the answer of /v1/socket is {head!r}")
        if b'"event":"refused"' in frames:
            raise SystemExit(f"a follow of {viewer.path} is refused: {frames!r}")
        _, followed, rest = frames.partition(b'"event":"ok"')
        viewer.head = None if followed else seen
        self._opened += bool(followed)
        return rest

    def _take(self, fd: int, viewer: Viewer, data: bytearray | bytes, size: int) -> bytes:
        now_ns = time.time_ns()
        if data.find(PING, 0, size) >= 0:
            os.write(fd, PONG)
        at = data.find(LONG_MARK, 0, size)
        end = 0
        while at >= 0:
            if at + SPAN > size:
                return bytes(data[at:size])
            n = int(data[at + N.start : at + N.stop]) - FIRST_N
            if n != viewer.last_n + 1:
                self._note_disorder(viewer, n)
            viewer.last_n = n
            self._events += 1
            if (n + fd) % self._timed == 0:
                self._delays_us.append((now_ns - int(data[at + SENT.start : at + SENT.stop])) // 1000)
            end = at + SPAN
            at = data.find(LONG_MARK, end, size)
        return bytes(data[max(end, size - len(LONG_MARK) + 1) : size])  # it may have begun


def _frame(asked: dict[str, object]) -> bytes:
    """A client's text frame, with a mask of zeros (RFC 6455 §5.2)."""
    payload = json.dumps(asked).encode()
    assert len(payload) < 126
    return bytes([0x81, 0x80 | len(payload)]) + bytes(4) + payload


if __name__ == "__main__":
    raise_descriptor_limit()
    SocketViewers().serve()
