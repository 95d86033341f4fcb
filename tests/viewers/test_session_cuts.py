"""A session's followers, cut anywhere and come back on another server, get every event of every answer once.

Answers run, up to four at a time, while a worker and a server are killed (-9). Some viewers are away for longer than
the archive waits. `make long` has 1,000 cuts; in it Redis is killed too, and comes back as it was half a second before.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.faults.test_redis import roll_back, save
from tests.rig.deployment import HTTP, Deployment, until
from tests.rig.long import LONG
from tests.viewers.session_viewer import Seen, SessionViewer, faults, log_of
from tests.viewers.viewer import CutAt, at_byte, within_a_character

STREAMS, TOKENS, RATE = (48, 60, 15) if LONG else (7, 20, 10)
VIEWERS, CUTS = (8, 1000) if LONG else (4, 40)
AT_ONCE = 4
ARCHIVE_AFTER_S, AWAY_S = (8, 16.0) if LONG else (1, 4.0)
"""With a rollback the archive must wait for a lease at least (docs/OPERATIONS.md)."""

PROMPT = f"Ünïcödé 漢字 🚂 [[tokens={TOKENS} rate={RATE} ttft_ms=0]]"


class _Cutter:
    def __init__(self, session: str, seed: int) -> None:
        self.viewer = SessionViewer(session)
        self._numbers = random.Random(seed)

    def _cut(self) -> CutAt:
        if self._numbers.randrange(4) == 0:
            return within_a_character(after=self._numbers.randrange(500))
        return at_byte(self._numbers.randrange(12_000 if self._numbers.randrange(2) else 1500))

    async def view_in_pieces(self, ports: list[int], over: asyncio.Event) -> None:
        ending = asyncio.create_task(over.wait())
        while not over.is_set():
            view = asyncio.create_task(self.viewer.view_somewhere(ports, self._numbers.randrange(2), self._cut()))
            await asyncio.wait([view, ending], return_when=asyncio.FIRST_COMPLETED)
            view.cancel()  # a session whose answers have ended says nothing more
            await asyncio.wait([view])
            assert view.cancelled() or view.exception() is None, view.exception()
            away_s = AWAY_S if self._numbers.randrange(12) == 0 else self._numbers.random() / 10
            await asyncio.wait([ending], timeout=away_s)

    async def view_the_rest(self, port: int, endings: dict[str, int]) -> None:
        await self.viewer.view(port, lambda body: len(body) if self.viewer.has_all(endings, bytes(body)) else None)


async def _answer(
    deployment: Deployment, session: str, logs: dict[str, list[Seen]], is_enough: Callable[[], bool]
) -> None:
    """Begin one answer after another, AT_ONCE at a time."""

    async def one_after_another() -> None:
        while not is_enough():
            sid = await asyncio.to_thread(_start, deployment, session, next(numbers))
            logs[sid] = []
            await until(lambda sid=sid: _has_ended(deployment, sid), f"{sid} has ended", 120, every_s=0.2)  # type: ignore[misc]

    numbers = count()
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_another())


def _start(deployment: Deployment, session: str, number: int) -> str:
    body = {"prompt": PROMPT, "session_id": session}
    for url in deployment.urls * 50:
        try:
            key = {"Idempotency-Key": f"{session}-{number}"}
            answer = HTTP.post(f"{url}/v1/streams", json=body, headers=key, timeout=10)
        except Exception:  # this server, or Redis, is away
            continue
        if answer.status_code in (200, 201):
            sid: str = answer.json()["id"]
            return sid
    raise AssertionError("no server takes a start")


async def _has_ended(deployment: Deployment, sid: str) -> bool:
    for url in deployment.urls:
        try:
            answer = await asyncio.to_thread(HTTP.get, f"{url}/v1/streams/{sid}", timeout=5)
            return answer.status_code == 200 and answer.json()["state"] in ("done", "error", "cancelled")
        except Exception:
            continue
    return False


async def _break(deployment: Deployment, logs: dict[str, list[Seen]]) -> None:
    """A worker, a server, then Redis (in the long form), killed while answers run."""
    await until(lambda: len(logs) > STREAMS // 3, "some have begun")
    deployment.workers[0].kill()
    await until(lambda: len(logs) > STREAMS // 2, "more have begun", 120)
    deployment.workers[0].start()
    deployment.servers[1].kill()
    await asyncio.sleep(1)
    deployment.servers[1].start()
    await asyncio.to_thread(deployment.wait_until_ready, 1)
    if LONG:
        save(deployment)
        await asyncio.sleep(0.5)  # what Redis then loses
        await roll_back(deployment)


@pytest.mark.processes
async def test_followers_of_a_session_cut_at_any_byte_get_every_event_once(
    own_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    archive = {
        "LASTEVENT_ARCHIVE_URL": f"sqlite:///{tmp_path}/archive.db",
        "LASTEVENT_ARCHIVE_AFTER_S": str(ARCHIVE_AFTER_S),
    }
    deployment = own_deployment(servers=2, workers=2, **archive)
    session, logs = "s", dict[str, list[Seen]]()
    cutters = [_Cutter(session, seed) for seed in range(VIEWERS)]
    for cutter in cutters:  # all of them are there before the first answer
        await cutter.viewer.view(deployment.ports[0], lambda body: len(body) if b"\n\n" in body else None)
        assert cutter.viewer.cursor
    breaking = asyncio.create_task(_break(deployment, logs))

    def is_enough() -> bool:
        return breaking.done() and len(logs) >= STREAMS and sum(cutter.viewer.cuts for cutter in cutters) >= CUTS

    answering, over = asyncio.create_task(_answer(deployment, session, logs, is_enough)), asyncio.Event()
    answering.add_done_callback(lambda _: over.set())
    async with asyncio.TaskGroup() as group:
        for cutter in cutters:
            group.create_task(cutter.view_in_pieces(deployment.ports, over))
    await answering
    await breaking
    for sid in logs:
        logs[sid] = await asyncio.to_thread(log_of, deployment, sid)
    endings = {sid: log[-1].id for sid, log in logs.items()}
    cuts = sum(cutter.viewer.cuts for cutter in cutters)
    for cutter in cutters:
        if not cutter.viewer.has_all(endings):
            await cutter.view_the_rest(deployment.ports[0], endings)
    found = Counter[str]()
    for cutter in cutters:
        found.update(faults(cutter.viewer, logs))
    longest = max(cutter.viewer.longest_cursor for cutter in cutters)
    events = sum(map(len, logs.values()))
    print(
        f"{VIEWERS} viewers of {len(logs)} streams, {events} events, {cuts} cuts, cursors to {longest} bytes: {found}"
    )
    changed = {
        one: [other for other in logs[sid] if other.id == one.id]
        for cutter in cutters
        for sid, got in cutter.viewer.seen.items()
        for one in set(got) - set(logs.get(sid, ()))
    }
    assert found.total() == 0, (found, changed)
    assert cuts >= CUTS
