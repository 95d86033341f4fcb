"""StreamLog: one stream's events in Redis, and every step that changes or reads them.

Everything in Lastevent revolves around this log. A step that changes a stream is one Lua script (scripts/),
atomic on that stream's keys; its typed answer becomes a value or an error of errors.py here. Steps may be
repeated: each script says why that is harmless. Reads are plain commands.

Whoever writes holds the *pen*: (epoch, claim id, base). Epoch is the fencing token.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import redis.exceptions
from redis.asyncio import Redis

from broker.errors import (
    LasteventError,
    LogHealing,
    RedisUnavailable,
    StreamNotFound,
)
from broker.log.event import TERMINAL, Event, from_entry
from broker.log.idempotency import mark_created
from broker.log.keys import LISTING_SLACK_S, Keys
from broker.log.script import (
    APPEND,
    ARCHIVED,
    CLAIM,
    CREATE,
    ERASE,
    RELEASE,
    RESTORE,
    SEIZE,
    NewServer,
    Script,
    decoded,
    typed,
)
from broker.log.servers import ENDINGS_WAIT, SERVER_TRIES, SERVERS_KEPT, SERVERS_LIFE_S, TOO_MANY_SERVERS, server_of
from broker.log.steps import (
    EXTERNAL,
    EXTERNAL_LEASE_S,
    LEASE_S,
    PAGE_EVENTS,
    PROGRESS,
    TOMBSTONE,
    Append,
    Appended,
    Claimed,
    NewStream,
    Page,
    Pen,
    Seized,
    Seizure,
    new_claim_id,
)
from broker.store.errors import from_redis, is_passing

logger = logging.getLogger(__name__)


class StreamLog:
    def __init__(
        self,
        redis: Redis,
        keys: Keys | None = None,
        *,
        retention_s: float = 86_400,
        max_events: int = 10_000,
        max_bytes: int = 4 * 2**20,
        lease_s: float = LEASE_S,
        is_archived: bool = False,
    ) -> None:
        self.redis = redis
        self.is_archived = is_archived
        self.keys = keys or Keys()
        self.retention_s = retention_s
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.lease_s = lease_s
        self._seen_server, self._seen_since_ms = "", 0

    # -- steps that change a stream ------------------------------------------------------------------

    async def create(self, new: NewStream, *, reserved_ms: int | None = None) -> bool:
        """Create a stream with its event 1 (`queued`). True if it is new; repeating it is harmless.

        `reserved_ms`: it may have been created since then, and Redis may have lost that: no id of that time is used.

        The sweeper's index is written first: a stream that exists is always one that somebody will look at.
        Its place in the listings comes last, and is written again by a repetition.
        """
        lease_ms = str(round(EXTERNAL_LEASE_S * 1000)) if new.producer == EXTERNAL else ""
        with from_redis():
            await self.redis.zadd(self.keys.leases, {new.sid: 0}, nx=True)
        reserved = "" if reserved_ms is None else reserved_ms
        _, is_new, created_ms = await self._run(CREATE, new.sid, lease_ms, reserved, *new.meta())
        await self._list(new.sid, new.tenant, new.session, created_ms)
        return bool(is_new)

    async def claim(self, sid: str, claim_id: str, worker: str) -> Claimed:
        """Take the pen of a queued stream, or of one whose lease has run out.

        Raises StreamNotFound, StreamClosed, LeaseHeld or LogHealing.
        """
        _, epoch, base, tail, attempt, events, size, server, meta = await self._run_on_known_server(
            CLAIM, sid, lambda seen: (claim_id, worker, self._lease_ms, *seen)
        )
        pen = Pen(epoch, claim_id, base)
        return Claimed(sid, pen, tail, attempt, events, size, server.decode(), decoded(meta))

    async def append(self, append: Append) -> Appended:
        """Add events under consecutive ids from `first` on, and renew the lease. Safe to repeat.

        Raises StreamNotFound, StreamClosed, WriterSuperseded, AppendGap, StreamLimit or (a new ending) LogHealing.
        """
        [result] = await self.append_many([append])
        if isinstance(result, LasteventError):
            raise result
        return result

    async def append_many(self, appends: Sequence[Append]) -> list[Appended | LasteventError]:
        """Group commit: the appends of many streams in one pipeline; what each came to, in their order."""
        outcomes = await self._append(appends)
        for _ in range(SERVER_TRIES):
            refused = {at: outcome for at, outcome in enumerate(outcomes) if isinstance(outcome, NewServer)}
            if not refused:
                await self._have_looked_at([append.sid for append in appends if _ends(append)])
                return outcomes
            await self._first_seen(next(iter(refused.values())).server)
            for at, outcome in zip(refused, await self._append([appends[at] for at in refused]), strict=True):
                outcomes[at] = outcome
        raise RedisUnavailable(TOO_MANY_SERVERS)

    async def _append(self, appends: Sequence[Append]) -> list[Appended | LasteventError]:
        answers = await self._pipeline([(APPEND, append.sid, self._append_args(append)) for append in appends])
        return [_outcome(append, answer) for append, answer in zip(appends, answers, strict=True)]

    async def restore(self, claimed: Claimed) -> None:
        """Put back a stream that vanished whole, under its writer's pen. Harmless if it is there.

        Raises StreamNotFound if it did not vanish with a server, but was removed.
        """
        pen, meta = claimed.pen, claimed.meta
        fields = {name: value for name, value in meta.items() if name not in PROGRESS}
        fields |= {"epoch": str(pen.epoch), "claim": pen.claim_id, "base": str(pen.base)}
        fields["attempt"] = str(claimed.attempt)
        with from_redis():
            await self.redis.zadd(self.keys.leases, {claimed.sid: 0}, nx=True)
        pairs = [part for field in fields.items() for part in field]
        await self._run(RESTORE, claimed.sid, claimed.server, meta["created"], self._lease_ms, *pairs)
        await self._list(claimed.sid, meta["tenant"], meta["session"], int(meta["created"]))
        if "idempotency" in meta:
            key, digest = meta["idempotency"].split(" ")
            await mark_created(self.redis, self.keys.idempotency(meta["tenant"], key), claimed.sid, digest)

    async def release(self, sid: str, pen: Pen) -> None:
        """Give up the pen: the next claim need not wait for the lease. Raises StreamClosed or WriterSuperseded."""
        await self._run(RELEASE, sid, pen.epoch, pen.claim_id)
        with from_redis():
            await self.redis.zadd(self.keys.leases, {sid: 0}, xx=True)

    async def seize(
        self, sid: str, kind: str, data: bytes, *, claim_id: str | None = None, only_expired: bool = False
    ) -> Seized:
        """Take the pen and write the terminal event `kind` in one step. The writer, if there is one, is fenced.

        With `only_expired`, raises LeaseHeld while a writer's lease runs. Raises StreamNotFound or LogHealing.
        To keep the ending while Redis may still lose it, use seizures.py, which calls this.
        """
        seizure = Seizure(sid, claim_id or new_claim_id(), kind, data)
        seized, _ = await self.put(seizure, only_expired=only_expired)
        return seized

    async def put(self, seizure: Seizure, *, only_expired: bool = False) -> tuple[Seized, Seizure]:
        """`seize`, or put back what was seized and lost. Also gives the seizure with its id, epoch and time."""
        sid, claim_id, kind, data, *lost = seizure
        _, state, last, stopped_after, already, epoch, t = await self._run_on_known_server(
            SEIZE,
            sid,
            lambda seen: (
                *(claim_id, kind, data, self._lease_ms, self._retention_ms, int(only_expired)),
                *(*seen, self.keys.seized, *lost),
            ),
        )
        await self._have_looked_at([sid])
        return Seized(state.decode(), last, stopped_after, bool(already)), seizure._replace(id=last, epoch=epoch, t=t)

    async def let_go(self, sid: str, archived_ms: int) -> None:
        """The archive holds this stream: Redis keeps it for its retention from here on.

        Raises StreamNotFound, or LeaseHeld if it has lost its ending.
        """
        await self._run(ARCHIVED, sid, archived_ms, self._kept_ms)

    async def erase(self, sid: str, meta: Mapping[str, str], erased_ms: int) -> int:
        """Erase a finished stream's content here; its tombstone stays. Raises StreamRunning."""
        pairs = [part for name in TOMBSTONE if name in meta for part in (name, meta[name])]
        _, at_ms = await self._run(ERASE, sid, erased_ms, self._retention_ms, *pairs)
        with from_redis():
            await self.redis.delete(self.keys.views_of(sid))
            if "idempotency" in meta:  # its digest of the request could be guessed
                key = self.keys.idempotency(meta["tenant"], meta["idempotency"].split(" ")[0])
                await self.redis.set(key, f"{sid} {secrets.token_hex(32)} created", xx=True, keepttl=True)
        await self.unlist(sid, meta["tenant"], meta.get("session", ""))
        return int(at_ms)

    async def unlist(self, sid: str, tenant: str, session: str) -> None:
        """Take a stream out of the listings here: the archive lists it, or nobody does."""
        keys = self.keys
        of_session = keys.session(tenant, session)
        with from_redis():
            async with self.redis.pipeline(transaction=False) as pipe:
                pipe.zrem(keys.streams(tenant), sid)
                pipe.zrem(of_session, sid)
                pipe.exists(of_session)
                *_, has_others = await pipe.execute()
            if not has_others:
                await self.redis.zrem(keys.sessions(tenant), session)
                # A new stream is listed in its session first, and then the session: whichever entry of the session
                # was removed here, the stream behind it is seen now.
                for _, created_ms in await self.redis.zrange(of_session, 0, 0, desc=True, withscores=True):
                    await self.redis.zadd(keys.sessions(tenant), {session: created_ms}, gt=True)
                    await self.redis.expire(keys.sessions(tenant), self._listed_s)

    # -- reads ---------------------------------------------------------------------------------------

    async def read_page(self, sid: str, cursor: int, count: int = PAGE_EVENTS) -> Page:
        """Up to `count` events after `cursor`. Raises StreamNotFound.

        State is read before the events: if it says the stream has ended, the ending is among what follows.
        The read begins at the cursor's own event, to learn whether the log still has it.
        """
        keys = self.keys.stream(sid)
        with from_redis():
            async with self.redis.pipeline(transaction=False) as pipe:
                pipe.hmget(keys.meta, ["state", "tail"])
                pipe.xrange(keys.log, min=max(cursor, 1), max="+", count=count + 1)
                (state, tail), entries = await pipe.execute()
        if state is None:
            raise StreamNotFound("There is no stream of that id.")
        events = [from_entry(entry) for entry in entries]
        more = len(events) > count
        present = cursor == 0 or bool(events and events[0].id == cursor)
        if cursor and present:
            events = events[1:]
        return Page(state.decode(), int(tail), present, events[:count], more)

    async def read_last(self, sid: str) -> Event:
        """The last event of a stream: the terminal one, if it has ended."""
        with from_redis():
            entries = await self.redis.xrevrange(self.keys.stream(sid).log, count=1)
        if not entries:
            raise StreamNotFound("There is no stream of that id.")
        return from_entry(entries[0])

    async def read_all(self, sid: str) -> list[Event]:
        """The whole log as it is now (a stream is bounded: max_events, max_bytes)."""
        events: list[Event] = []
        more = True
        while more:
            page = await self.read_page(sid, events[-1].id if events else 0)
            events += page.events
            more = page.more
        return events

    async def read_meta(self, *sids: str) -> list[dict[str, str]]:
        """Each stream's meta, decoded; {} where there is none."""
        if not sids:
            return []
        with from_redis():
            if len(sids) == 1:  # at each connection of a viewer: a pipeline would be half of its cost
                metas = [await self.redis.hgetall(self.keys.stream(sids[0]).meta)]  # type: ignore[misc]  # sync or async
            else:
                async with self.redis.pipeline(transaction=False) as pipe:
                    for sid in sids:
                        pipe.hgetall(self.keys.stream(sid).meta)
                    metas = await pipe.execute()
        return [{k.decode(): v.decode() for k, v in meta.items()} for meta in metas]

    async def now_ms(self) -> int:
        with from_redis():
            seconds, microseconds = await self.redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def note_server(self) -> None:
        """Note since when this server is in use: a lease later, streams of the one before it may be claimed."""
        with from_redis():
            server = server_of(await self.redis.info("server", "replication"))  # type: ignore[arg-type]  # it is *args
        if server != self._seen_server:
            await self._first_seen(server)

    async def require_settled(self, leases: float) -> None:
        """Raises LogHealing within so many leases after a change of servers: what is not there may be put back."""
        await self.note_server()
        wait_ms = self._seen_since_ms + leases * self._lease_ms - await self.now_ms()
        if wait_ms <= 0:
            return
        with from_redis():
            is_another = await self.redis.zcard(self.keys.servers) > 1
        if is_another:
            raise LogHealing(wait_ms / 1000)

    # -- how a step is called ------------------------------------------------------------------------

    async def _first_seen(self, server: str) -> None:
        key, now_ms = self.keys.servers, await self.now_ms()
        with from_redis():
            async with self.redis.pipeline(transaction=False) as pipe:
                pipe.zadd(key, {server: now_ms}, nx=True)
                if self._seen_server:  # one that has lost everything must not be taken for the first
                    pipe.zadd(key, {self._seen_server: self._seen_since_ms}, nx=True)
                pipe.zremrangebyrank(key, 0, -1 - SERVERS_KEPT)
                pipe.expire(key, SERVERS_LIFE_S)
                pipe.zscore(key, server)
                *_, since_ms = await pipe.execute()
        self._seen_server, self._seen_since_ms = server, int(since_ms)

    async def _run_on_known_server(
        self, script: Script, sid: str, args: Callable[[tuple[str, int]], tuple[Any, ...]]
    ) -> list[Any]:
        """Run a step that must know since when this server is in use. `args` gets (server, since when)."""
        for _ in range(SERVER_TRIES):
            try:
                return await self._run(script, sid, *args((self._seen_server, self._seen_since_ms)))
            except NewServer as new:
                await self._first_seen(new.server)
        raise RedisUnavailable(TOO_MANY_SERVERS)

    async def _list(self, sid: str, tenant: str, session: str, created_ms: int) -> None:
        keys = self.keys
        listings = (
            (keys.streams(tenant), sid),
            (keys.session(tenant, session), sid),
            (keys.sessions(tenant), session),  # after its stream: see unlist
        )
        with from_redis():
            async with self.redis.pipeline(transaction=False) as pipe:
                # A sweeper may have looked twice between the index entry and the stream, and have removed it.
                pipe.zadd(keys.leases, {sid: created_ms}, lt=True)
                for key, member in listings:
                    pipe.zadd(key, {member: created_ms})
                    pipe.zremrangebyscore(key, "-inf", created_ms - self._listed_s * 1000)
                    pipe.expire(key, self._listed_s)
                await pipe.execute()

    async def _have_looked_at(self, sids: Sequence[str]) -> None:
        """These have ended: let the sweeper see it now, and not when their leases would have run out."""
        if self.is_archived and sids:
            with suppress(RedisUnavailable), from_redis():  # then it sees it a lease later
                await self.redis.zadd(self.keys.leases, dict.fromkeys(sids, 0), xx=True)

    def _append_args(self, append: Append) -> list[Any]:
        if any(event.kind in TERMINAL for event in append.events[:-1]):
            raise ValueError("nothing follows a terminal event")  # a caller's bug, and G3 would be gone with it
        pen, lease_ms = append.pen, round(append.lease_s * 1000)
        args: list[Any] = [pen.epoch, pen.claim_id, pen.base, append.first, lease_ms, self._retention_ms]
        endings_from_ms = self._seen_since_ms + round(ENDINGS_WAIT * self._lease_ms)
        args += (self.max_events, self.max_bytes, append.attempt, append.claimed_under)
        args += (self._seen_server, endings_from_ms)
        for kind, data, t in append.events:
            args += (kind, data, "" if t is None else t)
        return args

    @property
    def _lease_ms(self) -> int:
        return round(self.lease_s * 1000)

    @property
    def _retention_ms(self) -> int:
        """What a step that ends a stream gives its keys to live: with an archive, nothing yet (0)."""
        return 0 if self.is_archived else self._kept_ms

    @property
    def _listed_s(self) -> int:
        return round(self.retention_s + LISTING_SLACK_S)

    @property
    def _kept_ms(self) -> int:
        return round(self.retention_s * 1000)

    async def _run(self, script: Script, sid: str, *args: Any) -> list[Any]:
        [answer] = await self._pipeline([(script, sid, args)])
        outcome = typed(answer)
        if isinstance(outcome, LasteventError):
            raise outcome
        return outcome

    async def _pipeline(self, calls: Sequence[tuple[Script, str, Sequence[Any]]]) -> list[Any]:
        """Run steps in one round trip. Raises RedisUnavailable if any did not reach Redis: all may be repeated."""
        answers = await self._evalsha(calls)
        if any(isinstance(answer, redis.exceptions.NoScriptError) for answer in answers):
            with from_redis():
                for script in {call[0] for call in calls}:
                    await self.redis.script_load(script.text)
            answers = await self._evalsha(calls)
        return answers

    async def _evalsha(self, calls: Sequence[tuple[Script, str, Sequence[Any]]]) -> list[Any]:
        with from_redis():
            async with self.redis.pipeline(transaction=False) as pipe:
                for script, sid, args in calls:
                    pipe.evalsha(script.sha, 3, *self.keys.stream(sid), *args)
                answers = await pipe.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception) and is_passing(answer):
                    raise answer
        return answers


def _ends(append: Append) -> bool:
    return bool(append.events) and append.events[-1].kind in TERMINAL


def _outcome(append: Append, answer: Any) -> Appended | LasteventError:
    try:
        outcome = typed(answer)
    except Exception:
        # Nobody foresaw this, but it is one stream's: what the others sent in the same pipeline is in their logs.
        logger.exception("stream %s: its events could not be appended", append.sid)
        return LasteventError("Redis refused to append to this stream.")
    if isinstance(outcome, LasteventError):
        return outcome
    _, tail, now_ms, state, there_ms = outcome
    return Appended(tail, now_ms, state.decode(), there_ms)
