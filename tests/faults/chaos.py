"""A run: generations with viewers on bad lines, faults from a seed, and in the end the checker.

`Chaos.run` is the table of contents. What may differ between two runs of a seed is timing only: the faults, their
order and offsets, the prompts and the viewers are planned (plan.py); what they meet depends on the machine.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.faults.answers import misread
from tests.faults.archived import Archived, archive_url, check_archive
from tests.faults.checker import Entry, FinalStream, Run, Told, Transcript, Verdict, check
from tests.faults.ledger import Acted, Deeds, Tools, judge, read_ledger
from tests.faults.phone import LOST_CONNECTION, Answer, Phone, post
from tests.faults.plan import Fault, StreamPlan, plan_agent, plan_stream
from tests.faults.stage import NEVER, REDIS_ERRORS, Stage
from tests.rig.deployment import until

SETTINGS = {
    "LASTEVENT_PROVIDER_SILENCE_S": "3",
    "LASTEVENT_WORKER_DRAIN_S": "3",
    "LASTEVENT_DRAIN_S": "5",
    "LASTEVENT_LOG_LEVEL": "info",
}
ROOT = Path(__file__).resolve().parents[2]
LEDGER = "FAULTS_LEDGER"

TOOLS = Tools(
    gives={"charge": "charged", "look": "looked", "settle": "settled", "stamp": "stamped"},
    may_run_again=frozenset({"look"}),
    can_be_asked=frozenset({"settle"}),
)
"""Of acting.py."""

PAUSE_S = 0.3
"""A client whose request failed asks again after this long."""

TERMINAL_STATES = (b"done", b"error", b"cancelled")
READ_AT_ONCE = 100


@dataclass
class Options:
    seed: int
    seconds: float
    faults: Sequence[Fault]
    streams: int = 100
    workers: int = 3
    servers: int = 2
    agents: float = 0.3
    """The share of the streams that agents answer."""
    cancelled_agents: float = 0.1
    longest_s: float = 14.0
    provider_fails: float = 0.2
    settle_s: float = 90.0
    silence_limit_s: float = 10.0
    before: Path | None = None
    """The tree of another release, which every second worker and server runs."""


@dataclass
class Outcome:
    verdict: Verdict
    archived: Archived
    misread: list[str]
    deeds: Deeds
    crashes: list[str]
    injected: Counter[str]
    happened: list[tuple[float, str]]
    endings: Counter[str]
    counts: Counter[str]
    wires: Counter[str]
    """How often a provider spoke in each of plan.WIRES."""
    took_s: float

    @property
    def problems(self) -> list[str]:
        return [
            *map(str, self.verdict.findings),
            *self.archived.problems,
            *self.misread,
            *self.deeds.findings,
            *self.crashes,
        ]


@dataclass
class _Watched:
    """What came of the plans."""

    transcripts: list[Transcript] = field(default_factory=list)
    phones: list[Phone] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    plans: dict[str, StreamPlan] = field(default_factory=dict)


class Chaos:
    def __init__(self, folder: Path, options: Options) -> None:
        self.options = options
        self.folder = folder
        self.ledger = folder / "ledger"
        settings = {
            **SETTINGS,
            "LASTEVENT_ARCHIVE_URL": archive_url(folder),
            LEDGER: str(self.ledger),
            "PYTHONPATH": str(ROOT),  # for the app's processes, which import it
        }
        app = ("--app", "tests.faults.acting") if options.agents else ()
        parts = {"workers": options.workers, "servers": options.servers}
        self.stage = Stage(folder, **parts, settings=settings, app=app, before=options.before)
        self._watched = _Watched()
        self._began = 0.0

    async def run(self) -> Outcome:
        async with self.stage:
            if self.options.agents:  # till then they are unknown, which is the caller's mistake and no fault
                await until(self._agents_are_announced, "workers have announced their agents")
            self._began = time.time()
            generations = asyncio.create_task(self._generate())
            try:
                await self._inject()
                await self.stage.heal()
                await self._settle(generations)
            finally:
                generations.cancel()
                await asyncio.gather(generations, return_exceptions=True)
            streams = await self._read_streams()
        return self._judge(streams, await check_archive(self.folder, streams))

    # -- faults ----------------------------------------------------------------------------------------

    async def _inject(self) -> None:
        async with asyncio.TaskGroup() as faults:
            for fault in self.options.faults:
                await self._time_comes(fault.at_s)
                faults.create_task(self._perform(fault))
            await self._time_comes(self.options.seconds)

    async def _time_comes(self, at_s: float) -> None:
        """When the plan says so, whatever the state of anything: that is what a fault, or a caller, does."""
        await asyncio.sleep(max(0.0, self._began + at_s - time.time()))

    async def _perform(self, fault: Fault) -> None:
        try:
            await self.stage.perform(fault)
        except REDIS_ERRORS as error:
            self.stage.say(f"could not do {fault}: {error!r}")

    # -- generations -----------------------------------------------------------------------------------

    async def _generate(self) -> None:
        async with asyncio.TaskGroup() as slots:
            for slot in range(self.options.streams):
                slots.create_task(self._fill(slot))

    async def _fill(self, slot: int) -> None:
        """One generation after the other, as long as there are faults."""
        turn = 0
        while time.time() < self._began + self.options.seconds:
            await self._run_stream(self._plan(slot, turn))
            turn += 1

    def _plan(self, slot: int, turn: int) -> StreamPlan:
        some = self.options
        if slot < some.agents * some.streams:
            lengths = {"longest_s": some.longest_s, "cancelled": some.cancelled_agents}
            return plan_agent(some.seed, slot, turn, servers=some.servers, **lengths)
        lengths = {"longest_s": some.longest_s, "provider_fails": some.provider_fails}
        return plan_stream(some.seed, slot, turn, servers=some.servers, **lengths)

    async def _run_stream(self, plan: StreamPlan) -> None:
        sid = await self._create(plan)
        if sid is None:
            return
        self._watched.plans[sid] = plan
        phones = [Phone(sid, viewer, self.stage.ports) for viewer in plan.viewers]
        self._watched.phones += phones
        self._watched.transcripts += (phone.transcript for phone in phones)
        self.stage.watched.add(sid)
        try:
            async with asyncio.TaskGroup() as tasks:
                for phone in phones:
                    tasks.create_task(phone.watch())
                if plan.cancel_after_s is not None:
                    at_s = time.time() - self._began + plan.cancel_after_s
                    for port in self.stage.ports[: plan.cancels]:
                        tasks.create_task(self._cancel(sid, at_s, port))
        finally:
            self.stage.watched.discard(sid)
            self.stage.owners.pop(sid, None)

    async def _create(self, plan: StreamPlan) -> str | None:
        """The same request with the same key, until it is answered. None if that key's stream is gone."""
        rng = Random(plan.prompt)
        key = {"Idempotency-Key": plan.viewers[0].seed}
        answer, tries = await self._ask(lambda: rng.choice(self.stage.ports), "/v1/streams", plan.body, key)
        if answer.status in (404, 410):
            self._watched.counts["creations that vanished"] += 1
            return None
        if answer.status not in (200, 201):
            raise AssertionError(answer)
        sid: str = json.loads(answer.body)["id"]
        self.stage.history.created.setdefault(sid, time.time())
        if tries > 1:
            self.stage.history.asked_again.add(sid)
        return sid

    async def _cancel(self, sid: str, at_s: float, port: int) -> None:
        await self._time_comes(at_s)
        answer, _ = await self._ask(lambda: port, f"/v1/streams/{sid}/cancel", {})
        if answer.status == 200:  # of one that is gone the viewers will say whether it may be
            told = json.loads(answer.body)
            last, stopped_after = told["last_event_id"], told["stopped_after"]
            self._watched.told.append(Told(time.time(), sid, told["state"], last, stopped_after))

    async def _ask(
        self, port: Callable[[], int], path: str, body: dict[str, object], headers: dict[str, str] | None = None
    ) -> tuple[Answer, int]:
        """Again and again, as clients do, until the answer is neither lost nor a 5xx. Also: at which try."""
        answers: list[Answer | None] = []

        async def is_answered() -> bool:
            answers.append(await self._ask_once(port(), path, body, headers))
            return answers[-1] is not None and answers[-1].status < 500

        await until(is_answered, f"POST {path} is answered", NEVER, every_s=PAUSE_S)
        assert answers[-1]
        return answers[-1], len(answers)

    async def _ask_once(
        self, port: int, path: str, body: dict[str, object], headers: dict[str, str] | None
    ) -> Answer | None:
        try:
            answer = await post(port, path, body, headers)
        except LOST_CONNECTION:
            return None
        self._watched.counts[f"POST answers {answer.status}"] += 1
        if answer.status == 500:
            self.stage.crashes.append(f"POST {path} was answered 500: {answer.body!r}")
        return answer if answer.status >= 400 or answer.body.endswith(b"}") else None  # cut within its body

    # -- the end ---------------------------------------------------------------------------------------

    async def _settle(self, generations: asyncio.Task[None]) -> None:
        """Let everything finish. What has not by then is for the checker to find."""
        await asyncio.wait([generations], timeout=self.options.settle_s)
        if generations.done():
            generations.result()
        with suppress(TimeoutError):
            await until(self._all_have_ended, "all streams have ended", self.options.settle_s)
            await until(self._all_are_archived, "all streams are archived", self.options.settle_s)

    async def _all_have_ended(self) -> bool:
        """Also those nobody watches: their creation was never answered, or their viewers were told they were gone."""
        async with self.stage.admin(limit_s=10) as client:
            keys = [key async for key in client.scan_iter("le:{*}:meta", count=1000)]
            async with client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hget(key, "state")
                return all(state in TERMINAL_STATES for state in await pipe.execute())

    async def _agents_are_announced(self) -> bool:
        async with self.stage.admin() as client:
            return bool(await client.exists("le:agents"))

    async def _all_are_archived(self) -> bool:
        async with self.stage.admin(limit_s=10) as client:
            waiting = [await client.zcard(key) for key in ("le:leases", "le:unarchived")]
        return not any(waiting)

    async def _read_streams(self) -> list[FinalStream]:
        async with self.stage.admin(limit_s=30) as client:
            keys = {key async for key in client.scan_iter("le:{*}:*", count=1000)}
            sids = sorted({key.split(b"}")[0].split(b"{")[1].decode() for key in keys})
            streams: list[FinalStream] = []
            for start in range(0, len(sids), READ_AT_ONCE):
                some = sids[start : start + READ_AT_ONCE]
                async with client.pipeline(transaction=False) as pipe:
                    for sid in some:
                        pipe.xrange(f"le:{{{sid}}}:log")
                        pipe.hmget(f"le:{{{sid}}}:meta", "state", "tail")
                    answers = await pipe.execute()
                logs, metas = answers[::2], answers[1::2]
                streams += [_stream(*found) for found in zip(some, logs, metas, strict=True)]
        return streams

    def _judge(self, streams: list[FinalStream], archived: Archived) -> Outcome:
        stage, watched = self.stage, self._watched
        run = Run(streams, watched.transcripts, watched.told, stage.history)
        verdict = check(run, silence_limit_s=self.options.silence_limit_s)
        counts = Counter(watched.counts)
        for phone in watched.phones:
            counts.update(phone.counts)
        counts["viewers"] = len(watched.transcripts)
        counts["log entries"] = sum(len(stream.entries) for stream in streams)
        endings = Counter(_ending(stream) for stream in streams)
        outcome = Outcome(
            verdict=verdict,
            archived=archived,
            misread=list(misread(streams, watched.plans)),
            deeds=self._deeds(streams),
            crashes=stage.crashes,
            injected=stage.injected,
            happened=stage.happened,
            endings=endings,
            counts=counts,
            wires=Counter(plan.wire for plan in watched.plans.values() if plan.wire),
            took_s=time.time() - self._began,
        )
        if outcome.problems:
            self._keep(run, outcome)
        return outcome

    def _keep(self, run: Run, outcome: Outcome) -> None:
        """What an analysis needs of the streams that something was found of, beside the processes' own logs."""
        kept = self.folder / "findings"
        kept.mkdir()
        (kept / "findings.txt").write_text("\n".join(outcome.problems) + "\n")
        (kept / "faults.txt").write_text("".join(f"{at:.3f} {what}\n" for at, what in outcome.happened))
        for sid in {stream.sid for stream in run.streams}:
            lines = [problem for problem in outcome.problems if sid in problem]
            if not lines:
                continue
            lines += [f"created answered at {self.stage.history.created.get(sid)}"]
            lines += [f"told {told}" for told in run.told if told.sid == sid]
            lines += [f"meta {line}" for line in self.stage.pens.get(sid, [])]
            for stream in run.streams:
                if stream.sid == sid:
                    lines += [f"state {stream.state} tail {stream.tail}", *(f"log {entry}" for entry in stream.entries)]
            for transcript in run.transcripts:
                if transcript.sid == sid:
                    lines += [f"viewer {transcript.viewer} finished={transcript.finished}"]
                    lines += [f"  {item}" for item in transcript.items]
            (kept / f"{sid}.txt").write_text("\n".join(lines) + "\n")

    def _deeds(self, streams: list[FinalStream]) -> Deeds:
        plans = {sid: plan.acts for sid, plan in self._watched.plans.items() if plan.acts}
        acted = [
            (Acted(stream.sid, plan.agent, plan.steps, plan.children), stream.entries)
            for stream in streams
            if (plan := plans.get(stream.sid))
        ]
        lost = [(loss.back_to, loss.at) for loss in self.stage.history.losses]
        return judge(acted, read_ledger(self.ledger), TOOLS, lost=lost)


def _stream(sid: str, log: list[tuple[bytes, dict[bytes, bytes]]], meta: list[bytes | None]) -> FinalStream:
    entries = [
        Entry(int(id.split(b"-")[0]), fields[b"k"].decode(), fields[b"d"].decode(), int(fields[b"t"]))
        for id, fields in log
    ]
    state, tail = meta
    return FinalStream(sid, entries, state.decode() if state else None, int(tail) if tail else None)


def _ending(stream: FinalStream) -> str:
    if not stream.entries:
        return "vanished log"
    last = stream.entries[-1]
    if last.kind != "error":
        return last.kind
    return f"error {json.loads(last.data)['code']}"
