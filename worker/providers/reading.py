"""Reading an answer: the one loop of every adapter whose answer is a body of server-sent events.

An adapter brings the request that is made by its SDK, and an Answer, which takes one event after the other. The SDKs'
own splitting and typed events cost ten times as much (docs/BENCHMARKS.md), and a typed event has lost what its type
does not know.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

import httpx2
import orjson

from worker.providers.bounds import EVENTS, Bounds
from worker.providers.failures import ProviderFailure, failed, of_transport, request_id_of, silent
from worker.providers.provider import Counted, Finish, ProviderEvent, Said
from worker.providers.sse import EventSplitter
from worker.providers.transport import BODY, Body

BODY_END_TIMEOUT_S = 0.25
"""How long the end of the body may take once the message is complete. Only a body read to its end leaves its
connection, and its TLS handshake, to the next request; a server that does not end it costs us no more than this."""

MAX_DEPTH = 200
"""How many levels of lists and objects are taken. What orjson reads may have 1,024, what it writes 254, and events have
some of their own around it."""

MAX_COUNT = 2**53
"""No count of tokens is beyond. Sums of such fit into 64 bits, and clients that read JSON as doubles lose nothing."""

LAST_WORDS_S = 2.0
"""How long an answer whose end has been said is listened to for what may follow (its usage, say)."""


JSON = "application/json"
NOT_A_PROVIDER = "What answered is not the model provider."


class Answer(Protocol):
    """One answer as it is read. What has been shown is not kept."""

    finish: Finish | None
    """Set once the answer is complete, whatever else may come."""
    may_end: bool
    """The answer has said how it ended, and something may follow. If its body ends now it is complete, else a cut."""
    goes_on: bool
    """It went on after its end, as with servers that say one with each chunk: now only its body's end is one."""
    has_effects: bool
    """The provider has run a tool that may have changed something (MCP)."""

    def take(self, name: bytes, data: bytes) -> Iterable[ProviderEvent | Counted]:
        """Read one server-sent event. Raises ProviderFailure, or anything else for what cannot be understood."""

    def end(self) -> Finish:
        """It ended after `may_end`. Raises like `take`."""


class Reader:
    """`translate`: the SDK's errors; None for those that it does not know."""

    def __init__(
        self, bounds: Bounds, silence_s: float, idle_s: float, translate: Callable[[Exception], ProviderFailure | None]
    ) -> None:
        self._bounds = bounds
        self._silence_s = silence_s
        self._idle_s = idle_s
        self._translate = translate

    async def read(self, ask: Callable[[], Awaitable[httpx2.Response]], answer: Answer) -> AsyncGenerator[Said, None]:
        """What the provider says, up to its Finish. Raises ProviderFailure and nothing else."""
        response: httpx2.Response | None = None
        try:
            response = await self._open(ask)
            body: Body = response.extensions[BODY]
            wire = EventSplitter(self._bounds.event_bytes)
            clock = asyncio.get_running_loop().time
            heard_s = clock()
            while answer.finish is None and (some := await self._more(body, answer)):
                may_end = answer.may_end
                for name, data in wire.feed(some):
                    for said in answer.take(name, data):
                        heard_s = 0.0
                        yield said
                    if answer.finish is not None:
                        break
                if not heard_s or answer.may_end is not may_end:
                    heard_s = clock()
                elif _has_ended(answer):
                    if clock() - heard_s > LAST_WORDS_S:  # nothing but signs of life
                        break
                elif clock() - heard_s > self._idle_s:
                    raise _idle(self._idle_s)
            if answer.finish is not None:
                await _read_to_the_end(body)
            finish = answer.finish or (answer.end() if answer.may_end else None)
            if finish is None:
                raise failed("provider_cut", "The model provider's answer ended before it was complete.")
        except Exception as error:
            raise self._failure_of(error, response, answer) from None
        finally:
            if response is not None:
                await response.aclose()
        yield finish  # only now that the connection is given back, since a consumer need not read on after a Finish

    async def _open(self, ask: Callable[[], Awaitable[httpx2.Response]]) -> httpx2.Response:
        try:
            # A drip of interim answers (1xx), or of a refusal's body, is not silent, and has no end.
            async with asyncio.timeout(self._silence_s):
                response = await ask()
        except TimeoutError:
            raise silent(self._silence_s) from None
        kind = response.headers.get("content-type", "")
        if not kind.startswith(EVENTS):
            await response.aclose()
            raise _whole_answer() if kind.startswith(JSON) else failed("provider_bad_answer", NOT_A_PROVIDER)
        return response

    async def _more(self, body: Body, answer: Answer) -> bytes:
        if not _has_ended(answer):
            return await body.read()
        # The end has been said: whatever happens to the rest cannot take it back.
        with suppress(Exception):
            async with asyncio.timeout(LAST_WORDS_S):
                return await body.read()
        return b""

    def _failure_of(self, error: Exception, response: httpx2.Response | None, answer: Answer) -> ProviderFailure:
        failure = self.failure(error)
        if failure.request_id is None and response is not None:
            failure.request_id = request_id_of(response.headers)
        failure.after_effects = answer.has_effects
        return failure

    def failure(self, error: Exception) -> ProviderFailure:
        """What an error of the SDK's, of its HTTP client's or of reading means."""
        if isinstance(error, ProviderFailure):
            return error
        if isinstance(error.__cause__, ProviderFailure):  # our HTTP client's, which an SDK has wrapped
            return error.__cause__
        # Before the answer begins an SDK wraps what its HTTP client raised; after that it comes as it is.
        known = of_transport(error, self._silence_s) or of_transport(error.__cause__, self._silence_s)
        return known or self._translate(error) or failed("provider_bad_answer")


