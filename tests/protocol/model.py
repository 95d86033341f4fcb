"""The steps of the log on one page: what each does to one stream, as pure functions on immutable values.

This is the reference. `search.py` explores it (what can happen when everything goes wrong), and
tests/log/test_log_model.py runs the real scripts beside it (do they do what it says).

A step is given the server that runs it and the stream it finds, and returns the stream it leaves and its answer:
('OK', …) or ('WHY NOT', …), as the scripts answer. `without` names rules that are left out, to show what each is for.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

TERMINAL = frozenset({"done", "error", "cancelled"})
QUEUED, RESTART = "queued", "restart"
TURN, TOOL_RESULT = "internal.turn", "internal.tool_result"


class Event(NamedTuple):
    kind: str
    data: str

    @property
    def is_terminal(self) -> bool:
        return self.kind in TERMINAL

    @property
    def is_progress(self) -> bool:
        """An agent's turn, or a call's result: a takeover goes on from it. A result without a key is a provider's."""
        return self.kind == TURN or (self.kind == TOOL_RESULT and self.data.startswith('{"key":'))


class Pen(NamedTuple):
    epoch: int
    claim: str
    base: int


NEW, LOOKED, SETTLED = 0, 1, 2
"""A server seen in use for less than two heartbeats, for less than a lease, for longer."""


class Server(NamedTuple):
    """A Redis between two restarts, and how long it has been seen in use. `now`: in blocks of ids."""

    id: int
    age: int = 2
    now: int = 0


class Producer(NamedTuple):
    """One of several of a shared stream: its session, and the last request of that which is in the log."""

    id: str
    epoch: int
    seq: int


class Shared(NamedTuple):
    """What a stream without a writer of its own has instead. `closed_by`: who closed it; None if no producer did.

    `seq`: the last Stream-Seq, which an application numbers its own appends with. `jumped`: the server on which its ids
    jumped last; 0: they never did.
    """

    producers: tuple[Producer, ...] = ()
    seq: str = ""
    closed_by: Producer | None = None
    jumped: int = 0

    def of(self, id: str) -> Producer | None:
        return next((one for one in self.producers if one.id == id), None)

    def with_(self, producer: Producer) -> Shared:
        others = [one for one in self.producers if one.id != producer.id]
        return self._replace(producers=(*others, producer))


class Stream(NamedTuple):
    """Meta and log. `leased`: the writer's lease runs. `created` and `boot`: when and on which server.

    `usage`: what an ending by seizure takes over, a JSON object. '': nothing was counted, or the stream is over.
    `kept`: the attempt that wrote the last progress (of an agent's stream).
    """

    state: str
    pen: Pen
    leased: bool
    attempt: int
    boot: int
    created: int
    log: tuple[tuple[int, Event], ...]
    claimed_under: int = 0
    usage: str = ""
    kept: int = 0
    shared: Shared | None = None

    @property
    def tail(self) -> int:
        return self.log[-1][0]

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL

    @property
    def ending(self) -> tuple[int, Event] | None:
        return self.log[-1] if self.is_over else None


Answer = tuple[Any, ...]
Step = tuple[Stream | None, Answer]
Rules = frozenset[str]

NO_PEN = Pen(0, "", 2)
FIRST = (1, Event(QUEUED, "{}"))
DONE = Event("done", "{}")
ALL_RULES: Rules = frozenset()


