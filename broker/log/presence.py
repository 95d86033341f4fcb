"""Presence: who follows a stream now. Pure: from records and announcements to what callers are told.

The access record (access.py) is where it comes from: a view's record without an ending is an open connection. A server
announces on the stream's channel who came and who went since it wrote last, so that whoever watches need not read the
records again. `Here` is what is known of a stream, `Seen` what is to be seen of it at a moment, and a notice what
has changed between two moments.

A connection is in one of these states:

    unknown ──its record is written──► open ──its ending is written──► gone
                                       open ──its server is silent for SILENT_AFTER_MS──► unseen
                                       unseen ──its server gives a sign of life──► open
    unknown ──its stream has no room for its record──► one of its server's crowd ──► gone

The races, and why each is closed:
- a connection came and went between two writes: it is in no announcement
- it is written, and the answer is lost: it is announced again. Announcements name connections, so saying one twice
  changes nothing
- a watcher reads the records while announcements come: it subscribes first, and applies what came meanwhile to what
  it has read. What it has read is never older than the subscription
- an announcement is lost: the subscription broke, and the records are read again
- a server dies: nobody says so. Its last sign of life grows old, and its connections are not seen any more
- a server stood still and goes on: its connections are seen again
- a stream has more connections than records (views.py): the others are its crowd, a number that each server writes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import orjson

from broker.log.rfc3339 import rfc3339

SILENT_AFTER_MS = 5_000
"""A server gives a sign of life each second. The audit waits for longer (access.py): it writes down that one died."""

MANY = 1_000
"""More connections than this are shown in numbers alone: nobody reads so many names."""

SHOWN = 200
"""Names in an answer, or in a notice: some 15 KB."""

ANNOUNCED = 200
"""Connections in an announcement, each way. Of more, it says that there are more: whoever watches reads the records."""

KEY = "key"
"""What is shown of a key: its id is for the audit alone."""


class Names(Enum):
    """Which names a caller may see."""

    ALL = "all"
    USERS = "users"
    NONE = "none"

    def shows(self, who: str) -> bool:
        return self is Names.ALL or (self is Names.USERS and who.startswith("user:"))


class Open(NamedTuple):
    """An open connection. `who`: as it may be shown to somebody; `since_ms`: Redis' time."""

    who: str
    since_ms: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Open:
        """Of a view's record (access.py). Nothing else of that is for presence: no address, no key's id."""
        who = record.get("who") or "anyone"
        return cls(KEY if who.startswith("key:") else who, record["opened"])


class Crowd(NamedTuple):
    """A server's connections to a stream that has no room for their records."""

    connections: int
    people: int

    def encode(self) -> str:
        return f"{self.connections} {self.people}"

    @classmethod
    def decode(cls, text: str | bytes) -> Crowd:
        connections, people = text.split()
        return cls(int(connections), int(people))


class Announcement(NamedTuple):
    """What a server says on a stream's channel. `crowd`: None if it says nothing of it.

    `has_more`: there are too many to name.
    """

    server: str
    came: Mapping[str, Open] = {}
    went: Sequence[str] = ()
    crowd: Crowd | None = None
    has_more: bool = False

    def encode(self) -> bytes:
        said = {"server": self.server, "crowd": self.crowd and tuple(self.crowd)}
        if self.has_more or max(len(self.came), len(self.went)) > ANNOUNCED:
            return orjson.dumps({**said, "more": True})
        came = {name: tuple(opened) for name, opened in self.came.items()}
        return orjson.dumps({**said, "came": came, "went": self.went})

    @classmethod
    def decode(cls, text: bytes) -> Announcement:
        """Raises ValueError for what is none."""
        try:
            said = orjson.loads(text)
            came = {name: Open(*opened) for name, opened in said.get("came", {}).items()}
            crowd = said["crowd"] and Crowd(*said["crowd"])
            return cls(said["server"], came, said.get("went", ()), crowd, said.get("more", False))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no announcement: {error}") from None


