"""The HTTP client of the providers, against servers on loopback: what it must not do, and must go on doing."""

from __future__ import annotations

import asyncio
import datetime
import re
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker.settings import Settings, SettingsError
from tests.rig.memory import peak_of
from worker.providers.anthropic import AnthropicProvider
from worker.providers.bounds import Bounds
from worker.providers.choose import Providers
from worker.providers.failures import ProviderFailure
from worker.providers.provider import Finish

MIB = 2**20
REQUEST = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}
DELTA = b'event: content_block_delta\ndata: {"index":0,"delta":{"type":"text_delta","text":"x"}}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
EVENTS = b"Content-Type: text/event-stream\r\n"


def whole(body: bytes, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%s%sContent-Length: %d\r\n\r\n%s" % (EVENTS, headers, len(body), body)


ANSWER = whole(DELTA + STOP)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def asked(reader: asyncio.StreamReader) -> bytes:
    """The head of the next request, read to its end; b"" where none comes."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        return head
    return b""


@asynccontextmanager
async def serving(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], **tls: Any
) -> AsyncIterator[int]:
    """The port at which each connection is served so, until it returns."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await serve(reader, writer)
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0, **tls) as server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def providing(url: str | None, **options: Any) -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider(**{"api_key": "sk-secret", "base_url": url, "silence_s": 10, **options})
    try:
        yield provider
    finally:
        await provider.aclose()


async def answer(provider: AnthropicProvider) -> list[Any]:
    return [event async for event in provider.stream("some-model", REQUEST)]


async def failure(provider: AnthropicProvider) -> ProviderFailure:
    with pytest.raises(ProviderFailure) as caught, anyio.fail_after(5):
        await answer(provider)
    return caught.value


def causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


# -- connections ---------------------------------------------------------------------------------------------


async def test_as_many_generations_as_there_are_ask_at_once() -> None:
    waiting = count(1)
    all_have_asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        if next(waiting) == 150:
            all_have_asked.set()
        await all_have_asked.wait()
        writer.write(ANSWER)

    async with serving(serve) as port, providing(f"http://127.0.0.1:{port}") as provider:
        with anyio.fail_after(30):
            answers = await asyncio.gather(*(answer(provider) for _ in range(150)))
    assert all(len(events) == 2 for events in answers)


def _close(connection: socket.socket) -> None:
    connection.close()


def _ask_and_close(connection: socket.socket) -> None:
    connection.recv(2**16)
    connection.close()


@pytest.mark.parametrize("end", [_close, _ask_and_close], ids=["before it is used", "as it is used"])
async def test_a_kept_connection_that_was_closed_does_not_cost_a_generation_its_first_try(
    end: Callable[[socket.socket], None],
) -> None:
    """In a thread, and the loop stands still meanwhile: it has not noticed when it asks again."""
    answered, ended = threading.Event(), threading.Event()

    def serve(server: socket.socket) -> None:
        first, _ = server.accept()
        first.recv(2**16)
        first.sendall(ANSWER)
        answered.wait()
        if end is _close:
            end(first)
            ended.set()
        else:
            ended.set()
            end(first)
        second, _ = server.accept()
        second.recv(2**16)
        second.sendall(ANSWER)
        second.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        serving = asyncio.get_running_loop().run_in_executor(None, serve, server)
        async with providing(f"http://127.0.0.1:{server.getsockname()[1]}") as provider:
            await answer(provider)
            answered.set()
            assert ended.wait(5)
            assert len(await answer(provider)) == 2
        await serving


async def test_a_gateway_that_hangs_up_on_kept_connections_is_sent_a_request_twice_at_most() -> None:
    hangs_up = False
    requests = []
    all_have_asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await asked(reader):
            requests.append(head)
            if hangs_up:
                return
            if len(requests) == 5:
                all_have_asked.set()
            await all_have_asked.wait()
            writer.write(ANSWER)

    async with serving(serve) as port, providing(f"http://127.0.0.1:{port}") as provider:
        await asyncio.gather(*(answer(provider) for _ in range(5)))
        hangs_up = True
        requests.clear()
        assert (await failure(provider)).code == "provider_cut"
    assert len(requests) == 2


