"""StreamLog: one stream's events in Redis, and every step that changes or reads them.

Everything in Lastevent revolves around this log. A step that changes a stream is one Lua script (script.py, scripts/),
atomic on that stream's keys. Here its answer becomes a value of steps.py or an error of errors.py. A step may be
repeated: each script says why that is harmless. Reads are plain commands.

A writer holds the *pen*: (epoch, claim id, base). The epoch is the fencing token.

Every method raises RedisUnavailable if Redis does not answer or cannot serve.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from redis.asyncio import Redis

from broker.errors import LasteventError, RedisRefuses, RedisUnavailable, StreamExpired, StreamNotFound, WrongType
from broker.log import script
from broker.log.clock import RedisClock
from broker.log.event import TERMINAL, Event, from_entry
from broker.log.hooks import Hooks
from broker.log.idempotency import mark_created
from broker.log.index import Index
from broker.log.inputs import InputList
from broker.log.keys import Keys
from broker.log.meta import EXTERNAL, Meta, NewStream, read_hash
from broker.log.paths import Paths
from broker.log.pulse import now_s
from broker.log.readable import ReadableLog
from broker.log.request import Requests
from broker.log.script import Call, GoesWholeWay, NewServer, Scripts
from broker.log.servers import TOO_MANY_SERVERS, TRIES, Servers
from broker.log.steps import (
    EXTERNAL_LEASE_S,
    LEASE_S,
    PAGE_EVENTS,
    Append,
    Appended,
    Claimed,
    Extend,
    Page,
    Pen,
    Produce,
    Produced,
    Renew,
    Seized,
    Seizure,
    Writing,
)
from broker.store.errors import translated

logger = logging.getLogger(__name__)


class StreamLog(ReadableLog):
    """All streams of one Redis. `is_archived`: there is an archive, so retention starts when it holds a stream (G7).

    `has_webhooks`: somebody waits for endings, so the sweeper is woken for each.
    """

    def __init__(
        self,
        redis: Redis,
        keys: Keys | None = None,
        *,
        retention_s: float = 86_400,
        max_events: int = 150_000,
        max_bytes: int = 16 * 2**20,
        lease_s: float = LEASE_S,
        is_archived: bool = False,
        has_webhooks: bool = False,
    ) -> None:
        self.redis = redis
        self.is_archived = is_archived
        self._wakes_sweeper = is_archived or has_webhooks
        self.keys = keys or Keys()
        self.retention_s = retention_s
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.lease_s = lease_s
        self._lease_ms = round(lease_s * 1000)
        self._retention_ms = round(retention_s * 1000)
        # The life that a step which ends a stream gives to its keys. 0: none yet, since the archive comes first.
        self._ended_life_ms = 0 if is_archived else self._retention_ms
        self.clock = RedisClock()
        self.servers = Servers(redis, self.keys, lease_s=lease_s)
        self.hooks = Hooks(redis, self.keys)
        self.paths = Paths(redis, self.keys)
        self.index = Index(redis, self.keys, retention_s=retention_s)
        self._scripts = Scripts(redis, self.keys)
        self._batches = Scripts(redis, self.keys, in_batches=True)
        self.inputs = InputList(redis, self.keys, self._scripts)
        self.requests = Requests(redis, self.keys, self._scripts, retention_s=retention_s, is_archived=is_archived)

    # -- steps that change a stream ------------------------------------------------------------------

    async def create(
        self, new: NewStream, *, reserved_ms: int | None = None, counted_from_ms: int | None = None
    ) -> bool:
        """Create a stream with its event 1 (`queued`). True if it is new. Repeating it is harmless.

        `reserved_ms`: the stream may have been created since then, and Redis may have lost it. No event id that it
        may have used is used again.
        `counted_from_ms`: likewise, of a worker's stream whose id a client chose: it may have been created at any time
        since, and nobody may remember.

        The sweeper's index is written first, so that a sweeper will look at every stream that exists. The listings are
        written last; a repeated call writes them again. Raises StreamExpired if the request to share is gone.
        """
        lease_ms = round(EXTERNAL_LEASE_S * 1000) if new.producer == EXTERNAL else None
        await self.index.begin(new.sid, new.tenant, new.session)
        request = await self.requests.store(new.sid, new.own_request)
        times = (lease_ms, reserved_ms, counted_from_ms, self.requests.held_ms)
        steps = [script.create(new.sid, *times, request, new.fields())]
        if new.request_of is not None:
            if not await self.requests.hold_for_now(new.request_of, new.sid):
                raise StreamExpired("The request of this stream is gone. Start a new stream.")
            steps.append(self.requests.holding(new.request_of, new.sid))
        try:
            is_new, created_ms = (await self._scripts.run_each(steps))[0]
        except RedisRefuses:
            await self._undo(new.sid)
            raise
        except StreamNotFound:
            raise RedisUnavailable("Redis has just lost the request of this stream. Nothing was started.") from None
        await self.index.add(new.sid, new.tenant, new.session, created_ms)
        return bool(is_new)

    async def _undo(self, sid: str) -> None:
        """A script that was refused keeps what it wrote before: a sweeper would find it, and run what nobody got."""
        keys = self.keys.stream(sid)
        [meta], has_events = await self.read_fields(_BEGUN, sid), await self.redis.exists(keys.log)
        if meta and meta.erased is None and not has_events:
            await self.redis.delete(keys.meta, keys.request, keys.holders)
            await self.redis.zrem(self.keys.leases, sid)

    async def claim(self, sid: str, claim_id: str, worker: str) -> Claimed:
        """Take the pen of a queued stream, or of one whose lease has expired.

        Raises StreamNotFound, StreamClosed, LeaseHeld or LogHealing.
        """
        epoch, base, tail, attempt, events, size, server, meta, request = await self.servers.calling(
            lambda seen: self._scripts.run(script.claim(sid, claim_id, worker, self._lease_ms, seen))
        )
        found = read_hash(dict(zip(meta[::2], meta[1::2], strict=True)))
        assert found
        found = await self.requests.of(found) if request is None else found.with_request(request.decode())
        return Claimed(sid, Pen(epoch, claim_id, base), tail, attempt, events, size, server.decode(), found)

    async def append(self, append: Append) -> Appended:
        """Add events under consecutive ids, beginning with `first`, and renew the lease. Safe to repeat.

        Raises StreamNotFound, StreamClosed, WriterSuperseded, AppendGap, StreamLimit or, for a new ending, LogHealing.
        """
        [outcome] = await self._append(lambda: [append], self._scripts)
        if isinstance(outcome, LasteventError):
            raise outcome
        return outcome

    async def append_many(self, steps: Callable[[], Sequence[Writing]]) -> list[Appended | LasteventError]:
        """Group commit: the appends of many streams in one round trip, each by the way that its writer takes. Returns
        the outcome of each, in the same order: on the short way, GoesWholeWay unless all is as its writer says.
        One such batch at a time is under way.

        `steps`: asked at each sending, once there is a connection. It gives the same events of the same streams (one
        at least), with the right to heal that their writers have by then.
        """
        return await self._append(steps, self._batches)

    async def _append(
        self, steps: Callable[[], Sequence[Writing]], scripts: Scripts
    ) -> list[Appended | LasteventError]:
        sent, outcomes = await self._append_once(steps, scripts)
        for _ in range(TRIES):
            refused = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, NewServer)]
            if not refused:
                if self._wakes_sweeper:
                    await self._wake_sweeper_for([step.sid for step in sent if _ends(step)])
                return outcomes
            await self.servers.meet(next(outcome.server for outcome in outcomes if isinstance(outcome, NewServer)))
            _, again = await self._append_once(partial(_refused, refused, steps), scripts)
            for at, outcome in zip(refused, again, strict=True):
                outcomes[at] = outcome
        raise RedisUnavailable(TOO_MANY_SERVERS)

    async def _append_once(
        self, steps: Callable[[], Sequence[Writing]], scripts: Scripts
    ) -> tuple[Sequence[Writing], list[Appended | LasteventError]]:
        """What was sent last, and the outcome of each."""
        sent: Sequence[Writing] = ()
        sent_at_s = 0.0

        def calls() -> list[Call]:
            nonlocal sent, sent_at_s
            sent, sent_at_s = steps(), now_s()
            return [self._call(step) for step in sent]

        answers = await scripts.run_many(calls)
        outcomes = [_outcome(step, answer, sent_at_s) for step, answer in zip(sent, answers, strict=True)]
        for step, outcome in zip(sent, outcomes, strict=True):
            if not isinstance(step, Extend) and isinstance(outcome, Appended):
                self.clock.hear(outcome.now_ms, sent_at_s)
                break
        return sent, outcomes

    def _call(self, step: Writing) -> Call:
        match step:
            case Extend():
                return script.extend(step)
            case Renew():
                return script.renew(step)
        return self.append_call(step)

    def append_call(self, append: Append) -> Call:
        if len(append.events) > 1 and any(event.kind in TERMINAL for event in append.events[:-1]):
            raise ValueError("no event can follow a terminal event")  # a caller's bug; sent, it would break G3
        limits, seen = (self._ended_life_ms, self.max_events, self.max_bytes), self.servers.seen
        return script.append(append, *limits, seen.server, self.servers.endings_from_ms)

    async def restore(self, claimed: Claimed) -> None:
        """Put back a stream that vanished whole, under its writer's pen. Harmless if the stream is there.

        Raises StreamNotFound if the stream was removed rather than lost with a server.
        """
        sid, pen, meta = claimed.sid, claimed.pen, claimed.meta
        fields = {**meta.restored(), "epoch": str(pen.epoch), "claim": pen.claim_id, "base": str(pen.base)}
        fields["attempt"] = str(claimed.attempt)
        own, shared = _request_to_restore(sid, meta)
        await self.redis.zadd(self.keys.leases, {sid: 0}, nx=True)
        if shared:
            await self.requests.hold_for_now(meta.request_of or sid, sid, shared)
        await self._scripts.run(
            script.restore(sid, claimed.server, meta.created, self._lease_ms, self.requests.held_ms, own, fields)
        )
        if shared:
            await self.requests.hold(meta.request_of or sid, sid)
        await self.index.add(sid, meta.tenant, meta.session or "", meta.created)
        if meta.idempotency_key:
            key, digest = meta.idempotency_key
            await mark_created(self.redis, self.keys.idempotency(meta.tenant, key), sid, digest)

    async def release(self, sid: str, pen: Pen, *, unbegun: bool = False) -> None:
        """Release the pen: the next claim need not wait for the lease.

        `unbegun`: this pen's attempt did not begin; the next claim's has its number.
        Raises StreamNotFound, StreamClosed or WriterSuperseded.
        """
        await self._scripts.run(script.release(sid, pen, unbegun=unbegun))
        await self.redis.zadd(self.keys.leases, {sid: 0}, xx=True)

    async def seize_or_put_back(self, seizure: Seizure, *, only_expired: bool = False) -> Seized:
        """Take the pen and write a terminal event in one step, or put back a seizure that Redis lost.

        The writer, if there is one, is fenced; a new ending takes over the usage that it had put into meta. With
        `only_expired`, raises LeaseHeld while a writer's lease runs. Raises StreamNotFound or LogHealing. Redis may
        still lose the ending; seizures.py keeps it.
        """
        state, last, stopped_after, already, epoch, t, data = await self.servers.calling(
            lambda seen: self._scripts.run(
                script.seize(seizure, self._lease_ms, self._ended_life_ms, only_expired, seen, self.keys.seized)
            )
        )
        await self._wake_sweeper_for([seizure.sid])
        return Seized(state.decode(), last, stopped_after, bool(already), epoch, t, data)

    async def produce(self, asked: Produce) -> Produced:
        """Append to a shared stream, close it, or both.

        A request of a producer may be repeated: it is in the log once. Raises StreamNotFound (also of a stream whose
        life is over), StreamClosed, StreamLimit, ProducerFenced, ProducerGap, SessionGap, OutOfOrder or LogHealing.
        """
        limits = (self._ended_life_ms, self.max_events, self.max_bytes)
        tail, state, number, was_there = await self.servers.calling(
            lambda seen: self._scripts.run(
                script.produce(asked.sid, asked, *limits, seen.server, self.servers.endings_from_ms)
            )
        )
        if asked.closes:
            await self._wake_sweeper_for([asked.sid])
        return Produced(tail, state.decode(), None if number == b"" else number, bool(was_there))

    async def copy(self, sid: str, events: Sequence[Event]) -> None:
        """Give a shared stream that nobody knows yet these events of another one. Raises StreamNotFound."""
        await self._scripts.run(script.copy(sid, events))

    async def prolong(self, sid: str, life_ms: int) -> None:
        """A shared stream is read: it lives for so long from now on. Raises StreamNotFound if its life is over."""
        await self._scripts.run(script.prolong(sid, life_ms))

    async def let_path_expire(self, meta: Meta) -> None:
        """Of a shared stream that has ended: its path is there for as long as its keys are."""
        if meta.path is not None and not self.is_archived:  # from the archive it can be read for ever
            await self.paths.let_expire(meta.tenant, meta.path, self._retention_ms)

    async def start_retention(self, sid: str, archived_ms: int) -> None:
        """The archive holds this stream, so its retention in Redis starts now. `archived_ms`: when it was archived.

        Its request is let go first: a stream whose keys are gone names none any more.
        Raises StreamNotFound, or LeaseHeld if Redis has lost the stream's ending.
        """
        [meta] = await self.read_fields(_HOLDER, sid)
        steps = self.requests.letting_go(sid, meta) if meta and meta.has_ended else []
        await self._scripts.run_each([*steps, script.archived(sid, archived_ms, self._retention_ms)])

    async def erase(self, sid: str, meta: Meta, erased_ms: int, *, by: str) -> int:
        """Erase a finished stream's content in Redis; its tombstone stays. Returns when it was erased (ms).

        `by`: who asked for it, as in the access record; the archiver seals it with the erasure. The request goes too,
        unless another stream needs it, and so does its webhook. A sweeper completes that if this process cannot.
        Raises StreamRunning.
        """
        await self.redis.zadd(self.keys.leases, {sid: 0})
        left = {**meta.tombstone(), "erased_by": by}
        [at_ms] = await self._scripts.run(script.erase(sid, erased_ms, self._ended_life_ms, left))
        await self.requests.let_go(sid, meta.erased_at(at_ms))
        await self.redis.delete(self.keys.views_of(sid), self.keys.crowd_of(sid))
        await self.hooks.forget(sid)
        if meta.idempotency_key:  # from the digest the request could be guessed
            key = self.keys.idempotency(meta.tenant, meta.idempotency_key[0])
            await self.redis.set(key, f"{sid} {secrets.token_hex(32)} created", xx=True, keepttl=True)
        await self.index.remove(sid, meta.tenant, meta.session or "")
        if meta.path is not None:
            await self.forget_path(sid, meta)
        return int(at_ms)

    async def forget_path(self, sid: str, meta: Meta) -> None:
        """Of an erased shared stream: its path may say more of somebody than its content did."""
        await self.paths.remove(meta.tenant, meta.path or "", sid)
        await self.redis.hdel(self.keys.stream(sid).meta, Meta.path.name)  # type: ignore[misc]  # sync or async

    # -- reads ---------------------------------------------------------------------------------------

    async def read_page(self, sid: str, cursor: int, count: int = PAGE_EVENTS) -> Page:
        """Up to `count` events after `cursor`. Raises StreamNotFound.

        The state is read before the events: if it is terminal, the terminal event is in the log that is read next.
        The read begins at the cursor's own event, to learn whether the log still has it.
        """
        keys = self.keys.stream(sid)
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.hmget(keys.meta, ["state", "tail"])
            pipe.xrange(keys.log, min=max(cursor, 1), max="+", count=count + 1)
            (state, tail), entries = await pipe.execute()
        if state is None:
            raise StreamNotFound("There is no stream with this id.")
        events = [from_entry(entry) for entry in entries]
        more = len(events) > count
        present = cursor == 0 or bool(events and events[0].id == cursor)
        if cursor and present:
            events = events[1:]
        return Page(state.decode(), int(tail), present, events[:count], more)

    async def read_last(self, sid: str) -> Event:
        """The last event of a stream: the terminal event if it has ended. Raises StreamNotFound."""
        entries = await self.redis.xrevrange(self.keys.stream(sid).log, count=1)
        if not entries:
            raise StreamNotFound("There is no stream with this id.")
        return from_entry(entries[0])

    async def read_meta(self, *sids: str) -> list[Meta | None]:
        """Each stream's meta, in the same order; None for a stream that is not there.

        Also for one whose key something else has overwritten: whoever reads many must not stop at it.
        """
        if not sids:
            return []
        if len(sids) == 1:  # each viewer's connection reads one: a pipeline would be half of its cost
            try:
                hashes = [await self.redis.hgetall(self.keys.stream(sids[0]).meta)]  # type: ignore[misc]  # sync or async
            except WrongType as foreign:
                hashes = [foreign]
        else:
            async with self.redis.pipeline(transaction=False) as pipe:
                for sid in sids:
                    pipe.hgetall(self.keys.stream(sid).meta)
                hashes = await pipe.execute(raise_on_error=False)
        return [read_hash(_own(sid, fields, {})) for sid, fields in zip(sids, hashes, strict=True)]

    async def read_fields(self, names: Sequence[str], *sids: str) -> list[Meta | None]:
        """As `read_meta`, these fields of it alone: the others may be large."""
        nothing = [None] * len(names)
        if len(sids) == 1:  # as above
            try:
                found = [await self.redis.hmget(self.keys.stream(sids[0]).meta, list(names))]  # type: ignore[misc]  # as above
            except WrongType as foreign:
                found = [foreign]
        else:
            async with self.redis.pipeline(transaction=False) as pipe:
                for sid in sids:
                    pipe.hmget(self.keys.stream(sid).meta, list(names))
                found = await pipe.execute(raise_on_error=False)
        pairs = [zip(names, _own(sid, values, nothing), strict=True) for sid, values in zip(sids, found, strict=True)]
        return [read_hash({name.encode(): value for name, value in each if value is not None}) for each in pairs]

    async def at_tail(self, sid: str, meta: Meta) -> Meta:
        """The same meta, of a stream that runs, with the id of the log's last event as its `tail`."""
        return (await self.at_tails({sid: meta}))[sid]

    async def at_tails(self, metas: Mapping[str, Meta]) -> dict[str, Meta]:
        """As `at_tail`, of many streams. Of those that a worker writes meta says only where they were a while ago.

        What cannot be found out (it has just gone, or its log is no log) stays as it was: who reads many goes on.
        """
        behind = [sid for sid, meta in metas.items() if meta.may_be_behind]
        if not behind:
            return dict(metas)
        answers = await self._scripts.run_many(lambda: [script.tail(sid) for sid in behind])
        found = dict(metas)
        for sid, answer in zip(behind, answers, strict=True):
            if isinstance(answer, Exception) and isinstance(foreign := translated(answer), WrongType):
                logger.error("stream %s: %s", sid, foreign)
                continue
            outcome = script.typed(answer)
            if not isinstance(outcome, LasteventError):
                found[sid] = found[sid].with_tail(outcome[0])
        return found

    async def now_ms(self) -> int:
        """Redis' clock, in ms since 1970."""
        return await self.servers.now_ms()

    # -- what the steps need -----------------------------------------------------------------------------

    async def _wake_sweeper_for(self, sids: Sequence[str]) -> None:
        """These streams have ended: let the sweeper see them now, not when their leases would have expired."""
        if self._wakes_sweeper and sids:
            with suppress(RedisUnavailable):  # then the sweeper sees them a lease later
                await self.redis.zadd(self.keys.leases, dict.fromkeys(sids, 0), xx=True)


