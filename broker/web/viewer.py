"""One viewer's connection: steps of the tail → bytes → ASGI, until the stream ends or the viewer leaves.

How a connection ends, each distinct on the wire:
- finished    after a terminal event (or the end of follow=0): the proper end, with the final chunk. No other has one
- left        the viewer closed it
- expired     its token did: told before, `retry:` and a comment, then a cut. With the same token it is 401 from here on
- revoked     its key or token is no longer good: `retry:` and a comment, then a cut. It is 401 from here on
- drained     this server is shutting down: `retry:` and a comment, then a cut
- too slow    the client has taken nothing for `stall_s`: a cut; the viewer resumes
- vanished    the stream disappeared, or its archived log is damaged: a cut

A cut is a response that is never completed: ASGI servers close the connection without the final chunk, which is how
clients tell a cut from the end. Some clients take a proper end for the stream's own. Over HTTP/1.0, which has no
chunks, a cut is a reset (protocol.py).

A viewer is one task, the one that the server made for its request. Anything else that ends it (the connection is lost,
a drain) calls `leave`, which cancels that task where it waits: for an event, or for room, never within a frame. With a
lane (live/lane.py) the task sleeps while the viewer is at its stream's tail.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker import gauges
from broker.auth import Grant
from broker.dialects.format import Batch, Form, Format, HttpForm
from broker.dialects.sse import Expiry, encode_cursor, farewell, retry_line, slowed
from broker.errors import (
    ArchiveDamaged,
    Draining,
    LasteventError,
    TokenExpired,
    TokenRevoked,
    TooManyViewers,
    Unauthorized,
)
from broker.live.lane import CONNECTION, EXTENSION, Connection, Lane, chunk
from broker.live.tail import Step
from broker.log.access import AccessRecord, View
from broker.traces import NOTHING, Span
from broker.web.endings import FAREWELL_S, Ended, ended_delay_ms, retry_delay_ms
from broker.web.places import Places

logger = logging.getLogger(__name__)

HEADER_CHARACTERS = 300
"""Of a header that the client chose: browsers' user agents have some 120, and a record must not grow at its will."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def request_details(
    grant: Grant, address: str | None, headers: Mapping[str, str], form: str, cursor: int
) -> dict[str, Any]:
    """What a viewer's request says about the viewer. `forwarded_for` is a header: a client or a proxy wrote it.

    `form`: the format of the answer. `cursor`: the event id after which it begins.
    """
    return {
        "tenant": grant.tenant,
        "who": grant.who,
        "address": address,
        "forwarded_for": _clean(headers.get("x-forwarded-for")),
        "user_agent": _clean(headers.get("user-agent")),
        "format": form,
        "requested": cursor,
    }


def _clean(text: str | None) -> str | None:
    return None if text is None else _CONTROLS.sub("", text)[:HEADER_CHARACTERS]


class Viewer(Protocol):
    """One stream that is followed. `form_name`: its form in the access record. `sid`: None of a body that has several,
    which take places of their own.
    """

    @property
    def sid(self) -> str | None: ...

    grant: Grant
    form_name: str

    def leave(self, how: Ended) -> None:
        """End it from outside of its task. The first word counts."""


class Guest(Protocol):
    """A socket: what holds a credential, and viewers. `grant`: None until there was one."""

    grant: Grant | None

    def leave(self, how: Ended) -> None: ...


class Viewers:
    """The viewers of this process: which are connected, how the others ended, and the one signal that ends them all."""

    def __init__(self, access: AccessRecord, places: Places, *, stall_s: float) -> None:
        self.access = access
        self.places = places
        self.stall_s = stall_s
        self.here: set[Viewer] = set()
        self.sockets: set[Guest] = set()
        """They end as viewers do, also those that follow nothing."""
        self.ended = dict.fromkeys(Ended, 0)
        self.of_forms: Counter[str] = Counter()
        self.lagging = 0
        """Those for whose connection something waits just now."""
        self.draining = asyncio.Event()

    @property
    def connected(self) -> int:
        return len(self.here)

    def add(self, viewer: Viewer) -> None:
        self.here.add(viewer)
        self.places.take(viewer.grant, viewer.sid)
        self.of_forms[viewer.form_name] += 1

    def remove(self, viewer: Viewer) -> None:
        self.here.discard(viewer)
        self.places.free(viewer.grant, viewer.sid)
        self.of_forms[viewer.form_name] -= 1

    def change(self, viewer: Viewer, grant: Grant) -> None:
        """Its credential, to a newer one of the same caller."""
        self.places.free(viewer.grant, viewer.sid)
        viewer.grant = grant
        self.places.take(grant, viewer.sid)

    def cut_unless(self, is_good: Callable[[Grant], bool]) -> None:
        """Cut those whose key or token no longer is. 20,000 take some ms."""
        now = time.time()
        for one in self._everybody():
            if one.grant is None:
                continue
            token = one.grant.token
            if not is_good(one.grant):
                one.leave(Ended.REVOKED)
            elif token and token.cuts_at <= now:  # its timer stands still while this machine sleeps, or its clock steps
                one.leave(Ended.EXPIRED)

    def drain(self) -> None:
        self.draining.set()
        for one in self._everybody():
            one.leave(Ended.DRAINED)

    def _everybody(self) -> list[Viewer | Guest]:
        return [*self.here, *self.sockets]


