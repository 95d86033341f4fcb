"""What a caller can do with streams, without HTTP: start, regenerate, cancel, append, look up."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from arq.connections import ArqRedis

from broker.auth import Auth, Grant, own
from broker.errors import (
    Forbidden,
    InvalidRequest,
    LasteventError,
    StreamClosed,
    StreamExpired,
    StreamLimit,
    StreamNotFound,
    StreamRunning,
    WriterSuperseded,
)
from broker.live.hub import Hub
from broker.log.event import CANCELLED, ERROR, encode_data, is_terminal
from broker.log.idempotency import Reservation, mark_created, require_key, reserve, reserved_ms
from broker.log.queue import enqueue
from broker.log.seizures import Seizures
from broker.log.servers import ENDINGS_WAIT, RETURN_LEASES
from broker.log.steps import (
    EXTERNAL,
    EXTERNAL_LEASE_S,
    Append,
    Appended,
    NewStream,
    Pen,
    Seized,
    Unsent,
    new_sid,
)
from broker.log.stream_log import StreamLog
from broker.service.bodies import AppendEvents, CreateStream
from broker.service.record import record
from broker.settings import Settings
from broker.store.errors import from_redis

if TYPE_CHECKING:
    from broker.archive.reader import ArchivedLog, ArchiveReader

logger = logging.getLogger(__name__)

ERASED = "The stream's content has been erased."

ERASURE_WAIT_S, ERASURE_POLL_S = 5.0, 0.1
"""The archiver erases within a second or two; who asked for it need not wait longer to be told that it will."""


class Started(NamedTuple):
    record: dict[str, Any]
    is_new: bool

    @property
    def sid(self) -> str:
        sid: str = self.record["id"]
        return sid


class Found(NamedTuple):
    """A stream's meta, and whether Redis has it (or the archive alone)."""

    meta: dict[str, str]
    is_in_redis: bool = True


