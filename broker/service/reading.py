"""What a caller reads of a stream: from Redis or the archive, with masks laid over it for those who may not see all."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import orjson

from broker.archive.packing import decompress
from broker.archive.reader import Sealed
from broker.archive.seal import canonical
from broker.archive.setup import NOT_SEALED, Archive
from broker.auth import Grant
from broker.errors import ArchiveDamaged, Forbidden, InvalidRequest, StreamNotFound, StreamRunning
from broker.log.access import read_views
from broker.log.event import RESTART, Event, public, text_since_restart, to_ndjson
from broker.log.index import Place
from broker.log.readable import ReadableLog
from broker.log.steps import PAGE_EVENTS, Page
from broker.log.turn import MAKE_A_MESSAGE, message
from broker.service.masking import Masking
from broker.service.masks import BadMasks, Redactor, load_masks
from broker.service.record import verdict_json, view_json
from broker.service.streams import Found, Streams
from broker.settings import PREFIX, Settings, SettingsError


class Content(NamedTuple):
    """What was read of a log, and the first and the last event in it."""

    content: bytes
    first_id: int
    last_id: int


class Reading:
    def __init__(self, streams: Streams, archive: Archive | None, masking: Masking | None) -> None:
        self._streams = streams
        self._archive = archive
        self._masking = masking

    async def log(self, sid: str, found: Found, grant: Grant) -> ReadableLog:
        """Where this caller reads the stream's events. Raises StreamExpired, Forbidden, or MasksTooSlow."""
        log = await self._streams.log_of(sid, found)
        return _MaskedLog(await self._masked_events(sid, found, log)) if grant.is_masked else log

    async def text(self, sid: str, grant: Grant) -> Content:
        """The answer as a person reads it. Raises StreamNotFound, StreamExpired, Forbidden, or MasksTooSlow."""
        texts: list[str] = []

        def take(events: Sequence[Event]) -> None:
            if any(event.kind == RESTART for event in events):
                texts.clear()
            texts.append(text_since_restart(events))

        first_id, last_id = await self._each_page(sid, grant, take, texts.clear)
        return Content("".join(texts).encode(), first_id, last_id)

    async def message(self, sid: str, grant: Grant) -> Content:
        """The assistant's message for the next request, as JSON (log/turn.py).

        Raises as `text` does, StreamRunning, or LogDamaged.
        """
        if not (await self._streams.look_up_content(sid, grant)).meta.has_ended:
            raise StreamRunning("The answer is still being written. Follow the stream to its end, then ask again.")
        events: list[Event] = []

        def take(page: Sequence[Event]) -> None:
            if any(event.kind == RESTART for event in page):
                events.clear()  # what of this page was before it, `message` leaves out
            events.extend(event for event in page if event.kind in MAKE_A_MESSAGE)

        first_id, last_id = await self._each_page(sid, grant, take, events.clear)
        made = await asyncio.to_thread(lambda: orjson.dumps(message(events)))  # 150,000 events take 0.1 s to parse
        return Content(made, first_id, last_id)

    async def export(self, sid: str, grant: Grant, *, is_redacted: bool) -> Content:
        """NDJSON: an event a line; then, if masks were laid over them, which; then the seal, if there is one.

        What users see has no seal: it is that of the whole log, which such a file is not. Raises as `text` does.
        """
        if is_redacted and not self._masking:
            raise InvalidRequest(f"This server has no masks: set {PREFIX}REDACT_FILE.")
        is_redacted = is_redacted or grant.is_masked
        pages: list[bytes] = []

        def take(events: Sequence[Event]) -> None:
            pages.append(b"".join(map(to_ndjson, events)))

        first_id, last_id = await self._each_page(sid, grant.masked() if is_redacted else grant, take, pages.clear)
        if is_redacted and self._masking:
            pages.append(orjson.dumps({"redacted": self._masking.names}) + b"\n")
        if grant.is_public:
            return Content(b"".join(pages), first_id, last_id)
        if self._archive and (sealed := await self._archive.reader.sealed(sid)) and sealed.seal:
            pages.append(await asyncio.to_thread(_seal_line, sealed, is_redacted=is_redacted))  # a request of 32 MiB
        return Content(b"".join(pages), first_id, last_id)

    async def _each_page(
        self, sid: str, grant: Grant, take: Callable[[Sequence[Event]], object], forget: Callable[[], object]
    ) -> tuple[int, int]:
        """Hand over the whole log in pages, as far as this caller sees it, between which others have their turns:
        150,000 events at once would hold the loop for 0.2 s. `forget`: it begins again. Returns the first and the last
        id that it was given.
        """
        try:
            return await self._each_page_once(sid, grant, take)
        except StreamNotFound:  # perhaps it has left Redis just now, and the archive has it
            forget()
            return await self._each_page_once(sid, grant, take)

    async def _each_page_once(
        self, sid: str, grant: Grant, take: Callable[[Sequence[Event]], object]
    ) -> tuple[int, int]:
        found = await self._streams.look_up_content(sid, grant, as_sealed=True)
        log = await self.log(sid, found, grant)
        first_id, last_id, cursor, more = 0, 0, 0, True
        while more:
            page = await log.read_page(sid, cursor)
            await asyncio.sleep(0)  # what is masked is in memory: it has no wait of its own
            if events := public(page.events) if grant.is_public else page.events:
                take(events)
                first_id, last_id = first_id or events[0].id, events[-1].id
            if page.events:
                cursor = page.events[-1].id
            more = page.more
        return first_id, last_id

    async def records(self, records: Sequence[dict[str, Any]], grant: Grant) -> Sequence[dict[str, Any]]:
        """Streams' records as this caller may see them, in the same order. Raises MasksTooSlow."""
        if not grant.is_masked or not self._masking:
            return records
        with self._masking.place() as place:
            return await place.records(records)

    async def views(self, sid: str, grant: Grant, *, limit: int, after: str | None) -> dict[str, Any]:
        """{"views": […], "next": cursor or null}: the records of a stream's viewers, oldest first. Raises BadCursor.

        Of an erased stream there are none.
        """
        place = Place.decode(after) if after else None
        if (await self._streams.look_up(sid, grant)).meta.erased is not None:
            return {"views": [], "next": None}
        log = self._streams.log
        views = {
            Place(view["opened"], view["id"]): view
            for view in await read_views(log.redis, log.keys, sid, await log.now_ms())
        }
        if self._archive:  # after Redis: what leaves that in between is here
            views |= await self._archive.reader.views(sid, limit + 1, place)
        places = sorted(at for at in views if place is None or at > place)
        found = [view_json(views[at]) for at in places[:limit]]
        if grant.is_masked and self._masking:
            with self._masking.place() as turn:
                found = await turn.views(found)
        return {"views": found, "next": places[limit - 1].encode() if len(places) > limit else None}

    async def verify(self, sid: str, grant: Grant) -> dict[str, Any]:
        """Raises as `look_up` does, but for ArchiveDamaged, which is what verifying is for."""
        try:
            await self._streams.look_up(sid, grant)
        except ArchiveDamaged:
            assert self._archive
            if await self._archive.reader.tenant(sid) != grant.tenant:
                raise StreamNotFound("There is no stream with this id.") from None
        log = self._streams.log
        return verdict_json(await self._archive.verify(sid, log) if self._archive else NOT_SEALED)

    async def _masked_events(self, sid: str, found: Found, log: ReadableLog) -> list[Event]:
        if not found.meta.has_ended:
            # A match may begin in one event and end in the next: it cannot be masked before that is there.
            raise Forbidden("This key reads what has ended, with masks laid over it. The stream is still running.")
        assert self._masking  # settings.py: no masked key without masks
        with self._masking.place() as place:
            return await place.events(await log.read_all(sid))


