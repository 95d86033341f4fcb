"""Shared streams, found by their paths, without HTTP: create or fork, append and close, read, delete (Durable Streams).

A shared stream is a stream like others: it is listed, archived once it is closed, erased, read in any form by its id.
What it has besides is a path, several producers, and a life that may depend on its use.

A creation makes the stream, whole, and names it last. So nobody sees half of one, and of two that create the same path
at once one is discarded. A deletion takes the name away first. What a crash leaves without a name a sweeper erases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from broker.auth import Grant
from broker.errors import (
    BodyTooLarge,
    InvalidRequest,
    LasteventError,
    LogHealing,
    PathTaken,
    StreamClosed,
    StreamExpired,
    StreamLimit,
    StreamNotFound,
    StreamRunning,
)
from broker.log.burial import bury
from broker.log.durable import MESSAGE, first_bytes, media_type
from broker.log.event import Event
from broker.log.meta import SHARED, Meta, NewStream, new_sid
from broker.log.paths import Place
from broker.log.readable import ReadableLog
from broker.log.seizures import Seizures
from broker.log.steps import Produce, Produced, Producer
from broker.service.streams import Found, Streams

TRIES = 5
"""Of a creation that finds somebody else's, who has gone when it looks."""

COPIED_EVENTS, COPIED_BYTES = 2000, 2**20
"""Of a fork at once: Redis takes some ms for them."""

CREATION_MS = 60_000
"""How long a creation may take before the first use of its stream counts."""

QUEUED = 1
"""The id of every stream's first event, behind which a reader begins."""


class Source(NamedTuple):
    """Where a fork begins: behind this event of the stream at that path (None: at its tail), and so many messages, or
    bytes of the next append, further.
    """

    path: str
    at: int | None = None
    further: int = 0


class Asked(NamedTuple):
    """How a stream is to be. `content_type`: None if nothing was said. `expires_at`: as it was given; `expires_ms`.
    `events`: what it begins with. `closed`: and ends with.
    """

    content_type: str | None
    ttl_s: int | None = None
    expires_at: str | None = None
    expires_ms: int | None = None
    source: Source | None = None
    events: Sequence[tuple[str, bytes]] = ()
    closed: bool = False


class Open(NamedTuple):
    """A stream as it was found at its path."""

    sid: str
    found: Found

    @property
    def meta(self) -> Meta:
        return self.found.meta

    @property
    def content_type(self) -> str:
        known: Mapping[str, Any] = self.meta.durable or {}
        return str(known.get("type", ""))

    @property
    def ttl_s(self) -> int | None:
        known: Mapping[str, Any] = self.meta.durable or {}
        return known.get("ttl")

    @property
    def expires_at(self) -> str | None:
        known: Mapping[str, Any] = self.meta.durable or {}
        return known.get("expires_at")

    @property
    def life_ms(self) -> int | None:
        return None if self.ttl_s is None else 1000 * self.ttl_s

    @property
    def tail(self) -> int:
        """The id of the last event, the ending apart: behind it nothing was ever said."""
        stopped_after = self.meta.stopped_after
        return self.meta.tail if not self.meta.has_ended or stopped_after is None else stopped_after

    @property
    def is_closed(self) -> bool:
        return self.meta.has_ended


class Created(NamedTuple):
    stream: Open
    is_new: bool


