"""What one connection can take from the others: heads, pipelines, slow and silent sockets, unread answers, upgrades.

A real server (uvicorn with our protocol class) in a thread, with a small application and small bounds.
"""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import orjson
import pytest
import uvicorn

from bench.ports import free_port
from broker.tenants.enforcement import Enforcement
from broker.web.addresses import Addresses, AddressPlaces
from broker.web.bounded import PROBING, Bounds
from broker.web.protocol import Protocol
from broker.web.refusals import Refusals, Refused
from tests.rig.deployment import wait_until

RESET = b"<reset>"
BOUNDS = Bounds(head_bytes=16_384, head_s=1.0, request_s=3.0, stall_s=1.0, connections=50)


class EveryAddress(Addresses):
    """Loopback is one like any other here."""

    def _counted(self, address: str | None) -> str | None:
        return address


class Server:
    """`asked`: every request that reached the application, as method, path and body."""

    def __init__(self, bounds: Bounds, places: int) -> None:
        self.bounds = bounds
        self.enforcement = Enforcement()
        self.asked: list[tuple[str, str, bytes]] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.refusals = Refusals()
        self.failed: list[dict[str, Any]] = []
        self.port = free_port()
        config = uvicorn.Config(
            self._answer,
            port=self.port,
            loop="uvloop",
            ws="none",
            http=partial(Protocol, bounds, self.refusals, AddressPlaces(places, EveryAddress(), self.enforcement)),  # type: ignore[arg-type]
            log_config=None,  # this process is not the server's alone
            interface="asgi3",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=1,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, failure: self.failed.append(failure))
        body, more = b"", not scope["path"].startswith("/unasked/")
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        self.asked.append((scope["method"], scope["path"], body))
        self.headers.append(scope["headers"])
        if scope["path"].endswith("/slow"):
            for _ in range(100):  # turns, in which the loop may read on and start others
                await asyncio.sleep(0)
        elif scope["path"] == "/held":
            self.release = asyncio.Event()
            await self.release.wait()
        elif scope["path"] == "/late":
            await asyncio.sleep(3 * self.bounds.request_s)  # what an answer may take is what is tested
        size = int(scope["path"][5:]) if scope["path"].startswith("/big/") else 0
        said = b"x" * size if size else scope["path"].encode() + b" " + body
        headers = [(b"content-length", b"%d" % len(said))]
        if scope["path"].endswith("/close"):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def exchange(self, request: bytes) -> bytes:
        with self.connect() as own:
            own.sendall(request)
            return own.recv(65_536)

    def ask(self, *pieces: bytes) -> bytes:
        """Everything that is answered until the server closes, or is silent for as long as an idle connection lives.

        That the server has reset it may be known to any of these calls first.
        """
        try:
            with self.connect() as own:
                for piece in pieces:
                    own.sendall(piece)
                return read_to_end(own)
        except ConnectionResetError:
            return RESET


def read_to_end(own: socket.socket) -> bytes:
    got = b""
    try:
        while part := own.recv(65_536):
            got += part
    except ConnectionResetError:
        got += RESET
    return got


def read_until(own: socket.socket, end: bytes) -> None:
    """Head and body may come apart."""
    got = b""
    while not got.endswith(end):
        part = own.recv(65_536)
        assert part, got
        got += part


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(*, places: int = 1000, **bounds: Any) -> Server:
        server = Server(BOUNDS._replace(**bounds), places)
        server.thread.start()
        running.append(server)
        wait_until(lambda: server.server.started, "the server listens")
        return server

    yield start
    for server in running:
        server.server.should_exit = True
        server.server.force_exit = True
        server.thread.join()


def problem_of(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    found: dict[str, Any] = orjson.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % found["status"])
    return found


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


HOST = b"Host: x\r\n"
GET = b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


# -- heads ---------------------------------------------------------------------------------------------


def head_of(size: int) -> bytes:
    """A request whose head has exactly so many bytes."""
    head = b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\nX: "
    return head + b"x" * (size - len(head) - 4) + b"\r\n\r\n"


def test_a_head_may_have_its_limit_and_not_one_byte_more(serve: Callable[..., Server]) -> None:
    server = serve()
    limit = BOUNDS.head_bytes
    assert statuses(server.ask(head_of(limit))) == [200]
    assert problem_of(server.ask(head_of(limit + 1)))["code"] == "headers_too_large"
    for cut in (1, 4095, 4096, 4097, limit - 1):  # in two packets, wherever they meet
        for size, status in ((limit, 200), (limit + 1, 431)):
            head = head_of(size)
            assert statuses(server.ask(head[:cut], head[cut:])) == [status]


