"""Runs programs of npm/. Most use following.mjs: cases in, what the package made of each out, in one process."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.js.packages import runtime

LIMIT_S = 60.0


@dataclass(frozen=True)
class Case:
    """`body`: it is started, not followed. `kept`: what the storage has. `tokens`: one after the other, when asked."""

    case: str
    url: str
    body: dict[str, Any] | None = None
    kept: dict[str, Any] | None = None
    tokens: Sequence[str] | None = None


@dataclass(frozen=True)
class Outcome:
    cases: list[str]
    """All with this very outcome."""
    events: list[tuple[int, str]]
    """Ids and kinds, as an iterator gave them."""
    answer: dict[str, Any]
    whys: list[str | None]
    """What the token function was told."""
    error: dict[str, Any] | None = None

    @property
    def ids(self) -> list[int]:
        return [event_id for event_id, _ in self.events]


async def follow(
    js: Path, cases: Sequence[Case], *, pace: float = 1, name: str = "node", limit_s: float = LIMIT_S
) -> list[Outcome]:
    """`pace`: how many times shorter waits are than the package would have them."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"pace": pace, "cases": [asdict(case) for case in cases]}, file)
        file.flush()
        lines = await run(js, "following.mjs", file.name, name=name, limit_s=limit_s)
    return [Outcome(**{**line, "events": [(event_id, kind) for event_id, kind in line["events"]]}) for line in lines]


async def run(js: Path, program: str, *args: str, name: str = "node", limit_s: float = LIMIT_S) -> list[dict[str, Any]]:
    """What a program of npm/ says, a line of JSON each, when it has ended by itself."""
    command = [*runtime(name, js), program, *args]
    process = await asyncio.create_subprocess_exec(*command, cwd=js, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(limit_s):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    return [json.loads(line) for line in out.splitlines()]
