"""first_token: what Lastevent adds between a model's words and a client's screen.

First, how long after POST the first text reaches the client, and where the time goes: one client, one generation at a
time, the SSE form of POST, a stand-in that answers at once (ttft_ms=0). The parts are told apart by the stream's own
times (Redis TIME): created → started is the queue, arq's poll above all; started → first text is the worker and the
provider; what is left is HTTP, the log and the way to the viewer.

Then, once generations run: from the provider's write of a text delta to the client's read of it. The provider is a
process of its own (load/provider.py), and so are the worker, Redis and the server, as `lastevent up` starts them.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from statistics import median
from typing import NamedTuple

import httpx2

from bench.deployment import running
from bench.load.provider import STAMP_DIGITS
from bench.processes import free_port, start, wait_for_port
from bench.scenario import Options
from bench.table import Table, number, p99

GENERATIONS, GENERATIONS_SHORT = 60, 5
ROUNDS = 5
WARM_UP = 20
BODY = json.dumps({"prompt": "[[tokens=3 rate=0 ttft_ms=0]]"}).encode()

DELTAS, DELTAS_SHORT = 200, 20
RATE = 50.0
AT_A_TIME = (1, 50)
SKIPPED_DELTAS = 5  # of each generation: it has begun, now it runs
TARGET_MS = 5.0
LIMIT_S = 60.0


def first_token(options: Options) -> list[Table]:
    return [_first_text(options), _running_text(options)]


# -- the first text ------------------------------------------------------------------------------------


class Sample(NamedTuple):
    total_ms: float
    queue_ms: float
    worker_ms: float


def _first_text(options: Options) -> Table:
    rounds = 1 if options.short else options.rounds or ROUNDS
    generations = GENERATIONS_SHORT if options.short else GENERATIONS
    with running() as port:
        for _ in range(WARM_UP):
            _measure(port)
        samples = [[_measure(port) for _ in range(generations)] for _ in range(rounds)]
    rows = [_row(f"round {at + 1}", of) for at, of in enumerate(samples)]
    rows.append(_row("all", [sample for of in samples for sample in of]))
    return Table(
        f"first_token: POST to the first text_delta, {rounds} rounds of {generations}, one at a time",
        ("", "median ms", "p99 ms", "of it: arq's queue", "worker and provider"),
        rows,
    )


def _row(name: str, samples: list[Sample]) -> list[str]:
    total = [sample.total_ms for sample in samples]
    parts = median(s.queue_ms for s in samples), median(s.worker_ms for s in samples)
    return [name, number(median(total)), number(p99(total)), *map(number, parts)]


def _measure(port: int) -> Sample:
    began = time.perf_counter()
    with _post(port, BODY) as connection:
        received = b""
        while b"event: text_delta" not in received:
            received += connection.recv(65536)
        total_ms = (time.perf_counter() - began) * 1000
        while connection.recv(65536):
            pass
    location = received.split(b"location: ", 1)[1].split(b"\r\n", 1)[0].decode()
    record = httpx2.get(f"http://127.0.0.1:{port}{location}", trust_env=False).json()
    created, started, first = (
        datetime.fromisoformat(record[f"{name}_at"]) for name in ("created", "started", "first_text")
    )
    return Sample(total_ms, _ms(created, started), _ms(started, first))


def _post(port: int, body: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(
        b"POST /v1/streams HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
        b"Content-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    return connection


def _ms(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds() * 1000


# -- while it runs -------------------------------------------------------------------------------------


def _running_text(options: Options) -> Table:
    deltas = DELTAS_SHORT if options.short else DELTAS
    rows, failures = [], []
    with ExitStack() as stack:
        provider_port = free_port()
        argv = [sys.executable, "-m", "bench.load.provider", str(provider_port), str(deltas), str(RATE)]
        wait_for_port(provider_port, start(stack, argv))
        port = stack.enter_context(
            running(ANTHROPIC_BASE_URL=f"http://127.0.0.1:{provider_port}", ANTHROPIC_API_KEY="x")
        )
        _read_deltas(port, 1)
        for generations in AT_A_TIME:
            print(f"  … {generations} generations at {RATE:g} deltas/s", file=sys.stderr)
            read = _read_deltas(port, generations)
            failures += [f"{len(of)} of {deltas} deltas came" for of in read if len(of) != deltas]
            added_ms = [ms for of in read for ms in of[SKIPPED_DELTAS:]]
            rows.append([f"{generations}", *map(number, (median(added_ms), p99(added_ms), max(added_ms)))])
    return Table(
        f"first_token: the provider's write of a delta to the client's read of it, {RATE:g} deltas/s each",
        ("generations at a time", "median ms", "p99 ms", "max ms"),
        rows,
        [f"Target: a median of at most {TARGET_MS:g} ms."],
        failures,
    )


def _read_deltas(port: int, generations: int) -> list[list[float]]:
    """How long each delta of each generation was on its way, in ms."""
    added_ms: dict[int, list[float]] = {}
    unread: dict[int, bytes] = {}
    with ExitStack() as stack, select.epoll() as epoll:
        connections = [
            stack.enter_context(_post(port, json.dumps({"prompt": f"Go on, {n}."}).encode()))
            for n in range(generations)
        ]
        by_fd = {connection.fileno(): connection for connection in connections}
        for fd in by_fd:
            epoll.register(fd, select.EPOLLIN)
            added_ms[fd], unread[fd] = [], b""
        while by_fd:
            ready = epoll.poll(LIMIT_S)
            if not ready:
                raise SystemExit(f"{len(by_fd)} generations wait for their end in vain")
            for fd, _ in ready:
                some = by_fd[fd].recv(65536)
                now_ns = time.time_ns()
                *stamped, unread[fd] = (unread[fd] + some).split(b"\n\n")
                for frame in stamped:
                    _, mark, stamp = frame.partition(b"~")
                    if mark:
                        added_ms[fd].append((now_ns - int(stamp[:STAMP_DIGITS])) / 1e6)
                if not some:
                    epoll.unregister(fd)
                    del by_fd[fd]
    return list(added_ms.values())
