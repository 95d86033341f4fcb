"""Event: what an agent may yield besides text, and what a client is given; and which kinds are an agent's own.

Whoever writes an event decides who sees it, by its kind: `internal.…` is for operators, everything else for end users.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

INTERNAL = "internal."

_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_LONGEST_KIND = 64

_NOT_YOURS = frozenset(
    [
        *("start", "restart", "done", "error", "cancelled", "approval_request", "approval", "input", "sentence"),
        # notices without an id, which clients take from the connection and not from the log
        *("gap", "ping", "token_expiring", "presence", "stream", "over", "hello", "ok", "refused"),
        *("provider", "usage", "turn", "failover", "trace"),
    ]
)
_OURS_BEGIN = ("tool_", "agent_")
_SAYABLE = frozenset(["text_delta", "status", "citation", "thinking_delta"])
_TEXTS = frozenset(["text_delta", "thinking_delta"])


class Event:
    """An event of your own. Operators see it; end users only with `public=True`.

    A client is given the same: there it has an id, and is of any kind.
    """

    __slots__ = ("data", "id", "kind", "t")

    def __init__(self, kind: str, data: Mapping[str, Any] | None = None, *, public: bool = False) -> None:
        self.id: int | None = None
        """Its place in the stream; None: it has none, or none yet."""
        self.t: int | None = None
        """When it was written, in ms since 1970; None: nobody said it. Only `follow(…, raw=True)` is told."""
        self.kind = own_kind(kind, public)
        self.data: dict[str, Any] = dict(data or {})
        if self.kind in _TEXTS and not isinstance(self.data.get("text"), str):
            raise TypeError(f"An event of kind {self.kind} has a text: a str.")

    @classmethod
    def received(cls, id: int | None, kind: str, data: Any, t: int | None = None) -> Event:
        """As a server says it: of any kind, with any JSON as its data."""
        event = object.__new__(Event)
        event.id, event.kind, event.data, event.t = id, kind, data, t
        return event

    def __repr__(self) -> str:
        said = f"{self.kind!r}, {self.data!r}"
        return f"{type(self).__name__}({said})" if self.id is None else f"<Event {self.id}: {said}>"


class Status(Event):
    """A text for the person who waits: "Reading…"."""

    __slots__ = ()

    def __init__(self, message: str) -> None:
        super().__init__("status", {"message": message}, public=True)


class Thinking(Event):
    """Text of a train of thought: end users see it only where `show` has "thinking"."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        super().__init__("thinking_delta", {"text": text}, public=True)


class Citation(Event):
    """Where something was found; `start` and `end` are characters of the answer's text."""

    __slots__ = ()

    def __init__(
        self,
        url: str | None = None,
        title: str | None = None,
        cited_text: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> None:
        cited = {"url": url, "title": title, "cited_text": cited_text, "start": start, "end": end}
        super().__init__("citation", cited, public=True)


def own_kind(kind: str, public: bool) -> str:
    """The kind as it is written. ValueError for what only Lastevent writes: clients and takeovers stand on it."""
    if public and kind in _SAYABLE:
        return kind
    bare = kind[len(INTERNAL) :] if kind.startswith(INTERNAL) else kind
    if not _KIND.fullmatch(bare) or len(bare) > _LONGEST_KIND:
        raise ValueError(f"An event's kind is up to {_LONGEST_KIND} letters, digits, _, - and ., not {kind[:80]!r}.")
    if bare in _NOT_YOURS or bare in _SAYABLE or bare.startswith(_OURS_BEGIN):
        raise ValueError(f"Only Lastevent writes events of kind {kind!r}: choose another name.")
    if public and kind is not bare:
        raise ValueError(f"{kind!r} is internal by its name, and cannot be public.")
    return bare if public else INTERNAL + bare