@pytest.mark.parametrize(
    "endless",
    [
        b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000,
        b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"x" * 200_000,
        b"GET /" + b"a" * 200_000,
        b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"X: 1\r\n" * 40_000,
        b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"a: 1\r\n" * 257 + b"\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 200_000,
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: 1\r\n" * 40_000,
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 200_000,
    ],
    ids=["value", "name", "address", "many", "count", "trailer", "trailers", "extension"],
)
def test_what_has_no_end_is_refused_at_its_limit(serve: Callable[..., Server], endless: bytes) -> None:
    server = serve()
    assert problem_of(server.ask(endless))["code"] == "headers_too_large"
    assert server.asked == []


def test_empty_lines_without_end_are_refused(serve: Callable[..., Server]) -> None:
    server = serve()
    assert problem_of(server.ask(b"\r\n" * 100_000))["code"] == "headers_too_large"


def test_trailers_are_dropped(serve: Callable[..., Server]) -> None:
    server = serve()
    request = b"POST /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = server.ask(request + b"3\r\nabc\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
    assert answer.endswith(b"/a abc")
    assert [name for name, _ in server.headers[0]] == [b"host", b"connection", b"transfer-encoding"]


# -- one request at a time ------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_their_order(serve: Callable[..., Server]) -> None:
    server = serve()
    asked = [b"/slow", *(b"/%d" % number for number in range(300)), b"/last/close"]
    requests = [
        b"POST %b HTTP/1.1\r\n%bContent-Length: 2\r\n\r\n%02d" % (path, HOST, n % 100) for n, path in enumerate(asked)
    ]
    answer = server.ask(b"".join(requests))
    assert statuses(answer) == [200] * len(asked)
    assert [path.encode() for _, path, _ in server.asked] == asked
    assert [body for _, _, body in server.asked] == [b"%02d" % (n % 100) for n in range(len(asked))]


def test_while_a_request_waits_little_is_read_from_its_connection(serve: Callable[..., Server]) -> None:
    server = serve()
    with server.connect() as own:
        own.settimeout(0.5)
        own.sendall(b"GET /held HTTP/1.1\r\n" + HOST + b"\r\n")
        wait_until(lambda: server.asked, "the first request runs")
        [connection] = server.server.server_state.connections
        own.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10_000)
        wait_until(lambda: connection.pipeline, "one waits")  # type: ignore[union-attr]
        assert len(connection.pipeline) <= 4096 // 18 + 1  # type: ignore[union-attr]
        with pytest.raises(TimeoutError):
            own.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10_000_000)


def test_a_malformed_request_behind_a_good_one_does_not_touch_its_answer(serve: Callable[..., Server]) -> None:
    server = serve()
    slow = b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n"
    chunked = b"POST /b HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    for bad in (b"\x00\x01\x02 nonsense\r\n\r\n", b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 50_000, chunked):
        answer = server.ask(slow + bad)
        assert answer.endswith(b"/slow ")
        assert statuses(answer) == [200]
    second = b"GET /second HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = server.ask(slow + second + chunked)
    assert statuses(answer) == [200, 200]
    assert answer.endswith(b"/second ")
    assert "/b" not in {path for _, path, _ in server.asked}