class FollowResponse(Response, ABC):
    """A body that continues until its viewer is told to leave, or all has been sent. What is sent is its subclass's.

    `heartbeat`: the bytes of a sign of life. `trace`: ends with the first byte.
    `sid`: the stream for which it takes a place; None: its subclass takes those.
    `refuses_with_status`: a full server answers 429 here. Otherwise it answers SSE as an EventSource can live with.
    """

    def __init__(
        self,
        viewers: Viewers,
        form: Form,
        content_type: str,
        headers: Mapping[str, str],
        *,
        sid: str | None,
        form_name: str,
        heartbeat: bytes,
        grant: Grant,
        refuses_with_status: bool = False,
        trace: Span = NOTHING,
    ) -> None:
        super().__init__(status_code=200, headers=_headers(content_type, headers))
        del self.headers["content-length"]  # Response has set 0
        self._viewers = viewers
        self.sid = sid
        self.grant = grant
        self.form_name = form_name
        self._untold = b""
        """A notice that goes out with the next frame."""
        self._form = form
        self._heartbeat = heartbeat
        self._connection = Connection()
        self._refuses_with_status = refuses_with_status
        self._trace = trace
        self._leaving: Ended | None = None
        self._sent = gauges.sent_to(grant.tenant)
        self._asked_at_s: float | None = None

    @abstractmethod
    async def _pump(self, lane: Lane | None, send: Send) -> Ended:
        """Send everything. Raises CancelledError when it is told to leave."""

    def _opens(self) -> None:
        """Its viewer is here: keep that in the access record."""

    def _closes(self, lane: Lane | None, ended: Ended) -> None:
        """Its viewer has gone."""

    def _expiry(self, expiry: Expiry) -> bytes:
        """What a viewer is told before its token expires. Empty: nothing."""
        return b""

    def _farewell(self, code: str, refused: LasteventError | None) -> bytes:
        """What it reads before a cut. Empty: nothing."""
        return b""

    def _lane(self, scope: Scope) -> Lane | None:
        """The connection's, if the server offers one: to hand to a topic, or to be without the framework's frames."""
        offer = scope.get("extensions", {}).get(EXTENSION)
        return offer(self._form, self._heartbeat) if offer else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        of_request = scope.setdefault("state", {})
        of_request["is_stream"] = True
        self._asked_at_s = of_request.get("asked_at_s")
        refused: TooManyViewers | None = None
        try:
            # Once more: several came together, and each had found one.
            await self._viewers.places.require(self.grant, self.sid, again=True)
        except TooManyViewers as full:
            if self._refuses_with_status:
                raise
            refused = full
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body"})
            return
        if refused:
            await self._say_farewell(send, refused.code, refused)
        elif lane := self._lane(scope):
            self._connection = Connection(lane.unsent, lane.hang_up)
            lane.sent = self._sent
            lane.continuation = partial(self._serve_and_count, lane, receive)
        else:
            self._connection = scope.get("extensions", {}).get(CONNECTION, self._connection)
            await self._serve_and_count(None, receive, send)

    def leave(self, how: Ended) -> None:
        """End this viewer from outside of its task. The first word counts."""
        if self._leaving is None:
            self._leaving = how
            self._task.cancel()

    async def _serve_and_count(self, lane: Lane | None, receive: Receive, send: Send) -> None:
        ended = Ended.DRAINED  # what the server cancels, it cancels while it drains
        self._opens()
        began_s = time.monotonic()
        try:
            ended = await self._serve(lane, receive, send)
        finally:
            self._trace.end()  # it has left before its first byte, perhaps
            gauges.viewer_seconds.observe(time.monotonic() - began_s)
            self._closes(lane, ended)
            self._viewers.ended[ended] += 1
        if ended is Ended.TOO_SLOW:
            self._connection.hang_up()

    async def _serve(self, lane: Lane | None, receive: Receive, send: Send) -> Ended:
        # Nothing noticed what happened between the request's own checks and here.
        if lane and lane.is_lost:
            return Ended.LEFT
        if not self._viewers.draining.is_set():
            ended = await self._pump_until_told(lane, receive, send)
        else:
            ended = Ended.DRAINED
        if word := self._last_word(ended):
            await self._say_farewell(send, word)
            # A viewer that does not read would delay this server's exit.
            asyncio.get_running_loop().call_later(FAREWELL_S, self._connection.hang_up)
        return ended

    def _last_word(self, ended: Ended) -> str | None:
        match ended:
            case Ended.DRAINED:
                return Draining.code
            case Ended.EXPIRED:
                return TokenExpired.code
            case Ended.REVOKED:
                return TokenRevoked.code if self.grant.token else Unauthorized.code
            case _:
                return None

    async def _pump_until_told(self, lane: Lane | None, receive: Receive, send: Send) -> Ended:
        task = asyncio.current_task()
        assert task
        self._task = task
        self._viewers.add(self)
        watch = self._watch(lane, receive)
        timers = list(self._watch_the_token(lane))
        try:
            return await self._pump(lane, send)
        except asyncio.CancelledError:
            if self._leaving is None:
                raise  # the server gives up on this request
            task.uncancel()
            return self._leaving
        finally:
            self._viewers.remove(self)
            watch()
            for timer in timers:
                timer.cancel()

    def _watch_the_token(self, lane: Lane | None) -> Iterator[asyncio.TimerHandle]:
        if token := self.grant.token:
            later, now = asyncio.get_running_loop().call_later, time.time()
            yield later(max(0, token.cuts_at - now), self.leave, Ended.EXPIRED)
            if token.tells_at is not None:
                yield later(max(0, token.tells_at - now), self._tell_expiry, lane, token.cuts_at)

    def _tell_expiry(self, lane: Lane | None, at: float) -> None:
        """Between two frames: whoever writes, a topic or this viewer's own task, writes whole ones. Without a lane only
        that task may write, and it goes out with its next frame, a heartbeat at the latest.
        """
        notice = self._expiry(Expiry(datetime.fromtimestamp(at, UTC)))
        if not notice:
            return
        if lane is None:
            self._untold = notice
        elif not lane.is_lost:
            lane.write(chunk(notice))
            self._sent.bytes += len(notice)

    def _watch(self, lane: Lane | None, receive: Receive) -> Callable[[], Any]:
        """See the connection go. Returns what ends the watch."""
        if lane:
            lane.on_lost = lambda: self.leave(Ended.LEFT)
            return lane.close
        return asyncio.create_task(self._disconnected(receive), name="viewer disconnect").cancel

    async def _disconnected(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.leave(Ended.LEFT)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Raises TimeoutError when the client has taken nothing for a stall."""
        is_sent = False
        while not is_sent:
            unsent = self._connection.unsent()
            self._viewers.lagging += 1
            try:
                async with asyncio.timeout(self._viewers.stall_s):
                    await send({"type": "http.response.body", "body": body, "more_body": more})
                is_sent = True
            except TimeoutError:
                # uvicorn waits for room first and writes then: what timed out has not been written.
                if self._connection.unsent() >= unsent:
                    raise
            finally:
                self._viewers.lagging -= 1
        self._sent.bytes += len(body)
        if self._asked_at_s is not None:
            gauges.first_byte_seconds.observe(time.monotonic() - self._asked_at_s)
            self._asked_at_s = None
            self._trace.end()

    async def _say_farewell(self, send: Send, code: str, refused: LasteventError | None = None) -> None:
        if body := self._farewell(code, refused):
            with suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    await send({"type": "http.response.body", "body": body, "more_body": True})


class ViewResponse(FollowResponse, ABC):
    """Of one stream, which its viewer's record is of."""

    _view: View

    def _opens(self) -> None:
        self._viewers.access.opened(self._view)

    def _closes(self, lane: Lane | None, ended: Ended) -> None:
        if lane and lane.wrote:
            self._view.delivered(*lane.wrote)
        self._viewers.access.closed(self._view, ended.value)


class NativeResponse(FollowResponse, ABC):
    """In a form of ours."""

    def __init__(
        self,
        viewers: Viewers,
        form: HttpForm,
        headers: Mapping[str, str],
        *,
        sid: str | None,
        form_name: str,
        heartbeat: bytes,
        grant: Grant,
        refuses_with_status: bool = False,
        trace: Span = NOTHING,
    ) -> None:
        super().__init__(
            *(viewers, form, form.content_type, headers),
            sid=sid,
            form_name=form_name,
            heartbeat=heartbeat,
            grant=grant,
            refuses_with_status=refuses_with_status or form.is_ndjson,
            trace=trace,
        )
        self._format = form

    def _expiry(self, expiry: Expiry) -> bytes:
        return self._format.render_expiry(expiry)

    def _farewell(self, code: str, refused: LasteventError | None) -> bytes:
        return b"" if self._format.is_ndjson else farewell(code, retry_delay_ms(refused))


class EventsResponse(ViewResponse, NativeResponse):
    """The body of /events and /replay: SSE or NDJSON, until the steps end. `steps` gets the lane, if there is one.

    `joins_at`: where a viewer that asked for `latest` stands; it is told at once, or a cut before its first event would
    lose what comes until it is back. The others: see FollowResponse.
    """

    def __init__(
        self,
        viewers: Viewers,
        steps: Callable[[Lane | None], AsyncGenerator[Step, None]],
        form: HttpForm,
        headers: Mapping[str, str] | None = None,
        *,
        heartbeat: bytes,
        view: View,
        grant: Grant,
        joins_at: int | None = None,
        refuses_with_status: bool = False,
        trace: Span = NOTHING,
    ) -> None:
        told = {} if joins_at is None else {"Last-Event-ID": str(joins_at)}
        super().__init__(
            viewers,
            form,
            {**(headers or {}), **told},
            sid=view.sid,
            form_name=view.details.get("format", form.access_name),
            heartbeat=heartbeat,
            grant=grant,
            refuses_with_status=refuses_with_status,
            trace=trace,
        )
        self._view = view
        self._steps = steps
        self._joins_at = joins_at

    async def _pump(self, lane: Lane | None, send: Send) -> Ended:
        # As a line of the first frame: before it, nothing has been said that a client could resume from.
        opening = b"" if self._format.is_ndjson else retry_line(retry_delay_ms())
        try:
            if opening and self._joins_at is not None:
                await self._send(send, opening + encode_cursor(self._joins_at))
                opening = b""
            async with aclosing(self._steps(lane)) as steps:
                async for step in steps:
                    body = opening + self._untold + self._render(step)
                    opening = self._untold = b""
                    if isinstance(step, Batch) and step.events[-1].is_terminal and not self._format.is_ndjson:
                        body = slowed(body, ended_delay_ms())
                    span = step.span(self._format) if isinstance(step, Batch) else None
                    count = len(self._format.shown(step.events)) if isinstance(step, Batch) else 0
                    del step  # or a viewer at the tail would keep its last page for as long as it is there
                    if body:  # an empty chunk would be the body's end
                        await self._send(send, body)
                    del body
                    if span:
                        self._view.delivered(*span)
                        self._sent.events += count
            await self._send(send, opening, more=False)
        except TimeoutError:
            return Ended.TOO_SLOW
        except ArchiveDamaged:
            logger.exception("stream %s: its viewer is cut", self._view.sid)
            return Ended.VANISHED
        except LasteventError:
            return Ended.VANISHED
        return Ended.FINISHED

    def _render(self, step: Step) -> bytes:
        match step:
            case None:
                return self._heartbeat
            case Batch():
                return step.render(self._format)
            case gap:
                return self._format.render_gap(gap)


class CutResponse(Response):
    """200, when to come back, and a cut: what an EventSource can live with where others get 503 or 429 (design §6).

    An EventSource gives up for good at any status but 200.
    """

    def __init__(self, passing: LasteventError) -> None:
        super().__init__(status_code=200, headers=_headers(Format.EXACT.content_type, {}))
        del self.headers["content-length"]
        self._words = farewell(passing.code, retry_delay_ms(passing))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        head = scope["method"] == "HEAD"
        await send({"type": "http.response.body", "body": b"" if head else self._words, "more_body": not head})


def _headers(content_type: str, more: Mapping[str, str]) -> dict[str, str]:
    # nginx buffers what it proxies unless it is asked not to. Others (Traefik, Caddy, Cloudflare, Node's compression)
    # compress, and hold back what they compress, unless it may not be transformed (RFC 9111 §5.2.2.6).
    return {
        "Content-Type": content_type,
        "Cache-Control": "no-store, no-transform",
        "X-Accel-Buffering": "no",
        **more,
    }