async def test_what_has_come_is_read_although_the_connection_broke_while_nobody_read() -> None:
    """A generation that waits for Redis reads no further meanwhile; what is here by then has been paid for."""
    goes_on, is_closed = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n" % EVENTS)
        writer.write(b"%x\r\n%s\r\n" % (len(DELTA), DELTA))
        await goes_on.wait()
        rest = DELTA * 20 + STOP
        writer.write(b"%x\r\n%s\r\n" % (len(rest), rest))
        writer.close()
        await writer.wait_closed()
        is_closed.set()

    async with (
        serving(serve) as port,
        providing(f"http://127.0.0.1:{port}") as provider,
        aclosing(provider.stream("some-model", REQUEST)) as events,
    ):
        await anext(events)
        goes_on.set()
        await is_closed.wait()
        for _ in range(10):  # so that the end has come here, too
            await asyncio.sleep(0)
        rest = [event async for event in events]
    assert len(rest) == 21
    assert isinstance(rest[-1], Finish)


async def test_a_user_and_a_password_in_the_address_go_to_a_gateway() -> None:
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await asked(reader))
        writer.write(ANSWER)

    async with serving(serve) as port, providing(f"http://user:p%40ss@127.0.0.1:{port}") as provider:
        assert len(await answer(provider)) == 2
    assert b"Basic " + b64encode(b"user:p@ss") in heads[0]


async def test_what_comes_while_nobody_asks_is_nobodys_answer() -> None:
    connections = count()
    sent = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(connections):
            await asked(reader)
            writer.write(ANSWER)
            return
        await asked(reader)
        writer.write(ANSWER)
        await sent.wait()
        writer.write(whole(DELTA * 5 + STOP))
        await reader.read()

    async with serving(serve) as port, providing(f"http://127.0.0.1:{port}") as provider:
        await answer(provider)
        sent.set()
        for _ in range(10):  # so that it has come
            await asyncio.sleep(0)
        assert len(await answer(provider)) == 2


async def test_a_provider_that_hangs_up_on_a_new_connection_is_a_cut_and_is_asked_once() -> None:
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(await asked(reader))

    async with serving(serve) as port, providing(f"http://127.0.0.1:{port}") as provider:
        failed = await failure(provider)
    assert (failed.code, failed.message) == ("provider_cut", "The connection to the model provider broke.")
    assert len(connections) == 1


async def test_no_cookie_is_kept() -> None:
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await asked(reader):
            heads.append(head.lower())
            writer.write(whole(DELTA + STOP, b"Set-Cookie: who=alice; Path=/\r\n"))

    async with serving(serve) as port, providing(f"http://localhost:{port}") as provider:
        await answer(provider)
        await answer(provider)
    assert len(heads) == 2
    assert not any(b"cookie" in head for head in heads)


async def test_a_provider_that_is_not_read_has_to_wait() -> None:
    sent_bytes = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + EVENTS + b"\r\n")
        while True:
            writer.write(DELTA * 100)
            await writer.drain()
            sent_bytes += len(DELTA) * 100

    async with (
        serving(serve) as port,
        providing(f"http://127.0.0.1:{port}", bounds=Bounds(answer_bytes=1000 * MIB)) as provider,
        aclosing(provider.stream("some-model", REQUEST)) as stream,
    ):
        with peak_of() as peak:
            await anext(stream)
            before = -1
            while before < sent_bytes:
                before = sent_bytes
                for _ in range(1000):
                    await asyncio.sleep(0)
    assert sent_bytes < 12 * MIB, "what the kernel's buffers hold, and no more"
    assert peak.bytes < 2 * MIB


# -- what is no HTTP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "is_taken"), [(30_000, True), (300_000, False)])
async def test_a_header_may_be_as_long_as_gateways_send_it_and_not_endless(length: int, is_taken: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(whole(DELTA + STOP, b"Policy: %s\r\n" % (b"x" * length)))

    async with serving(serve) as port, providing(f"http://127.0.0.1:{port}") as provider:
        if is_taken:
            assert len(await answer(provider)) == 2
        else:
            assert (await failure(provider)).code == "provider_cut"


BROKEN = {
    "no chunk": b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\nno hexadecimal\r\n" % EVENTS,
    "a chunk's half": b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n400\r\nhalf" % EVENTS,
    "less than its length": b"HTTP/1.1 200 OK\r\n%sContent-Length: 1000\r\n\r\nless" % EVENTS,
    "no status": b"HELLO\r\n\r\n",
    "no header": b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
    "no end of its head": b"HTTP/1.1 200 OK\r\n",
}


@pytest.mark.parametrize("what", BROKEN)
async def test_what_is_no_http_is_a_cut(what: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(BROKEN[what])

    async with serving(serve) as port, providing(f"http://127.0.0.1:{port}") as provider:
        assert (await failure(provider)).code == "provider_cut"


# -- keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
@pytest.mark.parametrize("key", ["sk-secret\r\nkey", "sk-secret\x7f", "sk-secret\x1b[31m", "sk-secret\udcff"])
async def test_a_key_that_no_header_can_carry_is_found_wherever_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, variable: str, key: str
) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, key)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:1")
    async with providing(None, api_key=None) as provider:
        failed = await failure(provider)
    assert (failed.code, failed.retryable) == ("provider_unauthorized", False)
    assert failed.message == "The API key contains characters that no API key can have."
    assert failed.__cause__ is None


