"""A provider's answer is bounded as it is read: what has no end, or unpacks to gigabytes, is a bad answer."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from itertools import repeat
from time import process_time
from typing import Any

import pytest

from broker.settings import Settings
from tests.rig.memory import peak_of
from worker.providers.anthropic import AnthropicProvider
from worker.providers.bounds import Bounds
from worker.providers.choose import Providers
from worker.providers.failures import ProviderFailure
from worker.providers.provider import Finish, Provider
from worker.providers.sse import EventSplitter

MIB = 2**20
REQUEST = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}
EVENTS = "Content-Type: text/event-stream"
DELTA = b'event: content_block_delta\ndata: {"index":0,"delta":{"type":"text_delta","text":"x"}}\n\n'
SMALL = Bounds(event_bytes=64 * 1024, answer_bytes=MIB)

Chunks = Iterator[bytes]


class Peer:
    """A loopback server that answers every request with the same head and body."""

    def __init__(self, status: str, headers: list[str], body: Callable[[], Chunks]) -> None:
        self.url = ""
        self.asked = b""
        self.sent_bytes = 0
        if not status.startswith("1"):
            headers = [*headers, "Connection: close"]
        self._head = "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()
        self._body = body

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            self.asked = await reader.readuntil(b"\r\n\r\n")
            writer.write(self._head)
            for some in self._body():
                writer.write(some)
                await writer.drain()
                self.sent_bytes += len(some)
        writer.close()


@asynccontextmanager
async def answered(
    body: Callable[[], Chunks], *headers: str, status: str = "200 OK", bounds: Bounds = SMALL
) -> AsyncIterator[tuple[Peer, AnthropicProvider]]:
    peer = Peer(status, list(headers), body)
    async with await asyncio.start_server(peer.answer, "127.0.0.1", 0) as server:
        peer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        provider = AnthropicProvider(api_key="sk-secret", base_url=peer.url, silence_s=30, bounds=bounds)
        yield peer, provider
        await provider.aclose()


async def failure(provider: Provider) -> tuple[list[Any], ProviderFailure]:
    events: list[Any] = []
    try:
        async for event in provider.stream("some-model", REQUEST):
            events.append(event)  # noqa: PERF401  # a comprehension would lose them with the failure
    except ProviderFailure as failed:
        return events, failed
    pytest.fail(f"it has not failed, after {len(events)} events")


def endless(some: bytes, beginning: bytes = b"", size: int = 40 * MIB) -> Chunks:
    """Without an end, for whoever reads it: longer than any bound here."""
    yield beginning
    for _ in range(size // len(some)):
        yield some


@cache
def bomb(how: str) -> bytes:
    """Unpacked it is eight times what a process may hold for it."""
    packed = PACKED[how](b"event: ping\ndata: {}\n" + b": nothing\n\n" * (3 * MIB))
    assert len(packed) < MIB
    return packed


ENDLESS = {
    "a line": partial(endless, b"x" * 65536, b"data: "),
    "a line in small pieces": partial(endless, b"x" * 1000, b"data: ", 4 * MIB),
    "an event of short lines": partial(endless, b"data: x\n" * 1000),
    "an event of empty data": partial(endless, b"data\n" * 1000),
    "a name": partial(endless, b"x" * 65536),
    "a comment": partial(endless, b"x" * 65536, b": "),
    "comments": partial(endless, b": x\n" * 1000),
    "carriage returns": partial(endless, b"data: x\r" * 1000),
    "empty lines": partial(endless, b"\n" * 65536),
    "small events": partial(endless, DELTA * 100),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_an_answer_without_an_end_is_a_bad_answer_before_much_of_it_is_read(what: str) -> None:
    async with answered(ENDLESS[what], EVENTS) as (peer, provider):
        with peak_of() as peak:
            _, failed = await failure(provider)
        assert (failed.code, failed.retryable) == ("provider_bad_answer", True)
        assert "longer than it may be" in failed.message
    assert peer.sent_bytes < 12 * MIB, "what the kernel's buffers hold, and no more"
    assert peak.bytes < 8 * MIB


async def test_a_line_without_an_end_costs_what_reading_it_costs_and_the_loop_is_free_meanwhile() -> None:
    """As in production, where it stood still for 4.7 s: in CPU time of this process, for both ends."""
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            before = process_time()
            await asyncio.sleep(0)
            longest = max(longest, process_time() - before)

    beating = asyncio.create_task(beat())
    async with answered(ENDLESS["a line"], EVENTS, bounds=Bounds()) as (_, provider):
        with peak_of() as peak:
            _, failed = await failure(provider)
    beating.cancel()
    assert failed.code == "provider_bad_answer"
    assert longest < 0.25, f"the loop's longest turn took {longest} s of CPU"
    assert peak.bytes < 24 * MIB


async def test_many_small_events_are_taken_up_to_the_bound_of_an_answer() -> None:
    async with answered(ENDLESS["small events"], EVENTS) as (_, provider):
        events, failed = await failure(provider)
    assert failed.code == "provider_bad_answer"
    assert MIB - 65536 <= len(events) * len(DELTA) <= MIB


async def test_a_line_as_long_as_it_may_be_is_taken() -> None:
    text = "x" * (SMALL.event_bytes - 200)
    event = DELTA.replace(b'"x"', f'"{text}"'.encode())
    end = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    async with answered(lambda: iter([event * 3, end]), EVENTS) as (_, provider):
        *events, finish = [event async for event in provider.stream("some-model", REQUEST)]
    assert [data["text"] for _, data in events] == [text] * 3
    assert isinstance(finish, Finish)


# -- compressed, though nobody asked for it ------------------------------------------------------------------

PACKED = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("how", PACKED)
async def test_a_compressed_answer_is_a_bad_answer_and_is_not_unpacked(how: str) -> None:
    packed = [bomb(how)]
    async with answered(lambda: iter(packed), EVENTS, f"Content-Encoding: {how}", bounds=Bounds()) as (peer, provider):
        with peak_of() as peak:
            events, failed = await failure(provider)
        assert (events, failed.code) == ([], "provider_bad_answer")
    assert b"accept-encoding: identity\r\n" in peer.asked.lower()
    assert peak.bytes < 4 * MIB


@pytest.mark.parametrize("how", PACKED)
@pytest.mark.parametrize(("status", "code"), [("401 No", "provider_unauthorized"), ("529 Busy", "provider_overloaded")])
async def test_of_a_compressed_refusal_the_status_is_taken_and_the_body_is_not(
    how: str, status: str, code: str
) -> None:
    packed = [bomb(how)]
    headers = "Content-Type: application/json", f"Content-Encoding: {how}"
    async with answered(lambda: iter(packed), *headers, status=status) as (_, provider):
        with peak_of() as peak:
            _, failed = await failure(provider)
        assert failed.code == code
    assert peak.bytes < 4 * MIB


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
async def test_a_charset_that_python_would_unpack_is_not_heeded(status: str) -> None:
    packed = [bomb("deflate")]
    async with answered(lambda: iter(packed), f"{EVENTS}; charset=zlib_codec", status=status) as (_, provider):
        with peak_of() as peak:
            await failure(provider)
    assert peak.bytes < 4 * MIB


# -- splitting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_their_bytes_are_cut_and_their_lines_end(size: int, newline: bytes) -> None:
    """With the forms of WHATWG HTML §9.2.6: comments, several lines of data, no blank, none at all, an unended one."""
    wire = (
        b": a comment\n\nevent: ping\ndata: {}\n\nevent:bare\ndata:1\ndata\ndata: 3\nid: 9\n\n"
        b"event: without data\n\ndata:  two blanks\n\n\ndata: \xe2\x80\xa8\n\nevent: unended\ndata: 4\n"
    )
    wire = wire.replace(b"\n", newline)
    splitter = EventSplitter(event_bytes=1000)
    events = [event for at in range(0, len(wire), size) for event in splitter.feed(wire[at : at + size])]
    assert events == [(b"ping", b"{}"), (b"bare", b"1\n\n3"), (b"", b" two blanks"), (b"", b"\xe2\x80\xa8")]


# -- answers that are no streams -----------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", ["application/json", "text/html", "text/event-stream"])
@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error", "302 Found\r\nLocation: /again"])
async def test_a_body_that_is_read_whole_is_bounded_too(status: str, media_type: str) -> None:
    async with answered(ENDLESS["a line"], f"Content-Type: {media_type}", status=status) as (_, provider):
        with peak_of() as peak:
            _, failed = await failure(provider)
        assert failed.code == "provider_bad_answer"
    assert peak.bytes < 4 * MIB


# -- the settings --------------------------------------------------------------------------------------------


async def test_the_bounds_are_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answered(ENDLESS["small events"], EVENTS) as (peer, _):
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", peer.url)
        for settings, limit in (
            (Settings(provider_bytes=200_000), 200_000),
            (Settings(provider_line_bytes=1024, provider_bytes=100_000), 100_000),
        ):
            models = Providers(settings, None)
            [target] = await models.chain(settings.default_model)
            events, _ = await failure(target.client)
            await models.aclose()
            assert limit - 65536 <= len(events) * len(DELTA) <= limit


async def test_a_drip_of_interim_answers_is_silence() -> None:
    async with answered(partial(repeat, b"HTTP/1.1 100 Continue\r\n\r\n"), status="100 Continue") as (peer, _):
        provider = AnthropicProvider(api_key="sk-secret", base_url=peer.url, silence_s=0.5, bounds=SMALL)
        _, failed = await failure(provider)
        await provider.aclose()
    assert failed.code == "provider_silent"
