"""Tier: what a web process holds."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI, Request

from broker import gauges
from broker.archive.setup import open_archive
from broker.auth import Auth, Grant
from broker.dialects.format import Format
from broker.errors import Draining, RedisUnavailable, StoreUnavailable, WrongType
from broker.live.folded import Folds
from broker.live.hub import Hub
from broker.live.presence import Presence
from broker.log.access import AccessRecord
from broker.log.deeds import Deed, Deeds
from broker.log.keys import Keys
from broker.log.meta import Meta
from broker.log.needs import Needs
from broker.log.queue import connect_queue
from broker.log.secret import SharedSecret
from broker.log.seizures import Seizures
from broker.log.stream_log import StreamLog
from broker.process.loops import Loops, watch_lag
from broker.service.acts import Acts
from broker.service.durable import DurableStreams
from broker.service.erasing import Erasing
from broker.service.listing import Listing
from broker.service.masking import Masking
from broker.service.reading import Reading, load_masks_of
from broker.service.record import stream_record, viewers_record
from broker.service.streams import Streams
from broker.settings import PREFIX, Settings, SettingsError
from broker.store.connect import connect
from broker.store.listen import messages
from broker.tenants.creations import Creations
from broker.tenants.enforcement import Enforcement
from broker.tenants.issuers import BadIssuers, Issuers, load_issuers
from broker.tenants.keyring import ApiKey, Keyring, given_key
from broker.tenants.limits import Limits, TenantLimits
from broker.tenants.revocations import Revocations
from broker.tenants.scopes import EVERYTHING, MASKED
from broker.tenants.stored_keys import StoredKeys
from broker.tenants.tokens import LEEWAY_S, Tokens
from broker.web.addresses import Addresses
from broker.web.intake import Intake
from broker.web.places import Places
from broker.web.rates import ConnectRate, UnauthorizedGate
from broker.web.sockets import Sockets
from broker.web.strict_json import Model, read_json, to_model
from broker.web.viewer import Viewers, request_details

logger = logging.getLogger(__name__)

READ_KEYS_S = 1.0


class Tier:
    """What a web process holds: its connections, its hub, its viewers. All of it can be lost."""

    def __init__(self, settings: Settings, *, may_open: bool = True) -> None:
        self.settings = settings
        keys = Keys(settings.key_prefix)
        self.redis = connect(settings.redis_url)
        self.needs = Needs(self.redis, keys)
        self.queue = connect_queue(settings.redis_url, keys)
        self.log = StreamLog(
            self.redis,
            keys,
            retention_s=settings.retention_s,
            max_events=settings.max_events,
            max_bytes=settings.max_bytes,
            is_archived=bool(settings.archive_url),
            has_webhooks=bool(settings.webhook_secrets),
        )
        self.archive = open_archive(settings)
        self.hub = Hub(self.redis, keys, heartbeat_s=settings.heartbeat_s)
        self.folds = Folds()
        self.presence = Presence(self.redis, keys, self.hub)
        self.secret = SharedSecret(self.redis, keys)
        self.keyring = Keyring(settings_keys(settings), may_open=may_open)
        self.keys = StoredKeys(self.redis, keys.api_keys, keys.api_keys_changed)
        self.issuers = _issuers(settings)
        self.revocations = Revocations(
            self.redis, keys.revoked, keys.api_keys_changed, longest_s=settings.longest_token_s + LEEWAY_S
        )
        tokens = Tokens(
            lambda: settings.token_secrets or self.secret.known,
            self.issuers,
            audience=settings.token_audience,
            max_ttl_s=settings.longest_token_s,
        )
        self.auth = Auth(
            self.keyring,
            tokens,
            self.revocations,
            settings.read_token_ttl_s,
            has_masks=settings.redact_file is not None,
        )
        self.access = AccessRecord(
            self.redis,
            keys,
            retention_s=settings.retention_s,
            is_archived=self.archive is not None,
            limit=settings.view_records_per_stream,
        )
        self.deeds = Deeds(self.redis, keys, retention_s=settings.retention_s, is_archived=self.archive is not None)
        self.enforcement = Enforcement(
            observes=settings.limits == "observe", on_limited=lambda limit: gauges.limited.labels(limit).inc()
        )
        self.limits = TenantLimits(self.redis, keys.limits, given_limits(settings))
        places = Places(
            limit=settings.max_viewers,
            per_stream=settings.viewers_per_stream,
            per_token=settings.viewers_per_token,
            per_subject=settings.viewers_per_subject,
            limits=self.limits,
            enforcement=self.enforcement,
        )
        self.viewers = Viewers(self.access, places, stall_s=settings.viewer_stall_s)
        self.sockets = Sockets(
            heartbeat_s=settings.heartbeat_s,
            stall_s=settings.viewer_stall_s,
            message_bytes=settings.socket_message_bytes,
        )
        self.revocations.on_change = partial(self.viewers.cut_unless, self.auth.is_good)
        self.connects = ConnectRate(settings.connects_per_minute, self.enforcement)
        self.addresses = Addresses(settings.trusted_proxies)
        self.gate = UnauthorizedGate(settings.unauthorized_per_minute, self.enforcement)
        self.intake = Intake()
        self.seizures = Seizures(self.log)
        self.hub.on_new_server = self.seizures.beat
        self.hub.on_connected = self.needs.doubt
        reader = self.archive.reader if self.archive else None
        creations = Creations(self.redis, keys.rates, self.limits, self.enforcement)
        self.streams = Streams(self.log, reader, self.seizures, self.queue, self.auth, settings, self.needs, creations)
        self.durable = DurableStreams(self.streams, self.seizures)
        self.listing = Listing(self.log, reader, max_bytes=settings.listing_bytes)
        self.erasing = Erasing(self.log)
        self.acts = Acts(self.deeds, reader)
        redactor = load_masks_of(settings)
        self._masking = Masking(redactor) if redactor else None
        self.reading = Reading(self.streams, self.archive, self._masking)

    @classmethod
    def of(cls, request: Request) -> Tier:
        """The one that this request came to."""
        found: Tier = request.app.state.tier
        return found

    def drain(self) -> None:
        """Send every viewer away, between two frames, and take no new ones; and who waits for masks."""
        self.viewers.drain()
        self.sockets.drain()
        if self._masking:
            self._masking.close()

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        know, cut = self.keyring.know, self.cut_revoked
        run = {
            "keys": lambda: self.keys.look(know, cut),
            "credentials": self._hear_of_credentials,
            "hub": self.hub.run,
            "heartbeats": self.hub.keep_alive,
            "looks": self.hub.look_after,
            "presence": self.presence.run,
            "seizures": self.seizures.run,
            "access record": self.access.run,
            "deeds": self.deeds.run,
            "needs": self.needs.run,
            "lag": watch_lag,
            "revocations": self.revocations.run,
        }
        if not self.settings.token_secrets:
            run["token secret"] = self.secret.run
        await self._read_keys()
        loops = Loops(run, _end_this_process)
        self.issuers.start()
        self._give_gauges()
        try:
            yield
        finally:
            await loops.end()
            self.issuers.close()
            if self._masking:
                self._masking.close()
            await self._write_last_records()
            if self.archive:
                await self.archive.aclose()
            await self.queue.aclose()
            await self.redis.aclose()

    def _give_gauges(self) -> None:
        viewers, hub, access = self.viewers, self.hub, self.access
        gauges.viewers.source = lambda: viewers.of_forms or {Format.EXACT.access_name: 0}
        gauges.viewers_ended.source = lambda: {how.value: count for how, count in viewers.ended.items()}
        gauges.viewers_lagging.source = lambda: viewers.lagging
        gauges.topics.source = lambda: hub.topics
        gauges.hub_connected.source = lambda: hub.is_connected
        gauges.view_records_waiting.source = lambda: access.waiting
        gauges.view_records_lost.source = lambda: access.lost

    async def _read_keys(self) -> None:
        """Before the first request, if Redis is there: until then there is no answer but 503."""
        with suppress(StoreUnavailable, WrongType, TimeoutError):  # the loop reads them when it is back
            async with asyncio.timeout(READ_KEYS_S):
                await self.keys.tell(self.keyring.know)

    async def _hear_of_credentials(self) -> None:
        """Read keys and revocations whenever a server or the command says that it has changed some. For ever."""
        async with aclosing(messages(self.redis, self.log.keys.api_keys_changed)) as told:
            async for _ in told:
                await self.keys.tell(self.keyring.know)
                await self.revocations.read()
                self.cut_revoked()

    def cut_revoked(self) -> None:
        self.viewers.cut_unless(self.auth.is_good)

    async def require_ready(self) -> None:
        """A generation would start now, as far as this server and Redis go. Raises Draining or RedisUnavailable."""
        self.require_open()
        await self.needs.require()
        # A write that changes nothing: a Redis may be alive and take none.
        await self.redis.set(self.log.keys.probe, b"", xx=True)
        if not self.hub.is_connected or not self.auth.is_ready:
            raise RedisUnavailable("The server is still connecting to Redis. Try again shortly.")

    async def unarchived(self) -> int | None:
        """Finished streams that only Redis has; None while it cannot be asked."""
        try:
            return int(await self.redis.zcard(self.log.keys.unarchived))
        except RedisUnavailable:
            return None

    async def _write_last_records(self) -> None:
        try:
            await self.deeds.flush()
        except RedisUnavailable:
            if self.deeds.waiting:
                logger.warning("Redis is away; the last deeds (%d) are lost", self.deeds.waiting)
        try:
            await self.access.close()
        except RedisUnavailable:
            if self.access.waiting:
                logger.warning("Redis is away; the last viewers' records (%d) are lost", self.access.waiting)

    def require_open(self) -> None:
        if self.viewers.draining.is_set():
            raise Draining("This server is shutting down. Try again; another server will answer.")

    async def require_place(self, grant: Grant, sid: str | None = None) -> None:
        """For a viewer, of a stream that may not exist yet. Raises Draining, TooManyViewers, RateLimited or
        RedisUnavailable.
        """
        self.require_open()
        await self.viewers.places.require(grant, sid)
        if grant.token:
            self.connects.require(grant.token.id)

    async def stream_json(self, meta: Meta, sid: str, grant: Grant) -> dict[str, Any]:
        """The record as this caller may see it."""
        if grant.is_viewer:
            return viewers_record(meta, sid)
        webhook = await self.streams.webhook(sid, meta)
        if not grant.is_masked:
            record = stream_record(meta, sid, self.auth.token(sid, meta) if grant.gives_reading else None)
            return {**record, "webhook": webhook}
        record = await asyncio.to_thread(stream_record, meta, sid, None, is_parsed=True)  # 32 MiB take 60 ms to parse
        [seen] = await self.reading.records([record], grant)
        return {**seen, "webhook": webhook}

    async def listed_json(self, found: Iterable[tuple[str, Meta]], grant: Grant) -> Sequence[dict[str, Any]]:
        """The records of these streams, in the same order, as this caller may see them. Without tokens: a listing
        would make two hundred.
        """
        records = []
        for sid, meta in found:
            try:
                records.append(stream_record(meta, sid, None, is_parsed=grant.is_masked))
            except (ValueError, TypeError):  # something else has written it: it must not hide the others
                logger.exception("stream %s: its record cannot be read; a listing leaves it out", sid)
            if grant.is_masked:
                await asyncio.sleep(0)  # metadata is parsed: 15 ms for a MB, and others have their turns between two
        return await self.reading.records(records, grant)

    def note_reading(
        self, request: Request, grant: Grant, form: str, *sids: str, span: tuple[int | None, int | None] = (None, None)
    ) -> None:
        """Keep in the access record that this caller has read these streams. `span`: the first and the last event."""
        details = request_details(grant, self.addresses.of(request), request.headers, form, 0)
        for sid in sids:
            self.access.read(sid, details, span)

    def deed(self, request: Request, what: str, stream: str | None = None, **detail: Any) -> Deed:
        """What the caller of this request did. `detail`: see Deed."""
        grant: Grant = request.state.grant
        request_id: str | None = getattr(request.state, "request_id", None)
        return Deed(grant.tenant, grant.who, what, stream, self.addresses.of(request), request_id, detail or None)

    async def body(self, request: Request, model: type[Model], *, optional: bool = False) -> Model:
        return await to_model(model, await read_json(request, self.settings.max_body_bytes, optional=optional))


def settings_keys(settings: Settings) -> list[ApiKey]:
    full = [given_key(secret, EVERYTHING, f"{PREFIX}API_KEYS") for secret in settings.keys]
    masked = frozenset({MASKED})
    return [*full, *(given_key(secret, masked, f"{PREFIX}MASKED_KEYS") for secret in settings.masked)]


def given_limits(settings: Settings) -> Limits:
    """Of a tenant for which none are set."""
    return Limits(
        creations_per_minute=settings.creations_per_minute,
        streams_running=settings.streams_running,
        viewers=settings.viewers_per_tenant or max(1, settings.max_viewers // 2),
        models=settings.allowed_models or None,
        max_tokens=settings.max_tokens_limit,
    )


def _issuers(settings: Settings) -> Issuers:
    """Raises SettingsError."""
    longest_s = settings.token_max_ttl_s
    try:
        return load_issuers(settings.issuers, audience=settings.token_audience, max_ttl_s=longest_s, leeway_s=LEEWAY_S)
    except BadIssuers as error:
        raise SettingsError("\n".join(f"LASTEVENT_ISSUERS: {line}" for line in str(error).splitlines())) from None


def _end_this_process() -> None:
    signal.raise_signal(signal.SIGTERM)  # it drains, as at any other