class Streams:
    def __init__(
        self,
        log: StreamLog,
        archive: ArchiveReader | None,
        hub: Hub,
        seizures: Seizures,
        queue: ArqRedis,
        auth: Auth,
        settings: Settings,
    ) -> None:
        self.log = log
        self._archive = archive
        self._hub = hub
        self._seizures = seizures
        self._queue = queue
        self._auth = auth
        self._settings = settings

    async def look_up(self, sid: str, grant: Grant) -> Found:
        """A stream, or what is left of it. Raises StreamNotFound, or StreamExpired where the listings still know it.

        Raises LogHealing where Redis may have lost a stream whose writer is about to put it back.
        """
        [meta] = await self.log.read_meta(sid)
        if meta:
            return Found(own(meta, grant))
        if self._archive and (archived := await self._archive.find(sid)):
            return Found(own(archived, grant), is_in_redis=False)
        await self.log.require_settled(RETURN_LEASES)
        with from_redis():
            listed = await self.log.redis.zscore(self.log.keys.streams(grant.tenant), sid)
        if listed is not None:
            raise StreamExpired("The stream has ended, and its retention is over.")
        raise StreamNotFound("There is no stream of that id.")

    async def look_up_content(self, sid: str, grant: Grant) -> Found:
        """A stream whose content is there. Raises StreamExpired if it was erased."""
        found = await self.look_up(sid, grant)
        if "erased" in found.meta:
            raise StreamExpired(ERASED)
        return found

    async def log_of(self, sid: str, found: Found) -> StreamLog | ArchivedLog:
        """Where this stream's events are read."""
        if found.is_in_redis or not self._archive:
            return self.log
        if log := await self._archive.read_log(sid):
            return log
        raise StreamExpired(ERASED)

    async def erase(self, sid: str, grant: Grant) -> bool:
        """Erase a finished stream's content. True if it is gone everywhere; the archive may follow a moment later.

        Raises StreamRunning.
        """
        meta, is_in_redis = await self.look_up(sid, grant)
        if not is_terminal(meta["state"]):
            raise StreamRunning("The stream is still running. Cancel it first, or wait for its end.")
        if "erased" in meta and not is_in_redis:
            return True
        redis, keys = self.log.redis, self.log.keys
        now_ms = await self.log.now_ms()
        if self._archive:
            with from_redis():  # the order first: whoever carries it out waits for the tombstone
                await redis.zadd(keys.erasing, {sid: now_ms})
        if "erased" not in meta:
            await self.log.erase(sid, meta, now_ms)
        deadline = time.monotonic() + ERASURE_WAIT_S
        while self._archive and time.monotonic() < deadline:
            with from_redis():
                if await redis.zscore(keys.erasing, sid) is None:
                    return True
            await asyncio.sleep(ERASURE_POLL_S)
        return self._archive is None

    async def start(self, body: CreateStream, grant: Grant, idempotency_key: str | None) -> Started:
        """Create a stream and queue it for a worker (an external one starts at once, at epoch 1)."""
        settings = self._settings
        external = body.producer == EXTERNAL
        template = NewStream(
            sid="",
            tenant=grant.tenant,
            session=body.session_id or f"s-{new_sid()[:16]}",
            producer=body.producer,
            user=body.user_id,
            model="" if external else body.model or settings.default_model,
            request=None if external else body.provider_request(settings.max_tokens),
            metadata=body.metadata,
            on_worker_loss=body.on_worker_loss,
            abandon_after_s=body.abandon_after_s,
        )
        return await self._start(template, grant, idempotency_key, body.model_dump(exclude_unset=True))

    async def regenerate(self, sid: str, grant: Grant, idempotency_key: str | None) -> Started:
        """The same request again, as a new stream of the same session."""
        meta = (await self.look_up_content(sid, grant)).meta
        if meta["producer"] == EXTERNAL:
            raise InvalidRequest("An external stream has no request that could run again.")
        template = NewStream(
            sid="",
            tenant=grant.tenant,
            session=meta["session"],
            user=meta.get("user"),
            model=meta["model"],
            request=orjson.loads(meta["request"]),
            metadata=orjson.loads(meta["metadata"]),
            regenerates=sid,
            on_worker_loss=meta["on_worker_loss"],
            abandon_after_s=float(meta["abandon_after_s"]) if "abandon_after_s" in meta else None,
        )
        return await self._start(template, grant, idempotency_key, {"regenerates": sid})

    async def cancel(self, sid: str, grant: Grant, reason: str) -> Seized:
        """End a stream now, wherever it is. Cancelling what has ended is no error (`already`)."""
        meta = (await self.look_up(sid, grant)).meta
        if is_terminal(meta["state"]):  # perhaps there is no more of it than this
            tail = int(meta["tail"])
            return Seized(meta["state"], tail, int(meta.get("stopped_after", tail)), already=True)
        return await self._seizures.seize(sid, CANCELLED, encode_data({"reason": reason, "by": "client"}))

    async def append(self, sid: str, grant: Grant, body: AppendEvents) -> Appended:
        """Add an external producer's events, all or none. Raises StreamClosed, WriterSuperseded or AppendGap."""
        pen = await self._producers_pen(sid, grant, body.epoch)
        events = [Unsent(event.event, encode_data(event.data)) for event in body.events]
        append = Append(sid, pen, body.first or 0, events, EXTERNAL_LEASE_S)
        try:
            return await self.log.append(append)
        except StreamLimit as full:
            reason = {"code": full.code, "message": "The stream holds as much as one may.", "recoverable": False}
            await self._seizures.seize(sid, ERROR, encode_data(reason))
            raise StreamClosed("The stream holds as many events or bytes as one may, and has been ended.") from None

    async def heartbeat(self, sid: str, grant: Grant, epoch: int) -> Appended:
        """Renew an external producer's lease. Raises StreamClosed or WriterSuperseded."""
        pen = await self._producers_pen(sid, grant, epoch)
        renewed = await self.log.append(Append(sid, pen, pen.base, (), EXTERNAL_LEASE_S))
        if is_terminal(renewed.state):
            raise StreamClosed("The stream has its terminal event; there is nothing to renew.")
        return renewed

    async def _producers_pen(self, sid: str, grant: Grant, epoch: int) -> Pen:
        meta, is_in_redis = await self.look_up_content(sid, grant)
        if meta["producer"] != EXTERNAL:
            raise Forbidden("This stream is written by a worker; only a stream created as external takes events.")
        has_ended = is_terminal(meta["state"])  # of a finished one, the log says that first
        if not has_ended and epoch > int(meta["epoch"]):
            # Epochs are given out by the log. The append step would take a newer one for a claim that Redis lost.
            raise WriterSuperseded("This stream has never given out that epoch; use the one its creation returned.")
        if not is_in_redis:
            raise StreamClosed("The stream has its terminal event, and its retention is over.")
        return Pen(epoch, meta["claim"] if epoch == int(meta["epoch"]) else "", int(meta["base"]))

    async def _start(self, template: NewStream, grant: Grant, key: str | None, request: dict[str, Any]) -> Started:
        redis, new = self.log.redis, replace(template, sid=new_sid())
        if key is None:
            await self.log.create(new)
            reservation = None
        else:
            reservation = await self._reserve(grant, key, new.sid, request)
            if reservation.created:
                return Started(await self._record(reservation.sid, grant), is_new=False)
            new = replace(new, sid=reservation.sid, idempotency=f"{key} {reservation.digest}")
            # Whoever comes second cannot know whether the first has made it, and Redis has lost that.
            since_ms = None if reservation.first else await reserved_ms(redis, reservation, await self.log.now_ms())
            await self.log.create(new, reserved_ms=since_ms)
            await mark_created(redis, reservation.key, reservation.sid, reservation.digest)
        if new.producer != EXTERNAL:
            await self._enqueue(new.sid)
        return Started(await self._record(new.sid, grant), is_new=reservation is None or reservation.first)

    async def _reserve(self, grant: Grant, key: str, sid: str, request: dict[str, Any]) -> Reservation:
        require_key(key)
        name = self.log.keys.idempotency(grant.tenant, key)
        with from_redis():
            is_known = await self.log.redis.exists(name)
        if not is_known:  # and if Redis has just lost it, its stream's writer is about to put both back
            await self.log.require_settled(ENDINGS_WAIT)
        return await reserve(self.log.redis, name, sid, request)

    async def _record(self, sid: str, grant: Grant) -> dict[str, Any]:
        meta = (await self.look_up(sid, grant)).meta
        shown = record(meta, sid, self._auth.token(sid))
        is_external = meta.get("producer") == EXTERNAL and "epoch" in meta
        return {**shown, "epoch": int(meta["epoch"])} if is_external else shown

    async def _enqueue(self, sid: str) -> None:
        try:
            with from_redis():
                await enqueue(self._queue, self.log.keys, sid)
        except LasteventError:
            # The stream exists, so it will run: a sweeper claims what stays queued for 5 s.
            logger.warning("stream %s could not be queued; a worker's sweeper will find it", sid)