class Seen(NamedTuple):
    """Who is to be seen at a moment. `who`: name → since when, in ms; of many connections, none.

    `people`: how many names there are. Of a crowd each server counts its own, so who has connections at two servers may
    count twice.
    """

    connections: int = 0
    people: int = 0
    who: Mapping[str, int] = {}

    @property
    def is_named(self) -> bool:
        return self.connections <= MANY


class Here:
    """The connections of a stream, of each server."""

    def __init__(self) -> None:
        self._open: dict[str, dict[str, Open]] = {}
        self._crowds: dict[str, Crowd] = {}

    def take(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Some of the fields of le:{sid}:views (views.py). Of them all, those of open connections stay."""
        for field, value in records:
            if field.startswith(b"+"):
                continue  # a sum: those of it that are open are in a crowd
            record = orjson.loads(value)
            if "how" not in record:
                self._open.setdefault(record["server"], {})[field.decode()] = Open.of(record)

    def take_crowds(self, crowds: Mapping[bytes, bytes]) -> None:
        """le:{sid}:crowd."""
        self._crowds = {server.decode(): Crowd.decode(text) for server, text in crowds.items()}

    def apply(self, said: Announcement) -> None:
        """One of those that `has_more` says only that all is to be read again."""
        of_server = self._open.setdefault(said.server, {})
        of_server.update(said.came)
        for name in said.went:
            of_server.pop(name, None)
        if said.crowd is not None:
            self._crowds[said.server] = said.crowd

    def seen(self, is_alive: Callable[[str], bool]) -> Seen:
        """`is_alive`: whether a server has given a sign of life lately."""
        connections, since = 0, dict[str, int]()
        for server, of_server in self._open.items():
            if is_alive(server):
                connections += len(of_server)
                for who, since_ms in of_server.values():
                    since[who] = min(since_ms, since.get(who, since_ms))
        crowds = [crowd for server, crowd in self._crowds.items() if is_alive(server)]
        return _seen(
            connections + sum(crowd.connections for crowd in crowds), since, sum(crowd.people for crowd in crowds)
        )


def together(seen: Iterable[Seen]) -> Seen:
    """Of several streams. A name is one person in all of them; those of many connections have none to compare."""
    connections, unnamed, since = 0, 0, dict[str, int]()
    for each in seen:
        connections += each.connections
        unnamed += each.people - len(each.who)
        for who, since_ms in each.who.items():
            since[who] = min(since_ms, since.get(who, since_ms))
    return _seen(connections, since, unnamed)


def _seen(connections: int, since: Mapping[str, int], unnamed: int) -> Seen:
    people = len(since) + unnamed
    return Seen(connections, people, since if connections <= MANY else {})


def shown(seen: Seen, names: Names) -> dict[str, Any]:
    """{"connections", "people", "viewers": [{"who", "since"}]}, those who are here longest first, SHOWN at most."""
    return {"connections": seen.connections, "people": seen.people, "viewers": _viewers(seen.who, names)[:SHOWN]}


def notice(before: Seen, after: Seen, names: Names) -> dict[str, Any] | None:
    """{"joined", "left", "connections", "people"}, or as `shown` where that would name too many; None: no news.

    Joined and left are people: a second connection of somebody who is here is in the number alone.
    """
    joined = _viewers({who: since for who, since in after.who.items() if who not in before.who}, names)
    left = _viewers({who: since for who, since in before.who.items() if who not in after.who}, names)
    numbers = {"connections": after.connections, "people": after.people}
    if before.is_named != after.is_named or len(joined) + len(left) > SHOWN:
        return shown(after, names)
    if not (joined or left) and (before.connections, before.people) == (after.connections, after.people):
        return None
    return {"joined": joined, "left": left, **numbers}


def _viewers(since: Mapping[str, int], names: Names) -> list[dict[str, Any]]:
    found = sorted((since_ms, who) for who, since_ms in since.items() if names.shows(who))
    return [{"who": who, "since": rfc3339(since_ms)} for since_ms, who in found]
