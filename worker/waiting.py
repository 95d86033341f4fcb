"""An agent's stream that waits for a worker that has its agent, as a worker sees it that has not.

Its viewers must not wait in ignorance (G4): whichever worker finds that its writer is gone says so (`restart`), and
gives the pen back. Only a worker of its app goes on with it; so it is put into that app's queue. If there is nobody for
AGENT_WAIT_S, it ends: nobody, that is no worker that could have run this agent, whether or not one had room.

One notice is enough: a log that ends with `restart` has it. So a worker of the app that dies before it has begun, or
Redis losing its last second, leads to no second one, and each part may be repeated:
- Two workers find it: the second finds the lease of the first. Or it was slow, and the first has given the pen back: it
  looks at the log again, now that it has the pen.
- This worker stops in the middle: its lease expires, and the next sweeper goes on from what is in the log.
- Redis loses the notice: the log does not end with it any more, so it is given again.
- It waits in the queue already: a stream waits there once. Or it is parked (running.py): it is left there.
- A worker of the app takes it meanwhile: a claim, or an ending, finds a lease.
"""

from __future__ import annotations

import logging
import time

from broker import gauges
from broker.log.agents import Agents
from broker.log.event import ERROR, RESTART, encode_data
from broker.log.meta import Meta, new_claim_id
from broker.log.queue import enqueue, take_out
from broker.log.running import Line, Running
from broker.log.seizures import Seizures
from broker.log.steps import Append, Claimed, Unsent
from broker.log.stream_log import StreamLog
from worker.attempts import NO_WORKER, WORKER_LOST

logger = logging.getLogger(__name__)


FOUND_S = 7.0
"""Sweepers look again after 5 s, whichever of them comes first, and a sweep takes its time."""


class Waiting:
    """`wait_s`: AGENT_WAIT_S. `name`: this worker's."""

    def __init__(self, log: StreamLog, seizures: Seizures, *, wait_s: float, name: str) -> None:
        self._log = log
        self._seizures = seizures
        self._agents = Agents(log.redis, log.keys)
        self._running = Running(log.redis, log.keys)
        self._wait_s = wait_s
        self._name = name
        self._found_s: dict[str, float] = {}

    def overdue(self) -> int:
        """How many streams this worker has just found without a worker that has their agent."""
        since_s = time.monotonic() - FOUND_S
        return sum(found_s > since_s for found_s in self._found_s.copy().values())

    async def look_after(self, sid: str, agent: str, meta: Meta, now_ms: int) -> bool:
        """Of a stream that nobody writes. False: it has ended.

        Raises LeaseHeld, LogHealing, StreamClosed, StreamNotFound; WriterSuperseded or AppendGap if this worker was too
        slow, or Redis has lost something meanwhile.
        """
        since_ms = meta.created if meta.state == "queued" else await self._give_notice(sid)
        known = await self._agents.find(agent)
        last_seen_ms = max(since_ms, known.at) if known else since_ms
        if now_ms - last_seen_ms >= self._wait_s * 1000:
            seized = await self._seizures.seize(sid, ERROR, encode_data(NO_WORKER), only_expired=True)
            if known:
                await take_out(self._log.redis, self._log.keys, sid, known.app)
                await self._running.let_go(meta.tenant, sid, app=known.app)
            if not seized.already:
                gauges.streams_ended.labels(gauges.tenant(meta.tenant), ERROR, str(NO_WORKER["code"])).inc()
                logger.warning(
                    "stream %s: ended, because no worker has had the agent %s for %.0f s (LASTEVENT_AGENT_WAIT_S)",
                    *(sid, agent, self._wait_s),
                )
            return False
        if known and sid not in await self._running.parked(Line(meta.tenant, known.app), [sid]):
            await enqueue(
                self._log.redis, self._log.keys, sid, known.app, tenant=meta.tenant, has_turn=meta.state != "queued"
            )
        self._note(sid)
        return True

    def _note(self, sid: str) -> None:
        now_s = time.monotonic()
        self._found_s.pop(sid, None)
        self._found_s[sid] = now_s  # at the end: those before it were found before
        while now_s - self._found_s[first := next(iter(self._found_s))] >= FOUND_S:
            del self._found_s[first]

    async def _give_notice(self, sid: str) -> int:
        """Tell viewers, once. Returns since when they know (ms)."""
        last = await self._log.read_last(sid)
        if last.kind == RESTART:
            return last.t
        claimed = await self._log.claim(sid, new_claim_id(), self._name)
        last = await self._log.read_last(sid)  # under the pen: nobody can tell them any more but this worker
        told_ms = last.t if last.kind == RESTART else await self._tell(claimed)
        await self._log.release(sid, claimed.pen, unbegun=True)
        return told_ms

    async def _tell(self, claimed: Claimed) -> int:
        told = encode_data({"attempt": claimed.attempt, "reason": WORKER_LOST["code"]})
        notice = Append(claimed.sid, claimed.pen, claimed.pen.base, [Unsent(RESTART, told)], attempt=claimed.attempt)
        return (await self._log.append(notice)).now_ms
