"""Google's Gemini API, and Vertex AI's, as a Provider, over the google-genai SDK.

The SDK checks and converts what is asked, and finds the address and the credentials. It has no way to its raw answer:
its typed events cost 536 µs each, and lose each field that their types do not know. So its HTTP client, which is ours,
keeps the answer to a generation for reading.py; to the SDK the answer is empty, and its work is done.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import httpx2
import orjson
from google.auth import exceptions as auth
from google.genai import Client
from google.genai.types import HttpOptions

from worker.providers.bounds import DEFAULT_BOUNDS, EVENTS, Bounds, OutOfBounds
from worker.providers.failures import ProviderFailure, bad_key, failed, invalid_input, no_key
from worker.providers.gemini_answer import GeminiAnswer
from worker.providers.gemini_failures import errors_of, said_failure
from worker.providers.gemini_request import merged, translated
from worker.providers.http import KEY_OF_NONE, WARM_UP_S, HttpClient
from worker.providers.provider import Said
from worker.providers.reading import Reader
from worker.providers.transport import BODY, Body

SOMETHING = "."
"""The contents that the SDK is given: it refuses none, and ours take their place."""


class GeminiProvider:
    name = "gemini"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        silence_s: float,
        idle_s: float | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
        name: str = "gemini",
    ) -> None:
        """Without a `base_url`, what the SDK's variables say: GEMINI_API_KEY or GOOGLE_API_KEY, GOOGLE_GEMINI_BASE_URL,
        or with GOOGLE_GENAI_USE_VERTEXAI the project of GOOGLE_CLOUD_PROJECT and Google's own credentials. With one,
        nothing of these is sent there, and a server that wants no key needs none.
        """
        self.name = name
        self._api_key = api_key
        self._base_url = base_url
        self._http = _Client(bounds, silence_s)
        self._client: Client | None = None
        self._making = asyncio.Lock()
        self._reader = Reader(bounds, silence_s, idle_s or 10 * silence_s, _failure)

    async def warm_up(self) -> None:
        """A request that is made and not sent, and a connection, kept for the first attempt."""
        with suppress(Exception):
            async with asyncio.timeout(WARM_UP_S):
                url = await self._rehearse()
                await self._http.warm_up(url)

    async def check(self) -> None:
        try:
            client = await self._made()
            await client.aio.models.list(config={"page_size": 1})
        except Exception as error:
            raise self._reader.failure(error) from None

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aio.aclose()
            self._client.close()
        await self._http.aclose()

    def stream(self, model: str, request: dict[str, Any]) -> AsyncGenerator[Said, None]:
        return self._reader.read(partial(self._ask, model, request), GeminiAnswer(self.name))

    async def _ask(self, model: str, request: dict[str, Any]) -> httpx2.Response:
        client = await self._made()
        asked = translated(request, self.name, model)
        exchange = _Exchange(asked.body, asked.extra)
        await _exchanged(client, model, asked.config, exchange)
        assert exchange.response is not None
        return exchange.response

    async def _rehearse(self) -> httpx2.URL:
        client = await self._made()
        asked = translated(_REHEARSED, self.name, "")
        exchange = _Exchange(asked.body, asked.extra, is_sent=False)
        await _exchanged(client, "rehearsal", asked.config, exchange)
        assert exchange.url is not None
        return exchange.url.copy_with(path="/", query=None)

    async def _made(self) -> Client:
        """In a thread: it reads certificates, and Google's credentials, for which it may ask a server."""
        if self._client is None:
            async with self._making:
                if self._client is None:
                    self._client = await asyncio.to_thread(self._make)
        return self._client

    def _make(self) -> Client:
        # Without `retry_options` the SDK does not try again. A `timeout` it would tell the provider, as one for all.
        return Client(
            api_key=self._api_key or (KEY_OF_NONE if self._base_url else None),
            vertexai=False if self._base_url else None,
            http_options=HttpOptions(base_url=self._base_url, httpx_async_client=self._http),
        )


_REHEARSED = {
    "messages": [{"role": "user", "content": SOMETHING}],
    "tools": [{"name": "rehearse"}],
    "tool_choice": {"type": "auto"},
    "effort": "low",
    "output_schema": {"type": "object"},
}


async def _exchanged(client: Client, model: str, config: Any, exchange: _Exchange) -> None:
    token = _EXCHANGE.set(exchange)
    try:
        async for _ in await client.aio.models.generate_content_stream(model=model, contents=SOMETHING, config=config):
            raise AssertionError("the SDK has read an answer that is not for it")
    except BaseException:
        if exchange.response is not None:
            await exchange.response.aclose()
        raise
    finally:
        _EXCHANGE.reset(token)


# ---- The SDK's HTTP client


