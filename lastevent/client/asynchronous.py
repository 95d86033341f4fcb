"""AsyncClient and AsyncStream: sync.py once more, where what waits is awaited."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx2

from lastevent.client import calls
from lastevent.client.answer import Answer
from lastevent.client.errors import Lost, StreamError
from lastevent.client.following import (
    CLOSE,
    LOCATED,
    READ,
    SILENCE_S,
    Ask,
    Following,
    Head,
    Pause,
    Send,
    Starting,
    Step,
    World,
)
from lastevent.client.options import LIMITS, STREAMED, is_tls, kept_answer, lost, timeout
from lastevent.client.producer import AsyncProducer, steps
from lastevent.client.relay import AsyncBytes, following, pass_on
from lastevent.events import Event

_log = logging.getLogger("lastevent")

WORLD = World(time.monotonic, time.time, random.random, asyncio.sleep)


class AsyncClient:
    """A Lastevent server, for one event loop."""

    def __init__(
        self,
        url: str,
        token: str | Callable[[str | None], str | Awaitable[str | None] | None] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        patience_s: float | None = None,
        silence_s: float = SILENCE_S,
        http: httpx2.AsyncClient | None = None,
        world: World = WORLD,
    ) -> None:
        """`token`: a key, a token, or a function (also async) that gets one. It is told why: None (there is none yet),
        `refused` or `expiring`. What it raises counts as no network: it is asked again.

        `patience_s`: how long after a loss streams are tried again without a new event; then StreamError `lost`. None:
        for ever. `silence_s`: a connection that says nothing for so long is dead. `http`: yours, for a proxy or
        certificates; it stays open. Raises ValueError for what is no address, or no token.
        """
        self.url = calls.server_url(url)
        self.patience_s = patience_s
        self.world = world
        self._token = token
        if isinstance(token, str) and not calls.is_token(token):
            raise ValueError("A key or a token has only visible ASCII characters, and at least one.")
        self._headers = dict(headers or {})
        self._timeout = timeout(silence_s)
        self._owns_http = http is None
        self._http = http or httpx2.AsyncClient(limits=LIMITS, verify=is_tls(self.url))
        self._bearer = token if isinstance(token, str) else None
        self._is_asked = not callable(token)
        self._settling: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Waits for the endings of producers, which are sent again for 10 s."""
        if self._settling:
            await asyncio.wait(self._settling)
        if self._owns_http:
            await self._http.aclose()

    @property
    def is_renewable(self) -> bool:
        return callable(self._token)

    # -- streams

    async def start(
        self,
        asked: str | Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        patience_s: float | None = None,
        on_lost: Callable[[StreamError], None] | None = None,
        **fields: Any,
    ) -> AsyncStream:
        """A new generation, once its address is known. `asked` is a prompt, messages, or a whole body; `fields` are
        those of `POST /v1/streams` (docs/API.md): `session_id`, `model`, `agent`, `input`, …

        A start whose answer was lost is repeated with the same key until it is answered: nothing is started twice.
        Raises StreamError.
        """
        starting = calls.start(self.url, asked, idempotency_key, fields)
        return await self._started(starting, patience_s, on_lost)

    async def regenerate(
        self, id: str, *, idempotency_key: str | None = None, patience_s: float | None = None
    ) -> AsyncStream:
        """The same request again, as a new stream of its session. As `start`."""
        return await self._started(calls.regenerate(self.url, id, idempotency_key), patience_s, None)

    def follow(
        self,
        id: str,
        *,
        answer: Answer | str | bytes | Mapping[str, Any] | None = None,
        cursor: int | None = None,
        raw: bool = False,
        query: Mapping[str, Any] | None = None,
        patience_s: float | None = None,
        on_lost: Callable[[StreamError], None] | None = None,
    ) -> AsyncStream:
        """A stream that is there. Nothing is asked before it is iterated.

        `answer`: what was kept of it (Answer.to_json), to go on behind it. `cursor`: instead, the id behind which the
        events begin; its answer is then `incomplete`. `raw`: for those who show or keep the events themselves: each as
        the log has it, none merged, with its time; and notices, which have no id. At a `gap` it goes on with the events
        that are left, and does not read the text. `query`: of `/events` (docs/API.md), such as `audience`.
        `on_lost` hears of each connection that was lost, and is to come back at once; what it raises ends the loop.
        Raises ValueError for an answer that cannot be gone on with.
        """
        following = Following(
            self.world,
            url=calls.with_params(calls.stream_url(self.url, id, "events"), query or {}),
            answer=kept_answer(answer, cursor),
            is_behind_cursor=cursor is not None,
            is_raw=raw,
            is_renewable=self.is_renewable,
            patience_s=self.patience_s if patience_s is None else patience_s,
            on_lost=on_lost,
        )
        return AsyncStream(self, following)

    async def _started(
        self, starting: Starting, patience_s: float | None, on_lost: Callable[[StreamError], None] | None
    ) -> AsyncStream:
        following = Following(
            self.world,
            starting=starting,
            is_renewable=self.is_renewable,
            patience_s=self.patience_s if patience_s is None else patience_s,
            on_lost=on_lost,
        )
        stream = AsyncStream(self, following)
        await stream._begin()
        return stream

    def producer(
        self, *, idempotency_key: str | None = None, id: str | None = None, epoch: int = 1, **fields: Any
    ) -> AsyncProducer:
        """A stream that this process writes: `async with client.producer() as out: await out.text("Hello")`.

        `fields` are those of `POST /v1/streams` for external streams (docs/API.md): session_id, user_id, metadata, and
        what was asked. A process that was killed goes on by the same `idempotency_key` and fields. `id`, `epoch`:
        instead of all these, a stream that was started elsewhere. It needs asyncio.
        """
        return AsyncProducer(self, steps(idempotency_key, id, epoch, fields), self.patience_s)

    def _settle(self, task: asyncio.Task[None]) -> None:
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def stream_bytes(
        self,
        id: str,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        location: Callable[[str], str] | None = None,
    ) -> AsyncBytes:
        """A stream's events as the server sends them, for an asynchronous view: an iterator of bytes, with `status` and
        `headers`. `headers`, `query`: of the request. Whoever leaves it before its end calls `aclose`.
        """
        going = following(id, headers or {}, query or {})
        return await pass_on(self, going, location or (lambda sid: f"/v1/streams/{sid}"))

    # -- single calls; each raises StreamError

    async def cancel(self, id: str, reason: str | None = None) -> Any:
        """Ends a stream now: `{"state", "last_event_id", "stopped_after", "already"}`."""
        body = {} if reason is None else {"reason": reason}
        return await self._call("POST", calls.stream_url(self.url, id, "cancel"), body)

    async def send(self, id: str, said: str | Mapping[str, Any], *, interrupt: bool = False) -> Any:
        """Tells an agent something while it runs: a text, or `{"data": …}`."""
        return await self._call("POST", calls.stream_url(self.url, id, "input"), calls.input_of(said, interrupt))

    async def list(self, **filters: Any) -> Any:
        """A page of streams, newest first: `{"streams", "totals", "next"}`. The next one: `cursor=page["next"]`.

        `filters`: session_id, user_id, model, state, created_after, created_before, limit, cursor, include.
        """
        return await self._call("GET", calls.with_params(f"{self.url}/v1/streams", filters))

    async def sessions(self, **filters: Any) -> Any:
        """A page of sessions: `{"sessions": [{"id", "last_stream_at"}], "next"}`; limit, cursor."""
        return await self._call("GET", calls.with_params(f"{self.url}/v1/sessions", filters))

    async def session(self, id: str, **filters: Any) -> Any:
        """A page of a session's streams, and their sums; limit, cursor, include."""
        return await self._call("GET", calls.with_params(calls.session_url(self.url, id), filters))

    async def export(self, id: str, *, redacted: bool = False) -> bytes:
        """The whole log as NDJSON, its seal in the last line."""
        url = calls.with_params(calls.stream_url(self.url, id, "export"), {"redacted": redacted or None})
        return (await self._ask("GET", url, kind="application/x-ndjson")).body

    async def erase(self, id: str) -> bool:
        """Erases what has ended, for good. True: it is gone; False: for every viewer, and moments later everywhere."""
        return (await self._ask("DELETE", calls.stream_url(self.url, id))).status == 204

    async def token(
        self,
        sub: str,
        *,
        streams: Sequence[str] | None = None,
        sessions: Sequence[str] | None = None,
        own: bool = False,
        scope: str = "streams:read",
        ttl_s: int | None = None,
    ) -> Any:
        """A token for a phone or a browser: `{"token", "expires_at"}`. One of `streams`, `sessions`, `own`."""
        said = calls.token_for(sub, streams, sessions, own, scope, ttl_s)
        return await self._call("POST", f"{self.url}/v1/tokens", said)

    async def viewers(self, id: str) -> Any:
        """Who follows a stream now: `{"connections", "people", "viewers": [{"who", "since"}]}`."""
        return await self._call("GET", calls.stream_url(self.url, id, "viewers"))

    async def call(self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Any:
        """Any other call of docs/API.md, its JSON; `path` is as there: `/v1/models`."""
        return await self._call(method, self.url + path, body, headers)

    async def _authorized(self, why: str | None, used: str | None) -> str | None:
        """The token. Where another stream has got a newer one than `used`, that is it."""
        if callable(self._token) and (not self._is_asked or (why and used == self._bearer)):
            try:
                given = self._token(why)
                if inspect.isawaitable(given):
                    given = await given
            except Exception as error:
                _log.warning("The token function failed, and is asked again.", exc_info=True)
                raise Lost(f"the token function failed with {type(error).__name__}") from error
            self._bearer = calls.bearer(given)
            self._is_asked = True
        return self._bearer

    async def _open(self, sent: Send, bearer: str | None) -> httpx2.Response:
        headers = {**STREAMED, **self._headers, **sent.headers}
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        request = self._http.build_request(
            sent.method, sent.url, headers=headers, content=sent.body, timeout=self._timeout
        )
        return await self._http.send(request, stream=True)

    async def _call(self, method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        return calls.value_of((await self._ask(method, url, body, headers)).body)

    async def _ask(
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        kind: str | None = None,
    ) -> calls.Said:
        connection = _Connection(self)
        steps = calls.call(method, url, body=body, headers=headers, kind=kind, is_renewable=self.is_renewable)
        try:
            step = next(steps)
            while True:
                reply = await connection.do(step)
                step = steps.throw(reply) if isinstance(reply, Lost) else steps.send(reply)
        except StopIteration as end:
            found: calls.Said = end.value
            return found
        finally:
            await connection.close()


class AsyncStream:
    """One stream: its events, once each and in order, across lost connections and servers.

        async for event in stream:
            print(event.id, event.kind, event.data, stream.answer.text)

    Leaving the loop closes the connection: moments later, or at the end of an `async with stream` around it. Another
    loop goes on behind the last event. An ending of kind `error` is an answer, no exception. `await stream` is
    `await stream.wait()`. Iterating raises StreamError.
    """

    def __init__(self, client: AsyncClient, following: Following) -> None:
        self._client = client
        self._following = following
        self._begun: AsyncGenerator[Any, None] | None = None
        self._connection: _Connection | None = None

    @property
    def answer(self) -> Answer:
        """As of the event that was given last."""
        return self._following.answer

    @property
    def url(self) -> str:
        """Of its events."""
        return self._following.url or ""

    @property
    def id(self) -> str:
        return self._following.id

    def __aiter__(self) -> AsyncIterator[Event]:
        begun, self._begun = self._begun, None
        return begun or self._events()

    async def wait(self) -> Answer:
        """The answer, when it has ended. Raises StreamError."""
        async for _ in self:
            pass
        return self.answer

    def __await__(self) -> Generator[Any, None, Answer]:
        return self.wait().__await__()

    async def close(self) -> None:
        """Its connection; leaving a loop does it too. A stream that was started and never iterated has one."""
        begun, self._begun = self._begun, None
        if begun:
            await begun.aclose()
        if self._connection:
            await self._connection.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def cancel(self, reason: str | None = None) -> Any:
        return await self._client.cancel(self.id, reason)

    async def send(self, said: str | Mapping[str, Any], *, interrupt: bool = False) -> Any:
        return await self._client.send(self.id, said, interrupt=interrupt)

    async def regenerate(self) -> AsyncStream:
        """The same request again, as a new stream."""
        return await self._client.regenerate(self.id)

    async def _begin(self) -> None:
        """Until its address is known."""
        events = self._events()
        await anext(events)
        self._begun = events

    async def _events(self) -> AsyncGenerator[Any, None]:
        """The events; of a start LOCATED before the first."""
        if self._connection:  # of a loop that was left just now, or stands still
            await self._connection.close()
        connection = self._connection = _Connection(self._client)
        steps = self._following.run()
        try:
            step = next(steps)
            while True:
                if isinstance(step, Event) or step is LOCATED:
                    yield step
                    step = next(steps)
                    continue
                reply = await connection.do(step)
                if self._connection is not connection:
                    raise RuntimeError("Another loop reads this stream now: follow it a second time for two.")
                step = steps.throw(reply) if isinstance(reply, Lost) else steps.send(reply)
        except StopIteration:
            return
        finally:
            await connection.close()


class _Connection:
    """Carries out steps; one answer at a time is open."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._response: httpx2.Response | None = None
        self._pieces: AsyncIterator[bytes] = _nothing()
        self._bearer: str | None = None

    async def do(self, step: Step) -> Any:
        """What following.py's table says it answers, or what is lost."""
        try:
            if step is READ:
                return await anext(self._pieces, None)
            if isinstance(step, Send):
                return await self._send(step)
            if step is CLOSE:
                await self.close()
            elif isinstance(step, Pause):
                await self._client.world.sleep(step.seconds)
            elif isinstance(step, Ask):
                self._bearer = await self._client._authorized(step.why, self._bearer)
        except httpx2.HTTPError as error:
            return lost(error)
        except Lost as error:
            return error
        return None

    async def _send(self, sent: Send) -> Head:
        await self.close()
        response = await self._client._open(sent, self._bearer)
        self._response = response
        self._pieces = response.aiter_raw()
        return Head(response.status_code, response.headers)

    async def close(self) -> None:
        if self._response:
            await self._response.aclose()
            self._response = None


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
