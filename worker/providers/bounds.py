"""How much of a provider's answer a worker takes: one that does not end, or unpacks to gigabytes, would stop them all.

A bound is looked at as the bytes come, before anything joins them: joining a line that does not end, again and again,
held every generation of the process for seconds, longer than a lease.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx2

MIB = 2**20
EVENTS = "text/event-stream"


class Bounds(NamedTuple):
    event_bytes: int = 4 * MIB
    """One event, and so one line; also an answer that is no stream of events: it is read whole."""
    answer_bytes: int = 64 * MIB
    """One attempt's answer. 128,000 deltas of 130 to 300 bytes are 17 to 38 MB."""


class OutOfBounds(Exception):
    """The answer is longer than it may be, or compressed though nobody asked for that. The message says which."""


class Bounded:
    """A response hook of httpx2: from here on the answer's body raises OutOfBounds where it exceeds its bound."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds

    async def __call__(self, answer: httpx2.Response) -> None:
        """Raises OutOfBounds for a compressed answer. Of a compressed refusal only the status is taken."""
        assert isinstance(answer.stream, httpx2.AsyncByteStream)
        answer.encoding = "utf-8"  # whatever it says: Python's codecs unpack zlib and bz2, too
        if answer.headers.get("content-encoding", "identity").strip().lower() != "identity":
            if not answer.is_error:
                raise OutOfBounds("It is compressed.")
            del answer.headers["content-encoding"]
            answer.stream = _Body(answer.stream, None)
            return
        is_events = answer.is_success and answer.headers.get("content-type", "").startswith(EVENTS)
        bound = self._bounds.answer_bytes if is_events else self._bounds.event_bytes
        answer.stream = _Body(answer.stream, bound)


class _Body(httpx2.AsyncByteStream):
    def __init__(self, body: httpx2.AsyncByteStream, bound_bytes: int | None) -> None:
        """None: the body counts as empty."""
        self._body = body
        self._bound_bytes = bound_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._bound_bytes is None:
            return
        taken = 0
        async for some in self._body:
            taken += len(some)
            if taken > self._bound_bytes:
                raise OutOfBounds("It is too long.")
            yield some

    async def aclose(self) -> None:
        await self._body.aclose()
