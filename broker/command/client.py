"""The command's server: called and followed by lastevent's client; what it refuses is said in words for a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import httpx2

import lastevent
from broker.dialects.cursor import parse_cursor
from broker.store.host import require_http_url
from lastevent import Event, Stream, StreamError
from lastevent.client import calls
from lastevent.client.following import refusal, shown
from lastevent.client.frames import Frames
from lastevent.client.options import ABSENT, LIMITS, is_tls, lost, timeout

ANSWER_S = 45.0
"""The longest that a server may take for an answer: a long log is verified in less."""

HEARTBEAT_S = 5
SILENCE_S = 3.0 * HEARTBEAT_S
"""Three heartbeats missed: the connection is dead, whatever the kernel thinks."""

PATIENCE_S = 120.0
"""How long a lost server is tried again: longer than a deploy or a restart takes."""

STREAM = "text/event-stream"

NO_ADDRESS = "this is not the address of a server; give one such as http://127.0.0.1:8000"


class ClientError(Exception):
    """The server refused, or did not answer. The message is for a person."""


class BadAddress(Exception):
    """Not the address of a server. The message is for a person."""


class UnusableKey(Exception):
    """A key that cannot travel in a header. The message is for a person."""


class Client:
    def __init__(self, base_url: str, key: str | None = None) -> None:
        """Raises BadAddress, UnusableKey."""
        if key and not calls.is_token(key):
            raise UnusableKey("a key has only visible ASCII characters")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            require_http_url(base_url)
            # What a variable says of proxies is not for a server that was named.
            self._http = httpx2.Client(
                base_url=base_url,
                headers=headers,
                timeout=timeout(ANSWER_S),
                limits=LIMITS,
                trust_env=False,
                verify=is_tls(base_url),
            )
            self._calling = lastevent.Client(base_url, http=self._http, silence_s=ANSWER_S)
            self._following = lastevent.Client(base_url, http=self._http, silence_s=SILENCE_S, patience_s=PATIENCE_S)
        except (ValueError, httpx2.InvalidURL):
            raise BadAddress(NO_ADDRESS) from None
        self._shown_url = shown(base_url)

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, *, json: Any = None, params: dict[str, Any] | None = None) -> Any:
        """One request, its JSON; parameters that are None are left out. Raises ClientError."""
        with self._in_words(path):
            return self._calling.call(method, calls.with_params(path, params or {}), json)

    def erase(self, sid: str) -> bool:
        """True if the content is gone everywhere; else the archive is about to follow. Raises ClientError."""
        with self._in_words(stream_path(sid)):
            return self._calling.erase(sid)

    def export(self, sid: str, *, redacted: bool = False) -> bytes:
        """Raises ClientError."""
        with self._in_words(stream_path(sid)):
            return self._calling.export(sid, redacted=redacted)

    def follow(self, sid: str, cursor: str | None, on_lost: Callable[[str], None]) -> Stream:
        """The events after the cursor, to the ending; they are read by `events`. `latest` raises ClientError.

        `on_lost` hears why a connection was lost, once a time.
        """

        def told(error: StreamError) -> None:
            if _is_not_ours(error):  # nor will it be in a second
                raise error
            on_lost(self._explain(error, stream_path(sid)))

        after = parse_cursor(cursor)
        if after is None:
            after = int(self.call("GET", stream_path(sid))["last_event_id"])
        return self._following.follow(sid, cursor=after, raw=True, query={"heartbeat_s": HEARTBEAT_S}, on_lost=told)

    def events(self, stream: Stream) -> Iterator[dict[str, Any]]:
        """As the API has them; notices (`gap`) have no id. Raises ClientError."""
        with self._in_words(stream_path(stream.id)):
            for event in stream:
                yield _as_json(event)

    def replay(self, sid: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A paced replay's events, on one connection: where it is cut, its pace is. Raises ClientError."""
        path = stream_path(sid, "/replay")
        with self._in_words(path):
            try:
                with self._http.stream("GET", path, params=params) as answer:
                    if not answer.headers.get("Content-Type", "").startswith(STREAM):
                        raise refusal(answer.status_code, answer.read())
                    frames = Frames()
                    for piece in answer.iter_raw():
                        yield from (_as_json(Event.received(*frame)) for frame in frames.push(piece))
            except httpx2.HTTPError as error:
                raise StreamError("unreachable", 0, str(lost(error))) from error

    @contextmanager
    def _in_words(self, path: str) -> Iterator[None]:
        try:
            yield
        except StreamError as error:
            raise ClientError(self._explain(error, path)) from None

    def _explain(self, error: StreamError, path: str) -> str:
        if error.code == "stream_not_found":
            return f"there is no stream {_asked_for(path)} (stream_not_found)"
        if _is_not_ours(error):  # whatever else listens on a port answers in its own way: a web page, say
            return f"what answers at {self._shown_url} is not a Lastevent server"
        if error.code == "not_a_stream":
            return f"the server answered {error.status}"
        if error.title:
            return f"{error.title} ({error.code}): {error}"
        return str(error).replace(ABSENT, f"{ABSENT} at {self._shown_url}; start one with: lastevent up")


def stream_path(sid: str, call: str = "") -> str:
    return calls.stream_url("", sid) + call


def _is_not_ours(error: StreamError) -> bool:
    return error.code == "not_a_stream" and error.status < 400


def _asked_for(path: str) -> str:
    return " ".join(unquote(path.split("/")[3].partition("?")[0]).split())


def _as_json(event: Event) -> dict[str, Any]:
    said = {"id": event.id, "event": event.kind, "data": event.data, "t": event.t}
    return {name: value for name, value in said.items() if name == "data" or value is not None}
