"""A socket: what its client asks for, and what it follows. From here on there is no request: what is kept of it is what
access records and deeds say of their caller. And there is no task: the socket lives by its connection's calls.

How an op goes: `take` reads a message, checks it (socket_ops.py), and begins it. What waits for something is a task of
its own, and the ops of one stream are a line: the next begins when the one before was answered. `ref` is answered once,
by `ok` or by `refused`; `ack` is not answered. A follow is one task for as long as it lasts (socket_follow.py).

What bounds it:
- MOST_WAITING ops wait at once; then nothing more is read
- nothing is read while a credential, or a large message, is being looked at: what comes behind it is for after it
- answers that are not read: `say` waits for room, and an op counts until it has been answered
- `max_follows` follows, each of which counts as a viewer wherever viewers are limited

The races:
- ops that come with `auth` in one piece: they are read when that was answered
- a new credential, and a follow that is being looked up by the old one: it is looked up by the new one too
- the socket ends while ops wait: follows are cancelled; a start, an input or a cancel goes on, as that of a request
  whose caller has gone, and its answer is dropped
- an `ack` behind the end of its follow: nothing
- a key, or a token, is revoked, or expires, of a socket that follows nothing: Viewers know sockets too
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import Request

from broker import gauges
from broker.auth import Grant
from broker.dialects.socket import notice, text_frame
from broker.dialects.sse import Expiry, encode_expiry_ndjson
from broker.errors import (
    AlreadyFollowed,
    Draining,
    Forbidden,
    InsufficientScope,
    LasteventError,
    TokenExpired,
    TokenRevoked,
    TooManyFollows,
    Unauthorized,
)
from broker.gauges import Sent
from broker.live.conversation import Opened
from broker.log.deeds import CANCELLED, CREATED, Deed
from broker.log.event import HELLO, OK, REFUSED
from broker.service.streams import Found
from broker.tenants.scopes import CANCEL, INPUT, MASKED, READ, WRITE
from broker.web.close_codes import CloseCode, close_code
from broker.web.endings import Ended
from broker.web.grants import Needs, require
from broker.web.problems import as_json, count, problem_body
from broker.web.socket_connection import ConnectionLost, SocketConnection
from broker.web.socket_follow import Follow
from broker.web.socket_ops import Asked, Ref, Shape, asked_of, ref_of
from broker.web.socket_session import SessionFollow
from broker.web.strict_json import INLINE_BYTES, parse
from broker.web.tier import Tier
from broker.web.viewer import request_details

logger = logging.getLogger(__name__)

MOST_WAITING = 16
"""Ops that wait for Redis, or for room for their answer: then nothing more is read."""

AUTH_S = 10.0
"""Until there must have been a credential."""

_NEEDS = {
    "follow": Needs((READ, MASKED), token=READ),
    "start": Needs((WRITE,)),
    "input": Needs((WRITE,), token=INPUT),
    "interrupt": Needs((WRITE,), token=INPUT),
    "cancel": Needs((CANCEL,), token=CANCEL),
}
"""As the routes of the same name declare it (routes/)."""

_NEEDS_OF_SESSIONS = Needs((READ,), token=READ)

_APART = Context()
"""Of timers: they would keep that of the handshake, and with it the request."""

_tasks: set[asyncio.Task[None]] = set()
"""Ops at work: the loop itself holds tasks weakly."""


async def serve(
    tier: Tier, request: Request, connection: SocketConnection, grant: Grant | None, refusal: LasteventError | None
) -> None:
    """Take it over. What is left to do when this returns, is done when the connection calls."""
    if refusal is None:
        Socket(tier, request, connection, grant).open()
        return
    body = as_json(request.state.request_id, refusal)
    connection.write(text_frame(b'{"event":"%b","data":%b}' % (REFUSED.encode(), body)))
    connection.close(close_code(refusal), refusal.code)


class Socket:
    """`grant`: None until there was a credential. `follows`: by stream."""

    __slots__ = (
        *("connection", "follows", "grant", "sent", "sessions", "tier"),
        *("_address", "_forwarded_for", "_is_held", "_is_page", "_lines", "_request_id", "_timer"),
        *("_user_agent", "_waiting"),
    )

    def __init__(self, tier: Tier, request: Request, connection: SocketConnection, grant: Grant | None) -> None:
        self.tier = tier
        self.connection = connection
        self.grant = grant
        self.follows: dict[str, Follow] = {}
        self.sessions: dict[str, SessionFollow] | None = None
        self.sent = gauges.sent_to(grant.tenant) if grant else _NOBODYS
        self._address = tier.addresses.of(request)
        self._forwarded_for = request.headers.get("x-forwarded-for")
        self._user_agent = request.headers.get("user-agent")
        self._is_page = "origin" in request.headers
        self._request_id: str = request.state.request_id
        self._timer: asyncio.TimerHandle | None = None
        self._lines: dict[str, deque[Asked]] | None = None
        """Ops that wait for one of the same stream."""
        self._waiting = 0
        self._is_held = False

    def open(self) -> None:
        connection, settings = self.connection, self.tier.settings
        connection.on_message = self.take
        connection.on_lost = self._lost
        connection.on_silence = self._silence
        self.tier.viewers.sockets.add(self)
        limits = {
            "heartbeat_s": settings.heartbeat_s,
            "max_message_bytes": settings.socket_message_bytes,
            "max_follows": settings.socket_follows,
        }
        connection.write(notice(HELLO, limits))
        if self.grant:
            self._watch_the_token()
        else:
            self._later(AUTH_S, self._has_no_credential)
        connection.resume_reading()

    # -- how it ends -----------------------------------------------------------------------------------------

    def leave(self, how: Ended) -> None:
        """End it from outside, and what it follows."""
        self._leave_follows(how)
        match how:
            case Ended.EXPIRED:
                self.connection.close(CloseCode.UNAUTHORIZED, TokenExpired.code)
            case Ended.REVOKED:
                code = TokenRevoked.code if self.grant and self.grant.token else Unauthorized.code
                self.connection.close(CloseCode.UNAUTHORIZED, code)
            case Ended.DRAINED:
                self.connection.close(CloseCode.RESTART, Draining.code)
            case _:
                self.connection.close(CloseCode.FAULT)

    def _lost(self) -> None:
        """Nothing can be written any more."""
        if self.connection.is_stalled:
            how = Ended.TOO_SLOW
        else:
            how = Ended.DRAINED if self.tier.viewers.draining.is_set() else Ended.LEFT
        self.tier.viewers.sockets.discard(self)
        self._cancel_timer()
        self._leave_follows(how)
        for session in tuple((self.sessions or {}).values()):
            session.leave()
        self.sessions = None
        self.follows = {}  # one that had not begun yet does not end, and would hold this socket

    def _leave_follows(self, how: Ended) -> None:
        for follow in tuple(self.follows.values()):
            follow.leave(how)

    def _has_no_credential(self) -> None:
        self.connection.close(CloseCode.NO_AUTH, "no_auth")

    def _watch_the_token(self) -> None:
        """One timer for both of its moments."""
        self._cancel_timer()
        if self.grant and (token := self.grant.token):
            now = time.time()
            if token.tells_at is None:
                self._later(token.cuts_at - now, self._expire)
            else:
                self._later(token.tells_at - now, self._tell_expiry)

    def _tell_expiry(self) -> None:
        if self.grant and (token := self.grant.token):
            told = encode_expiry_ndjson(Expiry(datetime.fromtimestamp(token.cuts_at, UTC)))
            self.connection.write(text_frame(told.rstrip(b"\n")))
            self._later(token.cuts_at - time.time(), self._expire)

    def _expire(self) -> None:
        self.leave(Ended.EXPIRED)

    def _later(self, after_s: float, call: Callable[[], object]) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(0.0, after_s), call, context=_APART)

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _silence(self) -> float:
        """s since a topic wrote to it. What else is written here the connection itself knows."""
        lanes = (follow.lane for follow in self.follows.values())
        silent = [lane.topic.silent_turns(lane) for lane in lanes if lane and lane.topic]
        return min(silent) * self.tier.hub.turn_s if silent else float("inf")

    # -- what comes ------------------------------------------------------------------------------------------

    def take(self, message: bytes) -> None:
        """A text message."""
        if len(message) > INLINE_BYTES:
            self._hold(self._take_large(message))
            return
        try:
            value = parse(message)
        except LasteventError as error:
            self._tell(self._refusal(None, error))
        else:
            self._take_value(value, len(message))

    async def _take_large(self, message: bytes) -> None:
        try:
            value = await asyncio.to_thread(parse, message)
        except LasteventError as error:
            await self.refuse(None, error)
        else:
            self._take_value(value, len(message))

    def _take_value(self, value: Any, size: int) -> None:
        ref = ref_of(value)
        try:
            asked = asked_of(value, size)
            if self.grant is None and asked.op != "auth":
                raise Unauthorized("Send `auth` with a token first.")
        except LasteventError as error:
            self._tell(self._refusal(ref, error))
            if isinstance(error, Unauthorized):
                self.connection.close(CloseCode.UNAUTHORIZED, error.code)
        else:
            self._begin(asked)

    def _begin(self, asked: Asked) -> None:
        match asked.op:
            case "ack":
                follow = self.follows.get(asked.own.stream)
                if follow and follow.window:
                    follow.window.acknowledge(asked.own.id)
            case "ping":
                self._tell(_said(OK, asked.ref))
            case "auth":
                self._hold(self._do(asked))
            case _ if (line := asked.line) is not None:
                self._stand_in_line(line, asked)
            case _:
                self._wait_for(self._do(asked))

    def _stand_in_line(self, sid: str, asked: Asked) -> None:
        if self._lines is None:
            self._lines = {}
        self._count(1)
        if sid in self._lines:
            self._lines[sid].append(asked)
        else:
            self._lines[sid] = deque()
            self._start(self._do(asked))

    def done(self, line: str) -> None:
        """An op of this stream has been answered: the next one's turn."""
        assert self._lines is not None
        if waiting := self._lines[line]:
            self._start(self._do(waiting.popleft()))
        else:
            del self._lines[line]
            if not self._lines:
                self._lines = None
        self._count(-1)

    def _wait_for(self, op: Coroutine[Any, Any, None]) -> None:
        self._count(1)
        self._start(self._until_done(op))

    async def _until_done(self, op: Coroutine[Any, Any, None]) -> None:
        try:
            await op
        finally:
            self._count(-1)

    def _hold(self, op: Coroutine[Any, Any, None]) -> None:
        """Read nothing until this is done."""
        self._is_held = True
        self._read_or_not()
        self._start(self._until_not_held(op))

    async def _until_not_held(self, op: Coroutine[Any, Any, None]) -> None:
        try:
            await op
        finally:
            self._is_held = False
            self._read_or_not()

    def _count(self, by: int) -> None:
        self._waiting += by
        self._read_or_not()

    def _read_or_not(self) -> None:
        if self._is_held or self._waiting >= MOST_WAITING:
            self.connection.pause_reading()
        elif self.connection.is_held:
            # Not from here: it gives out what it has, and this is called while it does.
            asyncio.get_running_loop().call_soon(self._read_on, context=_APART)

    def _read_on(self) -> None:
        if not (self._is_held or self._waiting >= MOST_WAITING):
            self.connection.resume_reading()

    @staticmethod
    def _start(op: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(op, name="socket op")
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)

    # -- the ops ---------------------------------------------------------------------------------------------

    async def _do(self, asked: Asked) -> None:
        """One op, to its answer. A follow answers by itself, and says that it is done."""
        is_answered_by_follow = False
        sid = asked.stream
        try:
            if asked.op == "follow" and self.connection.is_closing:
                return  # it has waited for longer than the socket was there
            if needed := _NEEDS.get(asked.op):
                assert self.grant
                require(self.grant, _NEEDS_OF_SESSIONS if asked.session is not None else needed, sid)
            if asked.op == "follow" and sid is not None:
                self._follow(sid, asked.own, asked.own.resume_at, asked.ref, is_op=True)
                is_answered_by_follow = True
            elif asked.op == "follow" and asked.session is not None:
                self._follow_session(asked.session, asked.own, asked.ref)
                is_answered_by_follow = True
            else:
                await _DO[asked.op](self, asked)
        except LasteventError as error:
            await self.refuse(asked.ref, error, sid)
            if asked.op == "auth" and self.grant is None:
                self.connection.close(close_code(error), error.code)
        except Exception:
            await self.refuse_fault(asked.ref, sid)
        finally:
            if not is_answered_by_follow and (line := asked.line) is not None:
                self.done(line)

    def _follow(self, sid: str, shape: Shape, resume_at: int | None, ref: Ref, *, is_op: bool) -> None:
        """Raises AlreadyFollowed or TooManyFollows."""
        if sid in self.follows:
            raise AlreadyFollowed("Its events come already. To begin elsewhere: unfollow it first.")
        self.require_follow()
        assert self.grant
        follow = self.follows[sid] = Follow(self, sid, self.grant, shape.window)
        follow.asked = ref
        run = follow.run(shape, resume_at, ref, is_op=is_op)
        follow.task = asyncio.get_running_loop().create_task(run, name="follow")

    def _follow_session(self, name: str, asked: Any, ref: Ref) -> None:
        """Raises AlreadyFollowed or TooManyFollows."""
        if self.sessions is None:
            self.sessions = {}
        if name in self.sessions:
            raise AlreadyFollowed("Its streams come already. To begin elsewhere: unfollow it first.")
        self.require_follow()
        shape = Shape(window=asked.window, compact=asked.compact, kinds=asked.kinds, presence=asked.presence)
        session = self.sessions[name] = SessionFollow(self, name, shape)
        session.asked = ref
        session.task = asyncio.get_running_loop().create_task(session.run(asked.cursors, ref), name="session")

    def follow_opened(self, session: SessionFollow, opened: Opened, shape: Shape) -> None:
        """One of its streams. One that is followed by itself already is not given twice."""
        sid = opened.sid
        if follow := self.follows.get(sid):
            follow.conversation = session
            return
        assert self.grant
        follow = self.follows[sid] = Follow(self, sid, self.grant, shape.window, is_own=False)
        follow.conversation = session
        found = Found(opened.meta, opened.is_in_redis)
        run = follow.run(shape, opened.cursor, None, is_op=False, opened=found)
        follow.task = asyncio.get_running_loop().create_task(run, name="follow")

    def forget_session(self, session: SessionFollow) -> None:
        if self.sessions and self.sessions.get(session.session) is session:
            del self.sessions[session.session]

    def require_follow(self) -> None:
        """Raises TooManyFollows."""
        most = self.tier.settings.socket_follows
        if len(self.follows) + len(self.sessions or ()) >= most:
            raise TooManyFollows(f"A socket follows at most {most} streams. Unfollow one, or open another socket.")

    def forget(self, follow: Follow) -> None:
        """It has ended."""
        if self.follows.get(follow.sid) is follow:
            del self.follows[follow.sid]

    def given_alone(self, sid: str, how: Ended, last_id: int | None) -> None:
        """A follow of no session's has ended."""
        for session in (self.sessions or {}).values():
            session.given_alone(sid, how, last_id)

    async def _unfollow(self, asked: Asked) -> None:
        if (name := asked.session) is not None:
            if session := (self.sessions or {}).get(name):
                await self._end_session(session)
        elif follow := self.follows.get(asked.own.stream):
            await _end(follow, Ended.LEFT)
        await self.ok(asked.ref, asked.stream)

    async def _end_session(self, session: SessionFollow) -> None:
        """And what it follows, but for what the client follows by itself."""
        if task := session.task:
            session.leave()
            await asyncio.wait([task])
        for follow in [one for one in self.follows.values() if one.conversation is session]:
            follow.conversation = None
            if not follow.is_own:
                await _end(follow, Ended.LEFT)

    async def _auth(self, asked: Asked) -> None:
        grant = await self._admit(asked.own.token)
        if self.grant is None:
            self.grant = grant
            self.sent = gauges.sent_to(grant.tenant)
        elif (grant.tenant, grant.who) != (self.grant.tenant, self.grant.who):
            raise Forbidden("This socket is another caller's. Open one of your own.")
        else:
            await self._change(grant)
        self._watch_the_token()
        await self.ok(asked.ref)

    async def _admit(self, credential: str) -> Grant:
        """Whose it is. Raises as grants.py's `admit` does, and RateLimited at the gate for who guesses."""
        tier = self.tier
        if everybodys := tier.auth.open_grant():
            return everybodys
        address = tier.addresses.counted(self._address)
        if tier.gate.is_shut(address) and not tier.auth.knows(credential):
            tier.gate.refuse()
        try:
            grant = await tier.auth.grant(credential)
        except TokenExpired:
            raise
        except Unauthorized:
            tier.gate.count(address)
            raise
        if grant.token is None and self._is_page:
            raise Unauthorized("An API key has no business in a browser: revoke it. This takes a token.")
        if grant.token:
            tier.connects.require(grant.token.id)
            if grant.token.cuts_at <= time.time():
                raise TokenExpired("The token expires now. Get a new one.")
        return grant

    async def _change(self, grant: Grant) -> None:
        """To a newer credential of the same caller. What that does not cover ends, and is refused."""
        refused: list[tuple[Follow, LasteventError]] = []
        known: set[Follow] = set()
        while new := {*self.follows.values()} - known:  # one may begin meanwhile, by the old one
            refused += [(follow, error) for follow in new if (error := await self._covers_not(grant, follow))]
            known |= new
        self.grant = grant
        for session in tuple((self.sessions or {}).values()):
            try:
                require(grant, _NEEDS_OF_SESSIONS, None)
                session.require(grant)
            except LasteventError as uncovered:
                asked = session.asked
                await self._end_session(session)
                await self.refuse(asked, uncovered)
        for follow, error in refused:
            asked = follow.asked  # its op may have no answer yet: this is it
            await _end(follow, Ended.REVOKED)
            await self.refuse(asked, error, follow.sid)
        for follow in self.follows.values():
            if follow.view:
                self.tier.viewers.change(follow, grant)
            else:
                follow.grant = grant

    async def _covers_not(self, grant: Grant, follow: Follow) -> LasteventError | None:
        """Why this follow must end. Raises what passes: then all is as it was."""
        try:
            require(grant, _NEEDS["follow"], follow.sid)
            if grant.audience is not follow.grant.audience:
                return InsufficientScope((), "The new credential shows other events. Follow the stream again.")
            await self.tier.streams.look_up_content(follow.sid, grant)
        except LasteventError as error:
            if error.status == 503:
                raise
            return error
        return None

    async def _start_stream(self, asked: Asked) -> None:
        assert self.grant
        tier, grant, own = self.tier, self.grant, asked.own
        if own.follow:  # before anything is started: a refusal must have started nothing
            require(grant, _NEEDS["follow"], None)
            self.require_follow()
            await tier.require_place(grant)
        else:
            tier.require_open()
        with tier.intake.place() as place:
            place.take(asked.size)
            async with place.turn():
                is_large = asked.size > INLINE_BYTES
                started = await tier.streams.start(asked.body, grant, own.idempotency_key, is_large=is_large)
        if started.is_new:
            self._note(CREATED, started.sid)
        await self.ok(asked.ref, started.sid, started.record)
        if own.follow and started.sid not in self.follows and not self.connection.is_closing:
            shape = own.follow if isinstance(own.follow, Shape) else Shape()
            try:
                self._follow(started.sid, shape, 0, None, is_op=False)
            except LasteventError as error:
                await self.refuse(None, error, started.sid)

    async def _input(self, asked: Asked) -> None:
        assert self.grant
        told = await self.tier.streams.give_input(asked.own.stream, self.grant, asked.body)
        await self.ok(asked.ref, asked.own.stream, {"id": told})

    async def _cancel(self, asked: Asked) -> None:
        assert self.grant
        sid = asked.own.stream
        ended = await self.tier.streams.cancel(sid, self.grant, asked.body.reason)
        if not ended.already:
            self._note(CANCELLED, sid)
        await self.ok(asked.ref, sid, ended._asdict())

    def _note(self, what: str, sid: str) -> None:
        assert self.grant
        deed = Deed(self.grant.tenant, self.grant.who, what, sid, self._address, self._request_id)
        self.tier.deeds.note(deed)

    # -- what is said ----------------------------------------------------------------------------------------

    def details(self, grant: Grant, form: str, cursor: int) -> dict[str, Any]:
        """For the access record."""
        named = {"x-forwarded-for": self._forwarded_for, "user-agent": self._user_agent}
        headers = {name: value for name, value in named.items() if value is not None}
        return request_details(grant, self._address, headers, form, cursor)

    async def ok(self, ref: Ref, stream: str | None = None, data: Any = None) -> None:
        await self._send(_said(OK, ref, stream, None if data is None else orjson.dumps(data)))

    async def refuse(self, ref: Ref, error: LasteventError, stream: str | None = None) -> None:
        await self._send(self._refusal(ref, error, stream))

    async def refuse_fault(self, ref: Ref, stream: str | None) -> None:
        """The last net: a bug here. Called where it is handled."""
        logger.exception("request %s failed", self._request_id)
        detail = "This is a fault of the server. Report it with the request id."
        body = problem_body(self._request_id, 500, "internal_error", "Internal server error", detail)
        await self._send(_said(REFUSED, ref, stream, body))

    def _refusal(self, ref: Ref, error: LasteventError, stream: str | None = None) -> bytes:
        count(error)
        more = {} if error.retry_after_s is None else {"retry_after_s": error.retry_after_s}
        return _said(REFUSED, ref, stream, as_json(self._request_id, error, **more))

    async def _send(self, frame: bytes) -> None:
        with suppress(ConnectionLost):  # whoever asked has gone, and its connection has said so
            await self.connection.send(frame)

    def _tell(self, frame: bytes) -> None:
        """At once, if there is room. Else it counts as an op that waits: nobody asks on and never reads."""
        if self.connection.is_full:
            self._wait_for(self._send(frame))
        else:
            self.connection.write(frame)


_NOBODYS = Sent()

_DO: dict[str, Callable[[Socket, Asked], Awaitable[None]]] = {
    "auth": Socket._auth,
    "unfollow": Socket._unfollow,
    "start": Socket._start_stream,
    "input": Socket._input,
    "interrupt": Socket._input,
    "cancel": Socket._cancel,
}


def _said(event: str, ref: Ref, stream: str | None = None, data: bytes | None = None) -> bytes:
    said = [b'{"event":"%b"' % event.encode()]
    if ref is not None:
        said.append(b'"ref":' + orjson.dumps(ref))
    if stream is not None:
        said.append(b'"stream":' + orjson.dumps(stream))
    if data is not None:
        said.append(b'"data":' + data)
    return text_frame(b",".join(said) + b"}")


async def _end(follow: Follow, how: Ended) -> None:
    """Nothing of it comes after this."""
    if task := follow.task:
        follow.leave(how)
        await asyncio.wait([task])
