"""Tier: what a web process holds."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from redis.asyncio import Redis

from broker.archive.setup import open_archive
from broker.auth import Auth, Grant
from broker.errors import Draining, Forbidden, RedisUnavailable
from broker.live.hub import Hub
from broker.log.access import AccessRecord
from broker.log.keys import Keys
from broker.log.meta import Meta
from broker.log.queue import connect_queue
from broker.log.seizures import Seizures
from broker.log.stream_log import StreamLog
from broker.process.loops import Loops
from broker.service.listing import Listing
from broker.service.reading import Reading, load_masks_of
from broker.service.record import stream_record
from broker.service.streams import Streams
from broker.settings import Settings
from broker.store.connect import connect
from broker.web.strict_json import Model, read_model
from broker.web.viewer import Viewers

logger = logging.getLogger(__name__)


class Tier:
    """What a web process holds: its connections, its hub, its viewers. All of it can be lost."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        keys = Keys(settings.key_prefix)
        self.redis: Redis = connect(settings.redis_url)
        self.queue = connect_queue(settings.redis_url, keys)
        self.log = StreamLog(
            self.redis,
            keys,
            retention_s=settings.retention_s,
            max_events=settings.max_events,
            max_bytes=settings.max_bytes,
            is_archived=bool(settings.archive_url),
        )
        self.archive = open_archive(settings)
        self.hub = Hub(self.redis, keys, heartbeat_s=settings.heartbeat_s)
        self.auth = Auth(settings.keys, settings.read_token_ttl_s, settings.masked)
        self.access = AccessRecord(
            self.redis, keys, retention_s=settings.retention_s, is_archived=self.archive is not None
        )
        self.viewers = Viewers(self.access, limit=settings.max_viewers, stall_s=settings.viewer_stall_s)
        self.seizures = Seizures(self.log)
        self.hub.on_new_server = self.seizures.beat
        reader = self.archive.reader if self.archive else None
        self.streams = Streams(self.log, reader, self.seizures, self.queue, self.auth, settings)
        self.listing = Listing(self.log, reader, max_bytes=settings.listing_bytes)
        self.reading = Reading(self.streams, self.archive, load_masks_of(settings))

    @classmethod
    def of(cls, request: Request) -> Tier:
        """The one that this request came to."""
        found: Tier = request.app.state.tier
        return found

    def drain(self) -> None:
        """Send every viewer away, between two frames, and take no new ones."""
        self.viewers.drain()

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        loops = Loops(
            {
                "hub": self.hub.run,
                "heartbeats": self.hub.keep_alive,
                "seizures": self.seizures.run,
                "access record": self.access.run,
            },
            _end_this_process,
        )
        try:
            yield
        finally:
            await loops.end()
            await self._write_last_records()
            if self.archive:
                await self.archive.aclose()
            await self.queue.aclose()
            await self.redis.aclose()

    async def unarchived(self) -> int:
        """Finished streams that only Redis has, as far as it can be asked."""
        try:
            return int(await self.redis.zcard(self.log.keys.unarchived))
        except RedisUnavailable:
            return 0

    async def _write_last_records(self) -> None:
        try:
            await self.access.close()
        except RedisUnavailable:
            logger.warning("Redis is away; the last viewers' records (%d) are lost", self.access.waiting)

    def full_grant(self, request: Request) -> Grant:
        """Of a caller that may do everything. Raises Unauthorized, or Forbidden for a masked key."""
        grant = self.read_all_grant(request)
        if grant.is_masked:
            raise Forbidden("This key only reads finished streams, with masks applied. Use another key.")
        return grant

    def read_all_grant(self, request: Request) -> Grant:
        """Of a caller that may read all streams, perhaps masked. Raises Unauthorized."""
        return self.auth.by_key(request.headers.get("authorization"))

    def stream_grant(self, request: Request, sid: str) -> Grant:
        """Of a caller that may read this stream: by a key, perhaps masked, or by a read token. Raises Unauthorized."""
        token = request.query_params.get("token")
        if token is not None and not self.auth.is_open and "authorization" not in request.headers:
            return self.auth.by_token(sid, token)
        return self.read_all_grant(request)

    def require_open(self) -> None:
        if self.viewers.draining.is_set():
            raise Draining("This server is shutting down. Try again; another server will answer.")

    def require_place(self) -> None:
        self.require_open()
        self.viewers.require_place()

    def stream_json(self, meta: Meta, sid: str, grant: Grant) -> dict[str, Any]:
        return self.reading.masked_record(
            stream_record(meta, sid, None if grant.is_masked else self.auth.token(sid)), grant
        )

    async def body(self, request: Request, model: type[Model], *, optional: bool = False) -> Model:
        return await read_model(request, model, self.settings.max_body_bytes, optional=optional)


def _end_this_process() -> None:
    signal.raise_signal(signal.SIGTERM)  # it drains, as at any other
