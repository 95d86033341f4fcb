"""One person's view of a session, over any number of connections (viewer.py has that of a stream)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from itertools import pairwise
from json import loads
from typing import NamedTuple

from tests.rig.deployment import HTTP, Deployment
from tests.viewers.viewer import LIMIT_S, Answer, CutAt, bare, connect


class Seen(NamedTuple):
    id: int
    kind: str
    data: str


class SessionViewer:
    def __init__(self, session: str) -> None:
        self.session = session
        self.cursor: str | None = None
        self.seen: defaultdict[str, list[Seen]] = defaultdict(list)
        self.named: set[str] = set()
        """Streams of which a notice has come."""
        self.cuts = 0
        self.longest_cursor = 0

    async def view(self, port: int, cut: CutAt | None = None) -> Answer:
        """One connection, until the cut, the server's or our own. What was complete is kept."""
        answer = Answer(0, {})
        async with asyncio.timeout(LIMIT_S), connect(port) as connection:
            headers = {"Accept": "text/event-stream"}
            if self.cursor is not None:
                headers["Last-Event-ID"] = self.cursor
            connection.send("GET", f"/v1/sessions/{self.session}/events", headers)
            try:
                answer = await connection.read_head()
                assert answer.status == 200, answer
                await connection.read_body(answer, cut)
            finally:
                self._take(answer)
        self.cuts += 1
        return answer

    async def view_somewhere(self, ports: list[int], turn: int, cut: CutAt | None = None) -> None:
        """At the first server that is there."""
        for port in ports[turn % len(ports) :] + ports[: turn % len(ports)]:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self.view(port, cut)
                return

    def _take(self, answer: Answer) -> None:
        for block in map(bare, answer.blocks):
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if line)
            cursor = fields.get("id")
            if cursor:
                self.cursor = cursor
                self.longest_cursor = max(self.longest_cursor, len(cursor))
            if "data" in fields and cursor:
                sid, _, n = cursor.rpartition(".")[2].partition("-")
                assert sid in self.named, "the notice comes first"
                self.seen[sid].append(Seen(int(n), fields["event"], fields["data"]))
            elif fields.get("event") == "stream":
                self.named.add(fields["data"].split('"')[3])

    def has_all(self, endings: dict[str, int], body: bytes = b"") -> bool:
        """Of each of these streams the last event; with what a body has, from which nothing was taken yet."""
        return all(
            (self.seen[sid] and self.seen[sid][-1].id >= last) or f".{sid}-{last}\n\n".encode() in body
            for sid, last in endings.items()
        )


def faults(viewer: SessionViewer, logs: dict[str, list[Seen]]) -> dict[str, int]:
    """How many events were lost, came twice, in another order than they were written, or changed."""
    found = {"lost": 0, "doubled": 0, "reordered": 0, "changed": 0, "foreign": len(viewer.seen.keys() - logs.keys())}
    for sid, log in logs.items():
        got = viewer.seen[sid]
        ids = [one.id for one in got]
        found["lost"] += len({one.id for one in log} - set(ids))
        found["doubled"] += len(ids) - len(set(ids))
        found["reordered"] += sum(a > b for a, b in pairwise(ids))
        found["changed"] += len({one for one in got if one.id in set(ids)} - set(log))
    return found


def log_of(deployment: Deployment, sid: str) -> list[Seen]:
    """As users see it."""
    lines = HTTP.get(f"{deployment.url}/v1/streams/{sid}/export?audience=public").content.split(b"\n")
    rows = [line for line in lines if line.startswith(b'{"id":')]
    found = []
    for row in rows:
        event = loads(row)
        data = row.partition(b'"data":')[2].rpartition(b',"t":')[0].decode()
        found.append(Seen(event["id"], event["event"], data))
    return found
