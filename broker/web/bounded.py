"""uvicorn's HTTP protocol with bounds: what one connection, which may be a stranger's, can take from the others.

uvicorn has none of these (Kludex/uvicorn #157; pull requests #1684, #1686 and #2019 were closed unmerged).

- A head (request line and headers) has `head_bytes` at most. So have trailers, which are dropped.
- The head comes within `head_s`, the whole request within `request_s`, and PER_MIB_S more for each MiB that has come.
- One request at a time: while one waits behind another, the parser gets nothing more and the socket is not read.
- An answer of which nothing could be sent for `stall_s` is dropped with its connection. So is what is still unread
  when a connection is to be closed: a close would wait for a reader, and keep what it was to send for as long.
- A process has `connections` at most. The next one is reset without an answer; an EventSource then tries again. But a
  few more may ask for PROBES: whoever watches a crowded process must not take it for a dead one, and kill it.
- An address has so many of them (addresses.py). The next one is reset likewise.
- No connection becomes another protocol, but for a WebSocket's handshake at MAY_UPGRADE. Any other Upgrade is ignored,
  as RFC 9110 §7.8 permits: the request is read as if it had none. The parser by itself would take its body for the
  next request, and a proxy that shares connections would give the answer to another client.

A connection's input is between requests, in a head, or behind a head. The parser's callbacks are *landmarks*: a
request begins, its head is complete, a chunk or a piece of its body, its end. Bytes since the last one are *loose*. An
endless header, trailer, chunk extension or row of empty lines consists of loose bytes only, so one count bounds all.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, NamedTuple

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from broker.live.lane import reset, unsent
from broker.web.addresses import AddressPlaces
from broker.web.refusals import Refusals, Refused, answer

SLICE = 1024
"""Bytes for the parser at once: 56 requests at the most, which then wait in a row. Most requests are shorter."""

TURN = 16
"""Slices before others have their turn: a body in chunks of a byte takes 3 ms for them."""

MAX_CHUNKS, CHUNK_BYTES = 16_384, 1024
"""In one body, so many and one more for each KiB. Each costs three calls of the parser, however short it is."""

MAX_ADDRESS = 4096
"""Of path and query. Ours have some 1,500; to decode one of 32 KB takes 20 ms."""

MAX_HEADERS = 256
"""In one request. Browsers send 20; whoever looks one header up walks past all of them."""

PER_MIB_S = 15.0
"""70 KB/s: a photo from a phone."""

LINGER_S, LINGER_BYTES = 2.0, 2**20
"""How long, and for how many bytes, a refused client is listened to: to close on unread bytes would reset the
connection, and the client would lose the answer (RFC 9112 §9.6)."""

GRACE_S = 0.05
"""In which the loop polls its sockets."""

PROBES, PROBING = frozenset({b"/healthz", b"/readyz"}), 8
"""The paths, and how many connections beyond the bound may ask for them. They are soon gone: one that asks for anything
else is reset as soon as it has."""

MAY_UPGRADE: frozenset[bytes] = frozenset({b"/v1/socket"})
"""Paths at which a GET may become a WebSocket."""


class Bounds(NamedTuple):
    """Sizes in bytes, times in seconds. `stall_s`: for an answer that nobody reads."""

    head_bytes: int
    head_s: float
    request_s: float
    stall_s: float
    connections: int


class BoundedProtocol(HttpToolsProtocol):
    flow: _Flow

    def __init__(self, bounds: Bounds, refusals: Refusals, places: AddressPlaces, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.bounds = bounds
        self._refusals = refusals
        self._places = places
        self._running: RequestResponseCycle | None = None
        self._unparsed = memoryview(b"")
        self._is_request_open = False
        self._is_head_complete = False
        self._has_landmark = False
        self._loose = 0
        self._chunks = 0
        self._body_bytes = 0
        self._is_refused = False
        self._may_only_probe = False
        self._is_between_answers = False
        self._lingering = LINGER_BYTES
        self._deadline: asyncio.TimerHandle | None = None
        self._deadline_is_for_head = True
        self._request_began_at = 0.0
        self._stall: asyncio.TimerHandle | None = None

    # -- the connection ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self.flow = _Flow(transport, self)
        if not self._places.take(self._peer):
            self._refuse(Refused.ONE_ADDRESS)
            return
        beyond = len(self.connections) - self.bounds.connections
        if beyond > PROBING:
            self._refuse(Refused.CROWDED)
            return
        self._may_only_probe = beyond > 0
        self._set_deadline(is_for_head=True)

    @property
    def _peer(self) -> str | None:
        return self.client[0] if self.client else None

    def connection_lost(self, exc: Exception | None) -> None:
        self._places.free(self._peer)
        self._clear_deadline()
        self._stop_watching()
        self._unparsed = memoryview(b"")
        super().connection_lost(exc)
        self._forget()

    def _forget(self) -> None:
        """The connection, or what it was: let go of all that would be kept by it."""
        # uvicorn tells the newest request only, which may be one that was sent behind the one being answered.
        if self._running and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        self._unset_keepalive_if_required()  # uvicorn leaves it, and with it the connection, after an error
        # Circles of references, which would keep a stranger's headers until the collector comes: it comes rarely here.
        self.flow.connection = None
        for scope in (self.scope, self.cycle and self.cycle.scope, self._running and self._running.scope):
            if scope:
                scope.pop("extensions", None)
        self.scope = self.headers = None  # type: ignore[assignment]
        if self.cycle and self.cycle.response_complete:
            self.cycle = None  # type: ignore[assignment]
            self._running = None

    def shutdown(self) -> None:
        super().shutdown()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    # -- input ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._discard(data)
            return
        if self.timeout_keep_alive_task:
            self._unset_keepalive_if_required()
        if len(data) <= SLICE and not self._unparsed and not self.flow.read_paused:
            self._feed(data)  # as nearly all requests come
        else:
            self._unparsed = memoryview(bytes(self._unparsed) + data)
        self.parse()

    def parse(self) -> None:
        """Give the parser what has come, in slices, until a request waits or the application must read first."""
        slices = 0
        while self._unparsed and not (self.flow.read_paused or self._is_refused or self.transport.is_closing()):
            if (slices := slices + 1) > TURN:
                self.flow.pause_reading()
                self.loop.call_soon(self._go_on)
                break
            piece = self._unparsed[:SLICE]
            self._unparsed = self._unparsed[SLICE:]
            self._feed(piece)
        if not self._is_refused:
            self._update_deadline()

    def _go_on(self) -> None:
        cycle = self.cycle
        if cycle is None or cycle.response_complete or len(cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()  # else the application reads first

    @property
    def _is_in_head(self) -> bool:
        return self._is_request_open and not self._is_head_complete

    @property
    def may_read_on(self) -> bool:
        return not (self.pipeline or self._is_between_answers)

    def _feed(self, piece: bytes | memoryview) -> None:
        self._has_landmark = False
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            behind = piece[upgrade.args[0] :]
            if self._is_upgrade_ignored():
                self._read_as_if_there_were_no_upgrade(behind)
            else:
                self._begin_upgrade(behind)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause.why if isinstance(cause, _NotTaken) else Refused.MALFORMED)
        else:
            self._loose = 0 if self._has_landmark else self._loose + len(piece)
            if self._loose > self.bounds.head_bytes or (self._is_in_head and len(self.headers) > MAX_HEADERS):
                self._refuse(Refused.HEAD_TOO_LARGE)

    def _read_as_if_there_were_no_upgrade(self, body: bytes | memoryview) -> None:
        """The parser stands behind the head, and takes what follows for another request: it gets the head once more."""
        if self.scope["method"] == "CONNECT":
            self._refuse(Refused.MALFORMED)  # it has no body, and what follows it is not HTTP
            return
        head = [f"{self.scope['method']} ".encode(), self.url, f" HTTP/{self.scope['http_version']}\r\n".encode()]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = _parser_for(self)
        self._unparsed = memoryview(bytes(body) + self._unparsed)
        self._loose = 0
        self._feed(memoryview(b"".join([*head, b"\r\n"])))

    def _begin_upgrade(self, behind: bytes | memoryview) -> None:
        """Nothing more is read until it is answered. What has come behind the head waits with the rest."""
        self._clear_deadline()
        self._loose = 0
        self._is_request_open = self._is_head_complete = False
        self._unparsed = memoryview(bytes(behind) + self._unparsed)
        self.flow.pause_reading()
        self.upgrade()

    @property
    def takes_upgrades(self) -> bool:
        """Whether `upgrade` does anything."""
        return False

    def upgrade(self) -> None:
        """Answer the head that has come."""

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value.strip(b" \t"))  # what is around a value is not part of it (RFC 9110 §5.5)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_landmark = True
        self._is_request_open = True
        self._is_head_complete = False

    def on_headers_complete(self) -> None:
        self._has_landmark = True
        self._chunks = self._body_bytes = 0
        if len(self.headers) > MAX_HEADERS or len(self.url) > MAX_ADDRESS:
            raise _NotTaken(Refused.HEAD_TOO_LARGE)
        if self._loose + 2 * SLICE > self.bounds.head_bytes and self._head_size() > self.bounds.head_bytes:
            raise _NotTaken(Refused.HEAD_TOO_LARGE)
        if self._may_only_probe and self.url.partition(b"?")[0] not in PROBES:
            raise _NotTaken(Refused.CROWDED)
        if self.parser.should_upgrade():
            self.scope["method"] = self.parser.get_method().decode("ascii")
            self.scope["http_version"] = self.parser.get_http_version()
            return
        super().on_headers_complete()
        self._is_head_complete = True  # and not before: an address that is none has raised
        self.headers = []  # for trailers, which nothing reads

    def on_chunk_header(self) -> None:
        self._has_landmark = True
        self._chunks += 1
        if self._chunks > MAX_CHUNKS + self._body_bytes // CHUNK_BYTES:
            raise ValueError("too many chunks")

    def on_body(self, body: bytes) -> None:
        self._has_landmark = True
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_landmark = True
        if self.parser.should_upgrade():
            return
        self._is_request_open = False
        self._is_head_complete = False
        super().on_message_complete()

    def _is_upgrade_ignored(self) -> bool:
        """All but a GET of HTTP/1.1 that has no body, comes behind no other, and asks for a WebSocket there."""
        if not self.takes_upgrades or self.url.partition(b"?")[0] not in MAY_UPGRADE or self._waits_behind_another():
            return True
        if self.scope["method"] != "GET" or self.scope["http_version"] != "1.1":
            return True
        values = [value.lower() for name, value in self.headers if name == b"upgrade"]
        if b"websocket" not in [one.strip() for value in values for one in value.split(b",")]:
            return True
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self.headers
        )

    def _head_size(self) -> int:
        """As it would be written: request line, headers, the empty line."""
        line = len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n\r\n")
        return line + sum(len(name) + len(value) + 4 for name, value in self.headers)

    # -- time ----------------------------------------------------------------------------------------------

    def _update_deadline(self) -> None:
        """After each read. Nobody is hurried whose request waits for the answer to the one before."""
        if not (self._is_request_open or self._loose) or self._waits_behind_another():
            if self._deadline:
                self._clear_deadline()
        elif self._deadline is None or self._deadline_is_for_head is self._is_head_complete:
            self._set_deadline(is_for_head=not self._is_head_complete)

    def _waits_behind_another(self) -> bool:
        if self._is_head_complete:
            return bool(self.pipeline)
        return self.cycle is not None and not self.cycle.response_complete

    def _set_deadline(self, *, is_for_head: bool) -> None:
        now = self.loop.time()
        if self._deadline is None:
            self._request_began_at = now
        self._clear_deadline()
        limit_s = self.bounds.head_s if is_for_head else self.bounds.request_s
        self._deadline_is_for_head = is_for_head
        self._deadline = self.loop.call_at(self._request_began_at + limit_s, self._run_out)

    def _clear_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _run_out(self) -> None:
        if not self._deadline_is_for_head:
            end = self._request_began_at + self.bounds.request_s + PER_MIB_S * self._body_bytes / 2**20
            if end > self.loop.time():
                self._deadline = self.loop.call_at(end, self._run_out)
                return
        # A loop that stood still learns of its timers before it reads what has come meanwhile: it reads once more.
        self._deadline = self.loop.call_later(GRACE_S, self._refuse_as_late)

    def _refuse_as_late(self) -> None:
        self._refuse(Refused.LATE if self._is_request_open else Refused.SILENT)

    # -- refusals ------------------------------------------------------------------------------------------

    def _refuse(self, why: Refused) -> None:
        """Read nothing more from this connection, answer if that is possible, and close it."""
        self._refusals.count(why)
        self._is_refused = True
        self._unparsed = memoryview(b"")
        self._clear_deadline()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        if self._waits_behind_another():
            self._close_behind_the_others()
        elif words := answer(why):
            self._say(words)
        elif why is Refused.SILENT:
            self.transport.close()
        else:
            self.reset()

    def _close_behind_the_others(self) -> None:
        """Requests before the refused one are answered. The last of them closes the connection."""
        self.flow.pause_reading()
        last = self.cycle
        if self._is_head_complete:  # it waits already
            self.pipeline.popleft()
            self.cycle = last = self.pipeline[0][0] if self.pipeline else self._running or self.cycle
        last.keep_alive = False

    def _say(self, words: bytes) -> None:
        if self._is_head_complete:
            if self.cycle.response_started:  # a second answer would be taken for the next request's
                self.reset()
                return
            self.cycle.disconnected = True  # the application's answer would be too late
            self.cycle.message_event.set()
        self.transport.write(words)
        self._linger()

    def _linger(self) -> None:
        """Say no more, and listen for a moment: the client may still be sending, and must not lose the answer."""
        self.transport.write_eof()
        self.flow.read_paused = False
        self.transport.resume_reading()
        self._clear_deadline()
        self._deadline = self.loop.call_later(LINGER_S, self.reset)

    def _discard(self, data: bytes) -> None:
        self._lingering -= len(data)
        if self._lingering < 0:
            self.reset()

    def reset(self) -> None:
        """End the connection now, and drop what it was still to send: here and in the kernel."""
        self._clear_deadline()
        reset(self.transport)

    # -- output --------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        # uvicorn lets reading go on before it starts the request that waits next: a third one would be started with it.
        self._is_between_answers = True
        super().on_response_complete()
        self._is_between_answers = False
        self.flow.resume_reading()
        self._watch()
        if self._is_request_open:  # what waited behind that answer has come in already
            self._unset_keepalive_if_required()
            self._update_deadline()
        elif not self.cycle.response_complete:
            self._unset_keepalive_if_required()

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self.has_own_watch:
            self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_watching()

    @property
    def has_own_watch(self) -> bool:
        """Whether the answer looks after its own stall."""
        return False

    def _watch(self) -> None:
        """Look again after a stall's time whether anything of what waits now, if anything does, has been sent."""
        if self._stall is None and self.transport.get_write_buffer_size():
            waiting = unsent(self.transport)
            self._stall = self.loop.call_later(self.bounds.stall_s, partial(self._reset_if_stalled, waiting))

    def _stop_watching(self) -> None:
        if self._stall:
            self._stall.cancel()
            self._stall = None

    def _reset_if_stalled(self, waiting: int) -> None:
        self._stall = None
        if not self.transport.get_write_buffer_size():
            return
        if unsent(self.transport) < waiting or self.has_own_watch:
            self._watch()
        else:
            self._refusals.count(Refused.UNREAD)
            self.reset()


class _NotTaken(Exception):
    """Raised in a callback of the parser; it comes out as the context of HttpParserCallbackError."""

    def __init__(self, why: Refused) -> None:
        super().__init__(why.value)
        self.why = why


class _Flow(FlowControl):
    """Reading goes on when a request's answer is complete, or when the application wants more of its body. But not
    while another request waits: each answer would let in as many as one read brings.
    """

    def __init__(self, transport: asyncio.Transport, connection: BoundedProtocol) -> None:
        super().__init__(transport)
        self.connection: BoundedProtocol | None = connection

    def resume_reading(self) -> None:
        if self.read_paused and self.connection and self.connection.may_read_on:
            self.read_paused = False
            self.connection.parse()
            if not self.read_paused and not self._transport.is_closing():
                self._transport.resume_reading()


def _parser_for(protocol: HttpToolsProtocol) -> httptools.HttpRequestParser:
    """As uvicorn makes it."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
