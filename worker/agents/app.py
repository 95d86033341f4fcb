"""The app of a worker: its processes, which are started, kept, replaced and ended here.

As many children as asked for take runs. One that dies, or that takes no more runs (process.py says why), is replaced at
once, while it may still finish what it has. An import that fails is said, with the traceback, and tried again: until it
succeeds there is no child, so no worker of this app has room for its streams, and they wait queued.

A run whose process died gets one of its own for its next attempt (`place(alone=True)`): then only the guilty one ends
there, and the others go on.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from broker.log.agents import Announced
from broker.process.app_options import AppOptions
from broker.settings import PREFIX
from worker.agents.process import FD, AnnouncedAgent, Child, Command, ImportFailed
from worker.agents.reload import changes, folder_of
from worker.agents.runs import ChildLost

logger = logging.getLogger(__name__)

RESTART_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Between a child's end and the next one's start. An import may need a database that is just starting."""

STABLE_S = 30.0
"""A child that ran so long has not failed at starting: its next one is started at once again."""

ALONE_AT_ONCE = 4
"""A crowded child that dies leaves many runs; a process for each of them at once would be too much for a machine."""

UNUSED_S = 10.0
"""Whoever asked for a process of its own may have been cancelled meanwhile."""

OF_THE_HOST = frozenset({PREFIX + "AGENT_BLOCKED_S"})
"""All of our settings that the child needs. The others are no business of users' code: keys, addresses, passwords."""


