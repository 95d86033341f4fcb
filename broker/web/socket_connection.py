"""One WebSocket after its handshake: the transport's protocol, from its 101 until it is gone.

    on_message(payload)   a whole text message, when reading goes on; `pause_reading` holds also those that are read
    on_lost()             once, as soon as nothing can be written any more: the client has closed, or `close`, `reset`,
                          a stall, a drain, the end of the connection. `is_stalled` says of which kind
    on_silence()          seconds since anything was written to its lanes, if somebody writes past this

It begins held: whoever serves it sets `on_message`, and calls `resume_reading`.

Who writes. All write whole frames to the one transport, in the order of the calls, so nothing gets between the bytes
of a frame: topics, by their lanes; `write`, for what is small; `send`, for all else. Sends write as long as the
connection has room; then they wait in a queue, and each gets room for a piece. What is full is full for topics, too,
whose lanes are told.

How it ends, each once, whatever comes together:
- the client's close frame, or a violation: ours answers it, what is on its way goes out, the connection closes
- `close`: our close frame after what is on its way; then the client's, or the end of a second
- `reset`: at once, with all that waits
After the first of them nothing is written, and what is read is dropped.

10,000 of them are idle for hours: no timer, no task, no buffer of their own, and no circle of references (the process
collects its circles rarely).
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from broker.dialects.format import Form
from broker.dialects.socket import text_frame
from broker.live.lane import Lane, reset, unsent
from broker.web.addresses import AddressPlaces
from broker.web.close_codes import CloseCode
from broker.web.sockets import Sockets
from broker.web.websocket import (
    Closing,
    Code,
    Ping,
    Pong,
    Reader,
    Said,
    Text,
    Violation,
    closing,
    pieces,
    ping,
    pong,
)

PIECE_BYTES = 16 * 1024
"""What one send writes before another has its turn."""

HIGH_BYTES = 32 * 1024
"""In this process beyond the kernel, until writers wait: what is live is late by what lies before it."""

NOTSENT_BYTES = 16 * 1024
"""In the kernel, of what is not on its way yet, for the same reason."""

MOST_UNREAD_BYTES = 128 * 1024
"""Of answers that a client does not read while it goes on asking: then it is not read either."""

SLICE_BYTES = 1024
"""For the reader at once: 170 messages at most. Most reads are shorter."""

TURN = 64
"""Messages, or slices, before others have their turn."""

TURN_S = 0.005
"""Or as soon as so much time has been spent on them: what is refused only deep inside costs a hundred times as much."""

CLOSE_S = 1.0
"""For the client's close frame, and for what is on its way."""

_BY_ITS_USER, _FOR_OTHERS, _UNREAD = 1, 2, 4
_ALL = _BY_ITS_USER | _FOR_OTHERS | _UNREAD
"""Why reading pauses."""

_PING = ping() + text_frame(b'{"event":"ping"}')


class ConnectionLost(Exception):
    """Nothing can be written any more."""


class ViewerStalled(ConnectionLost):
    """It has taken nothing for a stall's time, and was reset."""


