"""Everything that can happen to one stream, within bounds: workers, a cancel, a viewer, and a Redis that loses its end
or restarts cleanly.

A breadth-first search over worlds, so that the first violation found is a shortest one. Each move is one step of
model.py done by somebody, or something that befalls them. What each move assumes about time stands at the move.

One viewer is enough: viewers change nothing, and every property speaks of one of them. Two that differ are two runs.
"""

from __future__ import annotations

import gc
import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from tests.protocol.model import (
    ALL_RULES,
    LOOKED,
    NEW,
    SETTLED,
    TERMINAL,
    Answer,
    Event,
    Pen,
    Rules,
    Server,
    Steps,
    Stream,
)

BLOCK = 10
LEASE_BLOCKS = 4
HEARTBEATS_BLOCKS = 2
"""A lease is 6 s, a block of ids a second: in a lease the clock moves on by more blocks than pens can change hands."""

GAP = 0
"""In what a viewer got: a `gap` notice."""


class Bounds(NamedTuple):
    workers: int = 2
    texts: int = 1
    endings: bool = True
    rollbacks: int = 1
    clean_restarts: int = 0
    cancels: int = 1
    viewer: bool = True
    late_hub: bool = False
    lost_replies: int = 1
    zombies: bool = True
    cut_off: bool = True
    releases: bool = False
    creates_again: bool = False
    given: bool = False  # the stream's id: whoever asks for it creates it, whatever was before
    absences: int = 1
    cursor: int = 0
    counts: int = 0  # of the provider's, in an attempt
    calls: bool = False  # of an agent's tool: calls.py
    idempotent: bool = False


class Worker(NamedTuple):
    name: str
    here: bool = True
    stood_still: bool = False
    claiming: bool = False
    pen: Pen | None = None
    attempt: int = 0
    claimed_under: int = 0
    created: int = 0
    boot: int = 0
    written: int = 0
    kinds: tuple[str, ...] = ()
    ended: bool = False
    confirmed: int = 0
    acked: int = 0
    has_beaten: bool = False
    vanished: bool = False
    lost: bool = False
    kept_enough: bool = False
    counted: int = 0
    found_usage: str = ""
    told_usage: str = ""
    has_told_its_own: bool = False
    has_renewed: bool = True
    length: int = 0  # of the log, as its last answer said; 0: it does not know
    # What the worker does not know, for the properties:
    was_away: bool = False
    was_superseded: bool = False

    def event(self, at: int) -> Event:
        if at < len(self.kinds):
            return Event(self.kinds[at], f'{{"key":"{self.name}{at}"}}')
        return Event("done" if self.ended and at == self.written - 1 else "text_delta", f"{self.name}{at}")

    @property
    def unconfirmed(self) -> tuple[Event, ...]:
        return tuple(self.event(at) for at in range(self.confirmed, self.written))

    @property
    def own_usage(self) -> str:
        """Larger than what any writer before it has counted."""
        return f'{{"usage":"{self.pen.epoch}.{self.counted}"}}' if self.pen and self.counted else ""

    @property
    def acknowledged(self) -> list[tuple[int, Event]]:
        return [(self.pen.base + at, self.event(at)) for at in range(self.acked)] if self.pen else []

    @property
    def writes(self) -> bool:
        return self.here and self.pen is not None and not self.lost and not self.kept_enough

    @property
    def has_healed(self) -> bool:
        return self.has_beaten and not self.vanished and self.confirmed >= self.acked


class Seizer(NamedTuple):
    trying: bool = False
    keeps: bool = False
    has_looked: bool = False
    was_already: bool = False
    at: int = 0
    epoch: int = 0
    data: str = ""
    lost_its_reply: bool = False
    gave_up: bool = False


class Hub(NamedTuple):
    up: bool = False
    ring: tuple[tuple[int, Event], ...] = ()
    ending: tuple[int, Event] | None = None
    last: int = 0  # only a hub that judges by its own cursor keeps it
    under_way: tuple[tuple[tuple[int, Event], ...], ...] = ()
    deaf: bool = False


class Viewer(NamedTuple):
    cursor: int = 0
    has_read: bool = False
    may_read_hole: bool = False
    got: tuple[int, ...] = ()
    closed: tuple[int, Event] | None = None


class World(NamedTuple):
    server: Server
    stream: Stream | None
    saved: Stream | None
    workers: tuple[Worker, ...]
    seizer: Seizer
    hub: Hub
    viewer: Viewer
    ever: tuple[tuple[int, Event], ...]
    rollbacks: int
    lost_replies: int
    absences: int
    clean_restarts: int = 0
    admitted: frozenset[str] = frozenset()
    calls: Any = None