class DurableStreams:
    """Each method raises as `Streams` does, StreamNotFound for a path without a stream, and StreamExpired for one that
    is blocked: its stream is gone, and forks of it live.
    """

    def __init__(self, streams: Streams, seizures: Seizures) -> None:
        self._streams = streams
        self._log = streams.log
        self._paths = streams.log.paths
        self._seizures = seizures

    async def find(self, path: str, grant: Grant, *, is_used: bool = False) -> Open:
        """`is_used`: by a reader; that prolongs a life that depends on use."""
        place = await self._paths.find(grant.tenant, path)
        if place is None or (stream := await self._open(place, path, grant)) is None:
            place = place and await self._paths.find(grant.tenant, path)
            if place and place.is_gone:
                raise StreamExpired("The stream was deleted, or its life is over, and forks of it live.")
            raise StreamNotFound("There is no stream at this path.")
        if is_used and stream.life_ms is not None:
            await self._log.prolong(stream.sid, stream.life_ms)
        return stream

    async def create(self, path: str, grant: Grant, asked: Asked) -> Created:
        """Raises PathTaken for a path with a stream that was asked for in other words, or that is blocked; what stops
        any start; InvalidRequest for a place in the source that there is not; BodyTooLarge for more than a stream
        holds.
        """
        for _ in range(TRIES):
            place = await self._paths.find(grant.tenant, path)
            if place:
                if place.is_gone:
                    raise PathTaken("A stream was here, and forks of it live: the path is free when they are gone.")
                if stream := await self._open(place, path, grant):
                    _require_same(stream, asked)
                    return Created(stream, is_new=False)
                if (await self._paths.find(grant.tenant, path)) != place:
                    continue  # its life was over
            new = await self._make(path, grant, asked)
            if await self._paths.put(grant.tenant, path, new.sid, place.sid if place else "", _path(asked.source)):
                return Created(new, is_new=True)
            await self._discard(new.sid, grant.tenant, asked.source)
        raise PathTaken("Others create and delete streams at this path all the time. Try again.")

    async def append(
        self,
        stream: Open,
        events: Sequence[tuple[str, bytes]],
        *,
        producer: Producer | None = None,
        seq: str = "",
        closes: bool = False,
    ) -> Produced:
        """Raises as `StreamLog.produce` does; BodyTooLarge for more than the stream holds."""
        if not stream.found.is_in_redis:
            raise StreamClosed("The stream is closed.")
        try:
            return await self._log.produce(Produce(stream.sid, events, producer, seq, closes, stream.life_ms))
        except StreamLimit:
            raise BodyTooLarge("The stream would have more events or bytes than one may.") from None

    async def delete(self, path: str, grant: Grant) -> str:
        """Returns the stream's id. Its content is erased; with an archive that may take a moment longer."""
        stream = await self.find(path, grant)
        await self._paths.remove(grant.tenant, path, stream.sid)
        if not stream.meta.has_ended:
            await self._streams.cancel(stream.sid, grant, "deleted")
        await self._streams.erase(stream.sid, grant)
        return stream.sid

    async def log_of(self, stream: Open) -> ReadableLog:
        return await self._streams.log_of(stream.sid, stream.found)

    async def _open(self, place: Place, path: str, grant: Grant) -> Open | None:
        """None if it is not there any more, or its life is over; then it is buried."""
        if place.is_gone:
            return None
        try:
            found = await self._streams.look_up_content(place.sid, grant)
        except (StreamNotFound, StreamExpired):
            return None
        stream = Open(place.sid, found)
        if await self._is_over(stream):
            with suppress(LogHealing, StreamNotFound, StreamRunning):  # or a sweeper does
                await bury(self._log, self._seizures, place.sid, found.meta)
            return None
        return stream

    async def _is_over(self, stream: Open) -> bool:
        known: Mapping[str, Any] = stream.meta.durable or {}
        if not stream.found.is_in_redis:
            expires_ms = known.get("expires_ms")
            return stream.ttl_s is not None or (expires_ms is not None and expires_ms <= await self._log.now_ms())
        expires = stream.meta.expires
        return expires is not None and expires <= await self._log.now_ms()

    # -- creation --------------------------------------------------------------------------------------------

    async def _make(self, path: str, grant: Grant, asked: Asked) -> Open:
        """A stream that no path names yet."""
        if asked.source is None:
            return await self._fill(self._new(path, grant, asked), asked, grant)
        source = await self._source(asked.source.path, grant)
        if asked.content_type and not _is_same_type(asked.content_type, source.content_type):
            raise PathTaken("A fork has the content type of its source.")
        where = asked.source
        inherited = await self._inherited(source, where)
        asked = _with_inherited(asked, source)
        new = self._new(path, grant, asked)
        if not await self._paths.forked(grant.tenant, where.path, source.sid, new.sid, path):
            raise StreamNotFound("The source was deleted meanwhile.")
        try:
            return await self._fill(new, asked, grant, inherited)
        except BaseException:
            with suppress(LasteventError):  # or a sweeper does
                await self._discard(new.sid, grant.tenant, where)
            raise

    def _new(self, path: str, grant: Grant, asked: Asked) -> NewStream:
        source = asked.source
        durable = {
            "type": asked.content_type,
            "ttl": asked.ttl_s,
            "expires_at": asked.expires_at,
            "expires_ms": asked.expires_ms,
            "source": None if source is None else list(source),
        }
        return NewStream(
            tenant=grant.tenant,
            session=f"s-{new_sid()[:16]}",
            producer=SHARED,
            durable={name: value for name, value in durable.items() if value is not None},
            path=path,
            expires=asked.expires_ms,
        )

    async def _fill(self, new: NewStream, asked: Asked, grant: Grant, inherited: Sequence[Event] = ()) -> Open:
        size = sum(len(data) for _, data in asked.events) + sum(len(event.data) for event in inherited)
        log = self._log
        if len(inherited) + len(asked.events) > log.max_events or size > log.max_bytes:
            raise BodyTooLarge("A stream may not have so many events or bytes.")
        if asked.ttl_s is not None:  # until the step below, which is the first use
            new = replace(new, expires=await log.now_ms() + 1000 * asked.ttl_s + CREATION_MS)
        await self._streams.create_shared(new, size)
        for start, end in _portions(inherited):
            await log.copy(new.sid, inherited[start:end])
        life_ms = None if asked.ttl_s is None else 1000 * asked.ttl_s
        await log.produce(Produce(new.sid, asked.events, closes=asked.closed, life_ms=life_ms))
        return Open(new.sid, await self._streams.look_up_content(new.sid, grant))

    async def _discard(self, sid: str, tenant: str, source: Source | None) -> None:
        """What was made, and is not needed."""
        if source:
            await self._paths.fork_gone(tenant, source.path, sid)
        [meta] = await self._log.read_meta(sid)
        if meta:
            await bury(self._log, self._seizures, sid, meta)

    # -- forks -----------------------------------------------------------------------------------------------

    async def _source(self, path: str, grant: Grant) -> Open:
        try:
            return await self.find(path, grant)
        except StreamExpired:
            raise PathTaken("The source was deleted. It has forks, and gets no more.") from None

    async def _inherited(self, source: Open, where: Source) -> list[Event]:
        """The events that a fork begins with. Raises InvalidRequest for a place that there is not."""
        until = source.tail if where.at is None else where.at
        if until > source.tail:
            raise InvalidRequest("Stream-Fork-Offset: beyond the end of the source.")
        events = [event for event in await (await self.log_of(source)).read_all(source.sid) if event.id > QUEUED]
        said = [event for event in events if not event.is_terminal]
        inherited = [event for event in said if event.id <= until]
        following = said[len(inherited) :]
        return inherited + _further(following, where.further)


