"""One process of Node that is all clients of a dialect in JavaScript (its folder's npm/clients.mjs)."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.js.cutting import Cut, Cutter

LIMIT_S = 60.0


class Clients:
    """Requests of a client go to the servers of its cutter in turn, the first of them to the first."""

    def __init__(self, process: asyncio.subprocess.Process, cutter: Cutter) -> None:
        self.cutter = cutter
        self._process = process
        self._names = map(str, itertools.count())
        self._told: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._now: dict[str, dict[str, Any]] = {}
        self._hearing = asyncio.create_task(self._hear())

    def begin(self, client: str, path: str, cuts: Sequence[Cut] = (), **given: Any) -> str:
        """Its case's name. `path`: where its api is."""
        name = next(self._names)
        self._told[name] = asyncio.Queue()
        self.cutter.cuts[name] = list(cuts)
        self._say({"case": name, "client": client, "url": f"{self.cutter.url}{path}", **given})
        return name

    async def result(self, name: str) -> dict[str, Any]:
        """What the client made of it."""
        async with asyncio.timeout(LIMIT_S):
            told = await self._told[name].get()
        assert "failed" not in told, told["failed"]
        return told

    async def run(self, client: str, path: str, cuts: Sequence[Cut] = (), **given: Any) -> dict[str, Any]:
        return await self.result(self.begin(client, path, cuts, **given))

    def follows(self, name: str, requests: int, text: str | None = None) -> bool:
        """Whether so many requests of useChat have been answered. `text`: and whether it shows that."""
        now = self._now.get(name, {})
        return now.get("answered") == requests and text in (None, now["text"])

    def requests(self, name: str) -> list[str]:
        """The paths that it asked for."""
        return [asked.path for asked in self.cutter.asked[name]]

    def _say(self, line: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def _hear(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            told = json.loads(line)
            if "now" in told:
                self._now[told["case"]] = told["now"]
                continue
            self._told[told["case"]].put_nowait(told)

    async def close(self) -> None:
        self._process.kill()
        await self._process.wait()
        await self._hearing


@asynccontextmanager
async def clients_of(folder: Path, cutter: Cutter) -> AsyncIterator[Clients]:
    process = await asyncio.create_subprocess_exec(
        *("node", "clients.mjs"),
        cwd=folder,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    clients = Clients(process, cutter)
    try:
        yield clients
    finally:
        await clients.close()