class Violation(Exception):
    """A property does not hold."""


class Trace(NamedTuple):
    violation: str
    moves: list[str]
    world: World

    def __str__(self) -> str:
        return "\n".join([self.violation, *(f"  {n:2} {move}" for n, move in enumerate(self.moves, 1))])


CANCEL = Event("cancelled", '{"by":"x"}')


class Search:
    def __init__(
        self, bounds: Bounds, without: Rules = ALL_RULES, check: Callable[[World], None] | None = None
    ) -> None:
        self.bounds = bounds
        self.steps = Steps(BLOCK, without)
        self.states = 0
        self._has = self.steps.has
        self._check = check or check_all

    def first(self) -> World:
        server = Server(1)
        stream, _ = self.steps.create(server, None, given=self.bounds.given)
        workers = tuple(Worker("abc"[n]) for n in range(self.bounds.workers))
        assert stream
        return World(server, stream, None, workers, Seizer(), Hub(), Viewer(self.bounds.cursor), stream.log, 0, 0, 0)

    def run(self, limit: int | None = None) -> Trace | None:
        """The shortest trace to a violation, or None if there is none within the bounds."""
        with _uncollected():
            return self._run(limit)

    def _run(self, limit: int | None) -> Trace | None:
        first = self.first()
        came_from: dict[World, tuple[World, str] | None] = {first: None}
        queue = deque([first])
        while queue:
            world = queue.popleft()
            moves = self.moves(world)
            while True:
                try:
                    move, after = next(moves)
                    step = (world, move)
                    if came_from.setdefault(after, step) is not step:  # one look-up: each hashes the whole world
                        continue
                    self._check(after)
                except StopIteration:
                    break
                except Violation as violation:
                    move, after = violation.args[1:] if len(violation.args) > 1 else (move, after)
                    return Trace(violation.args[0], [*_path(came_from, world), move], after)
                queue.append(after)
                self.states += 1
                if limit and self.states > limit:
                    raise MemoryError(f"more than {limit} states")
        return None

    # -- moves ---------------------------------------------------------------------------------------

    def moves(self, w: World) -> Iterator[tuple[str, World]]:
        for n, worker in enumerate(w.workers):
            if n and w.workers[n - 1].pen is None and not w.workers[n - 1].claiming:
                break  # which of them comes first makes no difference
            yield from self._worker_moves(w, n, worker)
        yield from self._seizer_moves(w)
        yield from self._redis_moves(w)
        if self.bounds.viewer:
            yield from self._viewer_moves(w)

    def _worker_moves(self, w: World, n: int, me: Worker) -> Iterator[tuple[str, World]]:
        if not me.here:
            # Away for longer than a lease, or for ever. Stopped: the process notices it. Cut off: it may not.
            if self.bounds.zombies and me.pen:
                yield f"{me.name} goes on after standing still", _with(w, n, me._replace(here=True, stood_still=True))
            if self.bounds.cut_off or not me.pen:
                yield f"{me.name} reaches Redis again", _with(w, n, me._replace(here=True))
            return
        if me.pen is None and not me.lost:
            yield from self._claim(w, n, me)
        if me.writes:
            yield from self._writer_moves(w, n, me)
        if w.absences < self.bounds.absences and (me.claiming or me.writes):
            away = me._replace(here=False, was_away=True)
            yield f"{me.name} is stopped, dead or cut off", _with(w, n, away)._replace(absences=w.absences + 1)

    def _claim(self, w: World, n: int, me: Worker) -> Iterator[tuple[str, World]]:
        stream, answer = self.steps.claim(w.server, w.stream, me.name)
        if answer[0] == "OK":
            _, pen, tail, attempt = answer
            assert stream
            w = self._changed(w, stream, f"{me.name} claims", by=n)
            if w.lost_replies < self.bounds.lost_replies and not me.claiming:
                yield (
                    f"{me.name} claims {_pen(pen)}; the reply is lost",
                    _with(w, n, me._replace(claiming=True, claimed_under=w.server.id))._replace(
                        lost_replies=w.lost_replies + 1
                    ),
                )
            claimed = me._replace(claiming=False, pen=pen, attempt=attempt, claimed_under=w.server.id, has_beaten=True)
            length = 0 if self._has("extend: a pen's first events go the whole way") else len(stream.log)
            claimed = claimed._replace(created=stream.created, boot=stream.boot, length=length)
            claimed = claimed._replace(found_usage=stream.usage, told_usage=stream.usage)
            if tail < pen.base:
                yield f"{me.name} claims {_pen(pen)}", _with(w, n, claimed)

    def _writer_moves(self, w: World, n: int, me: Worker) -> Iterator[tuple[str, World]]:
        if me.vanished:
            yield from self._restore(w, n, me)
            return
        if not me.ended:
            if me.written < self.bounds.texts:
                writes = me._replace(written=me.written + 1)
                yield from self._send(w, n, writes, "writes a text")
                yield from self._extend(w, n, writes, "writes a text")
            if self.bounds.endings:
                yield from self._send(w, n, me._replace(written=me.written + 1, ended=True), "ends the stream")
            if me.counted < self.bounds.counts:
                yield f"{me.name} counts", _with(w, n, me._replace(counted=me.counted + 1))
        if me.unconfirmed:
            yield from self._send(w, n, me, "sends again")
            yield from self._extend(w, n, me, "sends again")
        yield from self._send(w, n, me, "renews", renew=True)
        yield from self._renew(w, n, me)
        if me.ended and me.has_healed and not me.unconfirmed and self._has("ending kept"):
            # A renewal more than a lease after the ending was confirmed: from here on Redis keeps it (saved).
            yield (
                f"{me.name} has kept its ending for a lease",
                _with(w, n, me._replace(kept_enough=True))._replace(saved=w.stream),
            )
        if me.ended and not me.unconfirmed and not self._has("ending kept"):
            yield f"{me.name} keeps nothing", _with(w, n, me._replace(kept_enough=True))
        if self.bounds.releases and not me.ended:
            assert me.pen
            stream, answer = self.steps.release(w.server, w.stream, me.pen)
            if answer[0] == "OK":
                move, gone = f"{me.name} releases", _gone(me._replace(was_away=True))
                yield move, _with(self._changed(w, stream, move, by=n), n, gone)

    def _send(self, w: World, n: int, me: Worker, what: str, *, renew: bool = False) -> Iterator[tuple[str, World]]:
        events = () if renew else me.unconfirmed
        usage = self._usage_sent(me, renew=renew)
        assert me.pen
        stream, answer = self.steps.append(
            w.server,
            w.stream,
            me.pen,
            me.pen.base + me.confirmed,
            events,
            stood_still_since=me.claimed_under if me.stood_still else None,
            attempt=me.attempt,
            healed=max(0, me.acked - me.confirmed),
            usage=usage,
        )
        if answer[0] == "HEALING" and me.written > w.workers[n].written:
            return  # as good as not written yet
        move = f"{me.name} {what} → {_words(answer)}"
        after = self._changed(w, stream, move, by=n)
        settled = self._settled(w, me, answer, renew=renew)
        if usage and answer[0] == "OK" and answer[2] not in TERMINAL:
            settled = settled._replace(told_usage=usage, has_told_its_own=me.has_told_its_own or not renew)
        yield move, _with(after, n, settled)
        if answer[0] == "OK" and (events or usage) and w.lost_replies < self.bounds.lost_replies:
            move = f"{me.name} {what}; the reply is lost"
            yield (
                move,
                _with(after, n, me if renew else me._replace(length=0))._replace(lost_replies=w.lost_replies + 1),
            )

    def _extend(self, w: World, n: int, me: Worker, what: str) -> Iterator[tuple[str, World]]:
        """Whenever it may: broker/log/writer.py `by_its_way`. Only what is new, and changes only the log."""
        changes_meta = any(event.is_terminal or event.is_progress for event in me.unconfirmed)
        goes_whole = changes_meta or self._usage_sent(me, renew=False) or me.acked > me.confirmed
        if not me.length or goes_whole or (me.stood_still and self._has("extend: not after standing still")):
            return
        assert me.pen
        first, events = me.pen.base + me.confirmed, me.unconfirmed
        stream, answer = self.steps.extend(w.server, w.stream, me.pen.claim, me.length, first, events)
        if answer[0] == "SLOW":
            yield f"{me.name} {what}, the short way → SLOW", _with(w, n, me._replace(length=0))
            return
        move = f"{me.name} {what}, the short way → {_words(answer)}"
        after = self._changed(w, stream, move, by=n)
        if stream and stream.pen != me.pen:
            raise Violation(f"{me.name} extends the log, and the stream's pen is {_pen(stream.pen)}", move, after)
        yield move, _with(after, n, me._replace(confirmed=me.written, acked=me.written, length=answer[1]))
        if w.lost_replies < self.bounds.lost_replies:
            move = f"{me.name} {what}, the short way; the reply is lost"
            yield move, _with(after, n, me._replace(length=0))._replace(lost_replies=w.lost_replies + 1)

    def _renew(self, w: World, n: int, me: Worker) -> Iterator[tuple[str, World]]:
        """As `_extend`. Refused, it goes the whole way at once: broker/log/writer.py `renew`."""
        if not me.length or me.ended or me.stood_still:
            return
        assert me.pen
        usage = self._usage_sent(me, renew=True)
        stream, answer = self.steps.renew(w.server, w.stream, me.pen.claim, me.length, usage)
        if answer[0] == "SLOW":
            yield from self._send(w, n, me._replace(length=0), "renews, the short way refused", renew=True)
            return
        move = f"{me.name} renews, the short way → {_words(answer)}"
        after = self._changed(w, stream, move, by=n)
        if stream and stream.pen != me.pen:
            raise Violation(f"{me.name} renews the lease of {_pen(stream.pen)}", move, after)
        told_usage = usage or me.told_usage
        yield move, _with(after, n, me._replace(told_usage=told_usage, has_beaten=True, has_renewed=True))

    def _usage_sent(self, me: Worker, *, renew: bool) -> str:
        """broker/log/writer.py: `batch` and `renewal`"""
        if not renew:
            return "" if me.has_told_its_own or me.ended else me.own_usage
        latest = me.own_usage or (me.found_usage if self._has("a takeover repeats the usage") else "")
        if latest == me.told_usage and not self._has("every renewal carries the usage"):
            return ""
        return latest

    def _settled(self, w: World, me: Worker, answer: Answer, *, renew: bool) -> Worker:
        """What a writer makes of an answer: broker/log/writer.py `settle`, and the heartbeat."""
        assert me.pen
        match answer:
            case ("OK", tail, _, length):
                there = min(me.written, max(0, tail - me.pen.base + 1))
                confirmed = min(me.confirmed, there) if renew else there
                if not renew or confirmed < me.confirmed:
                    me = me._replace(length=0 if renew else length)
                me = me._replace(has_renewed=me.has_renewed or renew)
                return me._replace(confirmed=confirmed, acked=max(me.acked, confirmed), has_beaten=True)
            case ("HEALING",):
                return me._replace(has_beaten=True, length=0)
            case ("GAP", tail):
                there = min(me.written, max(0, tail - me.pen.base + 1))
                return me._replace(confirmed=there, has_beaten=True, length=0)
            case ("NOT_FOUND",) if self._has("restore") and not (me.stood_still and self._has("stood still: restore")):
                return me._replace(vanished=True, confirmed=0, length=0)
        return _gone(me)

    def _restore(self, w: World, n: int, me: Worker) -> Iterator[tuple[str, World]]:
        assert me.pen
        if me.stood_still and self._has("stood still: restore"):
            yield f"{me.name} may not restore", _with(w, n, _gone(me))
            return
        stream, answer = self.steps.restore(
            w.server, w.stream, me.pen, me.attempt, me.boot, me.created, claimed_under=me.claimed_under
        )
        after = self._changed(w, stream, f"{me.name} restores", by=n)
        yield f"{me.name} restores → {_words(answer)}", _with(after, n, me._replace(vanished=False))
        if w.lost_replies < self.bounds.lost_replies:
            yield f"{me.name} restores; the reply is lost", after._replace(lost_replies=w.lost_replies + 1)

    def _seizer_moves(self, w: World) -> Iterator[tuple[str, World]]:
        me = w.seizer
        if self.bounds.cancels and not me.keeps and not me.at and not me.gave_up:
            stream, answer = self.steps.seize(w.server, w.stream, "x", CANCEL)
            if answer[0] == "OK":
                after = self._changed(w, stream, "a cancel", by=None)
                _, state, at, epoch, already, data = answer
                if w.stream and not w.stream.is_over:
                    check_usage(w, data, f"a cancel at {at}")
                if w.lost_replies < self.bounds.lost_replies and not me.trying and not already:
                    trying = me._replace(trying=True, lost_its_reply=True)
                    yield (
                        f"a cancel at {at}; the reply is lost",
                        after._replace(seizer=trying, lost_replies=w.lost_replies + 1),
                    )
                if already:
                    yield f"a cancel finds {state}", after._replace(seizer=me._replace(at=at, was_already=True))
                else:
                    keeps = me._replace(trying=False, keeps=True, has_looked=True, at=at, epoch=epoch)
                    keeps = keeps._replace(data=data if self._has("seizures keep what was written") else CANCEL.data)
                    yield f"a cancel at {at}", after._replace(seizer=keeps)
        if me.trying:
            yield "whoever cancels gives up", w._replace(seizer=me._replace(trying=False, gave_up=True))
        if me.keeps and w.absences < self.bounds.absences:
            gone = me._replace(keeps=False, gave_up=True)
            yield "who cancelled dies", w._replace(seizer=gone, absences=w.absences + 1)
        if me.keeps:
            event = CANCEL._replace(data=me.data)
            stream, answer = self.steps.seize_again(w.server, w.stream, "x", event, me.at, me.epoch)
            if answer[0] == "OK" and not me.has_looked and self._has("seizure kept"):
                after = self._changed(w, stream, "the cancel again", by=None)
                yield f"the cancel is looked at → {_words(answer)}", after._replace(seizer=me._replace(has_looked=True))
            if me.has_looked:
                yield (
                    "the cancel was kept for a lease",
                    w._replace(
                        seizer=me._replace(keeps=False), saved=w.stream if self._has("seizure kept") else w.saved
                    ),
                )

    def _redis_moves(self, w: World) -> Iterator[tuple[str, World]]:
        if w.rollbacks < self.bounds.rollbacks and w.saved != w.stream:
            yield "Redis saves", w._replace(saved=w.stream)
        if w.rollbacks < self.bounds.rollbacks:
            yield self._rollback(w)
        if w.clean_restarts < self.bounds.clean_restarts:
            yield self._clean_restart(w)
        if self._lease_may_expire(w):
            assert w.stream
            server = w.server._replace(now=w.server.now + LEASE_BLOCKS) if w.server.age == SETTLED else w.server
            yield "the lease runs out", w._replace(stream=w.stream._replace(leased=False), server=server)
        if w.server.age == NEW and self._all_have_healed(w):
            # Two heartbeats: whoever lives, is connected and never stood still has been answered in that time, and has
            # sent again what was missing; a keeper has looked.
            server = w.server._replace(age=LOOKED, now=w.server.now + HEARTBEATS_BLOCKS)
            yield "the new server has been in use for two heartbeats", w._replace(server=server)
        if w.server.age == LOOKED and self._all_have_healed(w) and self._all_have_sent(w):
            # A lease: whoever was told to wait for two heartbeats has sent what waited.
            server = w.server._replace(age=SETTLED, now=w.server.now + LEASE_BLOCKS - HEARTBEATS_BLOCKS)
            yield "the new server has been in use for a lease", w._replace(server=server)
        if self.bounds.given and w.stream is None and self._may_be_new(w):
            stream, _ = self.steps.create(w.server, None, given=True)
            after = self._changed(w, stream, "create", by=None)
            if w.seizer.at:
                after = after._replace(admitted=after.admitted | {"vanished cancel"})
            yield "a stream with the given id is created", after
        if self.bounds.creates_again and w.stream is None:
            stream, _ = self.steps.create(w.server, None, again=True)
            yield "the stream is created again", self._changed(w, stream, "create", by=None)

    def _clean_restart(self, w: World) -> tuple[str, World]:
        """Nothing is lost; but Redis may have been away for longer than leases last, and nobody is listened to."""
        return "Redis restarts cleanly", w._replace(
            server=self.steps.restart(w.server, cleanly=True),
            workers=tuple(_unheard(me, has_renewed=me.has_renewed) for me in w.workers),
            hub=Hub(last=w.hub.last),
            viewer=w.viewer._replace(has_read=False),
            clean_restarts=w.clean_restarts + 1,
        )

    def _may_be_new(self, w: World) -> bool:
        """A name that Redis does not know counts as new once whoever lives has had the time to put it back."""
        return w.server.age >= LOOKED or not self._has("given: healing goes first")

    def _is_taken_for_clean(self, w: World) -> bool:
        """A restart that has lost something: if a stop leaves its mark too early, or the mark of an older one stays."""
        return not self._has("only a clean stop is marked") or (
            w.clean_restarts > 0 and not self._has("a mark serves once")
        )

    def _rollback(self, w: World) -> tuple[str, World]:
        server = self.steps.restart(w.server, cleanly=self._is_taken_for_clean(w))
        counts = self.bounds.counts > 0
        workers = tuple(_unheard(me, has_renewed=not counts) for me in w.workers)
        hub = w.hub._replace(deaf=True) if self.bounds.late_hub and w.hub.up else Hub(last=w.hub.last)
        viewer = w.viewer if self.bounds.late_hub and w.hub.up else w.viewer._replace(has_read=False)
        to = f"to {[id for id, _ in w.saved.log]}" if w.saved else "past the stream's creation"
        return f"Redis restarts, rolled back {to}", w._replace(
            server=server,
            stream=w.saved,
            workers=workers,
            seizer=w.seizer._replace(has_looked=False),
            hub=hub,
            viewer=viewer,
            rollbacks=w.rollbacks + 1,
            admitted=w.admitted | {"lost cancel"} if _has_lost_cancel(w) else w.admitted,
        )

    def _lease_may_expire(self, w: World) -> bool:
        """A lease runs out if nobody renews it; after a restart also because Redis was away for so long."""
        if not w.stream or not w.stream.leased:
            return False
        pen = w.stream.pen
        return not any(worker.writes and worker.has_beaten and worker.pen == pen for worker in w.workers)

    def _all_have_healed(self, w: World) -> bool:
        workers = all(
            worker.stood_still or (worker.has_healed and worker.has_renewed) for worker in w.workers if worker.writes
        )
        looked = w.seizer.has_looked or not w.seizer.keeps or not self._has("seizure kept") or w.stream is None
        return workers and looked

    def _all_have_sent(self, w: World) -> bool:
        if not self._has("writers go before claims"):
            return True
        return not any(worker.unconfirmed for worker in w.workers if worker.writes and not worker.stood_still)

    def _changed(self, w: World, stream: Stream | None, move: str, *, by: int | None) -> World:
        """The stream after a step: what was added is published, and must not contradict anything that ever was."""
        if stream is w.stream or stream == w.stream:
            return w
        before = w.stream.log if w.stream else ()
        assert stream
        added = stream.log[len(before) :]
        taken = w.stream and stream.pen.epoch > w.stream.pen.epoch and (by is None or w.workers[by].pen is None)
        if taken:
            w = w._replace(
                workers=tuple(
                    me._replace(was_superseded=True) if me.pen and n != by else me for n, me in enumerate(w.workers)
                )
            )
        if by is not None and added and w.stream and _is_fenced(w.workers[by], w.stream):
            raise Violation("G3: a writer adds events though another holds the pen", move, w)
        if by is not None and w.workers[by].was_superseded and stream.pen == w.workers[by].pen:
            if not w.rollbacks:
                raise Violation("a superseded writer adds events, and Redis never lost anything", move, w)
            if w.workers[by].stood_still:
                raise Violation("a superseded writer that stood still adds events", move, w)
            if w.workers[by].was_away:
                w = w._replace(admitted=w.admitted | {"revenant"})
        ever = dict(w.ever)
        for id, event in added:
            if ever.setdefault(id, event) != event:
                raise Violation(f"G1: id {id} was {ever[id].data} and is now {event.data}", move, w)
        w = w._replace(stream=stream, ever=tuple(sorted(ever.items())))
        if added and self.bounds.viewer and w.hub.up and not w.hub.deaf:
            if self.bounds.late_hub:
                w = w._replace(hub=w.hub._replace(under_way=(*w.hub.under_way, added)))
            else:
                w = self._published(w, added)
        return w

    # -- viewers: broker/live/hub.py `Topic` and broker/live/tail.py `follow` ------------------------------------

    def _published(self, w: World, batch: tuple[tuple[int, Event], ...]) -> World:
        hub = w.hub
        if not self._has("viewer's cursor"):
            batch = tuple(entry for entry in batch if entry[0] > hub.last)
            if not batch:
                return w
        ring, first = hub.ring, batch[0][0]
        ring = ring[: first - ring[0][0]] if ring and ring[0][0] <= first <= ring[-1][0] + 1 else ()
        ending = batch[-1] if batch[-1][1].is_terminal else hub.ending
        last = 0 if self._has("viewer's cursor") else batch[-1][0]
        hub = hub._replace(ring=ring + batch, ending=ending, last=last)
        return w._replace(hub=hub, viewer=w.viewer._replace(may_read_hole=True))

    def _viewer_moves(self, w: World) -> Iterator[tuple[str, World]]:
        hub, viewer = w.hub, w.viewer
        if viewer.closed:
            return
        if not hub.up:
            up = w._replace(hub=Hub(up=True, last=hub.last), viewer=viewer._replace(has_read=False))
            yield "the hub subscribes", up
            return
        if hub.under_way:
            rest = w._replace(hub=hub._replace(under_way=hub.under_way[1:]))
            yield f"the hub hears {[id for id, _ in hub.under_way[0]]}", self._published(rest, hub.under_way[0])
        if hub.deaf:
            yield (
                "the hub finds its connection broken",
                w._replace(hub=Hub(last=hub.last), viewer=viewer._replace(has_read=False)),
            )
        ahead = _after(hub.ring, viewer.cursor)
        if not viewer.has_read or (ahead is None and viewer.may_read_hole):
            if w.stream:
                yield "the viewer reads the log", w._replace(viewer=self._read(w, w.stream))
        elif ahead:
            yield f"the viewer takes {[id for id, _ in ahead]}", w._replace(viewer=_given(viewer, ahead))
        elif hub.ending and hub.ending[0] <= viewer.cursor and self._has("terminal never dropped"):
            if hub.ending[0] < viewer.cursor:
                viewer = viewer._replace(got=(*viewer.got, hub.ending[0]))
            yield "the viewer takes the ending", w._replace(viewer=viewer._replace(closed=hub.ending))

    def _read(self, w: World, stream: Stream) -> Viewer:
        viewer = w.viewer._replace(has_read=True, may_read_hole=False)
        events = tuple(entry for entry in stream.log if entry[0] > viewer.cursor)
        present = viewer.cursor == 0 or any(id == viewer.cursor for id, _ in stream.log)
        if events and not present and self._has("gap notice"):
            viewer = viewer._replace(got=(*viewer.got, GAP))
        if events:
            if not present and viewer.got[-1] != GAP:
                raise Violation("G2: a viewer whose cursor was lost moves on, and is not told", "reads", w)
            return _given(viewer, events)
        if stream.is_over and self._has("terminal never dropped"):
            assert stream.ending
            if stream.tail < viewer.cursor:
                viewer = viewer._replace(got=(*viewer.got, stream.tail))
            return viewer._replace(closed=stream.ending)
        return viewer