class SocketConnection(asyncio.Protocol):
    """`connections`: uvicorn's, of which it is one, as for the limit. `peer`: whose place it has.
    `behind`: what came with the head.
    """

    __slots__ = (
        "_connections",
        "_holds",
        "_is_full",
        "_is_gone",
        "_is_over",
        "_lanes",
        "_on_lost",
        "_peer",
        "_places",
        "_pong",
        "_reader",
        "_said",
        "_sockets",
        "_unparsed",
        "_waiting",
        "_wrote_at",
        "asked_at",
        "heard_at",
        "is_stalled",
        "on_message",
        "on_silence",
        "transport",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        sockets: Sockets,
        connections: set[Any],
        places: AddressPlaces,
        peer: str | None,
        behind: bytes = b"",
    ) -> None:
        self.transport = transport
        self.on_message: Callable[[bytes], object] = _nothing
        self._on_lost: Callable[[], object] | None = None
        self.on_silence: Callable[[], float] | None = None
        self.is_stalled = False
        self.heard_at = self.asked_at = self._wrote_at = sockets.turn
        """In which turn of the sockets' timer."""
        self._sockets = sockets
        self._connections = connections
        self._places = places
        self._peer = peer
        self._reader = Reader(sockets.message_bytes, sockets.max_fragments)
        self._lanes: tuple[Lane, ...] = ()
        self._holds = _BY_ITS_USER
        self._is_full = False
        self._is_over = False
        self._is_gone = False
        self._unparsed = behind
        """What has been read and not been looked at."""
        self._said: deque[Said] | None = None
        """What has been understood, and waits."""
        self._waiting: deque[asyncio.Future[None]] | None = None
        """Sends, in the order in which they have come."""
        self._pong: bytes | None = None
        """The answer to the last ping, which waits for room."""
        transport.set_write_buffer_limits(HIGH_BYTES)
        with suppress(OSError, ValueError, AttributeError):  # gone already; a system that has none
            own = transport.get_extra_info("socket")
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        connections.add(self)
        sockets.add(self)

    # -- the connection ------------------------------------------------------------------------------------

    @property
    def is_closing(self) -> bool:
        """Nothing can be written any more."""
        return self._is_over

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_gone = True
        self._end()
        self._places.free(self._peer)
        self._connections.discard(self)
        self._sockets.remove(self)
        self._unparsed, self._said = b"", None

    def eof_received(self) -> bool:
        """The end without a close frame: there is nobody to answer."""
        self._end()
        self.transport.abort()
        return True

    def shutdown(self) -> None:
        """This server drains. uvicorn calls it too."""
        self.close(CloseCode.RESTART)

    def close(self, code: int, reason: str = "") -> None:
        """After what is on its way. The client has a second for all of it, and for its own close frame."""
        if self._is_over:
            return
        self._end()
        self.transport.write(closing(code, reason))
        self._give_up_later()
        asyncio.get_running_loop().call_soon(self._release, _ALL)  # not within a message: its own close is read next

    def reset(self) -> None:
        """At once, with all that waits, here and in the kernel."""
        self._end()
        if not self._is_gone:
            reset(self.transport)

    def stall(self) -> None:
        """It has taken nothing for too long."""
        self.is_stalled = True
        self.reset()

    def _end(self) -> None:
        """From here on nothing is written. Lanes first: a topic would write behind the close frame."""
        if self._is_over:
            return
        self._is_over = True
        self._pong = None
        lanes, self._lanes = self._lanes, ()
        for lane in lanes:
            lane.lose()
        for turn in self._waiting or ():
            if not turn.done():
                turn.set_result(None)
        on_lost, self._on_lost = self._on_lost, None
        self.on_message, self.on_silence = _nothing, None
        if on_lost:
            on_lost()

    @property
    def on_lost(self) -> Callable[[], object] | None:
        return self._on_lost

    @on_lost.setter
    def on_lost(self, on_lost: Callable[[], object] | None) -> None:
        """Called at once if that has happened: a client may have gone before anybody serves it."""
        if self._is_over and on_lost:
            on_lost()
        else:
            self._on_lost = on_lost

    def _close_when_sent(self) -> None:
        self._is_gone = True  # for the reader
        self.transport.close()
        self._give_up_later()

    def _give_up_later(self) -> None:
        asyncio.get_running_loop().call_later(CLOSE_S, self._give_up)

    def _give_up(self) -> None:
        if self not in self._connections:
            return
        if unsent(self.transport):
            reset(self.transport)  # a close would wait for who does not read
        else:
            self.transport.abort()

    # -- input ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._sockets.turn
        self._unparsed = self._unparsed + data if self._unparsed else data
        self._read()

    def pause_reading(self) -> None:
        """Nothing more is given to `on_message`, until `resume_reading`."""
        self._hold(_BY_ITS_USER)

    def resume_reading(self) -> None:
        self._release(_BY_ITS_USER)

    @property
    def is_held(self) -> bool:
        """It is not read, so that nothing can be heard."""
        return self._holds != 0

    def _hold(self, why: int) -> None:
        if not self._holds and not self._is_gone:
            self.transport.pause_reading()
        self._holds |= why

    def _release(self, why: int) -> None:
        if not self._holds:
            return
        self._holds &= ~why
        self.heard_at = self._sockets.turn
        self._read()
        if not self._holds and not self._is_gone:
            self.transport.resume_reading()

    def _read(self) -> None:
        """Give out what has come, some of it at a time: 256 KiB may be 40,000 messages. Once this is over, what comes
        is looked through for the client's close frame alone.
        """
        left, loop = TURN, asyncio.get_running_loop()
        until_s = loop.time() + TURN_S
        while not self._holds and not self._is_gone:
            if self._said:
                self._take(self._said.popleft())
            elif self._unparsed:
                piece, self._unparsed = self._unparsed[:SLICE_BYTES], self._unparsed[SLICE_BYTES:]
                said = self._reader.feed(piece)
                if len(said) == 1:
                    self._take(said[0])
                elif said:
                    self._said = deque(said)
            else:
                self._said = None
                return
            left -= 1
            if not left or loop.time() > until_s:
                self._hold(_FOR_OTHERS)
                loop.call_soon(self._release, _FOR_OTHERS)

    def _take(self, said: Said) -> None:
        match said:
            case Text(payload):
                self.on_message(payload)
            case Ping(data):
                self._answer_ping(data)
            case Closing(code, _):
                if not self._is_over:
                    self._end()
                    self.transport.write(closing(Code.NORMAL if code is None else code))
                self._close_when_sent()
            case Violation(code, reason):
                if not self._is_over:
                    self.close(code, reason)
                    # Its own close frame cannot be found in what is none of the protocol: the end of what it sends can.
                    self.transport.write_eof()
            case Pong():
                pass

    def _answer_ping(self, data: bytes) -> None:
        if self._is_full and not self._is_over:
            self._pong = data  # the last one is enough (RFC 6455 §5.5.3), and they must not pile up
        else:
            self.write(pong(data))

    # -- output --------------------------------------------------------------------------------------------

    def lane(self, form: Form) -> Lane:
        """One more, by which a topic writes here. Its connection's end, and its being full, are told to it."""
        lane = Lane(self.transport, form, b"", is_paused=self._is_full)
        lane.is_lost = lane.is_lost or self._is_over
        if not lane.is_lost:
            self._lanes = (*self._lanes, lane)
        return lane

    def drop(self, lane: Lane) -> None:
        self._lanes = tuple(one for one in self._lanes if one is not lane)

    def write(self, frames: bytes) -> None:
        """At once, whatever waits: for what is small. Nothing, once this is over."""
        if self._is_over:
            return
        self.transport.write(frames)
        self._wrote_at = self._sockets.turn
        if self._is_full and self.transport.get_write_buffer_size() > MOST_UNREAD_BYTES:
            self._hold(_UNREAD)

    async def send(self, frames: bytes) -> None:
        """In pieces of PIECE_BYTES, of whole frames, each when there is room and those before it have had their turn.
        Raises ConnectionLost, or ViewerStalled.
        """
        for piece in pieces(frames, PIECE_BYTES):
            self._require_here()  # once it is over nobody is called any more
            if self._is_full or self._waiting:
                await self._turn()
                self._require_here()
            self.transport.write(piece)
            self._wrote_at = self._sockets.turn
            self._call_next()

    def _require_here(self) -> None:
        if self.is_stalled:
            raise ViewerStalled
        if self._is_over:
            raise ConnectionLost

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            self._leave_queue(turn)
            self._call_next()  # it may have been called
            raise
        self._leave_queue(turn)

    def _leave_queue(self, turn: asyncio.Future[None]) -> None:
        assert self._waiting is not None
        self._waiting.remove(turn)
        if not self._waiting:
            self._waiting = None

    def _call_next(self) -> None:
        if self._waiting and not self._is_full and not self._waiting[0].done():
            self._waiting[0].set_result(None)

    def pause_writing(self) -> None:
        self._is_full = True
        if self._is_over:
            return
        self._sockets.full[self] = unsent(self.transport), self._sockets.turn
        for lane in self._lanes:
            lane.pause()

    def resume_writing(self) -> None:
        self._is_full = False
        self._sockets.full.pop(self, None)
        self._release(_UNREAD)
        if self._is_over:
            return
        for lane in self._lanes:
            lane.is_paused = False
        if self._pong is not None:
            data, self._pong = self._pong, None
            self.write(pong(data))
        self._call_next()

    # -- alive ---------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        return self._is_full

    def silent_turns(self) -> float:
        """Of the sockets' timer, since anything was written. What is full is not silent."""
        if self._is_full:
            return 0
        turns = float(self._sockets.turn - self._wrote_at)
        return min(turns, self.on_silence() / self._sockets.turn_s) if self.on_silence else turns

    def ping(self) -> None:
        if self.asked_at <= self.heard_at:
            self.asked_at = self._sockets.turn
        self.write(_PING)


def _nothing(_: bytes) -> None:
    pass
