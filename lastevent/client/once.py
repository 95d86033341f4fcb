"""One request of a producer's, or of an endpoint's: with the client's token, or another where that is refused.

An answer that is not there is None for a producer, who makes the request again, and Lost for an endpoint, whose client
does.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol, TypeVar

import httpx2

from lastevent.client.errors import Lost
from lastevent.client.opening import Ask
from lastevent.client.options import STREAMED, lost
from lastevent.client.outbox import Answer

ANSWER_S = 10.0
"""Later than that a producer's answer counts as missing, and the request is made again: three fit into a lease."""


Http = TypeVar("Http", httpx2.Client, httpx2.AsyncClient, covariant=True)


class Addressed(Protocol[Http]):
    """What a request takes of a client."""

    url: str
    _headers: dict[str, str]
    _timeout: httpx2.Timeout
    _bearer: str | None

    @property
    def _http(self) -> Http: ...

    @property
    def is_renewable(self) -> bool: ...


class Asking(Addressed[httpx2.Client], Protocol):
    """A Client."""

    def _authorized(self, why: str | None, used: str | None) -> str | None: ...

    def _settle(self, thread: threading.Thread) -> None: ...


class AsyncAsking(Addressed[httpx2.AsyncClient], Protocol):
    """An AsyncClient."""

    async def _authorized(self, why: str | None, used: str | None) -> str | None: ...

    def _settle(self, task: asyncio.Task[None]) -> None: ...


async def ask(client: AsyncAsking, asked: Ask) -> Answer | None:
    """The whole answer; None: there was none."""
    try:
        return await asyncio.wait_for(_ask(client, asked), ANSWER_S)
    except (Lost, asyncio.TimeoutError):
        return None


async def _ask(client: AsyncAsking, asked: Ask) -> Answer:
    response = await opened(client, asked)
    try:
        await response.aread()
    except httpx2.HTTPError as error:
        raise lost(error) from error
    finally:
        await response.aclose()
    return _answer(response)


async def opened(client: AsyncAsking, asked: Ask) -> httpx2.Response:
    """With its head read. To be closed. Raises Lost."""
    bearer = await client._authorized(asked.why, client._bearer)
    try:
        response = await client._http.send(_request(client, asked, bearer), stream=True)
    except httpx2.HTTPError as error:
        raise lost(error) from error
    if response.status_code != 401 or asked.why or not client.is_renewable:
        return response
    await response.aclose()
    return await opened(client, asked._replace(why="refused"))


def ask_now(client: Asking, asked: Ask) -> Answer | None:
    """`ask`, in the thread that calls."""
    try:
        response = opened_now(client, asked, httpx2.Timeout(ANSWER_S, pool=None))
    except Lost:
        return None
    try:
        response.read()
    except httpx2.HTTPError:
        return None
    finally:
        response.close()
    return _answer(response)


def opened_now(client: Asking, asked: Ask, timeout: httpx2.Timeout | None = None) -> httpx2.Response:
    """`opened`, in the thread that calls."""
    bearer = client._authorized(asked.why, client._bearer)
    try:
        response = client._http.send(_request(client, asked, bearer, timeout), stream=True)
    except httpx2.HTTPError as error:
        raise lost(error) from error
    if response.status_code != 401 or asked.why or not client.is_renewable:
        return response
    response.close()
    return opened_now(client, asked._replace(why="refused"), timeout)


def _request(
    client: Asking | AsyncAsking, asked: Ask, bearer: str | None, timeout: httpx2.Timeout | None = None
) -> httpx2.Request:
    headers = {**STREAMED, **client._headers, **asked.headers}
    if bearer:
        headers["Authorization"] = f"Bearer {bearer}"
    return client._http.build_request(
        asked.method,
        client.url + asked.path,
        headers=headers,
        content=asked.content or None,
        timeout=timeout or client._timeout,
    )


def _answer(response: httpx2.Response) -> Answer:
    try:
        body = response.json()
    except ValueError:
        body = None
    after = response.headers.get("retry-after", "")
    after_s = float(after) if after.isascii() and after.isdigit() else 0.0
    return Answer(response.status_code, body if isinstance(body, dict) else {}, after_s, response.content)