class App:
    def __init__(self, options: AppOptions, *, blocked_s: float) -> None:
        self.name = options.name
        self.agents: Mapping[str, AnnouncedAgent] = {}
        self.tried = asyncio.Event()
        """The app was imported for the first time, or that has failed."""
        self._options = options
        self._blocked_s = blocked_s
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._children: set[Child] = set()
        self._shared: list[Child] = []
        """Those that take any run."""
        self._alone = asyncio.Semaphore(ALONE_AT_ONCE)
        self._changes: set[asyncio.Event] = set()
        self._outdated = asyncio.Event()
        """Set when the code that is imported now has changed; then there is another one, for the code as it is."""
        self._ending: set[asyncio.Task[None]] = set()
        self._failure = ""

    # -- what a worker asks of it -----------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        return any(child.takes_runs for child in self._shared)

    def runs(self, agent: str) -> bool:
        """Whether a run of this agent could begin now."""
        return agent in self.agents and self.is_ready

    def announced(self) -> dict[str, Announced]:
        """What servers are told of it. Nothing while nothing could be run."""
        if not self.is_ready:
            return {}
        return {
            name: Announced(self.name, agent.input_schema, list(agent.show), [_shown(tool) for tool in agent.tools])
            for name, agent in self.agents.items()
        }

    async def place(self, *, alone: bool = False) -> Child:
        """A child that takes a run, which must begin at once. `alone`: in a process of its own, which ends after it."""
        if alone:
            return await self._place_alone()
        woken = self.changes()
        try:
            while not (ready := [child for child in self._shared if child.takes_runs]):
                await woken.wait()
                woken.clear()
            return min(ready, key=lambda child: len(child.runs))
        finally:
            self.forget_changes(woken)

    def changes(self) -> asyncio.Event:
        """Set whenever children, or their runs, come or go. To be forgotten when it is needed no more."""
        event = asyncio.Event()
        self._changes.add(event)
        return event

    def forget_changes(self, event: asyncio.Event) -> None:
        self._changes.discard(event)

    def reload(self) -> None:
        """New runs get the app as its code is now; runs that have begun end with the code that they began with."""
        self._outdated.set()
        self._outdated = asyncio.Event()
        for child in list(self._shared):
            child.leave()

    # -- its loops, and its end ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the children, for ever. Ends only by cancellation."""
        async with asyncio.TaskGroup() as keeping:
            for _ in range(self._options.processes):
                keeping.create_task(self._keep_one())
            if self._options.reloads:
                keeping.create_task(self._watch())

    async def aclose(self) -> None:
        await asyncio.gather(*(child.end() for child in self._children))
        await asyncio.gather(*self._ending)
        if self._folder:
            self._folder.cleanup()

    async def _keep_one(self) -> None:
        clock, deaths = asyncio.get_running_loop().time, 0
        while True:
            child, began = await self._start(), clock()
            self._shared.append(child)
            try:
                self._tell()
                woken = self.changes()
                while child.takes_runs:
                    await woken.wait()
                    woken.clear()
            finally:
                self._shared.remove(child)
                self.forget_changes(woken)
                child.leave()  # in peace, if it has not died
            if child.gone.is_set():
                deaths = 0 if clock() - began > STABLE_S else deaths
                await asyncio.sleep(_wait_s(deaths))
                deaths += 1

    async def _watch(self) -> None:
        folder = folder_of(self._options.app, Path.cwd())
        async for _ in changes(folder):
            logger.warning("the code of the app has changed: it is imported anew")
            self.reload()

    async def _place_alone(self) -> Child:
        await self._alone.acquire()
        try:
            child = await self._start()
        except BaseException:
            self._alone.release()
            raise
        ending = asyncio.create_task(self._end_after_its_run(child), name=f"app's process {child.pid}, of one run")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return child

    async def _end_after_its_run(self, child: Child) -> None:
        woken = self.changes()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(UNUSED_S):
                    await child.begun.wait()
            while child.runs:
                await woken.wait()
                woken.clear()
            await child.end()
        finally:
            self.forget_changes(woken)
            self._alone.release()

    async def _start(self) -> Child:
        """A child that has imported the app, however often that takes."""
        tries = 0
        while True:
            outdated = self._outdated
            child = Child(self._command(), blocked_s=self._blocked_s, changed=self._tell)
            self._children.add(child)
            try:
                await child.start()
            except (ImportFailed, ChildLost) as failed:
                self._say(failed, _wait_s(tries))
            except asyncio.CancelledError:
                await child.end()
                raise
            else:
                if not outdated.is_set():
                    self.agents, self._failure = child.agents, ""
                    self.tried.set()
                    return child
            self.tried.set()
            await child.end()
            with suppress(TimeoutError):
                async with asyncio.timeout(_wait_s(tries)):
                    await outdated.wait()
            tries += 1

    def _say(self, failed: ImportFailed | ChildLost, again_s: float) -> None:
        """The whole traceback once: an app that is broken stays so until somebody mends it."""
        said = failed.said if isinstance(failed, ImportFailed) else f"its process ended: {failed}"
        where = (
            f"the app {self._options.app} cannot be imported; its streams wait. It is tried again in {again_s:.1f} s"
        )
        if said == self._failure:
            logger.error("%s. (The reason is the same as before.)", where)
        else:
            logger.error("%s:\n%s", where, said)
        self._failure = said

    def _tell(self) -> None:
        self._children = {child for child in self._children if not child.gone.is_set()}
        for event in self._changes:
            event.set()

    # -- how a child is started --------------------------------------------------------------------------

    def _command(self) -> Command:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(PREFIX) or name in OF_THE_HOST
        }
        environment[PREFIX + "AGENT_BLOCKED_S"] = str(self._blocked_s)
        python = sys.executable
        if self._options.python is not None:
            python = self._options.python
            paths = [self._only_lastevent(), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        return Command([python, "-m", "lastevent.host", "--fd", FD, self._options.app], environment)

    def _only_lastevent(self) -> str:
        """A folder with our package for users' code and nothing else: the other interpreter has packages of its own."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="lastevent-")
            found = importlib.util.find_spec("lastevent")
            assert found
            assert found.origin
            Path(self._folder.name, "lastevent").symlink_to(Path(found.origin).parent)
        return self._folder.name


def _wait_s(tries: int) -> float:
    return RESTART_S[min(tries, len(RESTART_S) - 1)]


def _shown(tool: Mapping[str, object]) -> dict[str, object]:
    return {"name": tool.get("name"), "title": tool.get("title")}
