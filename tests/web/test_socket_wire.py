"""A WebSocket to the byte: its handshake, what it sends and reads, how it stays alive, how it ends.

A real server (uvicorn with our protocol class, our drain) in a thread, which serves with an echo: what is said on a
socket is tested elsewhere. Clients are raw connections, and `websockets`, which somebody else has written.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import uvicorn
from fastapi import Request
from websockets.sync.client import connect as connect_theirs

from bench.ports import free_port
from broker import gauges
from broker.auth import Grant
from broker.dialects.socket import text_frame
from broker.errors import LasteventError, Unauthorized
from broker.live.lane import unsent
from broker.process.listener import bind
from broker.settings import Settings
from broker.web.addresses import AddressPlaces
from broker.web.app import create_app
from broker.web.bounded import Bounds
from broker.web.close_codes import close_code
from broker.web.handshake import Handshake
from broker.web.protocol import Protocol
from broker.web.refusals import Refusals
from broker.web.server import Server as RealServer
from broker.web.socket_connection import HIGH_BYTES, PIECE_BYTES, ConnectionLost, SocketConnection, ViewerStalled
from broker.web.tier import Tier
from tests.rig.deployment import wait_until
from tests.rig.long import LONG
from tests.web.test_bounded import RESET, EveryAddress, read_to_end
from tests.web.test_websocket import REFUSED, frame, malformed

KEY = "correct-horse-battery-staple-and-more"
NONCE = base64.b64encode(bytes(range(16))).decode()
HELLO = '{"event":"hello"}'
PING = '{"event":"ping"}'


class Server:
    """`served`: each socket, with the grant and the error that it was given. `serve`: instead of the echo."""

    def __init__(self, redis_url: str, serve: Any, places: int, **settings: Any) -> None:
        self.served: list[tuple[SocketConnection, Grant | None, LasteventError | None]] = []
        self.heard: list[bytes] = []
        self.lost: list[SocketConnection] = []
        self._serve = serve or self._echo
        self.settings = Settings(redis_url=redis_url, **settings)
        self.app = create_app(self.settings)
        self.tier: Tier = self.app.state.tier
        self.refusals = Refusals()
        self.port = free_port()
        bounds = Bounds(16_384, 5.0, 5.0, self.settings.viewer_stall_s, self.settings.max_connections)
        self.places = AddressPlaces(places, EveryAddress(), self.tier.enforcement)
        handshake = Handshake(self.app, self._begin)
        config = uvicorn.Config(
            self.app,
            loop="uvloop",
            ws="none",
            http=partial(Protocol, bounds, self.refusals, self.places, handshake, self.tier.sockets),  # type: ignore[arg-type]
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=5,
        )
        self.started = threading.Event()
        self.server = RealServer(config, self.tier, bind("127.0.0.1", self.port), self.started.set, lambda _: None)
        self.thread = threading.Thread(target=lambda: self.server.run(sockets=[self.server._listener]))

    async def _begin(
        self, tier: Tier, request: Request, connection: SocketConnection, grant: Grant | None, error: Any
    ) -> None:
        self.served.append((connection, grant, error))
        del request
        await self._serve(tier, connection, error)

    async def _echo(self, _: Tier, connection: SocketConnection, error: LasteventError | None) -> None:
        if error:
            connection.write(text_frame(b'{"event":"refused"}'))
            connection.close(close_code(error), error.code if isinstance(error, Unauthorized) else "")
            return
        lost = asyncio.Event()
        connection.on_lost = lost.set

        def echo(payload: bytes) -> None:
            self.heard.append(payload)
            connection.write(text_frame(payload))

        connection.on_message = echo
        connection.write(text_frame(HELLO.encode()))
        connection.resume_reading()
        await lost.wait()
        self.lost.append(connection)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/socket"

    @property
    def sockets(self) -> list[SocketConnection]:
        return list(self.tier.sockets.here)  # type: ignore[arg-type]

    def connect(self, receive_bytes: int | None = None) -> socket.socket:
        own = socket.socket()
        if receive_bytes:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        own.settimeout(20)
        try:
            own.connect(("127.0.0.1", self.port))
        except OSError:
            own.close()
            raise
        return own

    def ask(self, request: bytes) -> bytes:
        try:
            with self.connect() as own:
                own.sendall(request)
                return read_to_end(own)
        except ConnectionError:  # which any of these calls may know first
            return RESET

    def open(self, behind: bytes = b"", receive_bytes: int | None = None, **headers: str) -> Raw:
        return Raw(self.connect(receive_bytes), handshake(**headers) + behind)

    def drain(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    def call(self, function: Callable[[], object]) -> None:
        """In the server's loop, and done when this returns."""
        done = threading.Event()
        self.server._loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(10)


