"""Several producers of one stream, beside everything else that can happen to it: broker/log/scripts/produce.lua.

A producer numbers its requests within a session (its epoch), and may send the next before the last is answered. So
requests arrive in any order, and each may arrive again: its answer was lost, or a proxy repeated it. A newer session of
the same producer may begin while the older one still sends. An application may number its own appends (Stream-Seq).

Nobody puts back what Redis loses: a producer that was told of a request asks for the next one, and is told of the hole.
What must hold without a writer of its own is that no id ever names two events, and that no request is in the log twice,
out of order, or confirmed though it is not there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from tests.protocol.model import (
    ALL_RULES,
    LOOKED,
    NEW,
    SETTLED,
    Answer,
    Event,
    Producer,
    Rules,
    Server,
    Steps,
    Stream,
)
from tests.protocol.search import BLOCK, CANCEL, LEASE_BLOCKS, Trace, Violation, _path, _uncollected

HEARTBEATS_BLOCKS = 2
"""Two heartbeats, in blocks of ids: see LEASE_BLOCKS."""


class Request(NamedTuple):
    """`seq`: a Stream-Seq, or ''. `times`: how often it has arrived."""

    producer: Producer
    seq: str = ""
    closes: bool = False

    @property
    def event(self) -> Event:
        return Event("ds.message", f"{self.producer.id}{self.producer.epoch}.{self.producer.seq}")


class Bounds(NamedTuple):
    """`requests`: all that are ever sent, in the order in which each session sends its own."""

    requests: tuple[Request, ...]
    rollbacks: int = 1
    cancels: int = 0
    arrivals: int = 2


class World(NamedTuple):
    """`arrived`: how often each request has. `keeps`: the cancel that a server keeps, and where it was."""

    server: Server
    stream: Stream
    saved: Stream
    arrived: tuple[int, ...]
    ever: tuple[tuple[int, Event], ...]
    rollbacks: int = 0
    keeps: tuple[int, int] | None = None
    has_looked: bool = False
    was_cancelled: bool = False


class ProducerSearch:
    def __init__(self, bounds: Bounds, without: Rules = ALL_RULES) -> None:
        self.bounds = bounds
        self.steps = Steps(BLOCK, without)
        self.states = 0
        self._has = self.steps.has

    def run(self, limit: int | None = None) -> Trace | None:
        """The shortest trace to a violation, or None if there is none within the bounds."""
        with _uncollected():
            return self._run(limit)

    def _run(self, limit: int | None) -> Trace | None:
        server = Server(1)
        stream, _ = self.steps.create_shared(server, None)
        assert stream
        first = World(server, stream, stream, (0,) * len(self.bounds.requests), stream.log)
        came_from: dict[World, tuple[World, str] | None] = {first: None}
        queue = deque([first])
        while queue:
            world = queue.popleft()
            move = ""
            try:
                for move, after in self.moves(world):
                    if after not in came_from:
                        came_from[after] = (world, move)
                        queue.append(after)
                        self.states += 1
            except Violation as violation:
                said, move, after = violation.args
                return Trace(said, [*_path(came_from, world), move], after)
            if limit and self.states > limit:
                raise MemoryError(f"more than {limit} states")
        return None

    def moves(self, w: World) -> Iterator[tuple[str, World]]:
        for n, request in enumerate(self.bounds.requests):
            if w.arrived[n] < self.bounds.arrivals:
                yield self._arrives(w, n, request)
        if self.bounds.cancels:
            yield from self._cancel(w)
        if w.rollbacks < self.bounds.rollbacks:
            if w.saved != w.stream:
                yield "Redis saves", w._replace(saved=w.stream)
            yield self._rolled_back(w)
        if w.server.age == NEW and (w.has_looked or not w.keeps):
            server = w.server._replace(age=LOOKED, now=w.server.now + HEARTBEATS_BLOCKS)
            yield "the new server has been in use for two heartbeats", w._replace(server=server)
        if w.server.age == LOOKED:
            server = w.server._replace(age=SETTLED, now=w.server.now + LEASE_BLOCKS - HEARTBEATS_BLOCKS)
            yield "the new server has been in use for a lease", w._replace(server=server)

    def _arrives(self, w: World, n: int, request: Request) -> tuple[str, World]:
        stream, answer = self.steps.produce(
            w.server, w.stream, request.producer, (request.event,), seq=request.seq, closes=request.closes
        )
        assert stream
        move = f"{request.event.data} arrives → {' '.join(map(str, answer))}"
        arrived = (*w.arrived[:n], w.arrived[n] + 1, *w.arrived[n + 1 :])
        after = self._changed(w._replace(arrived=arrived), stream, move)
        self._check_answer(after, request, answer, move)
        return move, after

    def _check_answer(self, w: World, request: Request, answer: Answer, move: str) -> None:
        is_there = any(event == request.event for _, event in w.stream.log)
        if answer[0] == "OK" and not is_there:
            raise Violation(f"D1: {request.event.data} is confirmed, and not in the log", move, w)

    def _cancel(self, w: World) -> Iterator[tuple[str, World]]:
        if not w.was_cancelled:
            stream, answer = self.steps.seize(w.server, w.stream, "x", CANCEL)
            if answer[0] == "OK" and not answer[4]:
                after = self._changed(w, stream, "a cancel")
                yield "a cancel", after._replace(keeps=(answer[2], answer[3]), has_looked=True, was_cancelled=True)
        if w.keeps and not w.has_looked:
            stream, answer = self.steps.seize_again(w.server, w.stream, "x", CANCEL, *w.keeps)
            if answer[0] == "OK":
                move = "the cancel is looked at"
                if answer[4]:
                    raise Violation(f"G3: it was cancelled, and is {w.stream.state}", move, w)
                yield move, self._changed(w, stream, move)._replace(has_looked=True)
        if w.keeps and w.has_looked:
            yield "the cancel was kept for a lease", w._replace(keeps=None, saved=w.stream)

    def _rolled_back(self, w: World) -> tuple[str, World]:
        stream = w.saved
        if not self._has("producers are in the log's step"):
            stream = stream._replace(shared=w.stream.shared)
        server = self.steps.restart(w.server, cleanly=False)
        move = f"Redis restarts, rolled back to {[id for id, _ in stream.log]}"
        return move, w._replace(server=server, stream=stream, rollbacks=w.rollbacks + 1, has_looked=False)

    def _changed(self, w: World, stream: Stream | None, move: str) -> World:
        assert stream
        added = stream.log[len(w.stream.log) :]
        if added and w.stream.is_over:
            raise Violation("G3: an event follows the ending", move, w)
        ever = dict(w.ever)
        for id, event in added:
            if ever.setdefault(id, event) != event:
                raise Violation(f"G1: id {id} was {ever[id].data} and is now {event.data}", move, w)
        self._check_log(stream, w, move)
        return w._replace(stream=stream, ever=tuple(sorted(ever.items())))

    def _check_log(self, stream: Stream, w: World, move: str) -> None:
        by_event = {request.event: request for request in self.bounds.requests}
        there = [by_event[event] for _, event in stream.log if event in by_event]
        if len(there) > len(set(there)):
            raise Violation("D2: a request is in the log twice", move, w)
        newest: dict[str, Producer] = {}
        for request in there:
            new, last = request.producer, newest.get(request.producer.id)
            if last and new.epoch < last.epoch:
                raise Violation("D3: an older session writes behind a newer one", move, w)
            expected = last.seq + 1 if last and last.epoch == new.epoch else 0
            if new.seq > expected:
                raise Violation("D4: a request is in the log, and the one before it is not", move, w)
            newest[new.id] = new
        numbered = [request.seq for request in there if request.seq]
        if numbered != sorted(set(numbered)):
            raise Violation("D5: a Stream-Seq is not larger than the one before it", move, w)


def sent(id: str, epoch: int, count: int, *, closes: bool = False) -> tuple[Request, ...]:
    """A session's requests. `closes`: the last of them closes the stream."""
    return tuple(Request(Producer(id, epoch, seq), closes=closes and seq == count - 1) for seq in range(count))
