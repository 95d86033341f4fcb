"""What both clients are given and how they take it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2

from lastevent.client.answer import Answer
from lastevent.client.errors import Lost, Silent

CONNECT_S = 10.0

ABSENT = "no server answers"

LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
"""A stream holds a connection for as long as it runs: a hundred of them must not keep the next call waiting."""

STREAMED = {"Accept-Encoding": "identity"}
"""Whoever compresses holds back what is to come at once."""


def is_tls(url: str) -> bool:
    """Without TLS there is nothing to verify, and reading the authorities' certificates takes 30 ms."""
    return not url.lower().startswith("http:")


def timeout(silence_s: float) -> httpx2.Timeout:
    return httpx2.Timeout(silence_s, connect=min(CONNECT_S, silence_s), pool=None)


def kept_answer(kept: Answer | str | bytes | Mapping[str, Any] | None, cursor: int | None) -> Answer:
    """What a stream goes on from. Raises ValueError."""
    if kept is None:
        return Answer(cursor=cursor or 0, incomplete=bool(cursor))
    if cursor is not None:
        raise ValueError("Give an answer, which has its cursor in it, or a cursor.")
    return kept if isinstance(kept, Answer) else Answer.from_json(kept)


def lost(error: httpx2.HTTPError) -> Lost:
    """What an error of the network is to a loop."""
    if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
        return Lost(ABSENT)
    if isinstance(error, httpx2.TimeoutException):
        return Silent("the server said nothing for too long")
    return Lost("the connection was lost")
