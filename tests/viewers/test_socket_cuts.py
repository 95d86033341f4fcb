"""Sockets that are cut at any byte, and follow their streams on another server, lose nothing and get nothing twice.

Meanwhile a worker is killed, a server is killed, and Redis falls back to what it had on its disk. The client is written
from RFC 6455 alone, on a bare connection, so that it can stop at any byte.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.faults.test_redis import roll_back, save
from tests.rig.deployment import Deployment, until
from tests.rig.long import LONG

pytestmark = pytest.mark.processes

PHONES, CUTS = (30, 34) if LONG else (6, 5)
AWAY_S = 16.0
"""Longer than a stream that has ended stays unarchived here, and than a takeover takes."""

TOKENS, RATE = (600 if LONG else 300), 40
STREAMS = 4
TRY_AGAIN_S = 0.1


class Cut(Exception):
    """The connection is over, by the client's own will or not."""


class Phone:
    """Several streams on one socket after another."""

    def __init__(self, sids: list[str], numbers: random.Random) -> None:
        self.seen: dict[str, list[dict[str, Any]]] = {sid: [] for sid in sids}
        self.over: dict[str, str] = {}
        self.gaps: list[Any] = []
        self.cuts = 0
        self._numbers = numbers

    @property
    def is_done(self) -> bool:
        return len(self.over) == len(self.seen)

    async def view(self, ports: list[int], cuts: int, away: int | None = None) -> None:
        """`away`: at which cut it stays away for long."""
        n = self._numbers.randrange(len(ports))
        while not self.is_done:
            n += 1
            limit = min(self._numbers.randrange(40_000), self._numbers.randrange(40_000)) if cuts else None
            try:
                await self._follow(ports[n % len(ports)], limit)
            except Cut as cut:
                if cut.args:
                    cuts -= 1
                    self.cuts += 1
                    if cuts == away:
                        await asyncio.sleep(AWAY_S)
                    continue
            except OSError:
                pass
            if not self.is_done:
                await asyncio.sleep(TRY_AGAIN_S)

    async def _follow(self, port: int, limit: int | None) -> None:
        """Until all is over. Raises Cut, with the limit if that was reached, or OSError."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(
                b"GET /v1/socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            with suppress(asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 101"):
                    raise Cut
                windows = {sid: self._numbers.choice([None, 16, 64]) for sid in self.seen if sid not in self.over}
                for sid, window in windows.items():
                    writer.write(frame({"op": "follow", "stream": sid, "cursor": self._last(sid), "window": window}))
                async for message in messages(reader, limit):
                    for sid, id_ in self._take(message):
                        if windows[sid] and self._numbers.randrange(windows[sid] // 4) == 0:
                            writer.write(frame({"op": "ack", "stream": sid, "id": id_}))
                    if self.is_done:
                        return
            raise Cut
        finally:
            writer.transport.abort()

    def _last(self, sid: str) -> int:
        return self.seen[sid][-1]["id"] if self.seen[sid] else 0

    def _take(self, message: dict[str, Any]) -> Iterator[tuple[str, int]]:
        match message:
            case {"stream": sid, "id": id_}:
                self.seen[sid].append(message)
                yield sid, id_
            case {"stream": sid, "event": "over", "data": {"state": state}}:
                self.over[sid] = state
            case {"event": "gap"}:
                self.gaps.append(message)
            case {"event": "refused"}:
                raise Cut


def frame(asked: dict[str, Any]) -> bytes:
    """A client's text frame, with a mask of zeros."""
    payload = json.dumps({name: value for name, value in asked.items() if value is not None}).encode()
    if len(payload) < 126:
        return bytes([0x81, 0x80 | len(payload)]) + bytes(4) + payload
    return bytes([0x81, 0xFE]) + len(payload).to_bytes(2, "big") + bytes(4) + payload


