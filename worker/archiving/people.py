"""Erasing people: every stream of a user, or of a session, wherever it is and whatever it is doing.

States of an order (broker/log/erasures.py), each written to Redis after what it says is done:

  ordered ──first look──► erasing ──looks until one finds nothing──► sealed ──► done, without the name ──a week──► gone

A look: forget the names that the session itself has; scan the metas of all streams in Redis, then ask the archive; of
what is found, 50 at a time: note the ids (le:erasures:<id>) and the sessions (…:sessions), cancel what runs, erase in
Redis, then in the archive.
Only what still has its content bears the name, so a look finds what there is to do, whoever died where.

What a crash after each step leaves, and races:
- the order, and nothing more: the next turn begins
- ids noted, not erased: the next look finds these streams again
- cancelled, not erased: likewise; a seizure keeps the ending
- erased in Redis, not in the archive: the tombstone hides it, le:erasing names it, and the order waits for that
- erased, and still in a list of its session, whose name the tombstone has not: the noted sessions are looked through at
  the end
- all is erased, no statement yet: the next look finds nothing, and seals
- the statement is sealed, the order is not done: found in the chain (after `chain`), not sealed twice
- streams that start meanwhile, a request that was under way when the order came, what a writer or a seizure puts back
  after Redis has lost a tombstone: the last look begins a lease (`settle_s`) after the one before it
- a stream is about to be archived by a worker that has lost its turn: the archive takes a stream once; whichever comes
  first, the row is there when the archive is asked, or is a tombstone
- two workers carry out one order: each step may be repeated, and a state advances from the one that was read
- Redis lost the order, in its last second: its caller had no answer (require_durable), unless it keeps no file
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis

from broker.archive.reader import ArchiveReader
from broker.archive.writer import ArchiveWriter, Erasure
from broker.errors import (
    ArchiveDamaged,
    ArchiveUnavailable,
    LeaseHeld,
    LogHealing,
    StoreUnavailable,
    StreamNotFound,
    StreamRunning,
)
from broker.log.deeds import Deeds
from broker.log.erasures import DONE, ERASING, KEPT_MS, ORDERED, Held, Order, Orders
from broker.log.event import CANCELLED, encode_data
from broker.log.meta import Meta
from broker.log.seizures import Seizures
from broker.log.stream_log import StreamLog
from worker.archiving.deeds import MovedDeeds
from worker.archiving.erasures import Erasures
from worker.archiving.streams import BATCH_STREAMS, SCAN_KEYS
from worker.archiving.turn import Turn

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks for orders, without an archive."""

MOST = 500
"""Streams in one go: some seconds, after which what has ended is archived, before the next look."""

GO_S = 2.0
"""Of orders in one go. Each looks through all of Redis: 1,500 of one tenant kept the others' streams out of the archive
for a minute, and their orders for longer."""

_WHOSE = [field.name for field in (Meta.tenant, Meta.user, Meta.session, Meta.state, Meta.erased)]


