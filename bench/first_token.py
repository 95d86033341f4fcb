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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from statistics import fmean, median
from typing import NamedTuple

import httpx2

from bench.deployment import running
from bench.load.provider import STAMP_DIGITS
from bench.ports import free_port
from bench.processes import start, wait_for_port
from bench.scenario import Measured, Options, Pairing
from bench.table import Table, number, p99
from bench.tree import HERE, Tree

GENERATIONS, GENERATIONS_SHORT = 60, 5
ROUNDS = 5
WARM_UP = 20
BODY = json.dumps({"prompt": "[[tokens=3 rate=0 ttft_ms=0]]"}).encode()

DELTAS, DELTAS_SHORT = 200, 20
RATE = 50.0
AT_A_TIME = (1, 50)
DELAYS = ("median ms", "p99 ms", "max ms")
SKIPPED_DELTAS = 5  # of each generation: it has begun, now it runs
TARGET_MS = 5.0
LIMIT_S = 60.0


def first_token(options: Options) -> list[Table]:
    return [_first_text(options), _running_text(options)]


def first_token_paired(options: Options) -> list[Pairing]:
    return [
        Pairing(
            f"first_token: POST to the first text_delta, {_generations(options)} a round, one at a time",
            partial(_first_text_once, options),
        ),
        Pairing(
            f"first_token: the provider's write of a delta to the client's read of it, {RATE:g} deltas/s each",
            partial(_running_text_once, options),
        ),
    ]


# -- the first text ------------------------------------------------------------------------------------


class Sample(NamedTuple):
    total_ms: float
    queue_ms: float
    worker_ms: float


def _first_text(options: Options) -> Table:
    rounds = 1 if options.short else options.rounds or ROUNDS
    generations = _generations(options)
    with _warm(HERE) as port:
        samples = [[_measure(port) for _ in range(generations)] for _ in range(rounds)]
    rows = [_row(f"round {at + 1}", of) for at, of in enumerate(samples)]
    rows.append(_row("all", [sample for of in samples for sample in of]))
    return Table(
        f"first_token: POST to the first text_delta, {rounds} rounds of {generations}, one at a time",
        ("", "median ms", "p99 ms", "of it: arq's queue", "worker and provider"),
        rows,
    )


def _first_text_once(options: Options, tree: Tree) -> Measured:
    with _warm(tree) as port:
        samples = [_measure(port) for _ in range(_generations(options))]
    total = [sample.total_ms for sample in samples]
    figures = {
        "median ms": median(total),
        "p99 ms": p99(total),
        # Records give whole milliseconds: a median would jump by a third where a mean moves by what has changed.
        "of it: arq's queue, mean ms": fmean(sample.queue_ms for sample in samples),
        "worker and provider, mean ms": fmean(sample.worker_ms for sample in samples),
    }
    return Measured(figures)


def _generations(options: Options) -> int:
    return GENERATIONS_SHORT if options.short else GENERATIONS


@contextmanager
def _warm(tree: Tree) -> Iterator[int]:
    """The port of a Lastevent that has generated before."""
    with running(tree) as port:
        for _ in range(WARM_UP):
            _measure(port)
        yield port


def _row(name: str, samples: list[Sample]) -> list[str]:
    total = [sample.total_ms for sample in samples]
    parts = median(s.queue_ms for s in samples), median(s.worker_ms for s in samples)
    return [name, number(median(total)), number(p99(total)), *map(number, parts)]


def first_text_ms(port: int) -> float:
    """From POST to the first text, of a generation that is read no further."""
    began = time.perf_counter()
    with _post(port, BODY) as connection:
        _read_until_text(connection)
    return (time.perf_counter() - began) * 1000


def _read_until_text(connection: socket.socket) -> bytes:
    received = b""
    while b"event: text_delta" not in received:
        received += connection.recv(65536)
    return received


def _measure(port: int) -> Sample:
    began = time.perf_counter()
    with _post(port, BODY) as connection:
        received = _read_until_text(connection)
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
    rows, failures = [], []
    with _speaking(HERE, options) as port:
        for generations in AT_A_TIME:
            print(f"  … {generations} generations at {RATE:g} deltas/s", file=sys.stderr)
            figures, wrong = _delays(port, generations, options)
            failures += wrong
            rows.append([f"{generations}", *map(number, figures.values())])
    return Table(
        f"first_token: the provider's write of a delta to the client's read of it, {RATE:g} deltas/s each",
        ("generations at a time", *DELAYS),
        rows,
        [f"Target: a median of at most {TARGET_MS:g} ms."],
        failures,
    )


def _running_text_once(options: Options, tree: Tree) -> Measured:
    figures: dict[str, float] = {}
    failures: list[str] = []
    with _speaking(tree, options) as port:
        for generations in AT_A_TIME:
            delays, wrong = _delays(port, generations, options)
            figures |= {f"{generations} at a time: {name}": ms for name, ms in delays.items()}
            failures += wrong
    return Measured(figures, failures)


@contextmanager
def _speaking(tree: Tree, options: Options) -> Iterator[int]:
    """The port of a Lastevent whose provider stamps each delta, and that has generated before."""
    with ExitStack() as stack:
        provider_port = free_port()
        told = [str(provider_port), str(_deltas(options)), str(RATE), "anthropic"]
        argv = [sys.executable, "-m", "bench.load.provider", *told]
        wait_for_port(provider_port, start(stack, argv))
        provider = {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{provider_port}", "ANTHROPIC_API_KEY": "x"}
        port = stack.enter_context(running(tree, **provider))
        _read_deltas(port, 1)
        yield port


def _deltas(options: Options) -> int:
    return DELTAS_SHORT if options.short else DELTAS


def _delays(port: int, generations: int, options: Options) -> tuple[dict[str, float], list[str]]:
    """How long deltas were on their way, so many generations running at a time; and what went wrong."""
    read, deltas = _read_deltas(port, generations), _deltas(options)
    added_ms = [ms for of in read for ms in of[SKIPPED_DELTAS:]]
    failures = [f"{len(of)} of {deltas} deltas came" for of in read if len(of) != deltas]
    return dict(zip(DELAYS, (median(added_ms), p99(added_ms), max(added_ms)), strict=True)), failures


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
