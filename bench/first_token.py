"""How long after POST the first text reaches the client, and where the time goes.

One client, one generation at a time, the SSE form of POST, a stand-in that answers at once (ttft_ms=0). The parts
are told apart by the stream's own times (Redis TIME): created → started is the queue, arq's poll above all;
started → first text is the worker and the provider; what is left is HTTP, the log and the way to the viewer.

Seen on 2 shared cores, Python 3.11 (2026-11-21): median 18.3 ms, p99 20.3 ms; arq's queue 14 ms of it (77 %).
"""

from __future__ import annotations

import json
import socket
import time
from datetime import datetime
from statistics import median, quantiles
from typing import NamedTuple

import httpx2

from bench.deployment import running

ROUNDS = 5
GENERATIONS = 60
WARM_UP = 20
BODY = json.dumps({"prompt": "[[tokens=3 rate=0 ttft_ms=0]]"}).encode()


class Sample(NamedTuple):
    total_ms: float
    queue_ms: float
    worker_ms: float


def run() -> None:
    with running() as port:
        for _ in range(WARM_UP):
            _measure(port)
        rounds = [[_measure(port) for _ in range(GENERATIONS)] for _ in range(ROUNDS)]
    print(f"\nFirst text_delta after POST (SSE form), {ROUNDS} rounds of {GENERATIONS}, one at a time; ms")
    for number, samples in enumerate(rounds):
        _report(f"round {number + 1}", samples)
    _report("all", [sample for samples in rounds for sample in samples])


def _report(name: str, samples: list[Sample]) -> None:
    total = [sample.total_ms for sample in samples]
    queue, worker = median(s.queue_ms for s in samples), median(s.worker_ms for s in samples)
    p99 = quantiles(total, n=100)[98]
    share = queue / median(total)
    print(
        f"  {name:8}  median {median(total):6.1f}   p99 {p99:6.1f}   "
        f"of it: arq's queue {queue:5.1f} ({share:.0%}), worker and provider {worker:5.1f}"
    )


def _measure(port: int) -> Sample:
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            b"POST /v1/streams HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
            b"Content-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
        )
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


def _ms(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds() * 1000