class People:
    """`archive`, `erasures`, `deeds`: None without an archive."""

    def __init__(
        self,
        log: StreamLog,
        seizures: Seizures,
        turn: Turn,
        *,
        archive: ArchiveWriter | None = None,
        erasures: Erasures | None = None,
        deeds: MovedDeeds | None = None,
        settle_s: float | None = None,
    ) -> None:
        self._log = log
        self._redis: Redis = log.redis
        self._keys = log.keys
        self._seizures = seizures
        self._turn = turn
        self._archive = archive
        self._reader = ArchiveReader(archive.database) if archive else None
        self._erasures = erasures
        self._moved = deeds
        self._settle_ms = round((log.lease_s if settle_s is None else settle_s) * 1000)
        self._orders = Orders(log.redis, log.keys)
        self._taken_s: dict[str, float] = {}
        self._deeds = Deeds(log.redis, log.keys, retention_s=log.retention_s, is_archived=log.is_archived)

    async def run(self) -> None:
        """Carry out orders for ever, where no archiver does. Ends only by cancellation."""
        try:
            while True:
                is_busy = await self._turn.take() and await self.carry_out()
                await asyncio.sleep(0 if is_busy else LOOK_S)
        finally:
            with suppress(StoreUnavailable):
                await self._turn.pass_on()

    async def carry_out(self) -> bool:
        """Take orders a step further, at least one. True if there may be more to do at once."""
        more, until_s = False, time.monotonic() + GO_S
        for at, held in enumerate(await self._in_turn()):
            if at and time.monotonic() >= until_s:
                return True
            self._taken_s[held.order.id] = time.monotonic()
            try:
                more = await self._step(held) or more
            except (StoreUnavailable, ArchiveUnavailable):
                raise
            except Exception:  # one must not keep the others from being carried out
                logger.exception("erasure %s: it could not be carried out yet, and is tried again", held.order.id)
        return more

    async def _in_turn(self) -> list[Held]:
        """Those that are due: one of each tenant before anybody's second, and what was taken longest ago first."""
        if not (orders := await self._orders.all()):
            return []
        now_ms = await self._log.now_ms()
        self._taken_s = {held.order.id: self._taken_s.get(held.order.id, 0) for held in orders}
        tenants_s: dict[str, float] = {}
        for order, _ in orders:
            tenants_s[order.tenant] = max(self._taken_s[order.id], tenants_s.get(order.tenant, 0))
        turns: list[tuple[int, float, Held]] = []
        before: Counter[str] = Counter()
        for held in sorted(orders, key=lambda held: self._taken_s[held.order.id]):
            if _is_due(held.order, now_ms):
                turns.append((before[held.order.tenant], tenants_s[held.order.tenant], held))
                before[held.order.tenant] += 1
        return [held for _, _, held in sorted(turns, key=lambda turn: turn[:2])]

    async def _step(self, held: Held) -> bool:
        order = held.order
        if order.state == DONE:
            await self._orders.forget(order)
            return False
        if order.state == ORDERED:
            chain = await self._archive.last_seal(order.tenant) if self._archive else 0
            begun = await self._orders.advance(held, order._replace(state=ERASING, chain=chain))
            if begun is None:
                return False
            held, order = begun, begun.order
        seen, is_whole = await self._look(order)
        found = await self._redis.scard(self._keys.erased_by(order.id))  # type: ignore[misc]  # sync or async
        waiting = await self._waiting(order)
        is_last = order.look_from > 0 and not (seen or waiting) and is_whole
        if is_last:
            await self._finish(held, found)
            return False
        look_from = await self._log.now_ms() + self._settle_ms if is_whole else 0
        await self._orders.advance(
            held, order._replace(found=found, erased=found - waiting, look_from=max(1, look_from))
        )
        return not is_whole

    # -- a look --------------------------------------------------------------------------------------------

    async def _look(self, order: Order) -> tuple[int, bool]:
        """Erase what there is. How many streams it met, and whether it went through all."""
        seen = 0
        if order.session is not None:
            await self._forget_session(order.tenant, order.session)
        async for pending in self._log.hooks.pending_of(order.tenant, order.user, order.session):
            await self._log.hooks.forget(*pending)  # also of streams whose other keys are gone
        async for sids in self._in_redis(order):
            for batch in _chunks(sids, BATCH_STREAMS):
                await self._erase(order, batch)
            seen += len(sids)
            if seen >= MOST or not await self._turn.take():
                return seen, False
        if self._archive:
            after = ""
            while sids := await self._archive.streams_of(order.tenant, order.user, order.session, after, BATCH_STREAMS):
                await self._erase(order, sids)
                seen, after = seen + len(sids), sids[-1]
                if seen >= MOST or not await self._turn.take():
                    return seen, False
        return seen, True

    async def _in_redis(self, order: Order) -> AsyncIterator[list[str]]:
        """All of them, listed or not: a listing forgets what is old, and may have been lost."""
        cursor: Any = None
        while cursor != 0:
            cursor, keys = await self._redis.scan(cursor or 0, self._keys.stream("*").meta, SCAN_KEYS)
            sids = list({key.decode(errors="replace").rpartition("{")[2].rpartition("}")[0] for key in keys})
            metas = await self._log.read_fields(_WHOSE, *sids) if sids else []
            yield [sid for sid, meta in zip(sids, metas, strict=True) if meta and _is_of(order, meta)]

    async def _erase(self, order: Order, sids: Sequence[str]) -> None:
        await self._redis.sadd(self._keys.erased_by(order.id), *sids)  # type: ignore[misc]  # sync or async
        for sid, meta in zip(sids, await self._log.read_meta(*sids), strict=True):
            with suppress(StreamNotFound, StreamRunning, LogHealing, LeaseHeld):  # the next look finds it again
                await self._erase_one(order, sid, meta)
        if self._erasures:
            await self._erasures.carry_out()

    async def _erase_one(self, order: Order, sid: str, meta: Meta | None) -> None:
        """In Redis; the archive follows by le:erasing."""
        if meta is None and self._reader:
            try:
                meta = await self._reader.find(sid)
            except ArchiveDamaged:  # no reader is shown it: no tombstone need hide it meanwhile
                assert self._archive
                await self._archive.erase([Erasure(sid, Meta({"erased_by": order.by}))], await self._log.now_ms())
        if meta is not None and not meta.has_ended:
            await self._seizures.seize(sid, CANCELLED, encode_data({"reason": "erased", "by": order.by}))
            [meta] = await self._log.read_meta(sid)
        if meta is None:
            return
        if meta.erased is not None:  # and the archive has it still: its order was lost
            await self._redis.zadd(self._keys.erasing, {sid: meta.erased}, nx=True)
            return
        if meta.session:  # the tombstone does not say it any more, and lists may
            await self._redis.sadd(self._keys.sessions_erased_by(order.id), meta.session)  # type: ignore[misc]  # as above
        if meta.idempotency_key:
            # The key is the caller's own and may say whose it is. A request that is repeated with it starts anew.
            await self._redis.delete(self._keys.idempotency(meta.tenant, meta.idempotency_key[0]))
        now_ms = await self._log.now_ms()
        if self._archive:
            await self._redis.zadd(self._keys.erasing, {sid: now_ms})
        await self._log.erase(sid, meta, now_ms, by=order.by)

    # -- names that are no stream's own ----------------------------------------------------------------------

    async def _forget_session(self, tenant: str, session: str) -> None:
        """Before the look: what a stream writes here afterwards, it writes before it is looked at, or the next time."""
        keys = self._keys
        await self._redis.delete(keys.session(tenant, session), keys.calls(tenant, session), keys.cost(tenant, session))
        await self._redis.zrem(keys.sessions(tenant), session)

    async def _let_go_of_session(self, tenant: str, session: str, sids: set[str]) -> None:
        """Of a user's session no name is left, unless it has streams of others."""
        keys = self._keys
        listing = keys.session(tenant, session)
        listed = [one.decode() for one in await self._redis.zrange(listing, 0, -1)]
        for some in _chunks(listed, SCAN_KEYS):
            metas = await self._log.read_fields(_WHOSE, *some)
            gone = [one for one, meta in zip(some, metas, strict=True) if not meta or meta.erased is not None]
            await self._log.index.forget(listing, gone)
        await self._log.index.remove("", tenant, session)  # from the list of sessions, if it has no stream
        if costs := sids & {one.decode() for one in await self._redis.hkeys(keys.cost(tenant, session))}:  # type: ignore[misc]  # sync or async
            await self._redis.hdel(keys.cost(tenant, session), *costs)  # type: ignore[misc]  # as above
        is_in_archive = self._archive and await self._archive.streams_of(tenant, None, session, "", 1)
        if not is_in_archive and not await self._redis.exists(listing):
            await self._redis.delete(keys.calls(tenant, session), keys.cost(tenant, session))

    # -- the end ---------------------------------------------------------------------------------------------

    async def _waiting(self, order: Order) -> int:
        """How many of its streams the archive has still to erase."""
        erasing = await self._redis.zrange(self._keys.erasing, 0, -1)
        if not erasing:
            return 0
        are_its = await self._redis.smismember(self._keys.erased_by(order.id), erasing)  # type: ignore[misc]  # as above
        return sum(are_its)

    async def _finish(self, held: Held, found: int) -> None:
        order = held.order
        key = self._keys.erased_by(order.id)
        sids = {sid.decode() for sid in await self._redis.smembers(key)}  # type: ignore[misc]  # sync or async
        await self._forget_what_names(sids, order.tenant)
        named = self._keys.sessions_erased_by(order.id)
        for session in await self._redis.smembers(named):  # type: ignore[misc]  # sync or async
            await self._let_go_of_session(order.tenant, session.decode(), sids)
        if self._archive and self._moved:
            while await self._moved.take():  # those about these streams are older than the look before this one
                pass
            await self._archive.close_erasure(order, sids, await self._log.now_ms())
        else:
            await self._deeds.forget(order.tenant, sids, order.person)
        await self._redis.delete(named)  # before the order is done: nobody would come back for it
        await self._redis.pexpire(key, KEPT_MS)
        done = order._replace(found=found, erased=found).done(await self._log.now_ms())
        if await self._orders.advance(held, done):
            await self._redis.delete(key)
            logger.info("erasure %s: done, %d streams", order.id, found)

    async def _forget_what_names(self, sids: Collection[str], tenant: str) -> None:
        """Records of viewers that were written after their stream was erased, and keys of streams that only the archive
        had: what is not the stream's own says whose it was only by its value."""
        for some in _chunks(list(sids), BATCH_STREAMS):
            await self._log.hooks.forget(*some)
            await self._redis.delete(*map(self._keys.views_of, some))
        pattern = self._keys.idempotency(tenant, "*")
        async for keys in _pages(self._redis.scan_iter(match=pattern, count=SCAN_KEYS)):
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.get(key)
                values = await pipe.execute()
            if gone := [key for key, value in zip(keys, values, strict=True) if _names_one(value, sids)]:
                await self._redis.delete(*gone)


async def _pages(found: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    page: list[bytes] = []
    async for key in found:
        page.append(key)
        if len(page) == SCAN_KEYS:
            yield page
            page = []
    if page:
        yield page


def _is_due(order: Order, now_ms: int) -> bool:
    if order.state == DONE:
        return order.finished is not None and now_ms > order.finished + KEPT_MS
    return order.look_from <= now_ms


def _chunks(sids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (sids[start : start + size] for start in range(0, len(sids), size))


def _is_of(order: Order, meta: Meta) -> bool:
    if meta.fields.get("tenant") != order.tenant or meta.erased is not None:
        return False
    return meta.user == order.user if order.user is not None else meta.session == order.session


def _names_one(value: bytes | None, sids: Collection[str]) -> bool:
    return value is not None and value.partition(b" ")[0].decode(errors="replace") in sids