_BEGUN = [field.name for field in (Meta.state, Meta.erased)]
_HOLDER = [field.name for field in (Meta.state, Meta.request_of, Meta.erased)]


def _request_to_restore(sid: str, meta: Meta) -> tuple[str, str]:
    """The request that is put back with a stream: as its own, or as one that it shares. Of an older release's stream
    neither: there it is a field of meta."""
    text = meta.fields.get("request", "") if meta.request_of else ""
    return (text, "") if meta.request_of == sid else ("", text)


def _own(sid: str, answer: Any, nothing: Any) -> Any:
    """What Redis answered for a stream, or `nothing`, and a line in the log, if the key is not of our making."""
    if not isinstance(answer, Exception):
        return answer
    meaning = translated(answer) or answer
    if not isinstance(meaning, WrongType):
        raise meaning
    logger.error("stream %s: %s", sid, meaning)
    return nothing


def _ends(step: Writing) -> bool:
    return isinstance(step, Append) and bool(step.events) and step.events[-1].kind in TERMINAL


def _refused(refused: Sequence[int], steps: Callable[[], Sequence[Writing]]) -> list[Writing]:
    """Those of the steps, as they are now, which are to be sent again."""
    now = steps()
    return [now[at] for at in refused]


def _outcome(step: Writing, answer: Any, sent_at_s: float) -> Appended | LasteventError:
    if not isinstance(step, Append):
        if not isinstance(answer, int) or not answer:
            return GoesWholeWay(f"Redis answered {answer}. What has happened, the whole way finds out.")
        if isinstance(step, Renew):
            return Appended(step.tail, answer, "running", 0, step.length, step.bytes, sent_at_s)
        count = len(step.events)
        return Appended(step.first + count - 1, step.t, "running", length=step.length + count)
    try:
        outcome = script.typed(answer)
    except Exception:
        # An unforeseen failure concerns this stream only: the others' events of the same batch are in their logs.
        logger.exception("stream %s: its events could not be appended", step.sid)
        return LasteventError("Redis refused to append to this stream. The server's log says why.")
    if isinstance(outcome, LasteventError):
        return outcome
    tail, now_ms, state, there_ms, length, size = outcome
    return Appended(tail, now_ms, state.decode(), there_ms, length, None if size == b"" else size, sent_at_s)
