"""One stream that a socket follows: one task, from its look-up to its end. It is a viewer like any other (viewer.py).

It takes the steps of tail.py, as a response's body does, with a lane of its own on the socket's transport: while it is
at its stream's tail, the stream's topic writes to it, and the task sleeps. Its own steps go through the connection's
`send`, which keeps follows from holding up each other. With a window, what its task has of a step is cut where the
window is full, and goes on as `ack` comes; a topic releases the lane before that (live/window.py).

How it ends, each distinct for the client:
- at the terminal event: `over`, with the state. At once, if the client had that event already
- refused, before anything was said or later (the stream was erased, a new credential does not cover it): `refused`
- `unfollow`: nothing of it comes after that op's `ok`
- with the socket: its close code says why
Each is also how the access record and the gauges call it (endings.py).

The races:
- `unfollow`, or the connection's end, while the stream is looked up: the task is cancelled where it waits, and a viewer
  that had not begun leaves no record
- an event while `ok` waits for room: the task follows after that was sent
- an acknowledgement while events are being sent: they count as sent before they are
- presence comes from a task of its own: that ends before `over` is said, and with the follow
- the socket ends while the task is about to end by itself: the first word counts
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Protocol

import orjson

from broker import gauges, traces
from broker.auth import Grant
from broker.dialects.format import Batch, Chosen, Format
from broker.dialects.socket import SocketForm, notice, text_frame
from broker.errors import ArchiveDamaged, LasteventError
from broker.gauges import Sent
from broker.live.lane import Lane
from broker.live.tail import Step
from broker.live.window import Window
from broker.log.access import View
from broker.log.event import OVER, PRESENCE, Event
from broker.service.streams import Found
from broker.web.endings import Ended
from broker.web.follow import Begun, begin, count_connect, require_time_left, steps_of
from broker.web.socket_connection import PIECE_BYTES, ConnectionLost, SocketConnection, ViewerStalled
from broker.web.socket_ops import Ref, Shape
from broker.web.tier import Tier
from broker.web.websocket import pieces

logger = logging.getLogger(__name__)

NEVER_S = 1e9
"""Between two signs of life of a follow: those are the socket's."""


class Host(Protocol):
    """What a follow asks of its socket (socket.py)."""

    tier: Tier
    connection: SocketConnection
    sent: Sent

    def details(self, grant: Grant, form: str, cursor: int) -> dict[str, Any]: ...

    async def ok(self, ref: Ref, stream: str | None = None, data: Any = None) -> None: ...

    async def refuse(self, ref: Ref, error: LasteventError, stream: str | None = None) -> None: ...

    async def refuse_fault(self, ref: Ref, stream: str | None) -> None: ...

    def done(self, line: str) -> None: ...

    def forget(self, follow: Follow) -> None: ...

    def given_alone(self, sid: str, how: Ended, last_id: int | None) -> None: ...


class Owner(Protocol):
    """Whose stream a follow is, if not the client's alone (socket_session.py)."""

    def left(self, follow: Follow, how: Ended, last_id: int | None) -> None: ...


