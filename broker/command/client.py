"""The HTTP client of the command: start, follow with resume, list. It reads NDJSON: a line is an event or nothing."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, unquote

import httpx2
import orjson

from broker.log.event import TERMINAL
from broker.store.host import require_http_url

ANSWER_S = 45.0
"""The longest that a server may take for an answer: a long log is verified in less."""

HEARTBEAT_S = 5
SILENCE_S = 3.0 * HEARTBEAT_S
"""Three heartbeats missed: the connection is dead, whatever the kernel thinks."""

BACKOFF_S = (0.2, 0.5, 1.0, 2.0)
PATIENCE_S = 120.0
"""How long a lost server is tried again: longer than a deploy or a restart takes."""

PASSING = frozenset({429, 502, 503, 504})
NDJSON = "application/x-ndjson"

NO_ADDRESS = "this is not the address of a server; give one such as http://127.0.0.1:8000"

_KEY = re.compile(r"[\x21-\x7e]+", re.ASCII)


class ClientError(Exception):
    """The server refused, or did not answer. The message is for a person."""


class BadAddress(Exception):
    """Not the address of a server. The message is for a person."""


class UnusableKey(Exception):
    """A key that cannot travel in a header. The message is for a person."""


class Client:
    def __init__(self, base_url: str, key: str | None = None) -> None:
        """Raises BadAddress, UnusableKey."""
        if key and not _KEY.fullmatch(key):
            raise UnusableKey("a key has only visible ASCII characters")
        try:
            require_http_url(base_url)
        except ValueError:
            raise BadAddress(NO_ADDRESS) from None
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx2.Timeout(10.0, read=ANSWER_S)
        # Without TLS there is nothing to verify, and reading the authorities' certificates takes 30 ms.
        tls = not base_url.lower().startswith("http:")
        try:
            self._http = httpx2.Client(base_url=base_url, headers=headers, timeout=timeout, trust_env=False, verify=tls)
        except (httpx2.InvalidURL, UnicodeError):
            raise BadAddress(NO_ADDRESS) from None
        self._shown_url = shown(base_url)

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, *, json: Any = None, params: dict[str, Any] | None = None) -> Any:
        """One request, its JSON. Raises ClientError."""
        answer = self._request(method, path, json, params)
        self._require(answer, "application/json")
        return orjson.loads(answer.content)

    def ending(self, sid: str) -> dict[str, Any]:
        """How a stream ended whose terminal event was not given, since the viewer had it already."""
        record = self.call("GET", stream_path(sid))
        return {"event": record["state"], "data": {}}

    def delete(self, sid: str) -> bool:
        """True if the content is gone everywhere; else the archive is about to follow. Raises ClientError."""
        return self._request("DELETE", stream_path(sid)).status_code == 204

    def export(self, sid: str, *, redacted: bool = False) -> bytes:
        answer = self._request("GET", stream_path(sid, "/export"), params={"redacted": "1"} if redacted else None)
        self._require(answer, NDJSON)
        return answer.content

    def _request(
        self, method: str, path: str, json: Any = None, params: dict[str, Any] | None = None
    ) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, json=json, params=params)
        except httpx2.HTTPError as error:
            raise ClientError(_unreachable(self._shown_url, error)) from None
        if answer.is_error:
            raise ClientError(_explain(answer))
        return answer

    def follow(self, sid: str, cursor: str | None, on_lost: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        """Every event after the cursor, to the terminal one, across lost connections and servers.

        Notices (`gap`) have no id. `on_lost` hears why a connection was lost, once a time. Raises ClientError.
        """
        last_event_id = cursor
        lost_since: float | None = None
        tries = 0
        while True:
            try:
                for event in self._events(sid, last_event_id):
                    lost_since, tries = None, 0
                    last_event_id = str(event.get("id", last_event_id or ""))
                    yield event
                    if event["event"] in TERMINAL:
                        return
                reason = "the connection was cut"
            except _AlreadyEnded:
                return
            except httpx2.HTTPError as error:
                reason = _unreachable(self._shown_url, error)
            except _PassingRefusal as refusal:
                reason = str(refusal)
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > PATIENCE_S:
                raise ClientError(f"{reason}; gave up after {PATIENCE_S:.0f} s")
            on_lost(reason)
            time.sleep(BACKOFF_S[min(tries, len(BACKOFF_S) - 1)] * random.uniform(0.8, 1.2))
            tries += 1

    def _events(self, sid: str, last_event_id: str | None) -> Iterator[dict[str, Any]]:
        headers = {"Accept": NDJSON}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        path = stream_path(sid, f"/events?heartbeat_s={HEARTBEAT_S}")
        silence = httpx2.Timeout(10.0, read=SILENCE_S)
        with self._http.stream("GET", path, headers=headers, timeout=silence) as answer:
            if answer.status_code == 204:
                raise _AlreadyEnded
            if answer.is_error:
                answer.read()
                if answer.status_code in PASSING:
                    raise _PassingRefusal(_explain(answer))
                raise ClientError(_explain(answer))
            self._require(answer, NDJSON)
            yield from _lines(answer)

    def replay(self, sid: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A paced replay's events (SSE: each data line is JSON). Raises ClientError."""
        try:
            with self._http.stream("GET", stream_path(sid, "/replay"), params=params) as answer:
                if answer.is_error:
                    answer.read()
                    raise ClientError(_explain(answer))
                self._require(answer, "text/event-stream")
                for event in httpx2.EventSource(answer, max_event_size=None):
                    if event.event != "message":
                        yield {"id": int(event.id), "event": event.event, "data": orjson.loads(event.data)}
        except httpx2.HTTPError as error:
            raise ClientError(_unreachable(self._shown_url, error)) from None

    def _require(self, answer: httpx2.Response, media_type: str) -> None:
        """Whatever else listens on a port answers in its own way: a web page, say."""
        if answer.headers.get("content-type", "").partition(";")[0] != media_type:
            raise ClientError(f"what answers at {self._shown_url} is not a Lastevent server")


def stream_path(sid: str, call: str = "") -> str:
    """What a person gives for an id may be anything; it must not become another path."""
    return f"/v1/streams/{quote(sid, safe='', errors='replace')}{call}"


class _AlreadyEnded(Exception):
    """204: the cursor is the terminal event."""


class _PassingRefusal(Exception):
    """The server cannot now, and says so: try again."""


def _lines(answer: httpx2.Response) -> Iterator[dict[str, Any]]:
    """Complete lines only: a line that the connection's end cut short is an event that was not received."""
    rest = b""
    for chunk in answer.iter_raw():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (orjson.loads(line) for line in lines if line)


def _unreachable(base_url: str, error: httpx2.HTTPError) -> str:
    if isinstance(error, httpx2.ConnectError):
        return f"no server answers at {base_url}; start one with: lastevent up"
    return f"the connection to {base_url} was lost"


def _explain(answer: httpx2.Response) -> str:
    try:
        problem = orjson.loads(answer.content)
        if problem["code"] == "stream_not_found":
            return f"there is no stream {_asked_for(answer)} (stream_not_found)"
        return f"{problem['title']} ({problem['code']}): {problem['detail']}"
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"the server answered {answer.status_code}"


def _asked_for(answer: httpx2.Response) -> str:
    return " ".join(unquote(answer.request.url.raw_path.decode().split("/")[3].partition("?")[0]).split())


def shown(url: str) -> str:
    """A server's address without the name and the password that may be in it."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