def test_a_malformed_body_gets_one_answer(serve: Callable[..., Server]) -> None:
    server = serve()
    for before in (b"", b"GET /first HTTP/1.1\r\n" + HOST + b"\r\n"):
        with server.connect() as own:
            own.sendall(before)
            if before:
                read_until(own, b"/first ")
            own.sendall(b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n")
            assert problem_of(read_to_end(own))["code"] == "bad_request"


@pytest.mark.parametrize("size", [1024, 4096])
def test_what_comes_with_the_next_read_waits_for_what_waits_already(serve: Callable[..., Server], size: int) -> None:
    """Where a read ends with a request, the next read is parsed when that one is answered: nothing may overtake."""
    server = serve()
    slow, last = (b"GET /unasked/%b HTTP/1.1\r\n" % path + HOST + b"\r\n" for path in (b"slow", b"last/close"))
    before = b"GET /unasked/a HTTP/1.1\r\nX: "
    filling = before + b"x" * (size - len(slow) - len(before) - 4) + b"\r\n\r\n"
    answer = server.ask(slow + filling + slow + last)
    assert statuses(answer) == [200] * 4
    assert re.findall(rb"/unasked/(\S+) ", answer) == [b"slow", b"a", b"slow", b"last/close"]


def test_a_body_in_chunks_of_a_byte_is_read_in_turns_and_refused_where_it_costs_too_much(
    serve: Callable[..., Server],
) -> None:
    server = serve()
    request = b"POST /a/close HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    end = b"0\r\n\r\n"
    answer = server.ask(request + b"1\r\nx\r\n" * 16_000 + end)
    assert statuses(answer) == [200]
    assert server.asked == [("POST", "/a/close", b"x" * 16_000)]
    assert problem_of(server.ask(request + b"1\r\nx\r\n" * 16_400 + end))["code"] == "bad_request"
    assert len(server.asked) == 1


def test_a_request_behind_a_long_body_that_nobody_wanted_is_answered(serve: Callable[..., Server]) -> None:
    server = serve()
    with server.connect() as own:
        own.sendall(b"POST /unasked/slow HTTP/1.1\r\n" + HOST + b"Content-Length: 500000\r\n\r\n" + b"x" * 500_000)
        own.sendall(b"GET /last/close HTTP/1.1\r\n" + HOST + b"\r\n")
        answer = read_to_end(own)
    assert re.findall(rb"/(unasked/slow|last/close) ", answer) == [b"unasked/slow", b"last/close"]


def test_an_address_has_a_limit_of_its_own(serve: Callable[..., Server]) -> None:
    server = serve()
    for size, status in ((4096, 200), (4097, 431)):
        assert statuses(server.ask(b"GET /" + b"a" * (size - 1) + b" HTTP/1.1\r\nConnection: close\r\n\r\n")) == [
            status
        ]


def test_what_is_behind_the_last_request_of_a_connection_is_not_read(serve: Callable[..., Server]) -> None:
    server = serve()
    close = b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    assert statuses(server.ask(close + HIDDEN * 1000)) == [200]
    assert [path for _, path, _ in server.asked] == ["/a"]


@pytest.mark.parametrize("address", [b"http://[", b"//x:y", b"\xff", b"?:80"])
def test_an_address_that_is_none_is_refused_also_as_the_second_request(
    serve: Callable[..., Server], address: bytes
) -> None:
    server = serve()
    bad = b"GET " + address + b" HTTP/1.1\r\n" + HOST + b"\r\n"
    assert statuses(server.ask(bad)) in ([400], [200])
    with server.connect() as own:
        own.sendall(b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n")
        read_until(own, b"/a ")
        own.sendall(bad)
        assert statuses(read_to_end(own)) in ([400], [200])
    assert not server.failed


def test_a_connection_that_is_gone_leaves_nothing_for_the_collector(serve: Callable[..., Server]) -> None:
    """It comes rarely: a stranger's heads would take a gigabyte until then."""
    gc.collect()  # of other tests
    server = serve()
    many = b"GET /a HTTP/1.1\r\n" + HOST + b"a: 1\r\n" * 4000
    requests = (many, GET, b"nonsense\r\n\r\n", b"POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\nx", b"")
    for request in requests:
        with server.connect() as own:
            own.sendall(request)
            own.shutdown(socket.SHUT_WR)
            read_to_end(own)
    wait_until(lambda: not server.server.server_state.connections, "all are gone")
    wait_until(lambda: not server.server.server_state.tasks, "their tasks too")
    gone = Protocol.__name__
    left = [thing for thing in gc.get_objects() if type(thing).__name__ == gone and thing.transport.is_closing()]
    assert len(left) <= 1, "the last one's timer may still hold it"


# -- time ----------------------------------------------------------------------------------------------


def ends_after(own: socket.socket, dribble: bytes = b"") -> tuple[float, bytes]:
    """How long the server keeps a connection on which so much arrives ten times a second, and what it says."""
    began, got = time.monotonic(), b""
    own.settimeout(0.1)
    while True:
        try:
            part = own.recv(65_536)
            if not part:
                return time.monotonic() - began, got
            got += part
        except TimeoutError:
            pass
        except ConnectionError:
            return time.monotonic() - began, got + RESET
        try:
            own.send(dribble)
        except ConnectionError:
            return time.monotonic() - began, got + RESET


@pytest.mark.parametrize(
    ("start", "dribble", "limit", "code"),
    [
        (b"", b"", "head_s", None),
        (b"", b"\r\n", "head_s", None),
        (b"GET /a HTTP/1.1\r\nX: ", b"x", "head_s", "request_timeout"),
        (b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n", "head_s", "answered"),
        (b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\n", b"X: 1\r\n", "head_s", "behind"),
        (b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", b"x", "request_s", "request_timeout"),
        (
            b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1\r\nx\r\n",
            "request_s",
            "request_timeout",
        ),
    ],
    ids=["silent", "empty lines", "half a head", "empty lines later", "half a head later", "half a body", "chunks"],
)
def test_a_request_has_its_time(
    serve: Callable[..., Server], start: bytes, dribble: bytes, limit: str, code: str | None
) -> None:
    server = serve()
    with server.connect() as own:
        own.sendall(start)
        took_s, answer = ends_after(own, dribble)
    assert took_s > getattr(BOUNDS, limit) - 0.3
    answers = re.split(rb"(?=HTTP/1\.1 )", answer)[1:]
    if code is None:
        assert answers == []
    elif code in ("answered", "behind"):
        assert statuses(answers[0]) == [200]
        assert [problem_of(last)["code"] for last in answers[1:]] == ["request_timeout"] * (code == "behind")
    else:
        assert problem_of(answer)["code"] == code
    assert server.refusals.counts == {Refused.LATE if code in ("request_timeout", "behind") else Refused.SILENT: 1}
    wait_until(lambda: not server.server.server_state.connections, "the connection is gone")


def test_a_long_body_has_more_time_for_each_mib_that_has_come(serve: Callable[..., Server]) -> None:
    server = serve(request_s=0.2)
    half = b"x" * 2**20
    with server.connect() as own:
        own.sendall(b"POST /a/close HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % (2 * len(half)) + half)
        time.sleep(0.5)  # the time that it has is what is tested
        own.sendall(half)
        assert read_to_end(own).endswith(half)
    assert server.refusals.counts == {}


def test_an_answer_takes_the_time_it_needs(serve: Callable[..., Server]) -> None:
    server = serve(head_s=0.1, request_s=0.1)
    half = b"GET /b/close HTTP/1.1\r\n"
    with server.connect() as own:
        own.sendall(b"GET /late HTTP/1.1\r\n" + HOST + b"\r\n" + half)
        read_until(own, b"/late ")
        own.sendall(HOST + b"\r\n")
        assert read_to_end(own).endswith(b"/b/close ")


# -- answers that nobody reads ---------------------------------------------------------------------------


@pytest.mark.parametrize("connection", [b"keep-alive", b"close"])
def test_an_answer_that_nobody_reads_is_dropped_after_the_stall(
    serve: Callable[..., Server], connection: bytes
) -> None:
    server = serve()
    with server.connect() as own:
        own.sendall(b"GET /big/20000000 HTTP/1.1\r\n" + HOST + b"Connection: " + connection + b"\r\n\r\n")
        wait_until(lambda: server.refusals.counts[Refused.UNREAD], "it is dropped")
        wait_until(lambda: not server.server.server_state.connections, "the connection is gone")
        assert read_to_end(own).endswith(RESET)


def test_a_slow_reader_gets_all_of_it(serve: Callable[..., Server]) -> None:
    server = serve(stall_s=0.5)
    with server.connect() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200_000)
        own.sendall(b"GET /big/20000000 HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        got, began = 0, time.monotonic()
        while part := own.recv(1_000_000):
            got += len(part)
            if time.monotonic() - began < 2:
                time.sleep(0.02)  # the reader's own pace
    assert got > 20_000_000
    assert not server.refusals.counts


# -- how many --------------------------------------------------------------------------------------------


def test_a_connection_beyond_the_bound_is_reset_without_an_answer(serve: Callable[..., Server]) -> None:
    server = serve(connections=3, head_s=30)
    connections = server.server.server_state.connections
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(server.connect())
        with server.connect():
            wait_until(lambda: len(connections) == 3, "three are there")
            with pytest.raises(ConnectionError):  # at whichever call first learns of it
                statuses(server.exchange(GET))
        wait_until(lambda: len(connections) == 2, "one has left")
        assert statuses(server.ask(GET)) == [200]
    assert server.refusals.counts == {Refused.CROWDED: 1}


def test_an_address_beyond_its_connections_is_reset_and_the_others_stay(serve: Callable[..., Server]) -> None:
    server = serve(places=2, head_s=30)
    connections = server.server.server_state.connections
    with server.connect() as one, server.connect():
        wait_until(lambda: len(connections) == 2, "two are there")
        assert server.ask() == RESET
        one.sendall(GET)
        assert b" 200 " in one.recv(65_536)
    wait_until(lambda: not connections, "all have left")
    assert b" 200 " in server.ask(GET)
    assert server.refusals.counts == {Refused.ONE_ADDRESS: 1}


def test_a_crowded_process_still_answers_who_asks_whether_it_lives(serve: Callable[..., Server]) -> None:
    server = serve(connections=2, head_s=30)
    connections = server.server.server_state.connections
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(server.connect())
        wait_until(lambda: len(connections) == 2, "it is crowded")
        for probe in (b"/healthz", b"/readyz?x=1"):
            assert statuses(server.ask(GET.replace(b" /a ", b" " + probe + b" "))) == [200]
        assert server.ask(GET) == RESET
        for _ in range(PROBING):
            held.enter_context(server.connect())
        wait_until(lambda: len(connections) == 2 + PROBING, "and nobody else is let in")
        with pytest.raises(ConnectionError):
            server.exchange(GET.replace(b" /a ", b" /healthz "))
    assert server.refusals.counts == {Refused.CROWDED: 2}


# -- upgrades --------------------------------------------------------------------------------------------

UPGRADES = [
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA\r\n",
    b"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n",
    b"Connection: keep-alive, Upgrade\r\nUpgrade: anything/1, b\r\n",
]
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"HEAD"])
@pytest.mark.parametrize("upgrade", UPGRADES)
def test_an_upgrade_is_ignored_and_its_body_is_read(
    serve: Callable[..., Server], method: bytes, upgrade: bytes
) -> None:
    server = serve()
    framings = {
        b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN: HIDDEN,
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n0\r\nX: y\r\n\r\n": HIDDEN,
        b"\r\n": b"",
    }
    asked = []
    for framed, body in framings.items():
        request = method + b" /a HTTP/1.1\r\n" + HOST + upgrade + framed
        last = b"GET /last/close HTTP/1.1\r\n" + HOST + b"\r\n"
        answer = server.ask(request + last)
        assert statuses(answer) == [200, 200]
        asked += [(method.decode(), "/a", body), ("GET", "/last/close", b"")]
    assert server.asked == asked


def test_an_upgrade_cut_anywhere_is_ignored(serve: Callable[..., Server]) -> None:
    server = serve()
    request = b"POST /a/close HTTP/1.1\r\n" + HOST + UPGRADES[1] + b"Content-Length: 34\r\n\r\n" + HIDDEN + b"."
    request = request.replace(b"34", b"%d" % (len(HIDDEN) + 1))
    for cut in range(1, len(request)):
        with server.connect() as own:
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            own.sendall(request[:cut])
            own.sendall(request[cut:])
            assert statuses(read_to_end(own)) == [200]
    assert set(server.asked) == {("POST", "/a/close", HIDDEN + b".")}
    assert len(server.asked) == len(request) - 1


def test_an_upgrade_byte_by_byte_is_ignored(serve: Callable[..., Server]) -> None:
    server = serve()
    request = b"POST /a/close HTTP/1.1\r\n" + HOST + UPGRADES[0] + b"Content-Length: 3\r\n\r\nabc"
    with server.connect() as own:
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            own.sendall(bytes([byte]))
        assert statuses(read_to_end(own)) == [200]
    assert server.asked == [("POST", "/a/close", b"abc")]


@pytest.mark.parametrize(
    "request_",
    [
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
        b"CONNECT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + HIDDEN,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_a_tunnel_and_another_protocol_are_refused(serve: Callable[..., Server], request_: bytes) -> None:
    server = serve()
    assert problem_of(server.ask(request_))["code"] == "bad_request"
    assert server.asked == []


# -- the log ---------------------------------------------------------------------------------------------


def test_refusals_are_one_line_of_the_log(serve: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    for _ in range(41):
        server.ask(b"nonsense\r\n\r\n")
    assert caplog.messages == []
    server.refusals.log()
    server.refusals.log()
    assert caplog.messages == ["connections refused within a minute: 41 × not HTTP/1.1"]


# -- smuggling: two readers of one connection must never see other requests ------------------------------

MALFORMED = [
    b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\nabc",
    b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc",
    b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0x3\r\n\r\nabc",
    b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    b"GET /a HTTP/1.1\r\n Host: x\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nX: a\nY: b\r\n\r\n",
    b"GET /a HTTP/1.1\nHost: x\n\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nX\0: a\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\n: a\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
    b"GET /a\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET /a HTTP/1.1 x\r\nHost: x\r\n\r\n",
    b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
    b"G@T /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


def test_what_is_not_http_1_1_is_refused_once_and_hides_no_request(serve: Callable[..., Server]) -> None:
    server = serve()
    for upgrade in (b"", UPGRADES[0]):
        for request in MALFORMED:
            changed = request.replace(b"Host: x\r\n", b"Host: x\r\n" + upgrade)
            answer = server.ask(changed + HIDDEN)
            assert statuses(answer) == [400], request
    assert server.asked == []
