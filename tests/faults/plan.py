"""What happens in a run, from its seed alone: which faults and when, which generations, which viewers.

Nothing here looks at the run: the same seed gives the same faults in the same order at the same offsets, and the
same prompts. What they meet depends on the machine; a real one never does the same thing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from random import Random
from typing import NamedTuple

WORKER, SERVER, REDIS, CLIENTS = "worker", "server", "redis", "clients"


class Kind(NamedTuple):
    """One kind of fault. `low` to `high` is how long it lasts (of a rollback: how far it goes back), in seconds.

    `calm_s` is how long its target is left alone afterwards: a process needs a second to start, and streams that
    never see a calm Redis would test nothing but their first event.
    """

    hits: str
    weight: int
    low: float
    high: float
    calm_s: float


KINDS: Mapping[str, Kind] = {
    "client kill normal": Kind(CLIENTS, 16, 0, 0, 0.5),
    "client kill pubsub": Kind(CLIENTS, 16, 0, 0, 0.5),
    "worker stop": Kind(WORKER, 14, 1, 5, 1),
    "worker stop beyond its lease": Kind(WORKER, 2, 6.5, 12, 1),
    "worker kill": Kind(WORKER, 6, 0.1, 3, 4),
    "worker term": Kind(WORKER, 3, 0.1, 1, 7),
    "server stop": Kind(SERVER, 16, 0.3, 4, 0.5),
    "server kill": Kind(SERVER, 6, 0.1, 2, 3),
    "server term": Kind(SERVER, 3, 0.1, 1, 6),
    "redis stop": Kind(REDIS, 5, 0.5, 9, 4),
    "redis kill": Kind(REDIS, 3, 0, 1, 7),
    "redis rollback": Kind(REDIS, 9, 0.5, 3, 9),
    "redis rollback and worker kill": Kind(REDIS, 8, 0.5, 3, 9),
    "redis full": Kind(REDIS, 3, 1, 3, 3),
    "redis read-only": Kind(REDIS, 3, 1, 2, 3),
    # In the middle of a batch of a worker's appends (tests/rig/commits.py).
    "commit reset in a command": Kind(WORKER, 8, 0, 0, 1),
    "commit reset before its answer": Kind(WORKER, 8, 0, 0, 1),
    "commit reset in its answer": Kind(WORKER, 8, 0, 0, 1),
    "commit stopped": Kind(WORKER, 8, 1, 3, 1),
    "commit stopped beyond its time-out": Kind(WORKER, 6, 5.2, 8, 1),
    "commit answered late": Kind(WORKER, 10, 1, 6, 1),
    "redis kill before a commit's answer": Kind(REDIS, 6, 0, 1, 7),
    # Of the process in which a worker's agents run.
    "app kill": Kind(WORKER, 6, 0, 0, 2),
    "app segfault": Kind(WORKER, 3, 0, 0, 2),
    "app stop": Kind(WORKER, 4, 1, 12, 2),
}

APP_FAULTS = ("app kill", "app segfault", "app stop")

WITH_A_WORKER = ("redis rollback and worker kill", "redis kill before a commit's answer")
"""Faults of Redis that also have a worker as their target."""


class Fault(NamedTuple):
    at_s: float
    kind: str
    target: int
    seconds: float

    def __str__(self) -> str:
        has_target = KINDS[self.kind].hits in (WORKER, SERVER) or self.kind in WITH_A_WORKER
        target = f" {self.target}" if has_target else ""
        return f"{self.at_s:7.2f} s  {self.kind}{target}{f', {self.seconds:.2f} s' if self.seconds else ''}"


def plan_faults(
    seed: int, seconds: float, per_s: float, *, workers: int, servers: int, without: Sequence[str] = ()
) -> list[Fault]:
    """About `per_s` faults a second, chosen by weight among those whose target is free by then."""
    rng = Random(f"faults {seed}")
    faults: list[Fault] = []
    busy = _Busy({WORKER: workers, SERVER: servers, REDIS: 1, CLIENTS: 1})
    at_s = 0.0
    while (at_s := at_s + rng.uniform(0.5, 1.5) / per_s) < seconds:
        free = [name for name, kind in KINDS.items() if busy.free(kind.hits, at_s) and name not in without]
        if not free:
            continue
        [name] = rng.choices(free, [KINDS[name].weight for name in free])
        faults.append(_fault(rng, name, at_s, busy, workers))
    return faults


class _Busy:
    def __init__(self, targets: dict[str, int]) -> None:
        self._until = {hits: [0.0] * count for hits, count in targets.items()}

    def free(self, hits: str, at_s: float) -> list[int]:
        """Never all of the workers or servers at a time, if there are several: then nothing could be seen to go on."""
        until = self._until[hits]
        free = [target for target, busy_until in enumerate(until) if busy_until <= at_s]
        return free if len(free) > 1 or len(until) == 1 else []

    def take(self, hits: str, target: int, until_s: float) -> None:
        self._until[hits][target] = max(until_s, self._until[hits][target])


def _fault(rng: Random, name: str, at_s: float, busy: _Busy, workers: int) -> Fault:
    kind = KINDS[name]
    seconds = round(rng.uniform(kind.low, kind.high), 2)
    target = rng.choice(busy.free(kind.hits, at_s))
    busy.take(kind.hits, target, at_s + seconds + kind.calm_s)
    if name in WITH_A_WORKER:
        target = rng.randrange(workers)
        busy.take(WORKER, target, at_s + KINDS["worker kill"].calm_s)
    return Fault(round(at_s, 2), name, target, seconds)


# -- generations and their viewers -----------------------------------------------------------------------


class ViewerPlan(NamedTuple):
    seed: str
    late_s: float
    cuts: int
    is_slow: bool
    asks_after_the_end: bool
    is_public: bool = False
    """It sees what end users see."""


WIRES: Mapping[str, str] = {
    "1 byte at a time": "piece=1",
    "lines end in CR": "line_end=cr",
    "lines end in CRLF": "line_end=crlf",
    "CRLF torn between two writes": "line_end=torn",
    "CRLF, 7 bytes at a time": "line_end=crlf piece=7",
    "compressed": "gzip=1",
    "a body without an end": "hold=1",
}
"""How a provider may speak, beside how the API does; and the stand-in's directives for it."""