def _has_lost_cancel(w: World) -> bool:
    return any(event.kind == CANCEL.kind for _, event in w.ever) and not (w.saved and w.saved.state == CANCEL.kind)


def _is_fenced(me: Worker, stream: Stream) -> bool:
    return me.pen is not None and me.pen.claim != stream.pen.claim and me.pen.epoch <= stream.pen.epoch


def _given(viewer: Viewer, events: tuple[tuple[int, Event], ...]) -> Viewer:
    closed = events[-1] if events[-1][1].is_terminal else None
    got = (*viewer.got, *(id for id, _ in events))
    return viewer._replace(cursor=events[-1][0], got=got, closed=closed)


def _after(ring: tuple[tuple[int, Event], ...], cursor: int) -> tuple[tuple[int, Event], ...] | None:
    if not ring or ring[-1][0] <= cursor:
        return ()
    first = ring[0][0]
    return ring[cursor + 1 - first :] if first <= cursor + 1 else None


def _unheard(me: Worker, *, has_renewed: bool) -> Worker:
    """Redis has restarted, and has not heard of it since. Nobody waits for one that is lost."""
    return me if me.lost else me._replace(has_beaten=False, has_renewed=has_renewed)


def _gone(me: Worker) -> Worker:
    """It writes no more: whatever only its writing depends on is the same for all that are lost."""
    return me._replace(
        lost=True,
        has_beaten=True,
        has_renewed=True,
        vanished=False,
        stood_still=False,
        length=0,
        claimed_under=0,
        boot=0,
        created=0,
    )