class Follow:
    """`grant`: that of the socket when it began, or a later one that covers it. `window`: its size, if there is one.
    `is_own`: the client has asked for this stream itself, so no session's end is its end.
    """

    __slots__ = (
        *("_has_begun", "_leaving", "_socket", "_telling", "asked", "conversation", "form_name", "grant", "is_own"),
        *("lane", "sid", "task", "view", "window"),
    )

    def __init__(self, socket: Host, sid: str, grant: Grant, window: int | None, *, is_own: bool = True) -> None:
        self.sid = sid
        self.is_own = is_own
        self.grant = grant
        self.form_name = ""
        self.window = Window(window) if window else None
        self.lane: Lane | None = None
        self.view: View | None = None
        """Its access record. None: it is no viewer yet, or has been told that its stream is over."""
        self.task: asyncio.Task[None] | None = None
        self.asked: Ref = None
        """Of its op, while that has no answer."""
        self.conversation: Owner | None = None
        """Whose stream it is."""
        self._socket = socket
        self._has_begun = False
        self._leaving: Ended | None = None
        self._telling: asyncio.Task[None] | None = None

    def leave(self, how: Ended) -> None:
        """End it from outside of its task. The first word counts."""
        if self._leaving is None:
            self._leaving = how
            # A task that is cancelled before its first step never ends what it is for.
            if self.task and self._has_begun:
                self.task.cancel()

    async def run(
        self, shape: Shape, resume_at: int | None, ref: Ref, *, is_op: bool, opened: Found | None = None
    ) -> None:
        """To its end. `is_op`: it is answered, with `ref`; else only a refusal is said, and it counts as no op.

        `opened`: its stream, which was looked up, and has been announced.
        """
        self._has_begun = True
        ended, state = Ended.DRAINED, ""  # what is cancelled without a word, this process gives up on
        form = _form(self.sid, shape, self.grant)
        has_presence = shape.presence
        del shape
        try:
            begun = await self._begin(form, resume_at, ref, is_op=is_op, opened=opened)
            opened = None
            if begun is None:
                return
            steps, state = begun
            del begun
            if has_presence and self.view:
                self._telling = asyncio.get_running_loop().create_task(
                    self._tell_presence(), name="presence of a follow"
                )
            async with aclosing(steps):
                async for step in steps:
                    state = await self._give(step, form) or state
                    del step  # or a viewer at the tail would keep its last page for as long as it is there
            self._stop_telling()
            await self._send(_over(self.sid, state))
            ended = Ended.FINISHED
        except asyncio.CancelledError:
            if self._leaving is None:
                raise
            ended = self._leaving
        except ConnectionLost as lost:
            ended = Ended.TOO_SLOW if isinstance(lost, ViewerStalled) else self._leaving or Ended.LEFT
        except LasteventError as error:
            ended = Ended.VANISHED
            if self.conversation:  # which looks it up anew
                return
            if isinstance(error, ArchiveDamaged):
                logger.exception("stream %s: its viewer is refused", self.sid)
            await self._socket.refuse(None, error, self.sid)
        except Exception:
            await self._socket.refuse_fault(None, self.sid)
        finally:
            self._end(ended)

    async def _begin(
        self, form: SocketForm, resume_at: int | None, ref: Ref, *, is_op: bool, opened: Found | None
    ) -> tuple[AsyncGenerator[Step, None], str] | None:
        """Its steps, and the state of its stream. None: it was refused."""
        socket, sid, grant = self._socket, self.sid, self.grant
        tier, began_s = socket.tier, time.monotonic()
        try:
            if self._leaving:
                raise asyncio.CancelledError
            require_time_left(grant)
            if opened:
                begun = Begun(opened, await tier.reading.log(sid, opened, grant), resume_at or 0, is_latest=False)
            else:
                log_of = partial(tier.reading.log, sid, grant=grant)
                begun = await begin(tier, grant, sid, lambda: resume_at, log_of)
            found, log, cursor, _ = begun
            if not begun.has_ended:
                # Once more: several came together, and each had found one.
                await tier.viewers.places.require(grant, sid, again=True)
                self._become_viewer(form, cursor)
            source = count_connect(tier, sid, cursor, is_in_redis=found.is_in_redis)
            meta = found.meta
            waited_s = time.monotonic() - began_s
            trace = traces.following(
                *(sid, meta.traceparent), cursor=cursor, tail=meta.tail, source=source, waited_s=waited_s
            )
            if is_op:
                await socket.ok(ref, sid, {"cursor": cursor})
            self.asked = None
            gauges.first_byte_seconds.observe(time.monotonic() - began_s)
            trace.end()
        except LasteventError as error:
            if self.conversation and not is_op:  # an op is answered, whoever's stream it has become meanwhile
                raise
            socket.forget(self)
            await socket.refuse(ref, error, sid)
            return None
        finally:
            if is_op:
                socket.done(sid)
        if begun.has_ended:
            return _nothing(), meta.state
        self.lane = socket.connection.lane(form)
        self.lane.window = self.window
        self.lane.sent = socket.sent
        return steps_of(tier, found, grant, log, sid, cursor, form, heartbeat_s=NEVER_S)(self.lane), meta.state

    def _become_viewer(self, form: SocketForm, cursor: int) -> None:
        viewers = self._socket.tier.viewers
        self.form_name = form.access_name
        self.view = View(self.sid, self._socket.details(self.grant, form.access_name, cursor))
        viewers.add(self)
        viewers.access.opened(self.view)

    async def _give(self, step: Step, form: SocketForm) -> str | None:
        """Send it. Returns the stream's state, if this has ended it."""
        if not isinstance(step, Batch):
            if step:
                await self._send(form.render_gap(step))
            return None
        if span := step.span(form):
            if self.window is None:
                await self._hand_over(step.render(form), span[0], lambda: form.sent(step.events))
            else:
                await self._give_within(self.window, span[0], form.sent(step.events), form)
            assert self.view
            self.view.delivered(*span)
            self._socket.sent.events += len(form.shown(step.events))
        last = step.events[-1]
        return last.kind if last.is_terminal else None

    async def _give_within(self, window: Window, first: int, sent: Sequence[Event], form: SocketForm) -> None:
        while sent:
            await window.has_room()
            room = window.room
            now, sent = sent[:room], sent[room:]
            window.wrote([event.id for event in now])
            await self._hand_over(form.encode(now), first, partial(_same, now))
            if self.view:
                self.view.delivered(first, now[-1].id)

    async def _hand_over(self, frames: bytes, first: int, sent: Callable[[], Sequence[Event]]) -> None:
        """`first`: the id of the first event of the step; `sent`: what the frames are. However this ends, what has been
        written counts: the access record says so, and a session goes on behind it.
        """
        written = 0
        try:
            for piece in pieces(frames, PIECE_BYTES):
                await self._send(piece)
                written += len(piece)
        finally:
            if 0 < written < len(frames) and self.view:
                whole = sum(1 for _ in pieces(frames[:written], 0))
                self.view.delivered(first, sent()[whole - 1].id)

    async def _tell_presence(self) -> None:
        """Who else follows, as far as the caller may see it: the whole, then what has changed."""
        watch = self._socket.tier.presence.watch(self.sid, lambda: self.grant.sees_of_viewers)
        with suppress(ConnectionLost):  # the follow itself says so
            async with aclosing(watch) as notices:
                async for said in notices:
                    await self._socket.connection.send(notice(PRESENCE, said, stream=self.sid))

    def _stop_telling(self) -> None:
        if self._telling:
            self._telling.cancel()
            self._telling = None

    async def _send(self, frames: bytes) -> None:
        """Raises ConnectionLost."""
        viewers = self._socket.tier.viewers
        viewers.lagging += 1
        try:
            await self._socket.connection.send(frames)
        finally:
            viewers.lagging -= 1
        self._socket.sent.bytes += len(frames)

    def _end(self, how: Ended) -> None:
        socket, last_id = self._socket, None
        self._stop_telling()
        if self.lane:
            socket.connection.drop(self.lane)
        if view := self.view:
            viewers = socket.tier.viewers
            if self.lane and self.lane.wrote:
                view.delivered(*self.lane.wrote)
            viewers.remove(self)
            viewers.access.closed(view, how.value)
            viewers.ended[how] += 1
            gauges.viewer_seconds.observe(time.time() - view.at / 1000)
            last_id = view.last_id
        self.lane = self.view = self.task = None
        socket.forget(self)
        if conversation := self.conversation:
            self.conversation = None
            conversation.left(self, how, last_id)
        else:
            socket.given_alone(self.sid, how, last_id)


def _form(sid: str, shape: Shape, grant: Grant) -> SocketForm:
    plain = Format.COMPACT_NDJSON if shape.compact else Format.NDJSON
    inner = plain.for_public if grant.is_public else plain
    return SocketForm(sid, inner if shape.kinds is None else Chosen(inner, frozenset(shape.kinds)))


def _over(sid: str, state: str) -> bytes:
    return text_frame(orjson.dumps({"stream": sid, "event": OVER, "data": {"state": state}}))


def _same(events: Sequence[Event]) -> Sequence[Event]:
    return events


async def _nothing() -> AsyncGenerator[Step, None]:
    return
    yield
