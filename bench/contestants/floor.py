"""The floor: a Python loop that does nothing but socket.send, the same bytes to as many connections at the same pace.

    python -m bench.contestants.floor PORT

No server in Python that writes each event to each connection as it comes can cost less. It publishes itself: there
is no log, no Redis, no HTTP beyond one answer's head.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from contextlib import ExitStack
from typing import Any

from bench.contestants.side import SERVER, Contestant, Shape, Side
from bench.load import stamp
from bench.load.agent import Answer, python_agent, raise_descriptor_limit, say
from bench.load.publisher import SLACK_S, SLOT_S
from bench.ports import free_port
from bench.processes import wait_for_port

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Floor:
    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=2048)
        self._viewers: list[socket.socket] = []
        self._streams = 0
        self._written = 0
        self._share = 0.0

    def serve(self) -> None:
        while True:
            ready, _, _ = select.select([sys.stdin, self._listener], [], [])
            if self._listener in ready:
                self._accept()
            if sys.stdin in ready:
                self._answer(sys.stdin.readline())

    def _accept(self) -> None:
        viewer, _ = self._listener.accept()
        if viewer.recv(65536):  # a request's head comes in one piece here, or nothing: someone only tried the port
            viewer.sendall(HEAD)
            self._viewers.append(viewer)

    def _answer(self, line: str) -> None:
        if not line:
            sys.exit(0)
        asked: dict[str, Any] = json.loads(line)
        answer: Answer = {}
        match asked:
            case {"do": "open", "streams": streams}:
                self._streams = streams
                answer = {"paths": [f"/{stream}" for stream in range(streams)]}
            case {"do": "go", "rate": rate, "seconds": seconds}:
                say({})
                self._keep_pace(rate * self._streams, seconds)
                return
            case {"do": "finish"}:
                rounds = self._written // self._streams
                answer = {"written": [rounds] * self._streams, "share": self._share}
        say(answer)

    def _keep_pace(self, rate: float, seconds: float) -> None:
        each = len(self._viewers) // self._streams
        # Whole rounds: which stream a connection asked for is not looked at.
        total, began_s = round(rate * seconds) // self._streams * self._streams, time.monotonic()
        while self._written < total and time.monotonic() < began_s + seconds + SLACK_S:
            due = min(total, 1 + int((time.monotonic() - began_s) * rate))
            for _ in range(due - self._written):
                n, stream = divmod(self._written, self._streams)
                frame = b"id: %d\nevent: text_delta\ndata: %b\n\n" % (n + 2, stamp.event_json(n + 1))
                chunk = b"%x\r\n%b\r\n" % (len(frame), frame)
                for viewer in self._viewers[stream * each : (stream + 1) * each]:
                    viewer.send(chunk)
                self._written += 1
            time.sleep(SLOT_S)
        self._share = self._written / total


def start_floor(stack: ExitStack, shape: Shape) -> Side:
    port = free_port()
    agent = python_agent(stack, "bench.contestants.floor", str(port))
    wait_for_port(port, agent.pid)
    paths = agent.ask("open", streams=shape.streams)["paths"]
    return Side(port, paths, {SERVER: agent.pid}, [agent])


FLOOR = Contestant("floor: send()", start_floor)


if __name__ == "__main__":
    raise_descriptor_limit()
    Floor(int(sys.argv[1])).serve()
