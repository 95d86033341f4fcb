"""python -m bench.load.viewers: thousands of SSE connections in one process, at as little CPU as Python allows.

Raw sockets, one epoll, one buffer. Every event's number is looked at: what is missing, doubled or out of order is
counted. Every eighth is timed, each connection another eighth, so that the samples are spread evenly.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.load.agent import Answer, raise_descriptor_limit, say
from bench.load.stamp import FIRST_N, MARK, SENT, SPAN, N

BUFFER_BYTES = 256 * 1024
TIMED_ONE_IN = 8
CONNECTING_AT_ONCE = 256  # well below any listener's backlog: a dropped SYN would be a second's wait
CONNECTIONS_AN_ADDRESS = 10_000  # of some 28,000 ports that a source address has
RETRY_S = 1.5  # what Lastevent's `retry:` says, on average
LIMIT_S = 60.0


class Viewer:
    __slots__ = (
        *("stream", "path", "address", "sock", "head", "rest"),
        *("last_n", "target", "began_s", "closed_s", "first_byte_s"),
    )

    def __init__(self, stream: int, path: str, address: str) -> None:
        self.stream = stream
        self.path = path
        self.address = address
        self.sock: socket.socket | None = None
        self.last_n = 0
        self.target = 0
        self.began_s = self.closed_s = 0.0
        self.forget()

    def forget(self) -> None:
        """As a new connection begins; what has been received stays received."""
        self.head: bytes | None = b""
        self.rest = b""
        self.first_byte_s = 0.0


class Viewers:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._by_fd: dict[int, Viewer] = {}
        self._viewers: list[Viewer] = []
        self._buffer = bytearray(BUFFER_BYTES)
        self._port = 0
        self._first_event_id = 1
        self._timed = TIMED_ONE_IN
        self._headers = ""
        self._opened = 0
        self._closed = self._missing = self._doubled = 0
        self._events = self._bytes = self._reads = 0
        self._delays_us: list[int] = []
        self._began_s = 0.0

    # -- what can be asked -------------------------------------------------------------------------------

    def connect(
        self, port: int, paths: list[str], each: int, first_event_id: int = 1, key: str = "", timed: int = TIMED_ONE_IN
    ) -> Answer:
        """`each` connections to each path; the answer comes when all have the head of theirs.

        `first_event_id`: of a stream's first published event; where a connection that comes back goes on.
        `timed`: one event in so many.
        """
        self._port, self._first_event_id, self._timed = port, first_event_id, timed
        self._headers = f"Authorization: Bearer {key}\r\n" if key else ""
        everybody = [(stream, path) for stream, path in enumerate(paths) for _ in range(each)]
        self._viewers = [
            Viewer(stream, path, f"127.0.0.{1 + at // CONNECTIONS_AN_ADDRESS}")
            for at, (stream, path) in enumerate(everybody)
        ]
        began_s = time.monotonic()
        self._open_all()
        return {"connected": len(self._viewers), "seconds": time.monotonic() - began_s}

    def begin(self) -> Answer:
        """The measured time begins."""
        self._events = self._bytes = self._reads = 0
        self._delays_us = []
        self._began_s = time.monotonic()
        return {}

    def end(self) -> Answer:
        """What came since `begin`."""
        seconds = time.monotonic() - self._began_s
        return {
            "events": self._events,
            "reads": self._reads,
            "seconds": seconds,
            "delays_us": self._delays_us,
        }

    def finish(self, targets: list[int], limit_s: float) -> Answer:
        """Wait until every viewer has its stream's last event: `targets`, by path."""
        for viewer in self._viewers:
            viewer.target = targets[viewer.stream]
        self._poll_until(self._all_there, limit_s)
        late = sum(max(0, viewer.target - viewer.last_n) for viewer in self._viewers)
        return {"missing": self._missing + late, "doubled": self._doubled, "closed": self._closed}

    def cut(self) -> Answer:
        """Every connection is closed at once."""
        for viewer in self._viewers:
            self._close(viewer)
        return {}

    def come_back(self, targets: list[int]) -> Answer:
        """All at once, each with its cursor, until each has its stream's `targets`: what there was when it came."""
        self.begin()
        self._closed = 0
        for viewer in self._viewers:
            viewer.target = targets[viewer.stream]
            viewer.began_s = time.monotonic()
            self._open(viewer)
        self._poll_until(self._all_there, LIMIT_S, self._open_again)
        return {
            "seconds": time.monotonic() - self._began_s,
            "bytes": self._bytes,
            "events": self._events,
            "turned_away": self._closed,
            "first_byte_ms": [(viewer.first_byte_s - viewer.began_s) * 1000 for viewer in self._viewers],
        }

    # -- the loop ----------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Read events, and answer what is asked, until standard input ends."""
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        while True:
            self._poll(-1, self._answer)

    def _answer(self) -> None:
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        asked: dict[str, Any] = json.loads(line)
        do: dict[str, Callable[..., Answer]] = {
            "connect": self.connect,
            "begin": self.begin,
            "end": self.end,
            "finish": self.finish,
            "cut": self.cut,
            "come_back": self.come_back,
        }
        self._epoll.unregister(sys.stdin.fileno())
        say(do[asked.pop("do")](**asked))
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)

    def _poll(self, timeout_s: float, on_asked: Callable[[], None] | None = None) -> None:
        for fd, events in self._epoll.poll(timeout_s, 1024):
            viewer = self._by_fd.get(fd)
            if viewer is None:
                if on_asked:
                    on_asked()
            elif events & select.EPOLLOUT:
                self._request(fd, viewer)
            else:
                self._read(fd, viewer)

    def _poll_until(
        self, done: Callable[[], bool], limit_s: float, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        deadline = time.monotonic() + limit_s
        while not done() and time.monotonic() < deadline:
            until = time.monotonic() + 0.005  # not after each read: done() looks at every viewer
            while time.monotonic() < until:
                self._poll(0.005)
            meanwhile()

    def _all_there(self) -> bool:
        return all(viewer.last_n >= viewer.target for viewer in self._viewers)

    # -- connections -------------------------------------------------------------------------------------

    def _open_all(self) -> None:
        self._opened = 0
        deadline = time.monotonic() + LIMIT_S
        waiting: Iterator[Viewer] = iter(self._viewers)
        begun = 0
        while self._opened < len(self._viewers):
            while begun - self._opened < CONNECTING_AT_ONCE and (viewer := next(waiting, None)):
                self._open(viewer)
                begun += 1
            self._poll(0.1)
            if time.monotonic() > deadline:
                raise SystemExit(f"{len(self._viewers) - self._opened} viewers are not connected after {LIMIT_S} s")

    def _open(self, viewer: Viewer) -> None:
        viewer.forget()
        viewer.sock = sock = socket.socket()
        sock.setblocking(False)
        # The port is chosen at connect: bound ports would be unique for all destinations together.
        sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        sock.bind((viewer.address, 0))
        sock.connect_ex(("127.0.0.1", self._port))
        self._by_fd[sock.fileno()] = viewer
        self._epoll.register(sock.fileno(), select.EPOLLOUT)

    def _open_again(self) -> None:
        """Who was cut by the server comes back, as an EventSource does."""
        now_s = time.monotonic()
        for viewer in self._viewers:
            if viewer.sock is None and now_s > viewer.closed_s + RETRY_S:
                self._open(viewer)

    def _request(self, fd: int, viewer: Viewer) -> None:
        cursor = f"Last-Event-ID: {self._first_event_id + viewer.last_n - 1}\r\n" if viewer.last_n else ""
        head = f"GET {viewer.path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nAccept: text/event-stream\r\n"
        os.write(fd, f"{head}{self._headers}{cursor}\r\n".encode())
        self._epoll.modify(fd, select.EPOLLIN)

    def _close(self, viewer: Viewer) -> None:
        if viewer.sock:
            self._by_fd.pop(viewer.sock.fileno())
            viewer.sock.close()
            viewer.sock = None
            viewer.closed_s = time.monotonic()
            self._closed += 1

    def _read(self, fd: int, viewer: Viewer) -> None:
        try:
            size = os.readv(fd, [self._buffer])
        except BlockingIOError:  # read meanwhile, while a question was answered
            return
        except ConnectionError:
            size = 0
        if not size:
            self._close(viewer)
            return
        self._bytes += size
        self._reads += 1
        data: bytearray | bytes = self._buffer
        if viewer.head is not None:
            data = self._read_head(viewer, bytes(data[:size]))
            size = len(data)
        if viewer.rest:
            data = viewer.rest + data[:size]
            size = len(data)
        viewer.rest = self._take(fd, viewer, data, size)

    def _read_head(self, viewer: Viewer, data: bytes) -> bytes:
        assert viewer.head is not None
        if not viewer.first_byte_s:
            viewer.first_byte_s = time.monotonic()
        head, end, body = (viewer.head + data).partition(b"\r\n\r\n")
        viewer.head = None if end else head
        if end:
            if not head.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"the answer to {viewer.path} is {head!r}")
            self._opened += 1
        return body

    def _take(self, fd: int, viewer: Viewer, data: bytearray | bytes, size: int) -> bytes:
        """Count and time the events in here; returns what is left of one that is cut off."""
        now_ns = time.time_ns()
        at = data.find(MARK, 0, size)
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
            at = data.find(MARK, at + SPAN, size)
        return b""

    def _note_disorder(self, viewer: Viewer, n: int) -> None:
        if n > viewer.last_n:
            self._missing += n - viewer.last_n - 1
        else:
            self._doubled += 1


if __name__ == "__main__":
    raise_descriptor_limit()
    Viewers().serve()