def _further(following: Sequence[Event], count: int) -> list[Event]:
    """So many messages, or bytes of the next append."""
    if count == 0:
        return []
    if not following:
        raise InvalidRequest("Stream-Fork-Sub-Offset: beyond the end of the source.")
    if following[0].kind == MESSAGE:
        if count > len(following):
            raise InvalidRequest("Stream-Fork-Sub-Offset: beyond the messages that there are.")
        return list(following[:count])
    cut = first_bytes(following[0], count)
    if cut is None:
        raise InvalidRequest("Stream-Fork-Sub-Offset: beyond the next append.")
    return [cut]


def _portions(events: Sequence[Event]) -> Iterator[tuple[int, int]]:
    """As many at once as Redis takes without holding others up."""
    start = size = 0
    for at, event in enumerate(events):
        if at > start and (at - start == COPIED_EVENTS or size + len(event.data) > COPIED_BYTES):
            yield start, at
            start, size = at, 0
        size += len(event.data)
    if start < len(events):
        yield start, len(events)


def _with_inherited(asked: Asked, source: Open) -> Asked:
    """What a fork was not told it has from its source (protocol, section 4.2)."""
    asked = asked._replace(content_type=asked.content_type or source.content_type)
    if asked.ttl_s is None and asked.expires_ms is None:
        known: Mapping[str, Any] = source.meta.durable or {}
        expires_ms: int | None = known.get("expires_ms")
        asked = asked._replace(ttl_s=source.ttl_s, expires_at=source.expires_at, expires_ms=expires_ms)
    return asked


def _require_same(stream: Open, asked: Asked) -> None:
    """Raises PathTaken for a stream that was asked for otherwise (section 5.1)."""
    known: Mapping[str, Any] = stream.meta.durable or {}
    is_fork = asked.source is not None
    same_type = (is_fork and asked.content_type is None) or _is_same_type(asked.content_type or "", stream.content_type)
    inherits = is_fork and asked.ttl_s is None and asked.expires_ms is None
    same_life = inherits or (asked.ttl_s, asked.expires_ms) == (stream.ttl_s, known.get("expires_ms"))
    same_source = asked.source is None or list(asked.source) == known.get("source")
    if not (same_type and same_life and same_source and asked.closed == stream.is_closed):
        raise PathTaken("There is a stream at this path whose content type, life, source or closure is another.")


def _is_same_type(one: str, other: str) -> bool:
    return media_type(one) == media_type(other)


def _path(source: Source | None) -> str:
    return source.path if source else ""