def _with(w: World, n: int, worker: Worker) -> World:
    kept = w.workers[n]
    worker = worker._replace(was_superseded=worker.was_superseded or kept.was_superseded)
    return w._replace(workers=(*w.workers[:n], worker, *w.workers[n + 1 :]))


@contextmanager
def _uncollected() -> Iterator[None]:
    """All worlds are kept: the cycle collector would walk them over and over, for a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _path(came_from: dict[World, tuple[World, str] | None], world: World) -> list[str]:
    moves: list[str] = []
    while step := came_from[world]:
        world, move = step
        moves.append(move)
    return moves[::-1]


def _pen(pen: Pen) -> str:
    return f"(epoch {pen.epoch}, base {pen.base})"


def _words(answer: Answer) -> str:
    return " ".join(str(word) for word in answer)


# -- properties ------------------------------------------------------------------------------------------


def check_all(w: World) -> None:
    """What must hold whatever happens, and what must hold in every history that is not admitted (ARCHITECTURE)."""
    check_log(w)
    check_pen_writes(w)
    check_nobody_waits_in_vain(w)
    if "revenant" not in w.admitted:
        check_kept(w)
        check_viewer(w)


def check_can_end(w: World) -> None:
    """Nothing is stuck: if nobody does anything any more, a fresh worker can end the stream a lease later."""
    if not w.stream or w.stream.is_over:
        return
    steps, server = Steps(BLOCK), w.server._replace(age=SETTLED, now=w.server.now + LEASE_BLOCKS)
    stream, answer = steps.claim(server, w.stream._replace(leased=False), "z")
    if answer[0] == "OK":
        stream, answer = steps.append(server, stream, answer[1], answer[1].base, (Event("done", "z0"),))
    if answer[0] != "OK":
        raise Violation(f"the stream is stuck: {answer}")


def check_pen_writes(w: World) -> None:
    """Whoever holds the pen can go on: a `GAP` tells it where, and from there its events are taken."""
    if not w.stream or w.stream.is_over:
        return
    for me in w.workers:
        if me.writes and me.pen == w.stream.pen:
            there = min(me.written, max(0, w.stream.tail - me.pen.base + 1))
            if me.pen.base + there != max(w.stream.tail + 1, me.pen.base):
                raise Violation(f"{me.name} holds the pen of a stream that is ahead of it, and can add nothing")


def check_log(w: World) -> None:
    """G3 in the log: at most one ending, nothing after it, no event twice."""
    if not w.stream:
        return
    endings = [at for at, (_, event) in enumerate(w.stream.log) if event.is_terminal]
    if endings not in ([], [len(w.stream.log) - 1]):
        raise Violation("G3: something follows an ending")
    if bool(endings) != w.stream.is_over:
        raise Violation("G3: state and log differ about the ending")
    if len({event for _, event in w.stream.log}) < len(w.stream.log):
        raise Violation("an event is in the log twice")


def _is_quiet(w: World) -> bool:
    """All that is to be healed has been."""
    return w.server.age == SETTLED


def check_kept(w: World) -> None:
    """G6: what a writer that lives was told is in the log, is there once healing is over."""
    if not _is_quiet(w):
        return
    log = w.stream.log if w.stream else ()
    for me in w.workers:
        if me.here and not me.was_away and not me.was_superseded and (me.lost or me.has_healed):
            for entry in me.acknowledged:
                if entry not in log:
                    raise Violation(f"G6: {entry[1].data} was acknowledged, its writer lives, and it is gone")
    if "vanished cancel" in w.admitted:
        return
    if w.seizer.keeps and w.stream and w.stream.ending and w.stream.ending[1] != (CANCEL.kind, w.seizer.data):
        raise Violation("G3: a cancel was confirmed, and the stream has another ending")


def check_usage(w: World, data: str, move: str) -> None:
    """A new ending by seizure has what its writers were last told is kept, or what was counted after that.

    Not what Redis lost while nobody could repeat it: its writer was away, had stood still or had lost the pen.
    """
    if "revenant" in w.admitted:
        return
    usage = json.loads(data).get("usage", "")
    for me in w.workers:
        could_repeat = me.here and not (me.was_away or me.was_superseded or me.stood_still)
        if me.told_usage and (could_repeat or not w.rollbacks) and usage < json.loads(me.told_usage)["usage"]:
            raise Violation(f"P7: {me.name}'s usage was {me.told_usage}, and the ending has {data}", move, w)


def check_nobody_waits_in_vain(w: World) -> None:
    """A viewer that has nothing to do has everything; and it is closed when there is an ending."""
    hub, viewer = w.hub, w.viewer
    if not (w.stream and hub.up and viewer.has_read) or viewer.closed or hub.deaf or hub.under_way:
        return
    ahead = _after(hub.ring, viewer.cursor)
    if ahead or (ahead is None and viewer.may_read_hole):
        return
    if w.stream.tail > viewer.cursor:
        raise Violation(f"G2: a viewer at {viewer.cursor} waits, and the log goes to {w.stream.tail}")
    if w.stream.is_over and not (hub.ending and hub.ending[0] <= viewer.cursor):
        raise Violation(f"G3: a viewer at {viewer.cursor} waits, and the stream has ended at {w.stream.tail}")


def _may_be_lost(w: World, ending: Event) -> bool:
    """An ending that nobody keeps: who wrote it died, was cut off or stood still."""
    if ending.kind == CANCEL.kind:
        return w.seizer.gave_up or w.seizer.lost_its_reply or "vanished cancel" in w.admitted
    return any(me.was_away for me in w.workers if ending.data[0] == me.name)


def _is_lost_cancel(w: World, id: int) -> bool:
    return "lost cancel" in w.admitted and dict(w.ever)[id].kind == CANCEL.kind


def check_viewer(w: World) -> None:
    """G2 and G3 as a viewer sees them."""
    got = w.viewer.got
    for a, b in pairwise(got):
        if GAP in (a, b):
            continue
        if b <= a and not (w.viewer.closed and b == w.viewer.closed[0]):
            raise Violation(f"G2: a viewer got {b} after {a}")
        if w.stream and any(a < id < b for id, _ in w.stream.log) and not _is_lost_cancel(w, b):
            raise Violation(f"G2: a viewer got {b} after {a}, and the log has something between")
    seen = w.viewer.closed
    if seen and not _may_be_lost(w, seen[1]) and _is_quiet(w) and w.stream and w.stream.ending not in (None, seen):
        assert w.stream.ending
        raise Violation(f"G3: a viewer saw {seen[1].kind}, and the log ends with {w.stream.ending[1].kind}")
