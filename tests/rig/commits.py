"""A way to Redis on which one can lay hold of a batch of appends: reset its connection, stop it, be late with answers.

On TCP, since a reset is TCP's, to a server on a Unix socket. What is a batch is seen by its bytes: only appends carry
the kinds of a model's events. So nothing here knows how a worker makes its connections, nor which one it commits on.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

EVENT_KIND = b"text_delta"
AT_ONCE_BYTES = 2**16
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER's: who closes waits for nothing, and the other side is reset."""

MEETING_S = 20.0
"""How long a batch may let wait for it, and its answer: a worker may have to start first."""

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Fault = Callable[["Batch"], Awaitable[object]]


class Batch:
    """A batch of appends, or the first of it, that has come from a client and has not been passed on.

    Until the fault that has it returns, the server's answers are kept back.
    """

    def __init__(self, data: bytes, way: _Way) -> None:
        self._left = data
        self._way = way

    def pass_a_part(self) -> None:
        """Up to the middle of a command's bytes. Those of the batch before that one are complete."""
        places = [place.end() for place in re.finditer(EVENT_KIND, self._left)]
        cut = places[len(places) // 2] - len(EVENT_KIND) // 2
        self._way.server.write(self._left[:cut])
        self._left = self._left[cut:]

    def pass_all(self) -> None:
        """And what comes after it."""
        self._way.server.write(self._left)
        self._left = b""
        self._way.may_pass.set()

    async def is_answered(self) -> None:
        """Wait until the server has carried out what was passed on, and its answer has come as far as here."""
        async with asyncio.timeout(MEETING_S):
            await self._way.has_answer.wait()

    def pass_half_an_answer(self) -> None:
        answer = self._way.kept
        self._way.client.write(bytes(answer[: len(answer) // 2]))

    def reset(self) -> None:
        """The connection is gone for either side."""
        self._way.reset()


class _Meeting(NamedTuple):
    """Of a fault with a batch."""

    fault: Fault
    begun: asyncio.Event
    over: asyncio.Future[None]

    async def hold(self, batch: Batch) -> None:
        self.begun.set()
        try:
            await self.fault(batch)
        except Exception as error:
            self.over.set_exception(error)
        else:
            self.over.set_result(None)


class _Way:
    """One connection through here."""

    def __init__(self, client: Ends, server: Ends, next_meeting: Callable[[], _Meeting | None]) -> None:
        self._from_client, self.client = client
        self._from_server, self.server = server
        self._next_meeting = next_meeting
        self._is_kept_back = False
        self.kept = bytearray()
        """Answers, while a fault has a batch of this connection."""
        self.has_answer = asyncio.Event()
        """Or none can come any more."""
        self.may_pass = asyncio.Event()
        self.may_pass.set()

    async def carry(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                back = tasks.create_task(self._bring_back())
                await self._pass_on(tasks)
                back.cancel()
        finally:
            await self._close()

    def reset(self) -> None:
        with suppress(OSError):
            self.client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for writer in (self.client, self.server):
            writer.transport.abort()

    async def _close(self) -> None:
        for writer in (self.client, self.server):
            writer.close()
        for writer in (self.client, self.server):
            with suppress(OSError):
                await writer.wait_closed()

    async def _pass_on(self, tasks: asyncio.TaskGroup) -> None:
        while data := await _read(self._from_client):
            await self.may_pass.wait()
            meets = EVENT_KIND in data and not self._is_kept_back
            if meets and (meeting := self._next_meeting()):
                self._is_kept_back = True
                self.has_answer.clear()
                self.may_pass.clear()
                tasks.create_task(self._meet(meeting, Batch(data, self)))
            else:
                self.server.write(data)
        await self.may_pass.wait()  # what was under way arrives, though its sender has gone

    async def _bring_back(self) -> None:
        while data := await _read(self._from_server):
            if self._is_kept_back:
                self.kept += data
                self.has_answer.set()
            else:
                self.client.write(data)
        self.has_answer.set()
        if not self._is_kept_back:
            self.client.close()

    async def _meet(self, meeting: _Meeting, batch: Batch) -> None:
        await meeting.hold(batch)
        self._is_kept_back = False
        batch.pass_all()
        self.client.write(bytes(self.kept))
        self.kept.clear()
        if self._from_server.at_eof():
            self.client.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(AT_ONCE_BYTES)
    except OSError:
        return b""


class Commits:
    """`at_next_batch(fault)` gives the next batch of appends to the fault, on whichever connection it comes."""

    def __init__(self, server_path: str) -> None:
        self.url = ""
        self._server_path = server_path
        self._planned: deque[_Meeting] = deque()
        self._ways: set[asyncio.Task[None]] = set()

    async def at_next_batch(self, fault: Fault, *, limit_s: float = MEETING_S) -> None:
        """Returns when the fault has. Raises TimeoutError if no batch comes."""
        meeting = _Meeting(fault, asyncio.Event(), asyncio.get_running_loop().create_future())
        self._planned.append(meeting)
        try:
            async with asyncio.timeout(limit_s):
                await meeting.begun.wait()
        finally:
            if meeting in self._planned:
                self._planned.remove(meeting)
        await asyncio.shield(meeting.over)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve((reader, writer)))
        self._ways.add(task)
        task.add_done_callback(self._ways.discard)

    async def _serve(self, client: Ends) -> None:
        try:
            server = await asyncio.open_unix_connection(self._server_path)
        except OSError:  # nobody is there
            client[1].transport.abort()
            return
        await _Way(client, server, self._next_meeting).carry()

    def _next_meeting(self) -> _Meeting | None:
        return self._planned.popleft() if self._planned else None

    async def close(self) -> None:
        for task in self._ways:
            task.cancel()
        await asyncio.gather(*self._ways, return_exceptions=True)


@asynccontextmanager
async def commits_to(server_path: str) -> AsyncIterator[Commits]:
    commits = Commits(server_path)
    server = await asyncio.start_server(commits.accept, "127.0.0.1", 0)
    commits.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield commits
    finally:
        server.close()
        await commits.close()


# -- faults, of a batch that has been laid hold of -----------------------------------------------------------


async def reset_in_a_command(batch: Batch) -> None:
    batch.pass_a_part()
    batch.reset()


async def reset_before_the_answer(batch: Batch) -> None:
    """What was sent is done."""
    batch.pass_all()
    await batch.is_answered()
    batch.reset()


async def reset_in_the_answer(batch: Batch) -> None:
    batch.pass_all()
    await batch.is_answered()
    batch.pass_half_an_answer()
    batch.reset()


def stop_for(seconds: float) -> Fault:
    """Nothing passes any more, and nothing breaks. Then what was under way arrives, however much later."""

    async def stop(batch: Batch) -> None:
        batch.pass_a_part()
        await asyncio.sleep(seconds)

    return stop


def answer_late_by(seconds: float) -> Fault:
    """What comes after it arrives too, and none of it is answered before."""

    async def answer_late(batch: Batch) -> None:
        batch.pass_all()
        await asyncio.sleep(seconds)

    return answer_late