# -- proxies of the environment, and TLS -----------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of provider.test and 127.0.0.1, signed by nobody."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "provider.test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("provider.test"), x509.DNSName("localhost")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


CREDENTIALS = b"proxy-authorization: basic " + b64encode(b"user:p@ss").lower()


def _found_on_loopback(find: Callable[..., Any], host: str, *args: Any, **options: Any) -> Any:
    return find("127.0.0.1" if host == "provider.test" else host, *args, **options)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
async def test_a_provider_is_reached_through_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await asked(reader):
            heads.append(head)
            writer.write(ANSWER)

    async with serving(serve) as port:
        monkeypatch.setenv(variable, f"http://user:p%40ss@127.0.0.1:{port}")
        async with providing("http://provider.test") as provider:
            for _ in range(2):  # the second over the kept connection
                assert len(await answer(provider)) == 2
        monkeypatch.setenv("NO_PROXY", "provider.test")
        monkeypatch.setattr("socket.getaddrinfo", partial(_found_on_loopback, socket.getaddrinfo))
        async with providing(f"http://provider.test:{port}") as provider:
            assert len(await answer(provider)) == 2
    proxied, kept, direct = heads
    for head in (proxied, kept):
        assert head.startswith(b"POST http://provider.test/v1/messages ")
        assert CREDENTIALS in head.lower()
    assert direct.startswith(b"POST /v1/messages ")
    assert b"proxy-authorization" not in direct.lower()


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("is_trusted", [True, False])
async def test_a_tunnel_through_a_proxy_ends_at_a_certificate_that_is_trusted(
    monkeypatch: pytest.MonkeyPatch, certificate: Path, is_trusted: bool
) -> None:
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await asked(reader))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(ssl.SSLError):
            await writer.start_tls(server_side(certificate))
            heads.append(await asked(reader))
            writer.write(ANSWER)

    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with serving(serve) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:p%40ss@127.0.0.1:{port}")
        async with providing("https://provider.test") as provider:
            if is_trusted:
                assert len(await answer(provider)) == 2
                assert heads[1].startswith(b"POST /v1/messages ")
                assert b"proxy-authorization" not in heads[1].lower()
            else:
                failed = await failure(provider)
                assert failed.message == "The model provider could not be reached."
    assert heads[0].startswith(b"CONNECT provider.test:443 ")
    assert CREDENTIALS in heads[0].lower()
    assert b"sk-secret" not in heads[0]


@pytest.mark.usefixtures("no_proxies")
async def test_a_proxy_that_lets_nobody_through_or_is_not_there_is_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")

    async with serving(serve) as port:
        for proxy in (f"http://user:p%40ss@127.0.0.1:{port}", "http://127.0.0.1:1"):
            monkeypatch.setenv("HTTPS_PROXY", proxy)
            async with providing("https://provider.test") as provider:
                failed = await failure(provider)
            assert failed.code == "provider_cut"
            told = "".join(repr(error) for error in causes(failed))
            assert "sk-secret" not in told
            assert "p%40ss" not in told


@pytest.mark.usefixtures("no_proxies")
async def test_a_proxy_of_another_kind_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://user:p%40ss@127.0.0.1:1")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    with pytest.raises(SettingsError, match="names one of socks5") as caught:
        await Providers(Settings(), None).warm_up()
    assert "p@ss" not in str(caught.value)


@pytest.mark.usefixtures("no_proxies")
async def test_over_tls_too_a_generation_that_is_left_closes_its_connection_and_a_finished_one_keeps_it(
    monkeypatch: pytest.MonkeyPatch, certificate: Path
) -> None:
    requests, closed = [], asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in (DELTA + STOP, DELTA):
            requests.append(await asked(reader))
            writer.write(whole(body).replace(b"Content-Length: %d" % len(DELTA), b"Content-Length: 1000"))
        await asked(reader)
        closed.set()

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with (
        serving(serve, ssl=server_side(certificate)) as port,
        providing(f"https://localhost:{port}") as provider,
    ):
        await answer(provider)
        async with aclosing(provider.stream("some-model", REQUEST)) as stream:
            assert not isinstance(await anext(stream), Finish)
        with anyio.fail_after(5):
            await closed.wait()
    assert len(requests) == 2
