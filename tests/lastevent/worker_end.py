"""The worker's end of the wire, in the hands of a test."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lastevent.agents import as_agent
from lastevent.host.app import announced
from lastevent.host.serving import Host
from lastevent.host.wire import Wire

ROOT = Path(__file__).parents[2]
DESK = "tests.lastevent.apps.desk"
PATIENCE_S = 20.0

Answer = Callable[[str, dict[str, Any]], Any]


class Refuse(Exception):
    """An ask is answered with an error."""

    def __init__(self, code: str, message: str = "no") -> None:
        super().__init__(code, message)
        self.error = {"code": code, "message": message}


class Silence(Exception):
    """An ask is not answered."""


class WorkerEnd:
    """Keeps what comes; answers asks by `answer`, which a test may replace."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.came: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())
        self._asks = 0
        self.is_closed = False
        self.answer: Answer = run_it

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                await self._heed(json.loads(line))
        except ConnectionResetError:
            pass
        self.is_closed = True
        async with self._news:
            self._news.notify_all()

    async def _heed(self, message: dict[str, Any]) -> None:
        async with self._news:
            self.came.append(message)
            self._news.notify_all()
        if message["op"] == "ask":
            try:
                self.send("reply", id=message["id"], ok=self.answer(message["what"], message["data"]))
            except Refuse as refuse:
                self.send("reply", id=message["id"], error=refuse.error)
            except Silence:
                pass

    def send(self, op: str, **fields: Any) -> None:
        self._writer.write(json.dumps({"op": op, **fields}).encode() + b"\n")

    async def until(self, there: Callable[[], Any]) -> Any:
        async def wait() -> Any:
            async with self._news:
                while not (found := there()):
                    if self.is_closed:
                        raise AssertionError(f"The host went; it had said {self.came[-5:]}")
                    await self._news.wait()
                return found

        return await asyncio.wait_for(wait(), PATIENCE_S)

    async def message(self, op: str, **fields: Any) -> dict[str, Any]:
        """The first such message, which is taken out."""
        wanted = {"op": op, **fields}.items()
        found = await self.until(lambda: [one for one in self.came if wanted <= _flat(one).items()])
        self.came.remove(found[0])
        return found[0]

    # -- what workers do -------------------------------------------------------------------------------------

    def run(self, agent: str, input: Any, /, run: str = "r", credit: int = 256, **info: Any) -> None:
        self.send("run", run=run, agent=agent, input=input, info=info, credit=credit)

    async def end(self, run: str = "r") -> dict[str, Any]:
        return await self.message("end", run=run)

    async def result_of(self, agent: str, input: Any, /, **info: Any) -> Any:
        self.run(agent, input, **info)
        end = await self.end()
        assert "error" not in end, end
        return end["result"]

    async def open(self, agent: str, input: Any = None, /, run: str = "r", **info: Any) -> None:
        self.send("open", run=run, agent=agent, input=input or {"prompt": "?"}, info=info, credit=256)

    async def ask(self, what: str, run: str = "r", **data: Any) -> dict[str, Any]:
        """The reply."""
        return await self.message("reply", id=self.begin_ask(what, run, **data))

    def begin_ask(self, what: str, run: str = "r", **data: Any) -> int:
        self._asks += 1
        if what in ("call", "resolve"):
            data = {"tool_call_id": f"call{self._asks}", "idempotency_key": f"key{self._asks}", **data}
        self.send("ask", run=run, id=self._asks, what=what, data=data)
        return self._asks

    # -- what came -------------------------------------------------------------------------------------------

    @property
    def asked(self) -> list[dict[str, Any]]:
        return [one for one in self.came if one["op"] == "ask"]

    def events(self, run: str = "r") -> list[tuple[str, dict[str, Any]]]:
        return [(one["kind"], one["data"]) for one in self.came if one["op"] == "event" and one["run"] == run]

    def text(self, run: str = "r") -> str:
        return "".join(data["text"] for kind, data in self.events(run) if kind == "text_delta")

    async def close(self) -> None:
        self._writer.close()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


def _flat(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if isinstance(value, (str, int, type(None)))}


def run_it(what: str, data: dict[str, Any]) -> Any:
    """What the journal says in a first attempt."""
    if what == "open_call":
        return {"do": "run", "tool_call_id": f"id-{data['tool']}", "idempotency_key": f"key-{data['tool']}"}
    if what == "close_call":
        return {}
    raise Refuse("unknown", what)


def of_calls(opened: Mapping[str, Any]) -> Answer:
    """The journal says this of a call that is opened."""

    def answer(what: str, data: dict[str, Any]) -> Any:
        return dict(opened) if what == "open_call" else run_it(what, data)

    return answer


async def _end_of(ours: socket.socket) -> WorkerEnd:
    return WorkerEnd(*await asyncio.open_unix_connection(sock=ours, limit=8 * 1024 * 1024))


@asynccontextmanager
async def host_of(*given: Any) -> AsyncIterator[WorkerEnd]:
    """A host in a thread of this process, with these agents. Its loop is its own: agents may hold it up."""
    found = [agent for one in given if (agent := as_agent(one)) is not None]
    agents = {agent.name: agent for agent in found}
    ours, theirs = socket.socketpair()
    worker = await _end_of(ours)
    host = Host(Wire(theirs), agents)
    hello = {"op": "hello", "protocol": 1, "agents": announced(agents)}
    serving = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(host.serve(hello))))
    try:
        await worker.message("hello")
        yield worker
    finally:
        await worker.close()
        await serving
        theirs.close()


@asynccontextmanager
async def process_of(
    app: str = DESK, *, log: int = asyncio.subprocess.DEVNULL, **environment: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, WorkerEnd]]:
    """A real host, as a worker starts it."""
    ours, theirs = socket.socketpair()
    number = str(theirs.fileno())
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lastevent.host", "--fd", number, app),
            pass_fds=(theirs.fileno(),),
            stderr=log,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
    worker = await _end_of(ours)
    try:
        yield process, worker
    finally:
        await worker.close()
        try:
            await asyncio.wait_for(process.wait(), PATIENCE_S)
        except TimeoutError:
            process.kill()
            raise