class _MaskedLog:
    """A finished log with masks applied. Its reader holds all of it: a match may begin in one page, end in the next."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    async def read_page(self, _: str, cursor: int, count: int = PAGE_EVENTS) -> Page:
        start = bisect_right(self._events, cursor, key=attrgetter("id"))
        page = self._events[start : start + count]
        is_known = cursor == 0 or (start > 0 and self._events[start - 1].id == cursor)
        last = self._events[-1]
        return Page(last.kind, last.id, is_known, page, start + count < len(self._events))

    async def read_last(self, _: str) -> Event:
        return self._events[-1]

    async def read_all(self, _: str) -> list[Event]:
        return self._events


def load_masks_of(settings: Settings) -> Redactor | None:
    """Raises SettingsError."""
    if settings.redact_file is None:
        return None
    try:
        return load_masks(settings.redact_file)
    except BadMasks as error:
        raise SettingsError(f"{PREFIX}REDACT_FILE: {error}") from None


def _seal_line(sealed: Sealed, *, is_redacted: bool) -> bytes:
    """The seal, and (for who has seen everything) what else it is checked with."""
    assert sealed.seal
    line = {"statement": sealed.seal.statement.decode(errors="replace"), "signature": sealed.seal.signature.hex()}
    if not is_redacted and sealed.row["record"] is not None:
        # With the salt, what a mask hides could be guessed and the guess be checked.
        line |= {"salt": bytes(sealed.row["salt"]).hex(), "record": decompress(sealed.row["record"]).decode()}
    return canonical({"seal": line}) + b"\n"
