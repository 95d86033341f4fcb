"""Runs clients: cases in, what each of them showed out. One process a language, for all of its cases at once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

LIMIT_S = 60.0
TERMINAL = {"done", "error", "cancelled"}


@dataclass(frozen=True)
class Case:
    client: str
    case: str
    url: str
    cursor: str = "earliest"


@dataclass
class Shown:
    """What a client showed in one case."""

    events: list[tuple[str, str, str]] = field(default_factory=list)
    how: Any = None
    """What it said when it ended by itself; None: it did not."""
    failed: str | None = None

    @property
    def ids(self) -> list[int]:
        return [int(event_id) for event_id, *_ in self.events if event_id]


class Outcome(NamedTuple):
    lost: list[int]
    doubled: list[int]


def outcome(shown: Shown, expected: Iterable[int]) -> Outcome:
    counted = Counter(shown.ids)
    return Outcome(
        sorted(set(expected) - counted.keys()), sorted(event_id for event_id, count in counted.items() if count > 1)
    )


async def run(command: Sequence[str], folder: Path, cases: Sequence[Case], limit_s: float = LIMIT_S) -> dict[str, Shown]:
    """What the clients of one language showed, by case; also of those that had not ended when the time was over."""
    file = folder / "cases.json"
    file.write_text(json.dumps([asdict(case) for case in cases]))
    shown = {case.case: Shown() for case in cases}
    process = await asyncio.create_subprocess_exec(
        *command, str(file), cwd=folder, stdout=asyncio.subprocess.PIPE, limit=2**24
    )
    try:
        async with asyncio.timeout(limit_s):
            assert process.stdout
            async for line in process.stdout:
                _take(shown, json.loads(line))
            await process.wait()
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return shown


def _take(shown: dict[str, Shown], line: dict[str, Any]) -> None:
    one = shown[line["case"]]
    if "kind" in line:
        one.events.append((line.get("id") or "", line["kind"], line["data"]))
    else:
        one.how, one.failed = line.get("how"), line.get("failed")
