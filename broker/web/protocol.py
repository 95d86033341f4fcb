"""The HTTP protocol: bounded, and it offers its transport to the answer that it carries (live/lane.py).

It gives its transport away to a WebSocket (socket_connection.py) once the handshake is done, and is forgotten.

And it gives bodies to HTTP/1.0, where a cut is a reset: the end of a connection is the proper end of a body there.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from contextvars import Context
from functools import partial
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from broker.dialects.format import Form
from broker.live.lane import CONNECTION, EXTENSION, Connection, Lane, reset, reset_at_close, unsent
from broker.web.addresses import AddressPlaces
from broker.web.bounded import BoundedProtocol, Bounds
from broker.web.handshake import Handshake
from broker.web.refusals import Refusals
from broker.web.socket_connection import SocketConnection
from broker.web.sockets import Sockets

_KEPT = {"type", "method", "http_version"}
"""What uvicorn still asks a scope for once its answer has begun."""


class Protocol(BoundedProtocol):
    """`handshake`: None: there are no sockets. `sockets`: those of this process."""

    _lane: Lane | None = None
    _opening: asyncio.Task[None] | None = None

    def __init__(
        self,
        bounds: Bounds,
        refusals: Refusals,
        places: AddressPlaces,
        handshake: Handshake | None = None,
        sockets: Sockets | None = None,
        **uvicorns: Any,
    ) -> None:
        super().__init__(bounds, refusals, places, **uvicorns)
        self._handshake = handshake
        self._sockets = sockets

    def on_message_begin(self) -> None:
        super().on_message_begin()
        connection = Connection(partial(unsent, self.transport), partial(reset, self.transport))
        offers = {EXTENSION: self._offer, CONNECTION: connection}
        self.scope["extensions"] = offers  # type: ignore[typeddict-item]  # typed as JSON-like

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._is_head_complete and self.scope["http_version"] == "1.0":
            del self.scope["extensions"][EXTENSION]
            self.cycle.send = _Unchunked(self.cycle).send  # type: ignore[method-assign, assignment]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        super()._start_asgi_task(cycle, partial(self._answer, app))

    async def _answer(self, app: ASGI3Application, scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        if self._lane and (continuation := self._lane.continuation):
            self._lane.continuation = None
            for name in scope.keys() - _KEPT:
                del scope[name]
            await continuation(send)

    # -- a WebSocket ---------------------------------------------------------------------------------------

    @property
    def takes_upgrades(self) -> bool:
        return self._handshake is not None

    def upgrade(self) -> None:
        assert self._handshake
        del self.scope["extensions"]
        self.scope["query_string"] = self.url.partition(b"?")[2]
        opening = self._handshake.open(self.scope, self, self.tasks)  # type: ignore[arg-type]  # uvicorn's types
        # In a context of its own: its log lines are about this request.
        self._opening = self.loop.create_task(opening, name="handshake", context=Context())
        self._opening.add_done_callback(self._has_opened)
        self._opening.add_done_callback(self.tasks.discard)
        self.tasks.add(self._opening)

    def is_gone(self) -> bool:
        return self.transport.is_closing()

    def refuse(self, answer: bytes) -> None:
        self._is_refused = True
        self._unparsed = memoryview(b"")
        self.transport.write(answer)
        self._linger()

    def become_socket(self, head: bytes) -> SocketConnection:
        assert self._sockets
        transport, behind = self.transport, bytes(self._unparsed)
        self.connections.discard(self)
        self.parser = None  # type: ignore[assignment]
        socket = SocketConnection(transport, self._sockets, self.connections, self._places, self._peer, behind)
        transport.write(head)
        transport.set_protocol(socket)
        self._forget()
        return socket

    def _has_opened(self, opening: asyncio.Task[None]) -> None:
        self._opening = None
        if opening.cancelled() or opening.exception():
            self.reset()

    def shutdown(self) -> None:
        if self._opening is None:  # which sees for itself that this server drains
            super().shutdown()

    @property
    def has_own_watch(self) -> bool:
        return self._lane is not None and self._lane.is_open

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._lane:
            self._lane.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._lane:
            self._lane.is_paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        lane, self._lane = self._lane, None
        super().connection_lost(exc)
        if lane:
            lane.lose()

    def _offer(self, form: Form, heartbeat: bytes) -> Lane:
        self._lane = Lane(self.transport, form, heartbeat, is_paused=self.flow.write_paused)
        return self._lane


class _Unchunked:
    """send() for HTTP/1.0, which knows no chunks (RFC 9112 §7.1): a body of unknown length ends with its connection.

    Until such a body is complete, whatever closes the connection resets it, also the death of this process.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send: Any = cycle.send

    async def send(self, message: MutableMapping[str, Any]) -> None:
        cycle = self._cycle
        if message["type"] == "http.response.start":
            if all(name.lower() != b"content-length" for name, _ in message.get("headers", ())):
                cycle.chunked_encoding = False
                cycle.expected_content_length = _ENDLESS
                reset_at_close(cycle.transport, True)
        elif not message.get("more_body", False) and cycle.expected_content_length > _ENDLESS // 2:
            cycle.expected_content_length = len(message.get("body", b""))  # uvicorn checks that it adds up
            reset_at_close(cycle.transport, False)
        await self._send(message)


_ENDLESS = 2**63