def handshake(line: str = "GET /v1/socket HTTP/1.1", *, more: str = "", **changed: str) -> bytes:
    """`changed`: headers, with _ for -; empty: without it."""
    headers = {
        "Host": "localhost",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": NONCE,
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    lines = [line, *(f"{name}: {value}" for name, value in headers.items() if value)]
    return ("\r\n".join(lines) + "\r\n" + more + "\r\n").encode()


class Raw:
    """A client that has written its own frames. `head`: the server's answer to the handshake."""

    def __init__(self, own: socket.socket, request: bytes) -> None:
        self.own = own
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        own.sendall(request)
        self._got = b""
        while b"\r\n\r\n" not in self._got:
            self._receive()
        self.head, _, self._got = self._got.partition(b"\r\n\r\n")

    def _receive(self) -> None:
        part = self.own.recv(65_536)
        if not part:
            raise EOFError
        self._got += part

    def frame(self) -> tuple[int, bytes]:
        """The next one, as opcode and payload."""
        while True:
            if len(self._got) >= 2:
                size, head = self._got[1], 2
                if size == 126:
                    size, head = int.from_bytes(self._got[2:4]), 4
                elif size == 127:
                    size, head = int.from_bytes(self._got[2:10]), 10
                if len(self._got) >= max(head + size, 4 if head == 4 else 10 if head == 10 else 2):
                    taken, self._got = self._got[: head + size], self._got[head + size :]
                    assert taken[0] & 0xF0 == 0x80
                    return taken[0] & 0xF, taken[head:]
            self._receive()

    def message(self) -> str:
        opcode, payload = self.frame()
        assert opcode == 1, (opcode, payload)
        return payload.decode()

    def say(self, payload: str) -> None:
        self.own.sendall(frame(1, payload.encode()))

    def end(self) -> tuple[int, str]:
        """The close code and its reason, after whatever comes before them; then nothing but the end may come."""
        opcode, payload = self.frame()
        while opcode != 8:
            opcode, payload = self.frame()
        self.own.sendall(frame(8, payload[:2]))
        assert self._got + read_to_end(self.own) == b""
        return int.from_bytes(payload[:2]), payload[2:].decode()

    def close(self) -> None:
        self.own.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def serve(valkey_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(serve: Any = None, *, places: int = 1000, **settings: Any) -> Server:
        server = Server(valkey_url, serve, places, **settings)
        server.thread.start()
        running.append(server)
        assert server.started.wait(20)
        wait_until(lambda: server.tier.auth.is_ready, "the server knows its keys")
        return server

    yield start
    for server in running:
        if server.thread.is_alive():
            server.call(server.tier.drain)
            server.server.should_exit = True
            server.thread.join()


@pytest.fixture
def faults(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What has been logged as an error, or of an answer that was not completed."""
    return lambda: [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.ERROR or entry.exc_info]


# -- somebody else's client ----------------------------------------------------------------------------------


def test_a_client_of_somebody_else_is_understood(serve: Callable[..., Server], faults: Callable[[], list[str]]) -> None:
    server = serve()
    with connect_theirs(server.url, subprotocols=["x", "lastevent.v1"], compression="deflate") as theirs:  # type: ignore[list-item]
        assert theirs.subprotocol == "lastevent.v1"
        assert theirs.recv() == HELLO
        for said in ("", "é€𝄞", "x" * 125, "x" * 126, "x" * 70_000, "x" * 200_000):
            theirs.send(said)
            assert theirs.recv() == said
        theirs.send(iter(["a", "", "b" * 1000]))
        assert theirs.recv() == "a" + "b" * 1000
        assert theirs.ping("?").wait(10)
        theirs.close(1000, "bye")
    assert (theirs.close_code, theirs.close_reason) == (1000, "")
    wait_until(lambda: not server.sockets, "it is gone")
    assert faults() == []


def test_none_is_selected_where_ours_is_not_offered(serve: Callable[..., Server]) -> None:
    server = serve()
    with server.open() as raw, server.open(Sec_WebSocket_Protocol="a, b") as other:
        assert b"sec-websocket-protocol" not in raw.head + other.head
        assert b"sec-websocket-accept: " in raw.head
        assert raw.head.startswith(b"HTTP/1.1 101 ")
        assert b"extensions" not in raw.head


# -- the handshake -------------------------------------------------------------------------------------------

NO_HANDSHAKE = {
    "another version": (handshake(Sec_WebSocket_Version="8"), 426, "upgrade_required"),
    "no version": (handshake(Sec_WebSocket_Version=""), 426, "upgrade_required"),
    "no key": (handshake(Sec_WebSocket_Key=""), 400, "bad_handshake"),
    "a short key": (handshake(Sec_WebSocket_Key="abcd"), 400, "bad_handshake"),
    "two keys": (handshake(more=f"Sec-WebSocket-Key: {NONCE}\r\n"), 400, "bad_handshake"),
    "no upgrade": (handshake(Upgrade="", Connection="close"), 426, "upgrade_required"),
    "another upgrade": (handshake(Upgrade="h2c", Connection="Upgrade, close"), 426, "upgrade_required"),
    "HTTP/1.0": (handshake("GET /v1/socket HTTP/1.0"), 426, "upgrade_required"),
    "POST": (handshake("POST /v1/socket HTTP/1.1", Connection="Upgrade, close"), 405, "method_not_allowed"),
    "a body": (handshake(Connection="Upgrade, close", Content_Length="3") + b"abc", 426, "upgrade_required"),
    "another path": (handshake("GET /v1/sockets HTTP/1.1", Connection="Upgrade, close"), 404, "not_found"),
    "another Host": (handshake(Host="example.com"), 403, "forbidden"),
    "a proxy": (handshake(X_Forwarded_For="192.0.2.1"), 403, "forbidden"),
    "a foreign page": (handshake(Origin="http://example.com"), 403, "forbidden"),
    "two pages": (handshake(Origin="http://localhost", more="Origin: http://localhost\r\n"), 403, "forbidden"),
}


@pytest.mark.parametrize("name", NO_HANDSHAKE)
def test_what_is_no_handshake_is_a_problem(
    serve: Callable[..., Server], faults: Callable[[], list[str]], name: str
) -> None:
    request, status, code = NO_HANDSHAKE[name]
    server = serve()
    head, _, body = server.ask(request).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    said = json.loads(body[: int(_header(head, "content-length"))])
    assert (said["status"], said["code"]) == (status, code)
    assert said["request_id"] == _header(head, "x-request-id")
    assert _header(head, "x-content-type-options") == "nosniff"
    if status == 426:
        assert (_header(head, "upgrade"), _header(head, "sec-websocket-version")) == ("websocket", "13")
    assert server.served == []
    assert faults() == []


def test_head_is_answered_without_a_body(serve: Callable[..., Server]) -> None:
    answer = serve().ask(handshake("HEAD /v1/socket HTTP/1.1", Connection="Upgrade, close"))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert answer.endswith(b"\r\n\r\n")


def _header(head: bytes, name: str) -> str:
    [value] = [line.split(b": ", 1)[1] for line in head.split(b"\r\n") if line.lower().startswith(f"{name}: ".encode())]
    return value.decode()


def test_a_handshake_cut_anywhere_and_what_comes_with_it_are_read(serve: Callable[..., Server]) -> None:
    server = serve()
    request = handshake() + frame(1, b"first") + frame(1, b"second")
    for cut in range(1, len(request), 1 if LONG else 5):
        raw_socket = server.connect()
        raw_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw_socket.sendall(request[:cut])
        with Raw(raw_socket, request[cut:]) as raw:
            assert [raw.message() for _ in range(3)] == [HELLO, "first", "second"], cut


def test_behind_a_request_that_is_not_answered_an_upgrade_is_none(serve: Callable[..., Server]) -> None:
    server = serve()
    before = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = server.ask(before + handshake(Connection="Upgrade, close"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 426 " in answer
    with server.connect() as own:
        own.sendall(before)
        assert own.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert Raw(own, handshake()).message() == HELLO


def test_a_request_behind_a_handshake_is_no_frame(serve: Callable[..., Server]) -> None:
    with serve().open(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") as raw:
        assert raw.end()[0] == 1002


def test_a_credential_is_looked_at_before_101(serve: Callable[..., Server]) -> None:
    server = serve(api_keys=KEY)
    assert server.ask(handshake(Authorization="Bearer wrong")).startswith(b"HTTP/1.1 401 ")
    assert server.ask(handshake(Authorization="Basic eDp5")).startswith(b"HTTP/1.1 401 ")
    with server.open(Authorization=f"Bearer {KEY}") as known, server.open() as unknown:
        assert known.message() == unknown.message() == HELLO
    assert [grant and grant.tenant for _, grant, _ in server.served] == ["default", None]


def test_a_page_that_is_refused_gets_a_close_code(serve: Callable[..., Server]) -> None:
    server = serve(api_keys=KEY, cors_origins="https://app.example.com")
    for origin in ("https://app.example.com", "https://localhost"):
        with server.open(Origin=origin, Authorization="Bearer wrong") as page:
            assert page.message() == '{"event":"refused"}'
            assert page.end() == (4401, "unauthorized")
    assert server.ask(handshake(Origin="https://example.com")).startswith(b"HTTP/1.1 403 ")
    with server.open(Cookie="__Host-lastevent=x") as no_page:  # whose cookie is nobody's word
        assert no_page.message() == HELLO


@pytest.mark.parametrize("takes_credentials", [False, True])
def test_a_listed_page_s_cookie_counts_where_cors_lets_it_read_with_cookies(
    serve: Callable[..., Server], takes_credentials: bool
) -> None:
    server = serve(api_keys=KEY, cors_origins="https://app.example.com", cors_credentials=takes_credentials)
    with server.open(Origin="https://app.example.com", Cookie="__Host-lastevent=x") as page:
        if takes_credentials:
            assert page.end() == (4401, "unauthorized")
        else:
            assert page.message() == HELLO
    with server.open(Origin="https://localhost", Cookie="__Host-lastevent=x") as own:
        assert own.end() == (4401, "unauthorized")


def test_a_full_server_refuses_and_a_page_may_come_back(serve: Callable[..., Server]) -> None:
    server = serve(max_viewers=1)
    server.call(lambda: server.tier.viewers.places.take(Grant("default"), "s"))
    assert server.ask(handshake()).startswith(b"HTTP/1.1 429 ")
    with server.open(Origin="http://localhost") as page:
        assert page.end() == (1013, "")


def test_it_is_counted_by_its_status(serve: Callable[..., Server]) -> None:
    server = serve()
    before = _count_of("101"), _count_of("400")
    with server.open() as raw:
        raw.message()
        server.ask(handshake(Sec_WebSocket_Key="x"))
    assert (_count_of("101"), _count_of("400")) == (before[0] + 1, before[1] + 1)


def _count_of(status: str) -> float:
    count: float = gauges.http_requests.labels("/v1/socket", "GET", status)._value.get()
    return count


def test_a_client_that_goes_in_its_handshake_leaves_nothing(
    serve: Callable[..., Server], faults: Callable[[], list[str]]
) -> None:
    server, before = serve(), _count_of("0")
    for _ in range(50):
        with server.connect() as own:
            own.sendall(handshake())
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: len(server.served) + _count_of("0") - before == 50, "all have come")
    wait_until(lambda: not server.server.server_state.connections, "they are gone")
    wait_until(lambda: not server.server.server_state.tasks, "and their tasks")
    assert not server.places._taken
    assert faults() == []


# -- a connection like others --------------------------------------------------------------------------------


def test_it_has_a_place_of_its_address_until_it_is_gone(serve: Callable[..., Server]) -> None:
    server = serve(places=1)
    with server.open() as raw:
        assert raw.message() == HELLO
        assert len(server.server.server_state.connections) == 1
        assert server.ask(handshake()) == RESET
    wait_until(lambda: not server.places._taken, "its place is free")
    with server.open() as again:
        assert again.message() == HELLO


def test_nothing_of_the_request_is_left_and_nothing_at_all_of_the_socket(serve: Callable[..., Server]) -> None:
    """Without the collector, which comes rarely here."""
    server = serve(heartbeat_s=1)
    gc.collect()
    gc.disable()
    try:
        raws = [server.open() for _ in range(20)]
        for raw in raws:
            assert raw.message() == HELLO
            raw.say("x" * 1000)
            assert raw.message() == "x" * 1000
        server.served.clear()
        server.call(lambda: None)
        assert _alive(Protocol, Request) == 0
        assert _alive(SocketConnection) == 20
        for number, raw in enumerate(raws):
            if number % 2:
                raw.own.sendall(frame(8, struct.pack(">H", 1000)))
                read_to_end(raw.own)
            raw.close()
        wait_until(lambda: not server.sockets, "they are gone")
        server.lost.clear()
        wait_until(lambda: _alive(SocketConnection) == 0, "nothing is left of them", 5)
    finally:
        gc.enable()


def _alive(*kinds: type) -> int:
    return sum(type(one) in kinds for one in gc.get_objects())


# -- what is read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["no mask", "opcode 3", "binary", "not UTF-8", "HTTP", "2 ** 62 bytes"])
def test_what_is_refused_closes_with_its_code_after_what_was_said(
    serve: Callable[..., Server], faults: Callable[[], list[str]], name: str
) -> None:
    wire, code = REFUSED[name]
    with serve().open() as raw:
        raw.own.sendall(frame(1, b"before") + wire)
        assert [raw.message(), raw.message()] == [HELLO, "before"]
        assert raw.end()[0] == code
    assert faults() == []


def test_malformed_inputs_leave_no_traceback(serve: Callable[..., Server], faults: Callable[[], list[str]]) -> None:
    server = serve(socket_message_bytes=1024)
    for seed in range(1000 if LONG else 60):
        with server.open() as raw:
            raw.own.sendall(malformed(seed) + b"\xff" * 2000)
            code, _ = raw.end() if raw.message() == HELLO else (0, "")
            assert code in {1000, 1002, 1003, 1007, 1009} or 1000 <= code <= 4999, seed
    wait_until(lambda: not server.sockets, "they are gone")
    assert faults() == []


def test_a_message_as_long_as_may_be_is_read_and_one_longer_is_not(serve: Callable[..., Server]) -> None:
    server = serve(socket_message_bytes=50_000)
    with server.open() as raw:
        raw.say("x" * 50_000)
        assert [raw.message(), raw.message()] == [HELLO, "x" * 50_000]
        raw.own.sendall(frame(1, b"", size=50_001))
        assert raw.end()[0] == 1009


def test_while_reading_pauses_nothing_is_given_out(serve: Callable[..., Server]) -> None:
    async def hold(_: Tier, connection: SocketConnection, __: object) -> None:
        lost = asyncio.Event()
        connection.on_lost = lost.set

        def take(payload: bytes) -> None:
            heard.append(payload)
            connection.pause_reading()

        connection.on_message = take
        connection.resume_reading()
        await lost.wait()

    heard: list[bytes] = []
    server = serve(hold)
    with server.open(b"".join(frame(1, b"%d" % n) for n in range(2000))) as raw:
        for count in range(1, 200):
            wait_until(lambda count=count: len(heard) == count, "one more was given out")
            server.call(lambda: None)
            assert len(heard) == count
            server.call(server.sockets[0].resume_reading)
        raw.say("more")
    assert heard == [b"%d" % n for n in range(len(heard))]


def test_who_does_not_read_its_answers_is_not_read_either(serve: Callable[..., Server]) -> None:
    """Pings, and messages that are answered: what waits for it is bounded, and all comes once it reads."""
    server = serve()
    said = b"".join(frame(1, f"{n:01000}".encode()) + frame(9, b"x" * 100) for n in range(4000))
    with server.open(receive_bytes=4096) as raw:
        assert raw.message() == HELLO
        sending = threading.Thread(target=raw.own.sendall, args=[said])
        sending.start()
        [own] = server.sockets
        wait_until(lambda: own._holds, "it is not read any more")
        assert own.transport.get_write_buffer_size() < 128 * 1024 + 64 * 1024
        assert len(own._unparsed) <= 256 * 1024
        answers = []
        while len(answers) < 4000:
            opcode, payload = raw.frame()
            if opcode == 1:
                answers.append(int(payload))
        sending.join()
    assert answers == list(range(4000))


# -- what is written -----------------------------------------------------------------------------------------

PAYLOAD = "x" * 1000


def _sending(senders: int, frames: int, told: dict[int, str]) -> Any:
    """Each sends that many frames, all in one call."""

    async def serve(_: Tier, connection: SocketConnection, __: object) -> None:
        async def one(number: int) -> None:
            body = b"".join(text_frame(f"{number} {n} {PAYLOAD}".encode()) for n in range(frames))
            try:
                await connection.send(body)
                told[number] = "sent"
            except ViewerStalled:
                told[number] = "stalled"
            except ConnectionLost:
                told[number] = "lost"

        lost = asyncio.Event()
        connection.on_lost = lost.set
        connection.resume_reading()
        async with asyncio.TaskGroup() as tasks:
            for number in range(senders):
                tasks.create_task(one(number))
        await lost.wait()

    return serve


def test_senders_take_turns_of_a_piece_each(serve: Callable[..., Server]) -> None:
    told: dict[int, str] = {}
    server = serve(_sending(4, 500, told))
    with server.open(receive_bytes=4096) as raw:
        wait_until(lambda: server.sockets and server.sockets[0].is_full, "it is full")
        got = [raw.message().split(" ")[:2] for _ in range(4 * 500)]
        wait_until(lambda: len(told) == 4, "all is sent")
    for number in range(4):
        assert [int(n) for who, n in got if int(who) == number] == list(range(500))
    # Who came first had written until it was full. From there on nobody is ahead by more than a piece or two.
    behind = got[len(got) // 4 :]
    ahead = [len([1 for who, _ in behind[:600] if int(who) == number]) for number in range(1, 4)]
    assert max(ahead) - min(ahead) <= 3 * PIECE_BYTES // 1000, ahead
    assert set(told.values()) == {"sent"}


def test_who_takes_nothing_is_reset_and_what_waits_for_it_is_bounded(
    serve: Callable[..., Server], faults: Callable[[], list[str]]
) -> None:
    told: dict[int, str] = {}
    server = serve(_sending(3, 2000, told), viewer_stall_s=1.0, heartbeat_s=0.4)
    with server.open(receive_bytes=4096) as raw:
        wait_until(lambda: server.sockets and server.sockets[0].is_full, "it is full")
        [own] = server.sockets
        assert own.transport.get_write_buffer_size() <= HIGH_BYTES + 2 * PIECE_BYTES
        wait_until(lambda: len(told) == 3, "it is given up", 10)
        assert set(told.values()) == {"stalled"}
        assert own.is_stalled
        assert read_to_end(raw.own).endswith(b"<reset>")
    assert faults() == []


def test_who_reads_slowly_is_neither_stalled_nor_dead(serve: Callable[..., Server]) -> None:
    """Its answer to a ping lies behind what it has not taken. It reads for three times as long as either takes."""
    told: dict[int, str] = {}
    server = serve(_sending(1, 1000, told), viewer_stall_s=0.8, heartbeat_s=0.2)
    with server.open(receive_bytes=4096) as raw:
        until = time.monotonic() + 2.4
        while time.monotonic() < until:
            raw.own.recv(8192)
            time.sleep(0.05)  # a slow reader is what is tested
        assert server.sockets
        assert not server.sockets[0].is_stalled


# -- alive ---------------------------------------------------------------------------------------------------


def test_a_silent_socket_gets_a_ping_a_page_can_see_and_one_it_must_answer(serve: Callable[..., Server]) -> None:
    server = serve(heartbeat_s=0.4)
    with server.open() as raw:
        assert raw.message() == HELLO
        began = time.monotonic()
        for _ in range(6):  # longer than what is silent lives
            assert raw.frame() == (9, b"")
            assert raw.message() == PING
            raw.own.sendall(frame(10))
        assert time.monotonic() - began > 3 * 0.4


def test_who_was_written_to_meanwhile_gets_no_ping(serve: Callable[..., Server]) -> None:
    server = serve(heartbeat_s=0.6)
    with server.open() as raw:
        assert raw.message() == HELLO
        server.call(lambda: setattr(server.sockets[0], "on_silence", lambda: 0.0))
        raw.own.settimeout(1.5)
        with pytest.raises(TimeoutError):
            raw.frame()


def test_who_is_not_heard_of_for_three_heartbeats_is_reset(serve: Callable[..., Server]) -> None:
    server = serve(heartbeat_s=0.3)
    with server.open() as raw:
        began = time.monotonic()
        assert read_to_end(raw.own).endswith(b"<reset>")
        assert time.monotonic() - began > 2.5 * 0.3
    wait_until(lambda: len(server.lost) == 1, "who serves it was told")


# -- the end -------------------------------------------------------------------------------------------------


def test_a_close_of_the_client_is_answered_with_its_code(serve: Callable[..., Server]) -> None:
    server = serve()
    for body, code in ((b"", 1000), (struct.pack(">H", 1001) + b"away", 1001), (struct.pack(">H", 4000), 4000)):
        with server.open() as raw:
            assert raw.message() == HELLO
            raw.own.sendall(frame(1, b"last") + frame(8, body) + frame(1, b"late"))
            assert raw.message() == "last"
            assert raw.frame() == (8, struct.pack(">H", code))
            assert read_to_end(raw.own) == b""
    wait_until(lambda: len(server.lost) == 3, "who serves them was told, once each")
    assert server.heard == [b"last"] * 3


def test_a_socket_whose_service_fails_says_so_and_is_logged_once(
    serve: Callable[..., Server], faults: Callable[[], list[str]]
) -> None:
    async def fail(_: Tier, connection: SocketConnection, __: object) -> None:
        connection.resume_reading()
        raise RuntimeError("a bug")

    with serve(fail).open() as raw:
        assert raw.end() == (1011, "")
    assert len(faults()) == 1


def test_a_drain_ends_each_after_a_whole_frame_and_does_not_wait_for_the_deaf(
    serve: Callable[..., Server], faults: Callable[[], list[str]]
) -> None:
    told: dict[int, str] = {}
    server = serve(_sending(1, 3000, told), heartbeat_s=60, drain_s=10)
    deaf = [server.open(receive_bytes=4096) for _ in range(50)]
    with server.open() as raw, server.open() as silent:
        assert raw.message()
        assert silent.message()
        wait_until(lambda: sum(own.is_full for own in server.sockets) >= 50, "they are full")
        began = time.monotonic()
        server.drain()
        assert raw.end() == (1012, "")
        assert silent.end() == (1012, "")
        server.thread.join(10)
        assert not server.thread.is_alive()
        assert time.monotonic() - began < 5
    for one in deaf:
        one.close()
    assert faults() == []


def test_who_comes_while_a_server_drains_is_sent_elsewhere(serve: Callable[..., Server]) -> None:
    server = serve()
    server.call(server.tier.viewers.draining.set)
    assert server.ask(handshake()).startswith(b"HTTP/1.1 503 ")
    with server.open(Origin="http://localhost") as page:
        assert page.end() == (1012, "")


# -- other servers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["none", "websockets-sansio"])
def test_another_server_of_this_application_has_no_sockets_and_says_so(valkey_url: str, library: Any) -> None:
    config = uvicorn.Config(
        create_app(Settings(redis_url=valkey_url)), port=free_port(), ws=library, log_config=None, log_level="error"
    )
    theirs = uvicorn.Server(config)
    thread = threading.Thread(target=theirs.run)
    thread.start()
    wait_until(lambda: theirs.started, "it listens")
    try:
        with socket.create_connection(("127.0.0.1", config.port), timeout=20) as own:
            own.sendall(handshake())
            answer = own.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 501 "), answer
            while b"no_sockets" not in answer:
                answer += own.recv(65_536)
    finally:
        theirs.should_exit = True
        thread.join()


def test_unsent_is_known_of_a_socket(serve: Callable[..., Server]) -> None:
    told: dict[int, str] = {}
    server = serve(_sending(1, 1000, told))
    with server.open(receive_bytes=4096):
        wait_until(lambda: server.sockets and server.sockets[0].is_full, "it is full")
        assert unsent(server.sockets[0].transport) > HIGH_BYTES
