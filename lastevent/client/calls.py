"""Single requests, as both clients send them. Pure: what is sent, and what an answer means."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from lastevent.client.errors import Lost, StreamError
from lastevent.client.following import CLOSE, READ, Ask, Send, Starting, Step, refusal, to_json

_SERVER = re.compile(r"https?://[^/?#\s]+[^?#\s]*", re.IGNORECASE)
_TOKEN = re.compile(r"[!-~]+", re.ASCII)

NOT_OURS = "what answers is not a Lastevent server"


class Said(NamedTuple):
    status: int
    """From 200 to 299."""
    body: bytes


Calling = Generator[Step, Any, Said]


def server_url(url: str) -> str:
    """Without a slash at its end. Raises ValueError."""
    if not _SERVER.fullmatch(url):
        raise ValueError(f"The address of a server is such as http://127.0.0.1:8000, not {url[:80]!r}.")
    return url.rstrip("/")


def is_token(given: object) -> bool:
    """Whether it can stand in a header; a page in its place, say, cannot."""
    return isinstance(given, str) and bool(_TOKEN.fullmatch(given))


def bearer(given: Any) -> str | None:
    """What a token function gave; None: none is needed. Raises Lost: it is asked again, as without a network."""
    if given is not None and not is_token(given):
        raise Lost("the token function gave no token")
    return given  # type: ignore[no-any-return]


def stream_url(server: str, id: str, call: str = "") -> str:
    return f"{server}/v1/streams/{_segment(id)}{call and '/' + call}"


def session_url(server: str, id: str, call: str = "") -> str:
    return f"{server}/v1/sessions/{_segment(id)}{call and '/' + call}"


def with_params(url: str, params: Mapping[str, Any]) -> str:
    """What is None is left out; booleans are 1 and 0."""
    said = {
        name: int(value) if isinstance(value, bool) else value for name, value in params.items() if value is not None
    }
    return f"{url}?{urlencode(said)}" if said else url


def _segment(id: str) -> str:
    """What is given for an id may be anything; it must not become another path."""
    return {".": "%2E", "..": "%2E%2E"}.get(id) or quote(id, safe="", errors="replace")


def call(
    method: str,
    url: str,
    *,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    kind: str | None = None,
    is_renewable: bool = False,
) -> Calling:
    """One request, and another with a new token where the one was refused. Raises StreamError.

    `kind`: the media type that the body must have, where nobody would see that it is a web page; None: it is JSON.
    """
    sent = Send(method, url, {"Accept": kind or "application/json", **(headers or {})})
    if body is not None:
        sent = sent._replace(headers={**sent.headers, "Content-Type": "application/json"}, body=to_json(body))
    try:
        yield Ask(None)
        head = yield sent
        if head.status == 401 and is_renewable:
            yield CLOSE
            yield Ask("refused")
            head = yield sent
        pieces = []
        while (piece := (yield READ)) is not None:
            pieces.append(piece)
    except Lost as lost:
        raise StreamError("unreachable", 0, str(lost)) from lost
    yield CLOSE
    if not 200 <= head.status < 300:
        raise refusal(head.status, b"".join(pieces))
    if kind and head.headers.get("Content-Type", "").partition(";")[0] != kind:
        raise StreamError("not_a_stream", head.status, NOT_OURS)
    return Said(head.status, b"".join(pieces))


def value_of(body: bytes) -> Any:
    """The JSON of an answer; None: it has none. Raises StreamError."""
    try:
        return json.loads(body) if body else None
    except (ValueError, RecursionError):
        raise StreamError("not_a_stream", 200, NOT_OURS) from None


# -- what each call says


def start(server: str, asked: Any, idempotency_key: str | None, fields: Mapping[str, Any]) -> Starting:
    """A text is the `prompt`, a list the `messages`, an object the body; fields that are None are left out."""
    if isinstance(asked, str):
        said: dict[str, Any] = {"prompt": asked}
    elif isinstance(asked, Mapping):
        said = dict(asked)
    else:
        said = {} if asked is None else {"messages": list(asked)}
    said |= {name: value for name, value in fields.items() if value is not None}
    return Starting(f"{server}/v1/streams", said, idempotency_key or new_key())


def regenerate(server: str, id: str, idempotency_key: str | None) -> Starting:
    return Starting(stream_url(server, id, "regenerate"), {}, idempotency_key or new_key())


def new_key() -> str:
    """An Idempotency-Key: nobody else's."""
    return secrets.token_urlsafe(18)


def input_of(said: str | Mapping[str, Any], interrupt: bool) -> dict[str, Any]:
    body = {"text": said} if isinstance(said, str) else dict(said)
    return {**body, "interrupt": True} if interrupt else body


def token_for(
    sub: str, streams: Sequence[str] | None, sessions: Sequence[str] | None, own: bool, scope: str, ttl_s: int | None
) -> dict[str, Any]:
    said = {"sub": sub, "streams": streams, "sessions": sessions, "own": own or None, "scope": scope, "ttl_s": ttl_s}
    return {name: value for name, value in said.items() if value is not None}
