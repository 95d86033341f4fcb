"""Answer: what a stream has said so far, and how far that is. Text and cursor are one value, since two would tear."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

_VERSION = 1

_NOT_OURS = "This is no answer that this version can go on with: follow without it."

NOBODY: Mapping[str, Any] = {}
"""No agents; one object, since an event that does not change a field leaves the field's object."""


@dataclass(frozen=True)
class Answer:
    """Never changed: each event makes another one (folding.py), in which what it does not change is the same object.

    As JSON it has the same fields in Python and in JavaScript, so either can go on with what the other has kept.
    """

    v: int = _VERSION
    cursor: int = 0
    """The id of the last event in it; what `Last-Event-ID` takes."""
    state: str = "new"
    """new, queued, running; done, error, cancelled."""
    attempt: int = 0
    restarts: int = 0
    text: str = ""
    thinking: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    """`{"id", "name", "state", "json", "args", "output", …}`, in order of their calls; state: running, done, error."""
    status: str | None = None
    usage: Mapping[str, Any] | None = None
    agents: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: NOBODY)
    citations: tuple[Any, ...] = ()
    approvals: tuple[Any, ...] = ()
    sentences: tuple[Any, ...] = ()
    other: tuple[Mapping[str, Any], ...] = ()
    """The last 100 events of unknown kinds: `{"id", "event", "data"}`."""
    ending: Any = None
    """The data of the event that ended it; None: it has not ended."""
    error: Any = None
    """The same, if that was an `error`."""
    incomplete: bool = False
    """Something is missing: its events were gone before they were read."""
    inputs: tuple[Any, ...] = ()
    model: str | None = None
    agent: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.ending is not None

    def to_json(self) -> str:
        return json.dumps(self.__dict__, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, kept: str | bytes | Mapping[str, Any]) -> Answer:
        """What `to_json` (or JavaScript's JSON.stringify) made; fields that an older version lacks are empty.

        Raises ValueError.
        """
        found = kept if isinstance(kept, Mapping) else json.loads(kept)
        if not isinstance(found, Mapping) or found.get("v", _VERSION) != _VERSION:
            raise ValueError(_NOT_OURS)
        if not isinstance(found.get("cursor", 0), int) or not all(
            isinstance(found.get(name, []), _LIST) for name in _LISTS
        ):
            raise ValueError(_NOT_OURS)
        fields: dict[str, Any] = {
            name: tuple(found[name]) if name in _LISTS else found[name] for name in _NAMES if name in found
        }
        return cls(**fields)


_NAMES = [one.name for one in fields(Answer)]
_LISTS = frozenset(one.name for one in fields(Answer) if one.default == ())
_LIST = (list, tuple)
