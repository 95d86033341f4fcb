"""Delivery, measured: events are published to viewers that are connected, and what that costs is metered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple, TypeVar

from bench.contestants.side import Shape, Side
from bench.load.agent import Agent, Answer
from bench.meter import CpuMeter
from bench.table import p99

T = TypeVar("T")

PUBLISHED_ENOUGH = 0.98
"""Below this share it is said that the publisher could not keep its pace."""

SETTLE_S = 20.0
"""Who is behind when publishing ends may catch up for so long; what is still missing then was not delivered."""


class Sample(NamedTuple):
    """One contestant in one round."""

    delivered_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    events_a_read: float
    """1: each event came by itself. More: it came in lumps, which costs less and takes longer."""
    cpu_us: dict[str, float]
    """By part, for each delivered event."""
    missing: int
    doubled: int
    published: float
    """Which share of what it was asked to publish the publisher could get rid of in time."""

    @property
    def whole_side_us(self) -> float:
        return sum(self.cpu_us.values())


def watch(
    side: Side,
    viewers: Sequence[Agent],
    shape: Shape,
    *,
    warm_up_s: float,
    seconds: float,
    settle_s: float = SETTLE_S,
) -> Sample:
    """Publish to viewers that are connected; what they get in `seconds` after the warm-up, and what it costs."""
    ask_all(side.publishers, "go", rate=shape.events_per_s, seconds=warm_up_s + seconds)
    time.sleep(warm_up_s)
    ask_all(viewers, "begin")
    meter = CpuMeter(side.parts)
    time.sleep(seconds)
    spent_us = meter.spent_us()
    got = ask_all(viewers, "end")
    missing, doubled, published = finish(side, viewers, settle_s)
    events = sum(answer["events"] for answer in got)
    delays_ms = [us / 1000 for answer in got for us in answer["delays_us"]] or [float("inf")]
    return Sample(
        delivered_per_s=sum(answer["events"] / answer["seconds"] for answer in got),
        p50_ms=median(delays_ms),
        p99_ms=p99(delays_ms),
        max_ms=max(delays_ms),
        events_a_read=events / max(1, sum(answer["reads"] for answer in got)),
        cpu_us={part: us / max(1, events) for part, us in spent_us.items()},
        missing=missing,
        doubled=doubled,
        published=published,
    )


def finish(side: Side, viewers: Sequence[Agent], limit_s: float = SETTLE_S) -> tuple[int, int, float]:
    """When all that was published has been delivered: events missing and doubled, and the share published."""
    done = ask_all(side.publishers, "finish")
    written = [n for answer in done for n in answer["written"]]
    for agent, targets in zip(viewers, shared_out(written, len(viewers)), strict=True):
        agent.tell("finish", targets=targets, limit_s=limit_s)
    counted = [agent.answer() for agent in viewers]
    missing, doubled = (sum(answer[what] for answer in counted) for what in ("missing", "doubled"))
    return missing, doubled, min(answer["share"] for answer in done)


def shared_out(streams: Sequence[T], agents: int) -> list[Sequence[T]]:
    """Which streams the viewers of each agent watch."""
    each = -(-len(streams) // agents)
    return [streams[at : at + each] for at in range(0, len(streams), each)]


def ask_all(agents: Sequence[Agent], do: str, **about: object) -> list[Answer]:
    for agent in agents:
        agent.tell(do, **about)
    return [agent.answer() for agent in agents]