class Steps:
    """`block`: ids in a block, a million in the scripts, a handful in the search."""

    def __init__(self, block: int = 1_000_000, without: Rules = ALL_RULES) -> None:
        self.block = block
        self.without = without

    def has(self, rule: str) -> bool:
        return rule not in self.without

    def restart(self, server: Server, *, cleanly: bool) -> Server:
        """The server after this one has another name, whatever was lost: pens jump, and no claim is repeated there.

        `cleanly`: it is taken for one that continues this one, since nothing was lost, and then nobody waits.
        """
        was_settled = server.age == SETTLED or not self.has("only a settled server is continued")
        return Server(server.id + 1, SETTLED if cleanly and was_settled else NEW, server.now)

    def create(self, server: Server, stream: Stream | None, *, again: bool = False, given: bool = False) -> Step:
        """`again`: somebody may have created it before (the same Idempotency-Key), and Redis may have lost that.
        `given`: likewise, but nobody knows when: the id is made of a name that a client chose (0: COUNTED_FROM)."""
        if stream:
            return stream, ("OK", 0)
        is_numbered_as_later = (again and self.has("created again")) or (given and self.has("given: counted from afar"))
        boot = 0 if again and self.has("created again") else server.id
        created = 0 if is_numbered_as_later else server.now
        pen = NO_PEN._replace(epoch=1 + server.now) if given and self.has("given: an epoch of the clock") else NO_PEN
        return Stream(QUEUED, pen, False, 0, boot, created, (FIRST,)), ("OK", 1)

    def create_shared(self, server: Server, stream: Stream | None, claim: str = "s") -> Step:
        """It runs from the start. Its lease never runs out, so no worker takes it."""
        if stream:
            return stream, ("OK", 0)
        pen = Pen(1, claim, 2)
        return Stream("running", pen, True, 1, server.id, server.now, (FIRST,), shared=Shared()), ("OK", 1)

    def produce(
        self,
        server: Server,
        stream: Stream | None,
        producer: Producer | None,
        events: tuple[Event, ...],
        *,
        seq: str = "",
        closes: bool = False,
    ) -> Step:
        """Append to a shared stream, close it, or both. → OK, tail without the ending, state, the producer's last
        request, 1 if this one was there already
        """
        if not stream or stream.shared is None:
            return stream, ("NOT_FOUND",)
        shared = stream.shared
        known = shared.of(producer.id) if producer else None
        if producer and known and producer.epoch < known.epoch and self.has("producer's epoch"):
            return stream, ("STALE_EPOCH", known.epoch)
        if stream.is_over and self.has("closed"):
            is_again = producer == shared.closed_by if producer else closes and not events
            return stream, _produced(stream, producer, 1) if is_again else ("CLOSED",)
        if producer:
            if known and producer.epoch > known.epoch:
                if producer.seq != 0 and self.has("a session begins at 0"):
                    return stream, ("NEW_EPOCH",)
            else:
                last = known.seq if known else -1
                if producer.seq <= last and self.has("producer's sequence"):
                    return stream, _produced(stream, known, 1)
                if producer.seq > last + 1 and self.has("no hole in a sequence"):
                    return stream, ("SEQUENCE_GAP", last + 1)
        if seq and seq <= shared.seq and self.has("Stream-Seq"):
            return stream, ("OUT_OF_ORDER",)
        if not (events or closes):  # it only prolongs the stream's life
            return stream, _produced(stream, None, 0)
        first = stream.tail + 1
        if server.id not in (stream.boot, shared.jumped):
            if server.age < LOOKED and self.has("no append while healing"):
                return stream, ("HEALING",)
            if self.has("shared ids jump"):
                first = self._next_block(server, stream)
                shared = shared._replace(jumped=server.id)
                stream = stream._replace(pen=stream.pen._replace(base=first))
        if producer:
            shared = shared.with_(producer)
        if seq:
            shared = shared._replace(seq=seq)
        if closes:
            shared, events = shared._replace(closed_by=producer), (*events, DONE)
        stream = stream._replace(shared=shared)
        if events:
            stream = _added(stream, first, events)
        return stream, _produced(stream, producer, 0)

    def claim(self, server: Server, stream: Stream | None, claim: str) -> Step:
        if not stream:
            return stream, ("NOT_FOUND",)
        if stream.is_over:
            return stream, ("CLOSED",)
        if stream.pen.claim != claim:
            if stream.state == "running" and stream.leased:
                return stream, ("HELD",)
            if self._is_healing(server, stream):
                return stream, ("HEALING",)
            pen = Pen(stream.pen.epoch + 1, claim, self._base(server, stream))
            stream = stream._replace(state="running", pen=pen, leased=True, attempt=stream.attempt + 1)
            stream = stream._replace(claimed_under=server.id)
        elif stream.claimed_under != server.id and self.has("no claim is repeated elsewhere"):
            return stream, ("HELD",)
        elif self.has("a repeated claim renews"):
            stream = stream._replace(leased=True)
        if not self.has("a claim keeps the usage"):
            stream = stream._replace(usage="")
        return stream, ("OK", stream.pen, stream.tail, stream.attempt)

    def append(
        self,
        server: Server,
        stream: Stream | None,
        pen: Pen,
        first: int,
        events: tuple[Event, ...],
        *,
        stood_still_since: int | None = None,
        attempt: int = 1,
        healed: int = 0,
        usage: str = "",
    ) -> Step:
        """`usage`: for an ending by seizure; only who holds the pen can set it.
        `healed`: how many of the events were confirmed before, and are put back.
        `stood_still_since`: the server of its claim, if the writer's process has stood still for a lease since.
        → OK, tail, state, entries in the log"""
        if not stream:
            return stream, ("NOT_FOUND",)
        if not self.has("only the pen sets the usage"):
            stream = _counted(stream, usage)
        if not self.has("kept is set with the event") and any(event.is_progress for event in events):
            stream = stream._replace(kept=attempt)
        if self.has("stood still: append") and stood_still_since not in (None, server.id):
            return stream, ("SUPERSEDED",)
        same_pen = pen.epoch == stream.pen.epoch and (pen.claim == stream.pen.claim or not self.has("claim id"))
        there = self._already_there(stream, first, events) if same_pen and first >= pen.base else ()
        if there != tuple(event for _, event in self._between(stream, first, first + len(there))):
            return stream, ("CLOSED" if stream.is_over else "SUPERSEDED",)
        if same_pen and len(there) == len(events):
            return _counted(stream._replace(leased=not stream.is_over), usage), _appended(stream)
        if stream.is_over:
            return stream, ("CLOSED",)
        if not same_pen:
            if pen.epoch <= stream.pen.epoch and (self.has("epoch") or pen.epoch == stream.pen.epoch):
                return stream, ("SUPERSEDED",)
            if not self.has("adopt") and pen.epoch > stream.pen.epoch:
                return stream, ("SUPERSEDED",)
            if self.has("adopt only from ahead") and pen.base <= stream.tail:
                return stream, ("SUPERSEDED",)
            stream = stream._replace(state="running", pen=pen, attempt=attempt)
        stream = _counted(stream._replace(leased=True), usage)
        if not events:
            return stream, _appended(stream)
        if first + len(there) != max(stream.tail + 1, pen.base):
            return stream, ("GAP", stream.tail)
        if healed < len(events) and self._must_wait(server, stream, events[-1]):
            return stream, ("HEALING",)
        stream = _added(stream, first + len(there), events[len(there) :])
        return stream, _appended(stream)

    def extend(
        self, server: Server, stream: Stream | None, claim: str, length: int, first: int, events: tuple[Event, ...]
    ) -> Step:
        """The short way, of events that change nothing but the log. `length`: its entries, as this writer knows it.

        SLOW: whatever it is, the whole way (`append`) finds out. A writer that has stood still may not come here, nor
        one whose pen has not written yet: the claim id alone does not tell it from an older pen of the same claimer.
        Nor, as ever, one that has ended the stream.
        """
        if not stream or (claim != stream.pen.claim and self.has("extend: the pen")):
            return stream, ("SLOW",)
        if length != len(stream.log) and self.has("extend: the length"):
            return stream, ("SLOW",)
        if first <= stream.tail:  # XADD's own rule; no search needs it
            return stream, ("SLOW",)
        return stream._replace(log=(*stream.log, *enumerate(events, first))), ("OK", length + len(events))

    def renew(self, server: Server, stream: Stream | None, claim: str, length: int, usage: str = "") -> Step:
        """The short way of a renewal, an append without events: of the same writers as `extend`, by the same rules. It
        does what the whole way would, which finds nothing new."""
        if not stream or (claim != stream.pen.claim and self.has("renew: the pen")):
            return stream, ("SLOW",)
        if length != len(stream.log) and self.has("renew: the length"):
            return stream, ("SLOW",)
        return _counted(stream._replace(leased=True), usage), _appended(stream)

    def restore(
        self,
        server: Server,
        stream: Stream | None,
        pen: Pen,
        attempt: int,
        boot: int,
        created: int,
        *,
        claimed_under: int,
    ) -> Step:
        if stream:
            return stream, ("OK",)
        if claimed_under == server.id:
            return stream, ("NOT_FOUND",)  # it was not lost with a server, but removed
        return Stream("running", pen, True, attempt, boot, created, (FIRST,)), ("OK",)

    def seize(
        self, server: Server, stream: Stream | None, claim: str, event: Event, *, only_expired: bool = False
    ) -> Step:
        if not stream:
            return stream, ("NOT_FOUND",)
        if stream.is_over:
            return stream, _is_over(stream, claim)
        if only_expired and stream.state == "running" and stream.leased:
            return stream, ("HELD",)
        if self._is_healing(server, stream):
            return stream, ("HEALING",)
        at = self._next_block(server, stream) if self.has("jump") else stream.tail + 1
        if stream.usage and self.has("a seizure takes over the usage"):
            event = event._replace(data=_joined(event.data, stream.usage))
        return self._seized(stream, claim, event, at, stream.pen.epoch + 1)

    def seize_again(self, server: Server, stream: Stream | None, claim: str, event: Event, at: int, epoch: int) -> Step:
        """The seizure's own repetition: it was done, and its ending may have been lost since. `event`: as written."""
        if not stream:
            return stream, ("NOT_FOUND",)
        if stream.is_over:
            return stream, _is_over(stream, claim)
        if at <= stream.tail:
            at = max(at, self._next_block(server, stream))
        return self._seized(stream, claim, event, at, max(stream.pen.epoch + 1, epoch))

    def release(self, server: Server, stream: Stream | None, pen: Pen) -> Step:
        if not stream:
            return stream, ("NOT_FOUND",)
        if stream.is_over:
            return stream, ("CLOSED",)
        if pen[:2] != stream.pen[:2]:
            return stream, ("SUPERSEDED",)
        # Without a claim it fits no writer any more. A newer epoch would fence one that must put back its own claim.
        epoch = pen.epoch if self.has("a release leaves the epoch") else pen.epoch + 1
        return stream._replace(pen=Pen(epoch, "", stream.pen.base), leased=False), ("OK",)

    def _is_healing(self, server: Server, stream: Stream) -> bool:
        return self.has("boot rule") and server.id != stream.boot and server.age < SETTLED

    def _must_wait(self, server: Server, stream: Stream, last: Event) -> bool:
        """A new ending, on a server where another's may still have to be put back."""
        wait = LOOKED if self.has("writers go before claims") else SETTLED
        if server.id == stream.boot or server.age >= wait:
            return False
        return last.is_terminal and self.has("no new ending while healing")

    def _base(self, server: Server, stream: Stream) -> int:
        first_claim = stream.pen.epoch == 0 and (server.id == stream.boot or not self.has("jump of a first claim"))
        if first_claim or not self.has("jump"):
            return stream.tail + 1
        return self._next_block(server, stream)

    def _next_block(self, server: Server, stream: Stream) -> int:
        """The first id of a block that nobody has used, not even in a time that Redis has lost since."""
        last = max(stream.tail, stream.pen.base) if self.has("base counts as used") else stream.tail
        behind_tail = (last - 1) // self.block + 1
        behind_time = 1 + server.now - stream.created
        return self.block * max(behind_tail, behind_time) + 1

    def _already_there(self, stream: Stream, first: int, events: tuple[Event, ...]) -> tuple[Event, ...]:
        return events[: max(0, stream.tail - first + 1)] if self.has("skip") else ()

    def _between(self, stream: Stream, first: int, end: int) -> list[tuple[int, Event]]:
        return [entry for entry in stream.log if first <= entry[0] < end]

    def _seized(self, stream: Stream, claim: str, event: Event, at: int, epoch: int) -> Step:
        stream = _added(stream, at, (event,))._replace(pen=Pen(epoch, claim, at))
        return stream, ("OK", stream.state, at, epoch, 0, event.data)


