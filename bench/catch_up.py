"""catch_up: a finished answer of 5,000 events read from its start, by one viewer and by fifty at once.

Each viewer's events are compared with what was written: ids without a hole, and the very text.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from statistics import median
from typing import NamedTuple

from bench.contestants.lastevent import start_server
from bench.contestants.side import REDIS, SERVER
from bench.meter import CpuMeter
from bench.processes import start_redis
from bench.scenario import Options
from bench.table import Table, number
from broker.log.event import DONE, TEXT_DELTA
from broker.log.meta import NewStream, new_claim_id, new_sid
from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit, StreamWriter
from broker.store.connect import connect

EVENTS, EVENTS_SHORT = 5000, 200
READERS = (1, 50)
ROUNDS = 5
LIMIT_S = 60.0
FORMS = {"exact": "", "compact=1": "?compact=1"}


class Reading(NamedTuple):
    """One round: so many viewers, from the first's request to the last's end."""

    seconds: float
    spent_us: dict[str, float]
    bodies: list[bytes]


def catch_up(options: Options) -> list[Table]:
    words = [f" word {n}" for n in range(EVENTS_SHORT if options.short else EVENTS)]
    rounds = 1 if options.short else options.rounds or ROUNDS
    rows, failures = [], []
    with ExitStack() as stack:
        redis_pid, redis_port = start_redis(stack)
        redis_url = f"redis://127.0.0.1:{redis_port}"
        server_pid, port = start_server(stack, redis_url)
        sid = asyncio.run(write_stream(redis_url, words))
        parts = {SERVER: server_pid, REDIS: redis_pid}
        for (form, query), readers in product(FORMS.items(), READERS):
            print(f"  … {form}, {readers} readers", file=sys.stderr)
            path = f"/v1/streams/{sid}/events{query}"
            _, *readings = [_measure(port, path, readers, parts) for _ in range(1 + rounds)]  # the first warms up
            rows.append(_row(form, readers, len(words), readings))
            bodies = [body for reading in readings for body in reading.bodies]
            failures += [wrong for body in bodies if (wrong := _what_is_wrong(body, words, form))]
    return [
        Table(
            f"catch_up: a finished stream of {len(words):,} events, read from its start",
            (
                *("form", "readers", "ms, all of them", "events/s", "KB each"),
                *("server µs/event", "Redis µs/event"),
            ),
            rows,
            [f"Medians of {rounds} rounds. Events are those of the log, even where text arrives merged."],
            failures,
        )
    ]


def _row(form: str, readers: int, events: int, readings: Sequence[Reading]) -> list[str]:
    seconds = median(reading.seconds for reading in readings)
    cpu_us = (median(reading.spent_us[part] for reading in readings) / events / readers for part in (SERVER, REDIS))
    return [
        *(form, f"{readers}", number(seconds * 1000), number(readers * events / seconds)),
        *(number(len(readings[0].bodies[0]) / 1000), *map(number, cpu_us)),
    ]


def _measure(port: int, path: str, readers: int, parts: Mapping[str, int]) -> Reading:
    meter, began_s = CpuMeter(parts), time.monotonic()
    bodies = _read(port, path, readers)
    return Reading(time.monotonic() - began_s, meter.spent_us(), bodies)


async def write_stream(redis_url: str, words: Sequence[str]) -> str:
    """A finished stream of these words; its id."""
    redis = connect(redis_url)
    log, sid = StreamLog(redis), new_sid()
    commit = GroupCommit(log)
    loop = asyncio.create_task(commit.run())
    await log.create(NewStream(sid=sid, tenant="default", session=sid, model="bench/none"))
    writer = StreamWriter(commit, await log.claim(sid, new_claim_id(), "bench"))
    for word in words:
        writer.write(TEXT_DELTA, {"text": word})
    writer.write(DONE, {"stop_reason": "end_turn"})
    await writer.flush()
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    await redis.aclose()
    return sid


def _read(port: int, path: str, readers: int) -> list[bytes]:
    """What each of so many viewers gets, who begin at once, until the last has its end."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n".encode()
    received: dict[int, tuple[socket.socket, bytearray]] = {}
    with ExitStack() as stack, select.epoll() as epoll:
        for _ in range(readers):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(request)
            sock.setblocking(False)
            received[sock.fileno()] = (sock, bytearray())
            epoll.register(sock, select.EPOLLIN)
        unfinished = readers
        while unfinished:
            ready = epoll.poll(LIMIT_S)
            if not ready:
                raise SystemExit(f"{unfinished} viewers wait for their stream's end in vain")
            for fd, _ in ready:
                sock, body = received[fd]
                some = sock.recv(2**18)
                body += some
                if not some or body.endswith(b"0\r\n\r\n"):
                    epoll.unregister(fd)
                    unfinished -= 1
        return [_unchunked(bytes(body)) for _, body in received.values()]


def _unchunked(answer: bytes) -> bytes:
    """The body of an answer in chunks (RFC 9112 §7.1)."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    body = bytearray()
    at = 0
    while at < len(rest):
        end = rest.index(b"\r\n", at)
        size = int(rest[at:end], 16)
        body += rest[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return bytes(body)


def _what_is_wrong(body: bytes, words: Sequence[str], form: str) -> str | None:
    ids, text = [], ""
    for block in body.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        ids.append(int(fields["id"]))
        text += json.loads(fields["data"]).get("text", "")
    last = len(words) + 2  # after `queued`, and with `done`
    if text != "".join(words) or ids[-1] != last:
        return f"{form}: what was read is not what was written"
    if form == "exact" and ids != list(range(1, last + 1)):
        return f"{form}: the ids have holes"
    return None
