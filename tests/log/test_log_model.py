"""The log beside its model: whatever anybody does in whatever order, both say the same.

The model is tests/protocol/model.py, the very steps whose every combination tests/protocol explores; the log is the
scripts, on fakeredis and on a real server. Workers claim, write, repeat themselves, stand still and release; cancels
come from anywhere; leases run out; Redis forgets what came last, up to the stream's creation, and is another server.

Another server cannot be had at every step. It is the old ones that get other names: in meta, and with the workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import fakeredis
from fakeredis._commands import SUPPORTED_COMMANDS, command
from fakeredis.commands_mixins.server_mixin import ServerCommandsMixin
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
    AppendGap,
    LasteventError,
    LeaseHeld,
    LogHealing,
    StreamClosed,
    StreamNotFound,
    WriterSuperseded,
)
from broker.log.meta import Meta
from broker.log.script import GoesWholeWay, Seen
from broker.log.steps import (
    Append,
    Appended,
    Claimed,
    Extend,
    Pen,
    Renew,
    Seizure,
    Unsent,
)
from broker.log.stream_log import StreamLog
from tests.protocol import model
from tests.protocol.model import NEW, SETTLED, Event, Server, Steps, Stream
from tests.rig.long import LONG
from tests.rig.streams import expire_lease, meta, new_stream

SID = "s1"
WORDS: dict[type[LasteventError], str] = {
    StreamNotFound: "NOT_FOUND",
    StreamClosed: "CLOSED",
    WriterSuperseded: "SUPERSEDED",
    AppendGap: "GAP",
    LeaseHeld: "HELD",
    LogHealing: "HEALING",
}

T = TypeVar("T")


WORKERS = st.integers(1, 2)
SELDOM_BACK = st.sampled_from([0, 0, 0, 1, -1])
SELDOM, OFTEN = (st.sampled_from([value, value, value, not value]) for value in (False, True))
PROGRESS = st.sampled_from(
    [Event(model.TURN, "{}"), Event(model.TOOL_RESULT, '{"key":"k"}'), Event(model.TOOL_RESULT, "{}")]
)
SAID = st.builds(Event, st.sampled_from(["text_delta", model.RESTART]), st.sampled_from(["{}", "[]"])) | PROGRESS
ENDINGS = st.builds(Event, st.sampled_from(sorted(model.TERMINAL)), st.sampled_from(["{}", '{"by":"a \\"caller\\""}']))
TEXTS = st.lists(SAID, min_size=1, max_size=3).map(tuple)
USAGES = st.sampled_from(["", "", '{"usage":{"input_tokens":7},"cost_usd":0.1}', '{"usage":{"input_tokens":9}}', "{}"])
BATCHES = st.tuples(st.lists(SAID, max_size=2), ENDINGS).map(lambda batch: (*batch[0], batch[1]))


class Held(NamedTuple):
    """What a worker has: its claim as the log gave it, when the stream was made, and the server by its number."""

    claimed: Claimed
    boot: int
    created: int
    server: int


class Sent(NamedTuple):
    pen: Pen
    first: int
    events: tuple[Event, ...]
    attempt: int
    since: int | None
    put_back: bool
    usage: str


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
        self.remembered: list[tuple[Stream | None, bytes, bytes]] = [(None, b"", b"")]
        self.held: dict[int, Held] = {}
        self.sent: dict[int, Sent] = {}
        self.claims = 0
        self.seizures: list[Seizure] = []

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(step)

    @initialize()
    def begins(self) -> None:
        self.run(self.log.redis.flushall())
        self.create()
        self.this_server = self.run(meta(self.log, SID))["boot"]
        assert self.this_server, "a log that cannot tell one server from another"
        self.server_is_old()

    def teardown(self) -> None:
        self.run(self.log.redis.aclose())
        self.runner.close()

    # -- what anybody may do -------------------------------------------------------------------------

    @precondition(lambda self: self.stream is None or not self.claims)
    @rule(how=st.sampled_from(["", "again", "given"]))
    def create(self, how: str = "") -> None:
        from_ms = self.run(self.log.now_ms()) - 1000 * self.server.now - 200
        times = {"again": {"reserved_ms": from_ms}, "given": {"counted_from_ms": from_ms}}.get(how, {})
        is_new = self.run(self.log.create(new_stream(SID, agent="a"), **times))
        self.stream, answer = self.steps.create(self.server, self.stream, again=how == "again", given=how == "given")
        assert int(is_new) == answer[1]

    @rule(worker=WORKERS, again=SELDOM, waits=OFTEN)
    def claim(self, worker: int, again: bool, waits: bool) -> None:
        """Also by somebody who has waited until nothing keeps a claim from being made."""
        if waits and self.stream and not self.stream.is_over:
            self.lease_runs_out()
            if not again:
                self.server_is_old()
        held = self.held.get(worker)
        self.claims += not (again and held)
        claim_id = held.claimed.pen.claim_id if again and held else f"claim-{self.claims}"
        self.tell_the_time()
        self.stream, answer = self.steps.claim(self.server, self.stream, claim_id)
        claimed = self.same(self.log.claim(SID, claim_id, "a worker"), answer)
        if claimed:
            assert (*claimed.pen,) == (*answer[1],)
            assert (claimed.tail, claimed.attempt, claimed.server) == (*answer[2:], self.this_server)
            assert self.stream
            assert claimed.usage == self.stream.usage
            self.held[worker] = Held(claimed, self.stream.boot, self.stream.created, self.server.id)

    @precondition(lambda self: self.held)
    @rule(worker=WORKERS, events=TEXTS, put_back=SELDOM, usage=USAGES)
    def write(self, worker: int, events: tuple[Event, ...], put_back: bool, usage: str) -> None:
        self.append(worker, 0, events, still=False, put_back=put_back, usage=usage)

    @precondition(lambda self: self.held and (self.claims > 1 or self.server.age == NEW))
    @rule(worker=WORKERS, events=BATCHES, put_back=st.booleans())
    def end(self, worker: int, events: tuple[Event, ...], put_back: bool) -> None:
        self.append(worker, 0, events, still=False, put_back=put_back, usage="")

    @precondition(lambda self: self.held)
    @rule(
        worker=WORKERS,
        back=st.integers(-2, 4),
        events=TEXTS | BATCHES,
        still=st.booleans(),
        put_back=st.booleans(),
        usage=USAGES,
    )
    def append(
        self, worker: int, back: int, events: tuple[Event, ...], still: bool, put_back: bool, usage: str
    ) -> None:
        """From `back` events before (or after) where the log would go on. `still`: it has stood still since."""
        if held := self.held.get(worker):
            pen, attempt = held.claimed.pen, held.claimed.attempt
            tail = self.stream.tail if self.stream else 1
            first = max(1, max(pen.base, tail + 1) - back)
            self.sent[worker] = Sent(pen, first, events, attempt, held.server if still else None, put_back, usage)
            self.send(worker)

    @precondition(lambda self: self.sent)
    @rule(worker=WORKERS, counts=st.booleans())
    def send(self, worker: int, counts: bool = False) -> None:
        """What this worker sent last, once (or once again). `counts`: it knows the size of all before that."""
        if sent := self.sent.get(worker):
            pen, first, events, attempt, since, put_back, usage = sent
            log = self.stream.log if self.stream else ()
            self.stream, answer = self.steps.append(
                self.server,
                self.stream,
                model.Pen(*pen),
                first,
                events,
                stood_still_since=since,
                attempt=attempt,
                healed=len(events) if put_back else 0,
                usage=usage,
            )
            unsent = [Unsent(event.kind, event.data.encode(), 1 if put_back else None) for event in events]
            under = self.name_of(since) if since else ""
            counted = sum(len(event.data.encode()) for id, event in log if id < first) if counts else None
            append = Append(SID, pen, first, unsent, attempt=attempt, claimed_under=under, usage=usage.encode())
            append = append._replace(bytes_before=counted)
            appended = self.same(self.log.append(append), answer)
            if appended:
                assert (appended.tail, appended.state, appended.length) == answer[1:]

    @precondition(lambda self: self.held)
    @rule(worker=WORKERS, events=TEXTS, back=SELDOM_BACK, shorter=SELDOM_BACK)
    def extend(self, worker: int, events: tuple[Event, ...], back: int, shorter: int) -> None:
        """By the short way; also by a writer that is wrong about where the log ends, or how long it is."""
        if held := self.held.get(worker):
            pen, tail = held.claimed.pen, self.stream.tail if self.stream else 1
            if self.stream and self.stream.is_over and pen.claim_id == self.stream.pen.claim:
                return  # who has ended a stream writes nothing more
            first = max(1, max(pen.base, tail + 1) - back)
            length = (len(self.stream.log) if self.stream else 1) - shorter
            said = tuple(
                event._replace(kind="text_delta") for event in events
            )  # of kinds that change nothing but the log
            self.stream, answer = self.steps.extend(self.server, self.stream, pen.claim_id, length, first, said)
            unsent = [Unsent(event.kind, event.data.encode()) for event in said]
            extend = Extend(SID, pen.claim_id, length, 1_700_000_000_000, first, unsent)
            [outcome] = self.run(self.log.append_many(lambda: [extend]))
            if isinstance(outcome, Appended):
                assert answer == ("OK", outcome.length)
            else:
                assert isinstance(outcome, GoesWholeWay)
                assert answer == ("SLOW",)

    @precondition(lambda self: self.held)
    @rule(worker=WORKERS, shorter=SELDOM_BACK, usage=USAGES)
    def renew_the_short_way(self, worker: int, shorter: int, usage: str) -> None:
        """Also by a writer that is wrong about how long the log is."""
        if held := self.held.get(worker):
            claim_id, lease_s = held.claimed.pen.claim_id, self.log.lease_s
            if self.stream and self.stream.is_over and claim_id == self.stream.pen.claim:
                return  # who has ended a stream goes the whole way
            log = self.stream.log if self.stream else ()
            length, tail = len(log) - shorter, log[-1][0] if log else 1
            size = sum(len(event.data.encode()) for _, event in log)
            self.stream, answer = self.steps.renew(self.server, self.stream, claim_id, length, usage)
            renew = Renew(SID, claim_id, lease_s, usage.encode(), length, tail, size)
            [outcome] = self.run(self.log.append_many(lambda: [renew]))
            if isinstance(outcome, Appended):
                assert answer == ("OK", outcome.tail, "running", outcome.length)
            else:
                assert isinstance(outcome, GoesWholeWay)
                assert answer == ("SLOW",)

    @precondition(lambda self: self.held)
    @rule(worker=WORKERS, still=SELDOM, usage=USAGES)
    def renew(self, worker: int, still: bool, usage: str) -> None:
        self.append(worker, 0, (), still, put_back=False, usage=usage)

    @precondition(lambda self: self.held)
    @rule(worker=WORKERS)
    def restore(self, worker: int) -> None:
        if held := self.held.get(worker):
            claimed = held.claimed
            self.stream, answer = self.steps.restore(
                self.server,
                self.stream,
                model.Pen(*claimed.pen),
                claimed.attempt,
                held.boot,
                held.created,
                claimed_under=held.server,
            )
            known = Meta({**claimed.meta.fields, "boot": self.name_of(held.boot)})
            self.same(self.log.restore(replace(claimed, server=self.name_of(held.server), meta=known)), answer)
            self.tell_the_time()

    @precondition(lambda self: self.held)
    @rule(worker=WORKERS)
    def release(self, worker: int) -> None:
        if held := self.held.get(worker):
            self.stream, answer = self.steps.release(self.server, self.stream, model.Pen(*held.claimed.pen))
            self.same(self.log.release(SID, held.claimed.pen), answer)

    @precondition(lambda self: self.claims > 1)
    @rule(claim_id=st.sampled_from("xyz"), ending=ENDINGS, only_expired=st.booleans(), waits=OFTEN)
    def seize(self, claim_id: str, ending: Event, only_expired: bool, waits: bool) -> None:
        """Also by somebody who has waited until nothing keeps a seizure from being made."""
        if waits and self.stream and not self.stream.is_over:
            self.lease_runs_out()
            self.server_is_old()
        self.tell_the_time()
        self.stream, answer = self.steps.seize(self.server, self.stream, claim_id, ending, only_expired=only_expired)
        self.put(Seizure(SID, claim_id, ending.kind, ending.data.encode()), answer, only_expired=only_expired)

    @precondition(lambda self: self.claims > 1)
    @rule(worker=WORKERS, usage=USAGES, ending=ENDINGS)
    def count_and_be_seized(self, worker: int, usage: str, ending: Event) -> None:
        self.append(worker, 0, (), still=False, put_back=False, usage=usage)
        self.seize("x", ending, only_expired=False, waits=True)

    @precondition(lambda self: self.seizures)
    @rule(which=st.integers(0, 9))
    def seize_again(self, which: int) -> None:
        seizure = self.seizures[which % len(self.seizures)]
        self.tell_the_time()
        event = Event(seizure.kind, seizure.data.decode())
        self.stream, answer = self.steps.seize_again(
            self.server, self.stream, seizure.claim_id, event, seizure.id, seizure.epoch
        )
        self.put(seizure, answer)

    def put(self, seizure: Seizure, answer: model.Answer, *, only_expired: bool = False) -> None:
        seized = self.same(self.log.seize_or_put_back(seizure, only_expired=only_expired), answer)
        if seized:
            told = (seized.state, seized.last_event_id, seized.epoch, seized.already, seized.data.decode())
            assert told == answer[1:]
            if not seized.already:
                written = seizure._replace(data=seized.data, id=seized.last_event_id, epoch=seized.epoch, t=seized.t)
                self.seizures.append(written)

    # -- what may befall them ------------------------------------------------------------------------

    @precondition(lambda self: self.stream and self.stream.leased)
    @rule()
    def lease_runs_out(self) -> None:
        if self.stream and self.stream.leased:
            self.run(expire_lease(self.log, SID))
            self.stream = self.stream._replace(leased=False)

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        self.server = self.server._replace(now=self.server.now + seconds)

    @rule()
    def redis_saves(self) -> None:
        keys = self.log.keys.stream(SID)
        dumps = [self.run(self.log.redis.dump(key)) or b"" for key in (keys.meta, keys.log)]
        self.remembered.append((self.stream, dumps[0], dumps[1]))

    @precondition(lambda self: self.claims)
    @rule(which=st.integers(0, 3), loses=st.booleans())
    def redis_restarts(self, which: int, loses: bool) -> None:
        if not loses:
            self.redis_saves()
        self.stream, *dumps = self.remembered[max(0, len(self.remembered) - 1 - which) if loses else -1]
        self.run(self._put_back(*dumps))
        self.server = Server(self.server.id + 1, NEW, self.server.now)
        self.run(self._see_server_since(0))
        if self.stream:
            under = self.stream.claimed_under
            self.run(self._set_meta(boot=self.name_of(self.stream.boot), claimed_under=self.name_of(under)))

    @precondition(lambda self: self.claims)
    @rule()
    def redis_restarts_cleanly(self) -> None:
        before, self.server = self.server, self.steps.restart(self.server, cleanly=True)
        self.run(self._succeed(self.name_of(before.id), since_ms=60_000 if before.age == SETTLED else 0))
        if self.stream:
            under = self.stream.claimed_under
            self.run(self._set_meta(boot=self.name_of(self.stream.boot), claimed_under=self.name_of(under)))

    async def _succeed(self, ended: str, since_ms: int) -> None:
        servers, now_ms = self.log.keys.servers, await self.log.now_ms()
        await self.log.redis.delete(servers)
        await self.log.redis.zadd(servers, {"one before": 1, ended: now_ms - since_ms})
        assert await self.log.servers.succeed(ended, now_ms) == (self.server.age == SETTLED)
        self.log.servers.seen = Seen()

    async def _put_back(self, meta_dump: bytes, log_dump: bytes) -> None:
        keys = self.log.keys.stream(SID)
        for key, dump in ((keys.meta, meta_dump), (keys.log, log_dump)):
            await self.log.redis.delete(key)
            if dump:
                await self.log.redis.restore(key, 0, dump)

    @precondition(lambda self: self.server.age == NEW)
    @rule()
    def server_is_old(self) -> None:
        self.server = self.server._replace(age=SETTLED)
        self.run(self._see_server_since(60_000))

    async def _see_server_since(self, ms: int) -> None:
        now_ms = await self.log.now_ms()
        await self.log.redis.zadd(self.log.keys.servers, {self.this_server: now_ms - ms})
        self.log.servers.seen = Seen()  # it is to look again

    # -- both say the same ---------------------------------------------------------------------------

    def same(self, step: Coroutine[Any, Any, T], answer: model.Answer) -> T | None:
        """The value of the log's step. None if both refused, for the same reason."""
        value = self.run(outcome(step))
        if isinstance(value, LasteventError):
            assert WORDS[type(value)] == answer[0], (value, answer)
            assert not isinstance(value, AppendGap) or value.tail == answer[1]
            return None
        assert answer[0] == "OK", (value, answer)
        return value

    @invariant()
    def the_log_is_the_models(self) -> None:
        found = self.run(meta(self.log, SID)) if self.this_server else {}
        if self.stream is None or not found:
            assert self.stream is None or not self.this_server
            assert not found
            return
        events = tuple((e.id, Event(e.kind, e.data.decode())) for e in self.run(self.log.read_all(SID)))
        assert events == self.stream.log
        pen = (int(found["epoch"]), found["claim"], int(found["base"]))
        assert (found["state"], pen) == (self.stream.state, self.stream.pen)
        at_tail = self.run(self.log.at_tail(SID, Meta(found)))
        assert at_tail.tail == self.stream.tail
        if self.stream.is_over:
            size = sum(len(event.data.encode()) for _, event in self.stream.log)
            said = tuple(int(found[name]) for name in ("tail", "events", "bytes"))
            assert said == (self.stream.tail, len(self.stream.log), size)
        assert int(found["attempt"]) == self.stream.attempt
        assert found.get("usage", "") == self.stream.usage
        assert int(found.get("kept", 0)) == self.stream.kept
        assert found["boot"] == self.name_of(self.stream.boot)
        assert (int(found.get("lease_until", 0)) > 1) == self.stream.leased

    def name_of(self, server: int) -> str:
        return self.this_server if server == self.server.id else f"server-{server}" if server else ""

    def tell_the_time(self) -> None:
        """The stream is as old as in the model, and a fifth of a second: a step has the rest of it to be made."""
        if self.stream:
            now_ms, age_s = self.run(self.log.now_ms()), self.server.now - self.stream.created
            made_ms = now_ms - 1000 * age_s - 200
            is_given = "counted_from" in self.run(meta(self.log, SID))
            self.run(self._set_meta(**{"counted_from" if is_given else "created": made_ms}))

    async def _set_meta(self, **fields: str | int) -> None:
        await self.log.redis.hset(self.log.keys.stream(SID).meta, mapping=fields)  # type: ignore[arg-type]


async def outcome(step: Coroutine[Any, Any, T]) -> T | LasteventError:
    try:
        return await step
    except LasteventError as refused:
        return refused


@contextmanager
def fakeredis_with_info() -> Iterator[None]:
    """INFO for fakeredis, which has none: as much as tells one server from another."""

    @command((), (bytes,))
    def info(self: Any, *sections: bytes) -> bytes:
        return b"# Server\r\nrun_id:0123456789abcdef\r\n# Replication\r\nmaster_replid:fedcba9876543210\r\n"

    ServerCommandsMixin.info = info  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del ServerCommandsMixin.info  # type: ignore[attr-defined]
        del SUPPORTED_COMMANDS["info"]


def _run(connect: Callable[[], Redis], examples: int, steps: int) -> None:
    machine = type("Beside", (Beside,), {"connect": staticmethod(connect)})
    limits = settings(max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(machine, settings=limits)


def test_the_scripts_do_what_the_model_does() -> None:
    with fakeredis_with_info():
        _run(lambda: fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()), examples=20 if LONG else 10, steps=40)


def test_a_real_server_does_too(valkey_url: str) -> None:
    _run(lambda: Redis.from_url(valkey_url), examples=60 if LONG else 20, steps=40)