async def messages(reader: asyncio.StreamReader, limit: int | None) -> AsyncIterator[dict[str, Any]]:
    """Whole text messages, of the first `limit` bytes. Raises Cut."""
    buffer = bytearray()
    read = 0
    while True:
        try:
            async with asyncio.timeout(30):
                piece = await reader.read(16_384 if limit is None else min(16_384, limit - read))
        except OSError:
            raise Cut from None
        if not piece:
            raise Cut(limit) if read == limit else Cut
        read += len(piece)
        buffer += piece
        while (parsed := _one(buffer)) is not None:
            opcode, payload = parsed
            if opcode == 0x1:
                yield json.loads(payload)
            elif opcode == 0x8:
                raise Cut
        if read == limit:
            raise Cut(limit)


def _one(buffer: bytearray) -> tuple[int, bytes] | None:
    """The first whole frame, taken from the buffer. A server's have no mask, and are not fragmented here."""
    if len(buffer) < 2:
        return None
    size, at = buffer[1], 2
    assert size < 0x80, "a server masks nothing"
    if size >= 126:
        at = 4 if size == 126 else 10
        if len(buffer) < at:
            return None
        size = int.from_bytes(buffer[2:at], "big")
    if len(buffer) < at + size:
        return None
    opcode, payload = buffer[0] & 0x0F, bytes(buffer[at : at + size])
    assert buffer[0] & 0xF0 == 0x80
    del buffer[: at + size]
    return opcode, payload


async def test_nothing_is_lost_doubled_or_out_of_order(
    own_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    archive = {"LASTEVENT_ARCHIVE_URL": f"sqlite:///{tmp_path}/archive.db", "LASTEVENT_ARCHIVE_AFTER_S": "0"}
    own = own_deployment(servers=2, workers=2, **archive)

    async def killed(phones: list[Phone]) -> None:
        own.workers[0].kill()
        own.servers[1].kill()
        await until(lambda: sum(map(len, phones[0].seen.values())) > STREAMS * 60, "it goes on")
        own.servers[1].start()
        own.workers[0].start()
        await asyncio.to_thread(own.wait_until_ready)

    async def rolled_back(phones: list[Phone]) -> None:
        await asyncio.to_thread(save, own)
        before = sum(map(len, phones[0].seen.values()))
        await until(lambda: sum(map(len, phones[0].seen.values())) > before + 20, "some is not on the disk")
        await roll_back(own)

    groups = [await viewed(own, killed), await viewed(own, rolled_back)]
    with redis.Redis.from_url(own.redis_url) as client:
        await until(lambda: client.zcard("le:unarchived") == 0, "all is archived")
    late = Phone([sid for phones in groups for sid in phones[0].seen], random.Random("late"))
    await late.view(own.ports, CUTS)
    faults = sum((faults_of(own, phone) for phones in (*groups, [late]) for phone in phones), Counter())
    cuts = sum(phone.cuts for phones in (*groups, [late]) for phone in phones)
    print(f"{cuts} cuts, {2 * STREAMS} streams, {2 * PHONES + 1} phones: {dict(faults)}")
    assert not faults
    assert cuts > PHONES * CUTS
    for server in own.servers:
        assert b"Traceback" not in server.output.read_bytes()


async def viewed(own: Deployment, fault: Callable[[list[Phone]], Awaitable[None]]) -> list[Phone]:
    sids = [own.create(f"[[tokens={TOKENS} rate={RATE} ttft_ms=0]]") for _ in range(STREAMS)]
    phones = [Phone(sids, random.Random(seed)) for seed in range(PHONES)]
    async with asyncio.TaskGroup() as group:
        for n, phone in enumerate(phones):
            group.create_task(phone.view(own.ports, CUTS, away=CUTS // 2 if LONG and n % 10 == 0 else None))
        await until(lambda: all(all(map(len, phone.seen.values())) for phone in phones), "all have begun")
        await fault(phones)
    return phones


def faults_of(own: Deployment, phone: Phone) -> Counter[str]:
    faults = Counter[str]()
    for sid, seen in phone.seen.items():
        log = {event["id"]: event for event in own.log_of(sid) if "seal" not in event}
        ids = [event["id"] for event in seen]
        faults["lost"] += len(log.keys() - set(ids))
        faults["doubled"] += len(ids) - len(set(ids))
        faults["disordered"] += ids != sorted(ids)
        faults["changed"] += sum(event != {"stream": sid, **log.get(event["id"], {})} for event in seen)
        faults["not done"] += phone.over[sid] != "done"
    return +faults