ODD_WIRES = 0.2
"""The share of the generations whose provider speaks so."""

ONE_BYTE_TOKENS = 30
"""A chunk a byte costs its reader some milliseconds a delta: more of these would leave the machine no time."""


class StreamPlan(NamedTuple):
    prompt: str
    tokens: int
    wire: str
    """One of WIRES, or '' for the API's own."""
    on_worker_loss: str
    cancel_after_s: float | None
    cancels: int
    """How many cancel it at the same moment, each on another server."""
    viewers: list[ViewerPlan]
    acts: AgentPlan | None = None

    @property
    def body(self) -> dict[str, object]:
        """Of the request."""
        asked = self.acts.asked(self.prompt) if self.acts else {"prompt": self.prompt}
        return {**asked, "on_worker_loss": self.on_worker_loss}


TOOLS = ("charge", "look", "settle", "stamp")


class AgentPlan(NamedTuple):
    """An agent of acting.py. Each step's tools are called at once, and take so long."""

    agent: str
    steps: list[list[str]]
    ms: int

    def asked(self, prompt: str) -> dict[str, object]:
        if self.agent == "walker":
            return {"agent": "walker", "input": {"steps": self.steps, "ms": self.ms}}
        return {"agent": self.agent, "prompt": f"{prompt} [[{self._calls()} before=4 tokens=20 rate=20 ttft_ms=100]]"}

    def _calls(self) -> str:
        """As the stand-in is told them: a model's turn for each step."""
        numbers = count()
        return " then ".join(
            " ".join(f'call={tool}:{{"n":{next(numbers)},"ms":{self.ms}}}' for tool in step) for step in self.steps
        )


def plan_agent(
    seed: int, slot: int, turn: int, *, servers: int, longest_s: float = 14.0, cancelled: float = 0.1
) -> StreamPlan:
    """As plan_stream, of an agent."""
    name = f"{seed}-{slot}-{turn}"
    rng = Random(f"agent {name}")
    steps = [rng.choices(TOOLS, k=rng.choice((1, 1, 2, 3))) for _ in range(rng.randint(3, 10))]
    acts = AgentPlan(rng.choice(("walker", "clerk")), steps, rng.randint(50, max(51, int(1000 * longest_s / 10))))
    is_cancelled = rng.random() < cancelled
    return StreamPlan(
        prompt=f"Books {name}",
        tokens=0,
        wire="",
        on_worker_loss="restart",
        cancel_after_s=round(rng.uniform(0, 0.8 * longest_s), 2) if is_cancelled else None,
        cancels=rng.randint(1, servers),
        viewers=[
            _viewer(rng, f"{name}-{number}", longest_s)._replace(is_public=number % 2 == 0)
            for number in range(rng.randint(1, 3))
        ],
        acts=acts,
    )


def plan_stream(
    seed: int, slot: int, turn: int, *, servers: int, longest_s: float = 14.0, provider_fails: float = 0.2
) -> StreamPlan:
    """The generation that a slot runs at its nth turn: of up to about `longest_s`, if nothing happens to it."""
    name = f"{seed}-{slot}-{turn}"
    rng = Random(f"stream {name}")
    cancelled = rng.random() < 0.15
    wire = rng.choice([*WIRES]) if rng.random() < ODD_WIRES else ""
    wanted = _directives(rng, longest_s, provider_fails)
    if wire == "1 byte at a time":
        wanted["tokens"] = min(wanted["tokens"], ONE_BYTE_TOKENS)
    asked = " ".join([*(f"{name}={value}" for name, value in wanted.items()), WIRES.get(wire, "")])
    return StreamPlan(
        prompt=f"Story {name} [[{asked}]]",
        tokens=wanted["tokens"],
        wire=wire,
        on_worker_loss="fail" if rng.random() < 0.15 else "restart",
        cancel_after_s=round(rng.uniform(0, 0.8 * longest_s), 2) if cancelled else None,
        cancels=rng.randint(1, servers),
        viewers=[_viewer(rng, f"{name}-{number}", longest_s) for number in range(rng.randint(1, 3))],
    )


def _directives(rng: Random, longest_s: float, provider_fails: float) -> dict[str, int]:
    rate = rng.choice((8, 10, 12, 15, 20))
    tokens = rng.randint(20, max(21, int(rate * longest_s)))
    wanted = {"tokens": tokens, "rate": rate, "ttft_ms": rng.randint(20, 900)}
    if rng.random() < 0.2:
        wanted["thinking"] = rng.randint(1, 10)
    if rng.random() < provider_fails / 2:
        wanted["overload"] = 1
    if rng.random() < provider_fails:
        wanted[rng.choice(("cut_at", "error_at", "end_at", "stall_at"))] = rng.randint(0, tokens)
    return wanted


def _viewer(rng: Random, seed: str, longest_s: float) -> ViewerPlan:
    return ViewerPlan(
        seed=seed,
        late_s=rng.choice((0, 0, round(rng.uniform(0, longest_s / 2), 2))),
        cuts=rng.choice((0, 1, 2, 4, 8)),
        is_slow=rng.random() < 0.1,
        asks_after_the_end=rng.random() < 0.25,
    )
