"""Lastevent: `lastevent serve`, and a publisher whose calls of the log's scripts are a worker's, heartbeats included.

A worker's Python around these calls (StreamWriter, redis-py) is left out: it is no part of what is compared here, and
would take the CPU that the server under test needs. What it costs is in worker.py.

With --against, that commit's own file of this name writes to its server, in a publisher of this work tree: what it
takes from bench/ must stay there, or older commits can no longer be measured.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
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
from broker.log.script import APPEND, EXTEND, RENEW, Script
from broker.log.steps import LEASE_S, Append, Claimed, Unsent
from broker.log.stream_log import StreamLog
from broker.store.connect import connect
from broker.tenants.keyring import DEFAULT_TENANT

OPENED_AT_ONCE = 16  # the pool's connections
BATCH_EVENTS = 256  # of one stream in one call, as in broker/log/writer.py
HEARTBEAT_S = 2.0  # as in worker/heartbeat.py
A_WORKERS_STREAMS = 100  # whose heartbeats leave together; as many as bench/worker.py gives one


class _Stream:
    """One stream's calls: its first events by `append`, then by `extend`, and its heartbeats by `renew`, as its writer
    would."""

    def __init__(self, log: StreamLog, claimed: Claimed) -> None:
        self.sid = claimed.sid
        self._log = log
        self._claimed = claimed
        self._next_id = claimed.tail + 1
        self._length, self._bytes = claimed.events, claimed.bytes
        self._is_known = False
        self.gathered: list[tuple[bytes, bytes]] = []
        """Packed, and the event's data."""
        # What does not change from call to call, packed once.
        self._extend_head = self._call_head(EXTEND, claimed.pen.claim_id)
        self._renew_head = self._call_head(RENEW, claimed.pen.claim_id, round(LEASE_S * 1000), "")

    def call(self, t: int) -> bytes:
        events, self.gathered = self.gathered[:BATCH_EVENTS], self.gathered[BATCH_EVENTS:]
        call = self._extend(events, t) if self._is_known else self._append(events)
        self._is_known = True
        self._next_id += len(events)
        self._length += len(events)
        self._bytes += sum([len(data) for _, data in events])
        return call

    def heartbeat(self) -> bytes:
        if not self._is_known:
            return self._append([])
        count, head = self._renew_head
        return b"*%d\r\n%b%b" % (count + 3, head, packed(self._length, self._next_id - 1, self._bytes))

    def _extend(self, events: Sequence[tuple[bytes, bytes]], t: int) -> bytes:
        parts = [b"%b%b" % (packed(id), said) for id, (said, _) in enumerate(events, self._next_id)]
        count, head = self._extend_head
        return b"*%d\r\n%b%b%b" % (count + 2 + 3 * len(events), head, packed(self._length, t), b"".join(parts))

    def _append(self, events: Sequence[tuple[bytes, bytes]]) -> bytes:
        sid, pen = self._claimed.sid, self._claimed.pen
        unsent = [Unsent(TEXT_DELTA, data) for _, data in events]
        call = self._log.append_call(Append(sid, pen, self._next_id, unsent, bytes_before=self._bytes))
        count, head = self._call_head(APPEND, *call.args)
        return b"*%d\r\n%b" % (count, head)

    def _call_head(self, script: Script, *arguments: object) -> tuple[int, bytes]:
        """How many words, and the words packed."""
        words = ("EVALSHA", script.sha, script.keys, *self._log.keys.stream(self.sid)[: script.keys], *arguments)
        return len(words), packed(*words)


class LasteventSink:
    def __init__(self, address: str) -> None:
        port, _, tenant = address.partition("/")
        self._port, self._tenant = int(port), tenant or DEFAULT_TENANT
        self._streams: list[_Stream] = []
        self._dirty: dict[_Stream, None] = {}  # a set that keeps its order
        self._due: deque[tuple[float, Sequence[_Stream]]] = deque()
        self._gathered = 0
        self._pipeline: Pipeline

    async def open(self, streams: int) -> list[str]:
        self._pipeline = await open_pipeline(self._port, self._take, _is_taken)
        log = StreamLog(connect(f"redis://127.0.0.1:{self._port}"), max_events=1_000_000, max_bytes=2**30)
        for script in (APPEND, EXTEND, RENEW):
            await log.redis.script_load(script.text)
        slots = asyncio.Semaphore(OPENED_AT_ONCE)
        self._streams = await asyncio.gather(*(_open(log, self._tenant, slots) for _ in range(streams)))
        return [f"/v1/streams/{stream.sid}/events" for stream in self._streams]

    data = staticmethod(stamp.event_json)
    """Of an event, by its number."""

    def write(self, stream: int, n: int) -> None:
        to = self._streams[stream]
        data = self.data(n)
        to.gathered.append((_KIND + packed(data), data))
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
        t = time.time_ns() // 1_000_000  # this machine's clock is Redis'
        calls = [stream.call(t) for stream in dirty]
        self._dirty = {stream: None for stream in dirty if stream.gathered}
        self._gathered = sum(len(stream.gathered) for stream in self._dirty)
        return calls + self._heartbeats(), before - self._gathered

    def _heartbeats(self) -> list[bytes]:
        """Those that are due, from the first events on: a worker's together, and the workers one after the other."""
        now_s, beats = time.monotonic(), []
        if not self._due:
            firsts = range(0, len(self._streams), A_WORKERS_STREAMS)
            workers = [self._streams[first : first + A_WORKERS_STREAMS] for first in firsts]
            self._due.extend((now_s + n * HEARTBEAT_S / len(workers), of) for n, of in enumerate(workers, 1))
        while self._due[0][0] <= now_s:
            _, streams = self._due.popleft()
            self._due.append((now_s + HEARTBEAT_S, streams))
            beats += [stream.heartbeat() for stream in streams]
        return beats


_KIND = packed(TEXT_DELTA)


def _is_taken(answer: Any) -> bool:
    """`append` answers an array, the short ways a number: 0 says that nothing was done."""
    return answer[0] == b"OK" if isinstance(answer, list) else isinstance(answer, int) and answer > 0


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
