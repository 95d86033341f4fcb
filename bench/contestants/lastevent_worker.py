"""Our worker (`python -m worker`: arq, leases, the anthropic SDK), alone or with a server whose viewers read it all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from redis.asyncio.client import Pipeline

from bench.contestants.lastevent import start_server
from bench.contestants.side import SERVER
from bench.generating import WORKER, Place
from bench.load.agent import python_agent
from bench.loads import AGENT, Load
from bench.processes import start
from bench.tree import HERE, Tree
from broker.log.keys import Keys
from broker.log.meta import NewStream, new_sid
from broker.log.queue import connect_queue, enqueue
from broker.log.stream_log import StreamLog
from broker.process.app_options import DEFAULT_NAME
from broker.store.connect import connect

REQUEST = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 1024}
SAMPLED = 12  # streams whose deltas are timed in Redis: each message more is a write of Redis more
FINISH_LIMIT_S = 20.0


# What a worker says beside the deltas of a wire (bench/load/wires.py), before the first and behind it: an
# `internal.provider` of what the provider says of itself.
FOR_OPERATORS = {"anthropic": (0, 0), "openai": (1, 1), "openai-chat": (1, 0), "gemini": (0, 1), AGENT: (0, 0)}


class LasteventWorker:
    def __init__(self, stack: ExitStack, place: Place, load: Load, tree: Tree = HERE) -> None:
        before, behind = FOR_OPERATORS[load.wire]
        self.first_delta = 3 + before  # after `queued` and `start`
        self.own_events = 3 + before + behind  # and `done`
        argv = [sys.executable, "-m", "worker", "--concurrency", str(load.generations)]
        argv += ["--app", "bench.load.speaker"] if load.is_agent else []
        ours = {"LASTEVENT_REDIS_URL": place.redis_url, "LASTEVENT_WORKER_DRAIN_S": "1"}
        self.parts = {WORKER: start(stack, argv, cwd=tree.folder, **tree.settings, **ours, **place.provider)}
        self.redis = connect(place.redis_url)
        self._place = place
        self._load = load
        self._log = StreamLog(self.redis)
        self._sids = [new_sid() for _ in range(load.generations)]
        self._deltas = python_agent(stack, "bench.load.deltas")

    async def begin(self) -> None:
        """Create the streams and queue them, as the server does for a POST."""
        for sid in self._sids:
            await self._log.create(NewStream(sid=sid, tenant="default", session=sid, **self._asked))
        self._read()
        app = [DEFAULT_NAME] if self._load.is_agent else []  # a commit before agents has no such parameter
        queue = connect_queue(self._place.redis_url, Keys())
        for sid in self._sids:
            await enqueue(queue, self._log.keys, sid, *app)
        await queue.aclose(close_connection_pool=True)

    @property
    def _asked(self) -> dict[str, Any]:
        if not self._load.is_agent:
            return {"model": f"{self._load.wire}/bench", "request": REQUEST}
        asked = {"deltas": self._place.deltas, "rate": self._load.rate}
        return {"agent": "speaker", "request": {"agent": "speaker", "input": asked}}

    def _read(self) -> None:
        channels = [self._log.keys.stream(sid).live for sid in evenly(self._sids, SAMPLED)]
        self._deltas.ask("subscribe", port=self._place.redis_port, channels=channels)

    def ask_counts(self, pipe: Pipeline) -> None:
        for sid in self._sids:
            pipe.xlen(self._log.keys.stream(sid).log)  # ids do not jump here: as much as the last one's

    async def begin_timing(self) -> None:
        self._deltas.ask("begin")

    async def delays_ms(self) -> list[float]:
        return [us / 1000 for us in self._deltas.ask("end")["delays_us"]]

    async def missing(self, deltas: int) -> int:
        return 0  # not all streams are read

    async def aclose(self) -> None:
        await self.redis.aclose()


class WithViewers(LasteventWorker):
    """The whole way: a server, too, and a viewer of each stream."""

    def __init__(self, stack: ExitStack, place: Place, load: Load, tree: Tree = HERE) -> None:
        super().__init__(stack, place, load, tree)
        pid, self._port = start_server(stack, place.redis_url, tree)
        self.parts[SERVER] = pid

    def _read(self) -> None:
        self._deltas.ask("view", port=self._port, paths=[f"/v1/streams/{sid}/events" for sid in self._sids])

    async def missing(self, deltas: int) -> int:
        return deltas - int(self._deltas.ask("finish", deltas=deltas, limit_s=FINISH_LIMIT_S)["seen"])


def evenly(sids: Sequence[str], most: int) -> Sequence[str]:
    """At most so many of them, spread over all."""
    return sids[:: -(-len(sids) // most)]
