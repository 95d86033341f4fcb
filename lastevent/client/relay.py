"""What an endpoint of your own passes on: which requests, and what of them; which answers, and what of those.

As `forward` of the JavaScript package has it (clients/js/src/server.js). `Bytes` and `AsyncBytes` are an answer on its
way: opened when they are there, closed when they are left, whether anybody has read of them or not.

A cut between the server and us raises `Cut` out of them: the server that serves us then ends its connection without
the proper end, so that the cut is one for the client too.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx2

from lastevent.client import once
from lastevent.client.errors import Lost
from lastevent.client.opening import Ask

# What those who follow a stream may ask for. A listing or an export is not theirs, whatever the key may do.
_CALLS = re.compile(
    r"GET /v1/streams/[\w-]+(/events|/text)?"
    r"|POST /v1/streams(/[\w-]+/(cancel|input|regenerate|approvals/[\w-]+))?",
    re.ASCII,
)
_QUERIES = frozenset(["compact", "follow", "heartbeat", "heartbeat_s", "last_event_id", "lastEventId"])
_ASKED = frozenset(["accept", "content-type", "idempotency-key", "last-event-id"])
_SAID = frozenset(["content-type", "last-event-id", "retry-after"])
_UNBUFFERED = {"cache-control": "no-store, no-transform", "x-accel-buffering": "no"}
_SHOWN = ("id", "state", "agent", "attempt", "last_event_id")


class Cut(ConnectionError):
    """The server's answer broke off, so ours does."""


@dataclass(frozen=True)
class Passed:
    """A request as it goes on."""

    method: str
    path: str
    query: str
    """Encoded."""
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Head:
    """What an answer begins with. `body`: all of it, if it is not passed on as it comes."""

    status: int
    headers: dict[str, str]
    body: bytes | None = None


def passed(
    method: str, path: str, query: Iterable[tuple[str, str]], headers: Mapping[str, str], body: bytes
) -> Passed | None:
    """`path`: on the server. None: no call of those who follow a stream."""
    if not _CALLS.fullmatch(f"{method} {path}"):
        return None
    # Your key may see more of a stream than its users.
    queries = [(name, value) for name, value in query if name in _QUERIES] + [("audience", "public")]
    asked = {name.lower(): value for name, value in headers.items() if name.lower() in _ASKED}
    return Passed(method, path, urlencode(queries), asked, body)


def problem(status: int, code: str) -> Head:
    headers = {**_UNBUFFERED, "content-type": "application/problem+json"}
    return Head(status, headers, json.dumps({"status": status, "code": code}).encode())


def is_refused(status: int) -> bool:
    """The key is ours: that it is refused, or sent elsewhere, is no fault of the client's."""
    return status in (401, 403) or 300 <= status < 400


def is_record(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").startswith("application/json")


def head_of(status: int, headers: Mapping[str, str], location: Callable[[str], str], body: bytes | None = None) -> Head:
    """`location`: where a stream's id leads to in your app. `body`: of a JSON answer."""
    said = {name: headers[name] for name in _SAID if name in headers} | _UNBUFFERED
    if there := headers.get("location"):
        said["location"] = location(there.rpartition("/")[2])
    return Head(status, said, _shown(body, location) if body is not None else None)


def _shown(body: bytes, location: Callable[[str], str]) -> bytes:
    """What a token would show of a record. The rest is what was asked, your prompts among it, and a token."""
    record = json.loads(body)
    if not isinstance(record, dict) or not record.get("events_url"):
        return body
    shown: dict[str, Any] = {name: record.get(name) for name in _SHOWN}
    return json.dumps({**shown, "events_url": f"{location(record['id'])}/events"}, separators=(",", ":")).encode()


class Bytes:
    """An answer's body as it comes, for WSGI. `close` may be called at any time, and from any thread."""

    def __init__(self, head: Head, response: httpx2.Response | None) -> None:
        self.status = head.status
        self.headers = head.headers
        self._response = response
        whole = [head.body] if head.body else []
        self._pieces: Iterator[bytes] = response.iter_raw() if response is not None else iter(whole)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._pieces)
        except StopIteration:
            self.close()
            raise
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            self.close()
            raise _cut(error) from None

    def close(self) -> None:
        if self._response is not None:
            self._response.close()


class AsyncBytes:
    """An answer's body as it comes, for ASGI."""

    def __init__(self, head: Head, response: httpx2.Response | None) -> None:
        self.status = head.status
        self.headers = head.headers
        self._response = response
        self._whole = [head.body] if head.body else []
        self._pieces = response.aiter_raw() if response is not None else None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._whole:
            return self._whole.pop()
        if self._pieces is None:
            raise StopAsyncIteration
        try:
            return await anext(self._pieces)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise _cut(error) from None

    async def aclose(self) -> None:
        if self._response is not None:
            await self._response.aclose()


async def pass_on(client: once.AsyncAsking, going: Passed, location: Callable[[str], str]) -> AsyncBytes:
    """The server's answer; where it has none, or refuses our key, a problem that is not the client's."""
    try:
        response = await once.opened(client, _ask(going))
    except Lost:
        return AsyncBytes(problem(503, "server_unreachable"), None)
    status, headers = response.status_code, response.headers
    if not is_refused(status) and not is_record(headers):
        return AsyncBytes(head_of(status, headers, location), response)
    try:
        body = await response.aread()
    except httpx2.HTTPError:
        return AsyncBytes(problem(503, "server_unreachable"), None)
    finally:
        await response.aclose()
    return AsyncBytes(
        problem(502, "key_refused") if is_refused(status) else head_of(status, headers, location, body), None
    )


def pass_on_now(client: once.Asking, going: Passed, location: Callable[[str], str]) -> Bytes:
    """`pass_on`, in the thread that calls."""
    try:
        response = once.opened_now(client, _ask(going))
    except Lost:
        return Bytes(problem(503, "server_unreachable"), None)
    status, headers = response.status_code, response.headers
    if not is_refused(status) and not is_record(headers):
        return Bytes(head_of(status, headers, location), response)
    try:
        body = response.read()
    except httpx2.HTTPError:
        return Bytes(problem(503, "server_unreachable"), None)
    finally:
        response.close()
    head = problem(502, "key_refused") if is_refused(status) else head_of(status, headers, location, body)
    return Bytes(head, None)


def following(id: str, headers: Mapping[str, str], query: Mapping[str, str]) -> Passed:
    """GET /v1/streams/{id}/events. Raises ValueError for what is no stream's id."""
    going = passed("GET", f"/v1/streams/{id}/events", query.items(), headers, b"")
    if going is None:
        raise ValueError(f"This is no stream's id: {id[:80]!r}.")
    return going


def _ask(going: Passed) -> Ask:
    return Ask(going.method, f"{going.path}?{going.query}", going.body, going.headers)


def _cut(error: Exception) -> Cut:
    return Cut(f"The server's answer was cut ({type(error).__name__}), and so is this one: clients come back.")