class _Exchange:
    """One generation's request as it passes the HTTP client, and the answer, which stays here."""

    def __init__(self, body: dict[str, Any], extra: dict[str, Any], *, is_sent: bool = True) -> None:
        self.body = body
        self.extra = extra
        self.is_sent = is_sent
        self.url: httpx2.URL | None = None
        self.response: httpx2.Response | None = None


_EXCHANGE: ContextVar[_Exchange | None] = ContextVar("gemini_exchange", default=None)


class _Client(HttpClient):
    async def send(self, request: httpx2.Request, *, stream: bool = False, **_: Any) -> httpx2.Response:
        """Raises ProviderFailure for a refusal: the SDK's error needs a body that is UTF-8, and keeps the key."""
        exchange = _EXCHANGE.get()
        if exchange is None:
            return await self._answered(request, stream)
        request = self._completed(request, exchange)
        if exchange.is_sent:
            exchange.response = response = await self._answered(request, stream)
            response.extensions[BODY] = _Events(response.extensions[BODY], self._bounds)
        return httpx2.Response(200, request=request, content=b"")

    def _completed(self, request: httpx2.Request, exchange: _Exchange) -> httpx2.Request:
        """With the contents, in a form that costs 32 MiB no more than 25 ms, and our time limits: the SDK sets none."""
        exchange.url = request.url
        body = merged({**exchange.body, **_without_contents(request.content)}, exchange.extra)
        headers = httpx2.Headers([(name, value) for name, value in request.headers.raw if name.lower() not in _OF_BODY])
        return self.build_request(request.method, request.url, headers=headers, content=orjson.dumps(body))

    async def _answered(self, request: httpx2.Request, stream: bool) -> httpx2.Response:
        # Redirects are not followed: the key, in a header of Google's own, would go along to wherever they lead.
        response = await super().send(request, stream=stream, follow_redirects=False)
        is_events = response.headers.get("content-type", "").startswith(EVENTS)
        if response.status_code == 200 and (is_events or not stream):
            return response
        try:
            body = await response.aread()
        finally:
            await response.aclose()
        error = next(errors_of(body), None)
        if response.status_code == 200 and error is None:
            raise failed("provider_bad_answer", "What answered is not the model provider.")
        raise said_failure(error, None if response.status_code == 200 else response.status_code, response.headers)


_OF_BODY = (b"content-length", b"host")


def _without_contents(body: bytes) -> dict[str, Any]:
    return {key: value for key, value in orjson.loads(body).items() if key != "contents"}


class _Events:
    """A body of events, in which the API says an error as it is: JSON on lines of its own, not as an event's data."""

    def __init__(self, body: Body, bounds: Bounds) -> None:
        self._body = body
        self._bounds = bounds
        self._is_line_end = True
        self._bare: list[bytes] | None = None
        self._bare_bytes = 0

    async def read(self) -> bytes:
        while some := await self._body.read():
            if self._bare is None:
                some = self._until_bare(some)
                if some:
                    return some
            else:
                self._bare.append(some)
                self._bare_bytes += len(some)
            if self._bare_bytes > self._bounds.event_bytes:
                raise OutOfBounds("An event is too long.")
        if self._bare:
            bare, self._bare = b"".join(self._bare), []
            return b"\n\ndata: %s\n\n" % bare.translate(_ON_ONE_LINE)
        return b""

    def _until_bare(self, some: bytes) -> bytes:
        begin = _BARE_AT_ONCE.match(some) if self._is_line_end else None
        begin = begin or _BARE.search(some)
        self._is_line_end = some[-1:] in (b"\n", b"\r")
        if begin is None:
            return some
        self._bare = [some[begin.end() - 1 :]]
        self._bare_bytes = len(self._bare[0])
        return some[: begin.end() - 1]


_ON_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")
_BARE_AT_ONCE = re.compile(rb"[{\[]")
_BARE = re.compile(rb"[\r\n][{\[]")


# ---- Failing


def _failure(error: Exception) -> ProviderFailure | None:
    """The SDK's own errors: those of what is configured here, and of what it cannot ask."""
    match error:
        case UnicodeEncodeError():
            return bad_key()
        case auth.DefaultCredentialsError():
            return no_key("Google's application default credentials")
        case auth.TransportError():
            return failed("provider_cut", "Google's server of credentials could not be reached.")
        case auth.GoogleAuthError():
            return failed("provider_unauthorized")
        case ValueError():
            return _of_value(str(error))
    return None


def _of_value(said: str) -> ProviderFailure | None:
    if "API key" in said or "Project" in said or "project" in said:
        return no_key("GEMINI_API_KEY, or with GOOGLE_GENAI_USE_VERTEXAI a project")
    if "model" in said.split(" parameter")[0]:
        return invalid_input("model is not a name that Gemini's models can have.")
    if found := re.match(r"(\w+) parameter is only supported", said):
        return invalid_input(f"{found[1]} is not for this API of Google's.")
    return None
