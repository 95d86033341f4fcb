"""One viewer's connection: steps of the tail → bytes → ASGI, until the stream ends or the viewer goes.

How a connection ends, each distinct on the wire:
- finished    after a terminal event (or the end of follow=0): the proper end, the final chunk. Nothing else has one
- left        the viewer closed it
- drained     this server goes away: `retry:` and a comment, then a cut
- too slow    nothing could be written for `stall_s`: a cut; the viewer resumes
- vanished    the stream is gone from under it: a cut

A cut is an answer that is never completed: ASGI servers close the connection without the final chunk, which is how
clients tell it from the end. Some take a proper end for the stream's own.

The direct lane (a viewer written to by the hub, without a task of its own) will take the place of `_pump` for
viewers that are caught up; everything else here stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from enum import Enum

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker.errors import LasteventError
from broker.sse import Format, farewell, retry_line
from broker.tail import Step

FAREWELL_S = 1.0
"""How long a drain waits for one viewer's last bytes."""

HANG_UP = "lastevent.hang_up"
"""An ASGI extension (serve.py): drops the connection with whatever waits in it. A close would wait for a client that
does not read until it reads, and keep what it was sent for as long: in this process, and in the kernel.
"""


class Cut(Exception):
    """Ends a begun answer without its proper end; door.py lets it pass quietly."""


class Ended(Enum):
    FINISHED = "finished"
    LEFT = "left"
    DRAINED = "drained"
    TOO_SLOW = "too_slow"
    VANISHED = "vanished"


class Viewers:
    """The viewers of this process: how many, how they ended, and the one signal that sends them all away."""

    def __init__(self, *, limit: int, stall_s: float) -> None:
        self.limit = limit
        self.stall_s = stall_s
        self.connected = 0
        self.ended = dict.fromkeys(Ended, 0)
        self.bytes_sent = 0
        self.draining = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return self.connected >= self.limit


class EventsResponse(Response):
    """The body of /events: SSE or NDJSON, endless until the stream is not."""

    def __init__(
        self,
        viewers: Viewers,
        steps: AsyncGenerator[Step, None],
        form: Format,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code=200, headers=_headers(form, headers or {}))
        del self.headers["content-length"]  # Response has set 0
        self._viewers = viewers
        self._steps = steps
        self._format = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body"})
            return
        self._viewers.connected += 1
        try:
            ended = await self._serve(receive, send)
        finally:
            self._viewers.connected -= 1
        self._viewers.ended[ended] += 1
        if ended is Ended.TOO_SLOW and (hang_up := scope.get("extensions", {}).get(HANG_UP)):
            hang_up()

    async def _serve(self, receive: Receive, send: Send) -> Ended:
        pump = asyncio.create_task(self._pump(send), name="viewer")
        gone = asyncio.create_task(_disconnected(receive), name="viewer disconnect")
        drain = asyncio.create_task(self._viewers.draining.wait(), name="viewer drain")
        tasks = {pump, gone, drain}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # A pump is cancelled while it waits, for an event or for room: never within a frame.
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not pump.cancelled():
            return pump.result()
        if gone.cancelled() and not drain.cancelled():
            await self._say_farewell(send)
            return Ended.DRAINED
        return Ended.LEFT

    async def _pump(self, send: Send) -> Ended:
        # As a line of the first frame: before it, nothing has been said that a client could resume from.
        opening = b"" if self._format.is_ndjson else retry_line()
        try:
            async with aclosing(self._steps) as steps:
                async for step in steps:
                    await self._send(send, opening + self._render(step))
                    opening = b""
            await self._send(send, opening and opening + b"\n", more=False)
        except TimeoutError:
            return Ended.TOO_SLOW
        except LasteventError:
            return Ended.VANISHED
        return Ended.FINISHED

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        async with asyncio.timeout(self._viewers.stall_s):
            await send({"type": "http.response.body", "body": body, "more_body": more})
        self._viewers.bytes_sent += len(body)

    def _render(self, step: Step) -> bytes:
        match step:
            case None:
                return self._format.heartbeat
            case list():
                return self._format.render(step)
            case gap:
                return self._format.render_gap(gap)

    async def _say_farewell(self, send: Send) -> None:
        if not self._format.is_ndjson:
            with suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    await send({"type": "http.response.body", "body": farewell("draining"), "more_body": True})


class CutResponse(Response):
    """200, when to come back, and a cut: what an EventSource can live with where others get 503 or 429 (design §6).

    An EventSource gives up for good at any status but 200.
    """

    def __init__(self, code: str) -> None:
        super().__init__(status_code=200, headers=_headers(Format.EXACT, {}))
        del self.headers["content-length"]
        self._code = code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        head = scope["method"] == "HEAD"
        await send({"type": "http.response.body", "body": b"" if head else farewell(self._code), "more_body": not head})


def _headers(form: Format, more: Mapping[str, str]) -> dict[str, str]:
    # nginx buffers what it proxies unless told not to. The media type stands alone: SSE is always UTF-8.
    return {"Content-Type": form.media_type, "X-Accel-Buffering": "no", **more}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
