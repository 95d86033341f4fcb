"""Lastevent: `lastevent serve`, and a publisher whose calls of the append script are a worker's, byte for byte.

A worker's Python around these calls (StreamWriter, redis-py) is left out: it is no part of what is compared here, and
would take the CPU that the server under test needs. What it costs is in worker.py.

With --against, that commit's own file of this name writes to its server, in a publisher of this work tree: what it
takes from bench/ must stay there, or older commits can no longer be measured.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from typing import Any

from bench.contestants.side import REDIS, SERVER, Contestant, Shape, Side, open_streams
from bench.load import stamp
from bench.load.pipeline import Gathered, Pipeline, open_pipeline, packed
from bench.ports import free_port
from bench.processes import start, start_redis, wait_for_port
from bench.tree import HERE, Tree
from broker.log.event import TEXT_DELTA
from broker.log.meta import NewStream, new_claim_id, new_sid
from broker.log.script import APPEND
from broker.log.steps import Append, Claimed, Unsent
from broker.log.stream_log import StreamLog
from broker.store.connect import connect
from broker.tenants.keyring import DEFAULT_TENANT

OPENED_AT_ONCE = 16  # the pool's connections
BATCH_EVENTS = 256  # of one stream in one call, as in broker/log/writer.py


class _Stream:
    """One stream's append call, packed but for the number of its first event and the events."""

    def __init__(self, log: StreamLog, claimed: Claimed) -> None:
        self.sid = claimed.sid
        self.next_id = claimed.tail + 1
        self.gathered: list[bytes] = []
        placeholder = 424_242_424_242
        args = log.append_call(Append(claimed.sid, claimed.pen, placeholder, [Unsent(TEXT_DELTA, b"")])).args
        head = ("EVALSHA", APPEND.sha, 3, *log.keys.stream(claimed.sid)[:3], *args[: -len(Unsent._fields)])
        self._arguments = len(head)
        self._before, self._after = packed(*head).split(packed(placeholder))

    def call(self) -> bytes:
        events, self.gathered = self.gathered[:BATCH_EVENTS], self.gathered[BATCH_EVENTS:]
        first, self.next_id = self.next_id, self.next_id + len(events)
        count = self._arguments + len(Unsent._fields) * len(events)
        return b"*%d\r\n%b%b%b%b" % (count, self._before, packed(first), self._after, b"".join(events))


class LasteventSink:
    def __init__(self, address: str) -> None:
        port, _, tenant = address.partition("/")
        self._port, self._tenant = int(port), tenant or DEFAULT_TENANT
        self._streams: list[_Stream] = []
        self._dirty: dict[_Stream, None] = {}  # a set that keeps its order
        self._gathered = 0
        self._pipeline: Pipeline

    async def open(self, streams: int) -> list[str]:
        self._pipeline = await open_pipeline(self._port, self._take, _is_taken)
        log = StreamLog(connect(f"redis://127.0.0.1:{self._port}"), max_events=1_000_000, max_bytes=2**30)
        await log.redis.script_load(APPEND.text)
        slots = asyncio.Semaphore(OPENED_AT_ONCE)
        self._streams = await asyncio.gather(*(_open(log, self._tenant, slots) for _ in range(streams)))
        return [f"/v1/streams/{stream.sid}/events" for stream in self._streams]

    data = staticmethod(stamp.event_json)
    """Of an event, by its number."""

    def write(self, stream: int, n: int) -> None:
        to = self._streams[stream]
        to.gathered.append(_KIND + packed(self.data(n)) + _NO_TIME)
        self._dirty[to] = None
        self._gathered += 1

    def send(self) -> None:
        self._pipeline.send()

    @property
    def untaken(self) -> int:
        return self._gathered + self._pipeline.untaken

    async def flush(self) -> None:
        await self._pipeline.flush()

    def _take(self) -> Gathered:
        dirty, before = self._dirty, self._gathered
        calls = [stream.call() for stream in dirty]
        self._dirty = {stream: None for stream in dirty if stream.gathered}
        self._gathered = sum(len(stream.gathered) for stream in self._dirty)
        return calls, before - self._gathered


_KIND, _NO_TIME = packed(TEXT_DELTA), packed("")


def _is_taken(answer: Any) -> bool:
    return isinstance(answer, list) and answer[0] == b"OK"


async def _open(log: StreamLog, tenant: str, slots: asyncio.Semaphore) -> _Stream:
    async with slots:
        sid = new_sid()
        await log.create(NewStream(sid=sid, tenant=tenant, session=sid, model="bench/none"))
        return _Stream(log, await log.claim(sid, new_claim_id(), "bench"))


def sink(address: str) -> LasteventSink:
    """`address`: Redis' port on loopback; behind a slash, whose streams they are."""
    return LasteventSink(address)


def start_lastevent(
    stack: ExitStack, shape: Shape, *, publishers: int = 1, tree: Tree = HERE, sink: str = "lastevent"
) -> Side:
    redis_pid, redis_port = start_redis(stack)
    redis_url = f"redis://127.0.0.1:{redis_port}"
    server_pid, port = start_server(stack, redis_url, tree)
    agents, paths = open_streams(stack, sink, str(redis_port), shape.streams, publishers, tree)
    # Event 1 of a stream is `queued`.
    return Side(port, paths, {SERVER: server_pid, REDIS: redis_pid}, agents, first_event_id=2)


def start_server(stack: ExitStack, redis_url: str, tree: Tree = HERE, **settings: str) -> tuple[int, int]:
    """One server process; (pid, port)."""
    port = free_port()
    argv = [sys.executable, "-m", "broker", "serve", "--port", str(port)]
    settings = {"LASTEVENT_REDIS_URL": redis_url, **tree.settings, **settings}
    pid = start(stack, argv, cwd=tree.folder, **settings)
    wait_for_port(port, pid)
    return pid, port


LASTEVENT = Contestant("Lastevent", start_lastevent)