def _is_over(stream: Stream, claim: str) -> Answer:
    """What a seizure is answered then; with the ending's data, if it is its own."""
    is_anothers = stream.pen.claim != claim
    data = "" if is_anothers else stream.log[-1][1].data
    return ("OK", stream.state, stream.tail, stream.pen.epoch, int(is_anothers), data)


def _appended(stream: Stream) -> Answer:
    return ("OK", stream.tail, stream.state, len(stream.log))


def _produced(stream: Stream, producer: Producer | None, was_there: int) -> Answer:
    tail = stream.log[-2][0] if stream.is_over else stream.tail
    return ("OK", tail, stream.state, producer.seq if producer else None, was_there)


def _joined(data: str, usage: str) -> str:
    return json.dumps({**json.loads(data), **json.loads(usage)}, separators=(",", ":"))


def _counted(stream: Stream, usage: str) -> Stream:
    return stream._replace(usage=usage) if usage and not stream.is_over else stream


def _added(stream: Stream, first: int, events: tuple[Event, ...]) -> Stream:
    log = (*stream.log, *enumerate(events, first))
    attempt, kept = stream.attempt, stream.kept
    for at, event in enumerate(events, first):
        # A takeover's own restart was counted by its claim.
        attempt += event.kind == RESTART and at > stream.pen.base
        kept = attempt if event.is_progress else kept
    stream = stream._replace(log=log, attempt=attempt, kept=kept)
    return stream._replace(state=events[-1].kind, leased=False, usage="") if events[-1].is_terminal else stream
