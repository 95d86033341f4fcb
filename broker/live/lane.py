"""The direct lane: a connection's transport, offered to the response that it carries.

Awaiting ASGI's send() for each viewer and event costs more than the event. Our protocol class (web/protocol.py) offers
the transport itself as an ASGI extension, so that a topic can write to the viewers at its stream's tail. Under any
other ASGI server, and for HTTP/1.0, the same viewer is served through send(), with the same bytes.

A response with a lane continues after the application has returned (`continuation`): the web framework's frames around
it, and the request's own data, would be most of what a waiting viewer costs in memory.

The response's own task writes (through send()) until it hands its lane to a topic; the topic writes until it releases
the lane. Both write to the same transport, in the order of the calls, so nothing can overtake anything.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from broker.dialects.format import Form
from broker.gauges import Sent
from broker.live.window import Window

EXTENSION = "lastevent.lane"
"""In an ASGI scope's extensions: a function (Form, bytes of a heartbeat) → Lane."""

CONNECTION = "lastevent.connection"
"""The same for one without a lane: a Connection."""

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_AT_ONCE, _IN_ORDER = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)
"""SO_LINGER: a close resets the connection, and nothing that waits is sent any more; or it ends it properly."""


def chunk(body: bytes) -> bytes:
    """A chunk of a body (RFC 9112 §7.1). No empty ones: that would be the body's end."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def reset(transport: asyncio.Transport) -> None:
    """End a connection at once. What waits in it is not sent any more: not from here, and not from the kernel."""
    reset_at_close(transport, True)
    transport.abort()


def reset_at_close(transport: asyncio.Transport, yes: bool) -> None:
    """Also when it is the kernel that closes, since this process has died."""
    option = _AT_ONCE if yes else _IN_ORDER
    with suppress(OSError, ValueError):  # the client has gone, and the socket with it
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)


def unsent(transport: asyncio.Transport) -> int:
    """Bytes that the client has not taken yet: in this process, and in the kernel, which knows what was acknowledged.

    The kernel takes in more only when a third of its buffer has been taken out. Of a reader of 1 KB/s one would see
    nothing for minutes without its count.
    """
    in_kernel = struct.pack("i", 0)
    with suppress(OSError, ValueError):  # closed, or a system that does not tell
        in_kernel = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_kernel)
    return transport.get_write_buffer_size() + int(struct.unpack("i", in_kernel)[0])


class Connection(NamedTuple):
    """What an answer may ask of its connection. By default nothing: another ASGI server does not tell."""

    unsent: Callable[[], int] = lambda: 0
    hang_up: Callable[[], object] = lambda: None


class Carrier(Protocol):
    """What writes to a lane while its viewer is live: a topic (topic.py)."""

    def release_lane(self, lane: Lane) -> None: ...

    def silent_turns(self, lane: Lane) -> int: ...


class Lane:
    """`write` takes whole chunks, or frames. `on_lost` is called when the connection is gone.

    Without a `heartbeat` the connection has signs of life of its own: a topic gives it none. `window`: beyond it the
    topic writes nothing.
    """

    __slots__ = (
        "_transport",
        "continuation",
        "form",
        "heartbeat",
        "is_lost",
        "is_paused",
        "left",
        "on_lost",
        "sent",
        "topic",
        "turns",
        "window",
        "write",
        "wrote",
    )

    def __init__(self, transport: asyncio.Transport, form: Form, heartbeat: bytes, *, is_paused: bool) -> None:
        self.form = form
        self.heartbeat = heartbeat
        self.turns = 1
        """Of the hub's wheel, from one heartbeat to the next."""
        self.continuation: Callable[[Send], Awaitable[None]] | None = None
        """What is left of the answer once the application has returned; it gets the server's own send()."""
        self.is_lost = transport.is_closing()
        self.is_paused = is_paused
        """The connection's buffer is full: a writer must wait, which is what send() does."""
        self.write = transport.write
        self.topic: Carrier | None = None
        self.wrote: tuple[int, int] | None = None
        """The first and the last event that a topic has written here."""
        self.left: asyncio.Future[int] | None = None
        self.on_lost: Callable[[], object] = _nothing
        self.window: Window | None = None
        self.sent = _NOBODYS
        """Where the topic counts what it writes."""
        self._transport = transport

    def pause(self) -> None:
        self.is_paused = True
        if self.topic:
            self.topic.release_lane(self)

    def lose(self) -> None:
        """The connection is gone. At once: uvloop raises at a write to what is closed, and others wait their turn."""
        self.is_lost = True
        if self.topic:
            self.topic.release_lane(self)
        self.on_lost()

    def leave(self, cursor: int) -> None:
        if self.left and not self.left.done():
            self.left.set_result(cursor)

    def close(self) -> None:
        """The response is over: nothing that happens to the connection matters any more."""
        self.on_lost = _nothing

    def hang_up(self) -> None:
        """Drop the connection with whatever waits in it. A close would wait for a client that does not read until it
        reads, and keep what it was sent for as long: in this process, and in the kernel.
        """
        if not self.is_lost:
            reset(self._transport)

    def unsent(self) -> int:
        return 0 if self.is_lost else unsent(self._transport)

    @property
    def is_open(self) -> bool:
        """Whether the response still writes here, and looks after a viewer that does not read."""
        return self.on_lost is not _nothing


_NOBODYS = Sent()


def _nothing() -> None:
    pass
