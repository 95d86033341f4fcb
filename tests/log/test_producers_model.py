"""A shared stream beside its model: whatever its producers send in whatever order, both say the same.

As test_log_model.py, with the steps that a shared stream has: tests/protocol explores those in producers.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, TypeVar

import fakeredis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from broker.errors import (
    LasteventError,
    LogHealing,
    OutOfOrder,
    ProducerFenced,
    ProducerGap,
    SessionGap,
    StreamClosed,
    StreamNotFound,
)
from broker.log.meta import NEVER_MS, SHARED
from broker.log.script import Seen
from broker.log.servers import ENDINGS_WAIT
from broker.log.steps import Produce, Producer, Seizure
from broker.log.stream_log import StreamLog
from tests.log.test_log_model import ENDINGS, SELDOM, fakeredis_with_info, outcome
from tests.protocol import model
from tests.protocol.model import LOOKED, NEW, SETTLED, Event, Server, Shared, Steps, Stream
from tests.rig.long import LONG
from tests.rig.streams import meta, new_stream

SID = "s1"
WORDS: dict[type[LasteventError], str] = {
    StreamNotFound: "NOT_FOUND",
    StreamClosed: "CLOSED",
    LogHealing: "HEALING",
    ProducerFenced: "STALE_EPOCH",
    ProducerGap: "SEQUENCE_GAP",
    SessionGap: "NEW_EPOCH",
    OutOfOrder: "OUT_OF_ORDER",
}
SINCE_MS = {NEW: 0, LOOKED: round(1000 * 6 * ENDINGS_WAIT) + 500, SETTLED: 60_000}

T = TypeVar("T")

PRODUCERS = st.none() | st.builds(
    model.Producer, st.sampled_from(["p", "q", "a b", "1"]), st.integers(0, 2), st.integers(0, 3)
)
NEXT = st.sampled_from([0, 0, 0, 0, 1, -1])
MESSAGES = st.builds(Event, st.just("ds.message"), st.sampled_from(['{"m":1}', '{"m":2}']))
SAID, SOME = (st.lists(MESSAGES, min_size=least, max_size=2).map(tuple) for least in (0, 1))
SEQS = st.sampled_from(["", "", "", "1", "10", "2", "a", "B"])


class Beside(RuleBasedStateMachine):
    connect: ClassVar[Callable[[], Redis]]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.log = StreamLog(self.connect())
        self.steps = Steps()
        self.server = Server(1)
        self.stream: Stream | None = None
        self.this_server = ""
        self.remembered: list[tuple[Stream | None, list[bytes]]] = []
        self.seized = 0

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(step)

    @initialize()
    def begins(self) -> None:
        self.run(self.log.redis.flushall())
        new = new_stream(SID, producer=SHARED, request=None)
        self.run(self.log.create(new))
        found = self.run(meta(self.log, SID))
        self.stream, _ = self.steps.create_shared(self.server, None, found["claim"])
        self.this_server = found["boot"]
        assert self.this_server, "a log that cannot tell one server from another"
        self.redis_saves()
        self.is_seen_for(SETTLED)

    def teardown(self) -> None:
        self.run(self.log.redis.aclose())
        self.runner.close()

    # -- what anybody may do ---------------------------------------------------------------------------------

    @rule(producer=PRODUCERS, events=SAID, seq=SEQS, closes=SELDOM)
    def produce(self, producer: model.Producer | None, events: tuple[Event, ...], seq: str, closes: bool) -> None:
        self.tell_the_time()
        self.stream, answer = self.steps.produce(self.server, self.stream, producer, events, seq=seq, closes=closes)
        said = [(event.kind, event.data.encode()) for event in events]
        asked = Produce(SID, said, Producer(*producer) if producer else None, seq, closes)
        value = self.run(outcome(self.log.produce(asked)))
        if isinstance(value, LasteventError):
            assert WORDS[type(value)] == answer[0], (value, answer)
            assert not isinstance(value, ProducerFenced) or value.epoch == answer[1]
            assert not isinstance(value, ProducerGap) or value.expected == answer[1]
        else:
            assert ("OK", value.tail, value.state, value.number, int(value.was_there)) == answer

    @precondition(lambda self: self.stream and self.stream.shared)
    @rule(which=st.sampled_from(["p", "q"]), session=NEXT, off=NEXT, events=SOME, closes=SELDOM)
    def goes_on(self, which: str, session: int, off: int, events: tuple[Event, ...], closes: bool) -> None:
        """Mostly the next request of a producer, as one that is sane sends it; or one of another session."""
        shared = self.stream.shared if self.stream else None
        known = shared.of(which) if shared else None
        request = model.Producer(which, 1, 0)
        if known and session:
            request = model.Producer(which, known.epoch + session, max(0, off))
        elif known:
            request = known._replace(seq=max(0, known.seq + 1 + off))
        self.produce(request, events, "", closes)

    @precondition(lambda self: self.seized < 3)
    @rule(ending=ENDINGS)
    def seize(self, ending: Event) -> None:
        self.is_seen_for(SETTLED)
        self.tell_the_time()
        self.seized += 1
        claim = f"x{self.seized}"
        self.stream, answer = self.steps.seize(self.server, self.stream, claim, ending)
        seizure = Seizure(SID, claim, ending.kind, ending.data.encode())
        seized = self.run(self.log.seize_or_put_back(seizure))
        told = (seized.state, seized.last_event_id, seized.epoch, int(seized.already), seized.data.decode())
        assert told == answer[1:]

    # -- what may befall it ----------------------------------------------------------------------------------

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        self.server = self.server._replace(now=self.server.now + seconds)

    @rule()
    def redis_saves(self) -> None:
        self.remembered.append((self.stream, [self.run(self.log.redis.dump(key)) or b"" for key in self.keys]))

    @rule(which=st.integers(0, 3), loses=st.booleans())
    def redis_restarts(self, which: int, loses: bool) -> None:
        if not loses:
            self.redis_saves()
        self.stream, dumps = self.remembered[max(0, len(self.remembered) - 1 - which) if loses else -1]
        self.run(self._put_back(dumps))
        self.server = Server(self.server.id + 1, NEW, self.server.now)
        self.is_seen_for(NEW)
        if self.stream:
            assert self.stream.shared
            names = {"boot": self.name_of(self.stream.boot)}
            if self.stream.shared.jumped:
                names["jumped"] = self.name_of(self.stream.shared.jumped)
            self.run(self._set_meta(**names))

    @precondition(lambda self: self.server.age < SETTLED)
    @rule(age=st.sampled_from([LOOKED, SETTLED]))
    def server_gets_older(self, age: int) -> None:
        self.is_seen_for(max(age, self.server.age))

    def is_seen_for(self, age: int) -> None:
        self.server = self.server._replace(age=age)
        self.run(self._see_server_since(SINCE_MS[age]))

    async def _see_server_since(self, ms: int) -> None:
        now_ms = await self.log.now_ms()
        await self.log.redis.zadd(self.log.keys.servers, {self.this_server: now_ms - ms})
        self.log.servers.seen = Seen()  # it is to look again

    async def _put_back(self, dumps: list[bytes]) -> None:
        for key, dump in zip(self.keys, dumps, strict=True):
            await self.log.redis.delete(key)
            if dump:
                await self.log.redis.restore(key, 0, dump)

    # -- both say the same -----------------------------------------------------------------------------------

    @invariant()
    def the_log_is_the_models(self) -> None:
        if not self.this_server:
            return
        assert self.stream
        assert self.stream.shared is not None
        found = self.run(meta(self.log, SID))
        events = tuple((e.id, Event(e.kind, e.data.decode())) for e in self.run(self.log.read_all(SID)))
        assert events == self.stream.log
        assert (found["state"], int(found["tail"])) == (self.stream.state, self.stream.tail)
        assert int(found["base"]) == self.stream.pen.base
        assert int(found["events"]) == len(events)
        if self.stream.state == "running":  # a seizure's ending is not counted
            assert int(found["bytes"]) == sum(len(event.data) for _, event in events)
        assert (int(found.get("lease_until", 0)) == NEVER_MS) == self.stream.leased
        self.the_producers_are_the_models(self.stream.shared)

    def the_producers_are_the_models(self, shared: Shared) -> None:
        raw = self.run(self.log.redis.hgetall(self.log.keys.stream(SID).producers))  # type: ignore[arg-type]
        found = {name.decode(): text.decode() for name, text in raw.items()}
        known = {f"p:{one.id}": f"{one.epoch} {one.seq}" for one in shared.producers}
        known |= {"seq": shared.seq} if shared.seq else {}
        if self.stream and self.stream.state == "done" and "closed" in found:
            by = shared.closed_by
            known["closed"] = f"{by.epoch} {by.seq} {by.id}" if by else ""
        assert found == known

    @property
    def keys(self) -> list[str]:
        keys = self.log.keys.stream(SID)
        return [keys.meta, keys.log, keys.producers]

    def name_of(self, server: int) -> str:
        return self.this_server if server == self.server.id else f"server-{server}" if server else ""

    def tell_the_time(self) -> None:
        """The stream is as old as in the model, and a fifth of a second: a step has the rest of it to be made."""
        if self.stream:
            now_ms, age_s = self.run(self.log.now_ms()), self.server.now - self.stream.created
            self.run(self._set_meta(created=now_ms - 1000 * age_s - 200))

    async def _set_meta(self, **fields: str | int) -> None:
        await self.log.redis.hset(self.log.keys.stream(SID).meta, mapping=fields)  # type: ignore[arg-type]


def _run(connect: Callable[[], Redis], examples: int) -> None:
    machine = type("Beside", (Beside,), {"connect": staticmethod(connect)})
    limits = settings(max_examples=examples, stateful_step_count=40, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(machine, settings=limits)


def test_the_scripts_do_what_the_model_does() -> None:
    with fakeredis_with_info():
        _run(lambda: fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()), examples=20 if LONG else 6)


def test_a_real_server_does_too(valkey_url: str) -> None:
    _run(lambda: Redis.from_url(valkey_url), examples=100 if LONG else 15)
