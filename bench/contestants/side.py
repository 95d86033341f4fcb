"""A side: one contestant with all that it needs, running, its streams made and nothing published yet."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from bench.load.agent import Agent, python_agent
from bench.tree import HERE, Tree


class Shape(NamedTuple):
    """What is published and who watches."""

    streams: int
    viewers_each: int
    events_per_s: float
    """To each stream."""

    @property
    def viewers(self) -> int:
        return self.streams * self.viewers_each

    @property
    def deliveries_per_s(self) -> float:
        return self.viewers * self.events_per_s


@dataclass(frozen=True)
class Side:
    port: int
    paths: Sequence[str]
    parts: dict[str, int]
    """The processes whose CPU counts, by what they are: SERVER, REDIS."""
    publishers: Sequence[Agent]
    """Each has its share of the streams, in the order of `paths`."""
    first_event_id: int = 1
    """SSE id of a stream's first published event, where ids are numbers."""


SERVER, REDIS = "server", "Redis"


class Contestant(NamedTuple):
    name: str
    start: Callable[[ExitStack, Shape], Side]
    lack: Callable[[], str | None] = lambda: None
    """What has to be installed first, and how; None if nothing."""


def lack_of(program: str, how: str) -> Callable[[], str | None]:
    """A contestant's `lack`: a program that is not on the PATH, and `how` it is installed."""
    return lambda: None if shutil.which(program) else f"the program {program} ({how})"


def open_streams(
    stack: ExitStack, module: str, address: str, streams: int, publishers: int = 1, tree: Tree = HERE
) -> tuple[list[Agent], list[str]]:
    """Publishers of a contestant, and the paths of the streams they have made."""
    agents = [python_agent(stack, "bench.load.publisher", module, address, tree=tree) for _ in range(publishers)]
    for number, agent in enumerate(agents):
        agent.tell("open", streams=streams // publishers + (number < streams % publishers))
    return agents, [path for agent in agents for path in agent.answer()["paths"]]
