"""What the stand-in says, how fast, and with which fault: one for all wires, which only say how it looks.

Everything revolves around `Reply.speak`, an answer's parts in their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice, zip_longest
from typing import Any, NoReturn

from uvicorn._types import ASGISendCallable

from worker.standin.calling import acted, turn_of
from worker.standin.directives import Directives
from worker.standin.framing import Framing
from worker.standin.wire import Citation, Request, Wire
from worker.standin.words import JSON_TEXT, thoughts, words

BATCH_EVENTS = 64  # events in one write when there is no pace: some 8 KiB, and the loop gets its turn in between
PING_EVERY_S = 10.0  # the APIs ping through long pauses, so that no client takes them for a dead connection
PING_ONLY_EVERY_S = 0.05  # where nothing else comes: a client is shown many, soon

SEARCH_QUERY = "resumable streams"
MCP_ARGS = '{"room": "north"}'
MCP_OUTPUT = "21 degrees"


class Reply:
    """One answer being spoken to one client."""

    def __init__(self, wire: Wire, request: Request, asked: Directives, send: ASGISendCallable, hang_up: Any):
        self._wire = wire
        self._request = request
        self._asked = asked
        self._framing = Framing(asked, wire.LINE_END)
        self._send = send
        self._hang_up = hang_up
        self._loop = asyncio.get_running_loop()
        self._first_due = self._loop.time() + asked.ttft_ms / 1000
        self._paced = 0  # events the pace has let through
        self._turn = turn_of(request.message, asked, request.tools, request.results, request.forced)
        self._acted, self._is_stopped = self._act() if asked.say else ("", False)
        self._calls = () if self._acted else self._turn.calls

    async def speak(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        await self._begin(headers)
        if self._asked.pings:
            await self._only_ping()
        if await self._answer() and self._asked.hold:
            await _silence()
        await self._send({"type": "http.response.body", "body": self._framing.end(), "more_body": False})

    async def _begin(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        own = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        headers = [*own, *headers, *self._framing.headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._write(self._wire.begin())
        await self._pause_until(self._first_due)

    async def _answer(self) -> bool:
        """False if it was broken before its end."""
        if self._asked.refuse and (refusal := self._wire.refuse_at_once()):
            await self._write(refusal)
            return True
        await self._think()
        if self._asked.mcp and not self._request.has_tool_results:
            await self._write_paced(self._wire.mcp_call(MCP_ARGS, MCP_OUTPUT))
        if not await self._say():
            return False
        await self._use_tools()
        await self._write(self._wire.finish(self._stop_reason(), self._paced))
        return True

    async def _think(self) -> None:
        if not self._asked.thinking:
            return
        await self._write(self._wire.open_thinking())
        await self._write_paced(map(self._wire.thinking, islice(thoughts(self._request.message), self._asked.thinking)))
        await self._write(self._wire.close_thinking())

    async def _say(self) -> bool:
        """The text, up to the fault and, where that is survivable, beyond it."""
        is_silent = self._turn.is_calling and not (self._asked.before or self._acted)
        if not is_silent:
            await self._write(self._wire.open_text())
        deltas = self._text_deltas()
        until_fault, fault = self._asked.first_fault()
        await self._write_paced(islice(deltas, until_fault))
        if fault and not await self._break(fault):
            return False
        await self._write_paced(deltas)
        await self._write(b"".join(self._wire.citation(i, said) for i, said in enumerate(self._citations())))
        if not is_silent:
            await self._write(self._wire.close_text())
        return True

    def _texts(self) -> Iterator[str]:
        if self._asked.json:
            return _pieces(JSON_TEXT, 5)
        if self._acted:
            return _pieces(self._acted, 5)
        return self._words()

    def _words(self) -> Iterator[str]:
        before = self._request.pauses * self._asked.tokens
        tokens = self._asked.before if self._turn.is_calling else self._asked.tokens
        return islice(words(self._request.message, self._turn.told), before, before + tokens)

    def _act(self) -> tuple[str, bool]:
        """What is said in text, and whether a stop sequence ended it."""
        text = acted(self._asked.say, self._turn, "".join(self._words()), bool(self._asked.invent))
        ends = [at for stop in self._request.stops if (at := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))], bool(ends)

    def _text_deltas(self) -> Iterator[bytes]:
        if self._asked.surrogate_at is None:
            return map(self._wire.text, self._texts())
        return (
            (self._wire.torn_text if i == self._asked.surrogate_at else self._wire.text)(text)
            for i, text in enumerate(self._texts())
        )

    def _citations(self) -> Iterator[Citation]:
        end = 0
        for i, text in enumerate(islice(self._texts(), self._asked.citations)):
            end += len(text)
            cited = text.strip()
            yield Citation(f"https://example.com/{i}", f"Source {i}", cited, end - len(cited), end)

    async def _break(self, fault: str) -> bool:
        """Commit the fault. True if the answer continues after it."""
        if fault == "garbage":
            await self._write(self._wire.GARBAGE)
        elif fault == "error":
            await self._write(self._wire.error(self._asked.error))
        elif fault == "cut":
            self._hang_up()
        if fault == "stall" and self._asked.stall_ms is not None:
            self._first_due += self._asked.stall_ms / 1000  # what comes after it keeps its pace
            await asyncio.sleep(self._asked.stall_ms / 1000)
            return True
        if fault in ("cut", "stall"):
            await _silence()  # which ends when the client has gone
        return fault == "garbage"

    async def _use_tools(self) -> None:
        if self._asked.parallel and self._wire.INTERLEAVES:
            await self._write_paced(self._interleaved_calls())
        else:
            for call in range(len(self._calls)):
                await self._write_paced(self._one_call(call))
        if self._is_paused() or (self._asked.server_tool and not self._request.has_tool_results):
            await self._write_paced(self._wire.search(SEARCH_QUERY, self._asked.server_tool != "error"))

    def _one_call(self, call: int) -> Iterator[bytes]:
        name, args = self._calls[call]
        yield self._wire.open_call(call, name, args)
        yield from (self._wire.call_args(call, piece) for piece in _pieces(args, self._asked.args_piece))
        yield self._wire.close_call(call, args)

    def _interleaved_calls(self) -> Iterator[bytes]:
        for events in zip_longest(*map(self._one_call, range(len(self._calls))), fillvalue=b""):
            yield b"".join(events)

    def _is_paused(self) -> bool:
        return self._wire.PAUSES and self._request.pauses < self._asked.pause

    def _stop_reason(self) -> str:
        reasons = (
            (self._asked.stop, self._asked.stop),
            (self._is_paused(), "pause_turn"),
            (self._asked.refuse, "refusal"),
            (self._asked.max, "max_tokens"),
            (self._asked.stop_seq or self._is_stopped, "stop_sequence"),
            (self._calls, "tool_use"),
        )
        return next((reason for is_asked, reason in reasons if is_asked), "end_turn")

    async def _only_ping(self) -> NoReturn:
        while True:
            await self._write(self._wire.ping())
            await asyncio.sleep(PING_ONLY_EVERY_S)

    async def _write_paced(self, events: Iterable[bytes]) -> None:
        """Write the events, each when it is due, those due together in one write; return when the next would be."""
        events = iter(events)
        while batch := list(islice(events, await self._due())):
            self._paced += len(batch)
            await self._write(b"".join(batch))

    async def _due(self) -> int:
        # Deadlines are absolute: a late wake-up, or a client that could not take more, is caught up, never added up.
        if not self._asked.rate:
            await asyncio.sleep(0)
            return BATCH_EVENTS
        await self._pause_until(self._first_due + self._paced / self._asked.rate)
        due = int((self._loop.time() - self._first_due) * self._asked.rate) + 1
        return min(max(due - self._paced, 1), BATCH_EVENTS)

    async def _pause_until(self, due: float) -> None:
        while (left_s := due - self._loop.time()) > PING_EVERY_S:
            await asyncio.sleep(PING_EVERY_S)
            await self._write(self._wire.ping())
        await asyncio.sleep(max(left_s, 0))

    async def _write(self, body: bytes) -> None:
        if not body:
            return
        # uvicorn's send waits while the transport's buffer is full: that is the backpressure.
        if self._framing.is_plain:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            return
        for piece in self._framing.pieces(body):
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)  # many pieces: others get their turn, and the reader perhaps a read of each


def _pieces(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


async def _silence() -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nothing ends this but a cancellation")