def _has_ended(answer: Answer) -> bool:
    return answer.may_end and not answer.goes_on


def _whole_answer() -> ProviderFailure:
    """A gateway that does not stream. It has been paid, and would be each time."""
    failure = failed("provider_bad_answer", "The model provider answered at once and not as a stream of events.")
    failure.retryable, failure.moves_on = False, True
    return failure


def _idle(idle_s: float) -> ProviderFailure:
    return failed("provider_silent", f"The model provider sent nothing but signs of life for {idle_s:g} seconds.")


async def _read_to_the_end(body: Body) -> None:
    with suppress(Exception):  # the message is complete: nothing that happens now can take that back
        async with asyncio.timeout(BODY_END_TIMEOUT_S):
            while await body.read():
                pass


def count_of(said: Any) -> int | None:
    """A number of tokens, or of what else is counted. None: it is not one, whatever it is."""
    return said if type(said) is int and 0 <= said <= MAX_COUNT else None


def object_of(said: Any) -> dict[str, Any]:
    """Where an object is expected, and anything else says nothing: what surrounds it is not wrong for that."""
    return said if isinstance(said, dict) else {}


def parse_or_fail(name: bytes, data: bytes) -> Any:
    """As `parse`. An event of the name `error` need not be JSON: gateways say there what they have to say."""
    try:
        return parse(data)
    except ValueError:
        if name == b"error":
            raise failed("provider_error", said=data.decode(errors="replace")) from None
        raise


def parse(data: bytes) -> Any:
    """One event's JSON. Raises ValueError, also for what is nested too deep to be written into the log."""
    try:
        said = orjson.loads(data)
    except orjson.JSONDecodeError:
        said = _with_whole_characters(data)
    if len(data) > MAX_DEPTH and data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_deeper(said, MAX_DEPTH):
        raise ValueError("nested too deep")
    return said


def _with_whole_characters(data: bytes) -> Any:
    """Half of a surrogate pair, perhaps: models do tear emoji, orjson refuses them, and viewers get UTF-8."""
    try:
        whole = json.dumps(json.loads(data), ensure_ascii=False)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return orjson.loads(_SURROGATE.sub("\ufffd", whole))


_SURROGATE = re.compile("[\ud800-\udfff]")


def _is_deeper(value: Any, levels: int) -> bool:
    """Without recursion: it may be a thousand levels."""
    inside = [value]
    for _ in range(levels):
        inside = [inner for one in inside if isinstance(one, list | dict) for inner in _values(one)]
        if not inside:
            return False
    return True


def _values(value: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
