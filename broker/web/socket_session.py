"""A session that a socket follows. Its conversation (live/conversation.py) says which streams are given, and when.

Each of them is a follow of the socket (socket_follow.py), with a window of its own, and counts as one. Before it,
`stream` is said. The client's cursor is a vector, which `ok` and each `stream` give as it is then: `cursors` is
{"at", "streams": {stream: n, or "x" at its end}}. From then on the client knows better of the streams whose events it
gets: of two ids of a stream the greater one counts.

The races:
- `stream` is written before a stream's first event, and what it names before the client can be cut: all that `at` has
  passed is named in that very notice
- a stream of the session is followed by itself already: its events come once, by that follow. When that ends, or is
  given up, its stream is this conversation's again, from where it was. So it is if it ends before this has come to it
- a stream breaks off (StreamNotFound while it is followed): nothing is said, and it is looked up anew
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, Protocol

import orjson

from broker.auth import Grant
from broker.dialects.several import STREAM
from broker.dialects.socket import notice, text_frame
from broker.dialects.vector import from_json, to_json
from broker.errors import LasteventError
from broker.live.conversation import Conversation, Missing, Opened
from broker.live.ledger import Ledger
from broker.log.event import GAP
from broker.log.rfc3339 import rfc3339
from broker.service.streams import Found
from broker.web.conversation import roster_of
from broker.web.endings import Ended
from broker.web.follow import require_session, require_time_left
from broker.web.socket_connection import ConnectionLost
from broker.web.socket_follow import Follow, Host
from broker.web.socket_ops import Ref, Shape

MOST_ALONE = 200
"""Streams that a client has followed by itself, of which a session knows how far."""


class SessionHost(Host, Protocol):
    """What it asks of its socket (socket.py), besides what a follow does."""

    grant: Grant | None
    follows: dict[str, Follow]

    def require_follow(self) -> None: ...

    def follow_opened(self, session: SessionFollow, opened: Opened, shape: Shape) -> None: ...

    def forget_session(self, session: SessionFollow) -> None: ...


class SessionFollow:
    """Of a socket."""

    __slots__ = ("_alone", "_conversation", "_has_begun", "_is_left", "_shape", "_socket", "asked", "session", "task")

    def __init__(self, socket: SessionHost, session: str, shape: Shape) -> None:
        self.session = session
        self.task: asyncio.Task[None] | None = None
        self.asked: Ref = None
        """Of its op, while that has no answer."""
        self._has_begun = self._is_left = False
        self._socket = socket
        self._shape = shape
        self._conversation: Conversation | None = None
        self._alone: dict[str, int | None] = {}
        """What a follow of the client's own has given of streams that were not open here; None: all, to the end."""

    def leave(self) -> None:
        """End it from outside of its task."""
        self._is_left = True
        # As of a follow.
        if self.task and self._has_begun:
            self.task.cancel()

    async def run(self, cursors: Any, ref: Ref) -> None:
        """Until it is told to leave. `cursors`: as the client sent them; None: it comes for the first time."""
        socket = self._socket
        self._has_begun = True
        try:
            conversation = await self._begin(cursors, ref)
            if conversation is None:
                return
            async with aclosing(conversation.run()) as told:
                async for item in told:
                    if isinstance(item, Opened):
                        await self._open(conversation, item)
                    else:
                        await self._miss(conversation, item)
        except (asyncio.CancelledError, ConnectionLost):
            pass
        except LasteventError as error:
            await socket.refuse(None, error)
        except Exception:
            await socket.refuse_fault(None, None)
        finally:
            self._conversation = self.task = None
            socket.forget_session(self)

    async def _begin(self, cursors: Any, ref: Ref) -> Conversation | None:
        socket, tier = self._socket, self._socket.tier
        try:
            if self._is_left:
                raise asyncio.CancelledError
            assert socket.grant
            self.require(socket.grant)
            start = None if cursors is None else from_json(cursors)
            await tier.require_place(socket.grant)
            ledger = Ledger(start, await tier.log.now_ms())
            roster = roster_of(tier, socket.grant, self.session, start)
            conversation = Conversation(roster, ledger, self._look_up, self)
            if ledger.is_first:
                await conversation.begin()
            self._conversation = conversation
            at = conversation.vector if start is None else start  # of what it was told nothing is forgotten
            await socket.ok(ref, None, {"session": self.session, "cursors": to_json(at)})
            self.asked = None
        except LasteventError as error:
            socket.forget_session(self)
            await socket.refuse(ref, error)
            return None
        finally:
            socket.done(self.session)
        return conversation

    def require(self, grant: Grant) -> None:
        """Whether this may be followed with it. Raises TokenExpired or StreamNotFound."""
        require_time_left(grant)
        require_session(grant, self.session)

    async def _look_up(self, sid: str) -> Found:
        assert self._socket.grant
        return await self._socket.tier.streams.look_up_content(sid, self._socket.grant)

    # -- places (live/conversation.py) -----------------------------------------------------------------------

    async def take(self, sid: str) -> bool:
        """Whether it may be opened now. Its follow takes the place. Raises RedisUnavailable."""
        socket = self._socket
        if sid in socket.follows:
            return True
        assert socket.grant
        try:
            socket.require_follow()
            await socket.tier.viewers.places.require(socket.grant, sid)
        except LasteventError as full:
            if full.status != 429:
                raise
            return False
        return True

    def free(self, sid: str) -> None:
        """Its follow has done so."""

    # -- its streams -----------------------------------------------------------------------------------------

    async def _open(self, conversation: Conversation, opened: Opened) -> None:
        meta = opened.meta
        told = {"stream": opened.sid, "session": self.session, "state": meta.state, "created_at": rfc3339(meta.created)}
        if self._is_whole(opened.sid):
            conversation.ended(opened.sid)
            return
        await self._socket.connection.send(notice(STREAM, {**told, "cursors": to_json(conversation.vector)}))
        if self._is_whole(opened.sid):
            conversation.ended(opened.sid)
            return
        given = self._alone.pop(opened.sid, None) or 0
        self._socket.follow_opened(self, opened._replace(cursor=max(opened.cursor, given)), self._shape)

    def _is_whole(self, sid: str) -> bool:
        return self._alone.get(sid, 0) is None

    def given_alone(self, sid: str, how: Ended, last_id: int | None) -> None:
        """A follow of the client's own is over, and its stream was not open here."""
        if how is Ended.FINISHED or last_id:
            self._alone.pop(sid, None)
            self._alone[sid] = None if how is Ended.FINISHED else last_id
            if len(self._alone) > MOST_ALONE:
                del self._alone[next(iter(self._alone))]

    async def _miss(self, conversation: Conversation, missing: Missing) -> None:
        conversation.ended(missing.sid)
        gap = {"stream": missing.sid, "reason": missing.reason}
        said = {"stream": missing.sid, "event": GAP, "data": gap}
        await self._socket.connection.send(text_frame(orjson.dumps(said)))

    def left(self, follow: Follow, how: Ended, last_id: int | None) -> None:
        """A follow of one of its streams is over. `last_id`: of what it was given."""
        if conversation := self._conversation:
            if last_id:
                conversation.given(follow.sid, last_id)
            (conversation.ended if how is Ended.FINISHED else conversation.again)(follow.sid)
