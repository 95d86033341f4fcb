"""tenants: what one tenant notices of another that is at each of its limits, or that has 10,000 generations queued.

Two tenants, each with a key, on one Valkey, one server and one worker (whose stand-in answers at once); with two cores
or more these have a core for themselves, and all that loads and measures has the others. *The neighbour* asks without
end for what it may not have, at the pace that the table tells. *The other* has viewers of streams that are written at
an even pace (a delay is from the publisher's hand to the viewer's read), and starts one generation after another (from
POST to its first text).

Each round measures the other alone and beside the neighbour, one round in this order, the next in the opposite one. A
queue of 10,000 cannot be taken away again: there, each round has a deployment of its own. Ratios are taken within a
round, and their median must not be above 1.5.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median, quantiles
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx2

from bench.against import ratio_of
from bench.contestants.lastevent import start_server
from bench.contestants.side import REDIS, SERVER, open_streams
from bench.generating import WORKER
from bench.load.agent import Agent, python_agent
from bench.meter import CpuMeter
from bench.processes import start, start_redis
from bench.scenario import Options
from bench.table import Table, number, p99
from broker.log.keys import Keys
from broker.log.meta import NewStream, new_claim_id, new_sid
from broker.log.queue import connect_queue, enqueue
from broker.log.stream_log import StreamLog
from broker.store.connect import connect
from broker.tenants.keyring import new_key
from broker.tenants.limits import TenantLimits
from broker.tenants.scopes import PRESETS
from broker.tenants.stored_keys import StoredKeys

ROUNDS = 5
MEASURED_S, MEASURED_S_SHORT = 2.5, 0.3
QUEUED, QUEUED_SHORT = 10_000, 200
MOST_RATIO = 1.5

STREAMS, EVENTS_PER_S = 40, 10.0
"""Of the other tenant, each with a viewer; a full server would have delays of its own."""
PUBLISHED_S = 600.0

WARM_UP = 10
PAUSE_S = 0.01, 0.03
"""Between two generations of the other. Evenly spaced ones might always meet the same moment of a loop."""

CONCURRENCY = 50
PER_S = 100.0
"""Of the neighbour's requests: 6,000 a minute, ten times what a tenant may start unless it has limits of its own."""

OTHER = "other"
AT_ONCE = "[[tokens=3 rate=0 ttft_ms=0]]"
AT_A_PACE = "[[tokens=100 rate=10 ttft_ms=0]]"
"""Ten seconds: as many start each second as end, which is a tenth of those that run."""
LONG_LEASE_S = 3600.0

SETTINGS = {"LASTEVENT_TRUSTED_PROXIES": "127.0.0.0/8"}
"""So that X-Forwarded-For gives the neighbour an address that is counted."""


# -- what is running -----------------------------------------------------------------------------------


class Site:
    """A deployment, the other's viewers connected, its streams being written."""

    def __init__(self, stack: ExitStack, limits: Mapping[str, Mapping[str, int]]) -> None:
        """`limits`: tenant → what is set for it. Each gets a key, and so does the other."""
        with on_cores_of_the_product():
            redis_pid, self.redis_port = start_redis(stack)
        self.keys: dict[str, str] = {}
        asyncio.run(self._let_in({OTHER: {"creations_per_minute": 10**6}, **limits}))
        with on_cores_of_the_product():
            server_pid, self.port = start_server(stack, self.redis_url, **SETTINGS)
        self.parts = {REDIS: redis_pid, SERVER: server_pid}
        argv = [sys.executable, "-m", "worker", "--concurrency", str(CONCURRENCY)]
        ours = {"LASTEVENT_REDIS_URL": self.redis_url, "LASTEVENT_STANDIN": "1", "LASTEVENT_WORKER_DRAIN_S": "1"}
        with on_cores_of_the_product():
            self.parts[WORKER] = start(stack, argv, **ours)
        publishers, paths = open_streams(stack, "lastevent", f"{self.redis_port}/{OTHER}", STREAMS)
        self.viewers = python_agent(stack, "bench.load.viewers")
        key = self.keys[OTHER]
        self.viewers.ask("connect", port=self.port, paths=paths, each=1, first_event_id=2, key=key, timed=1)
        publishers[0].ask("go", rate=EVENTS_PER_S, seconds=PUBLISHED_S)
        self.warm_up()

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis_port}"

    async def _let_in(self, tenants: Mapping[str, Mapping[str, int]]) -> None:
        redis, names = connect(self.redis_url), Keys()
        stored = StoredKeys(redis, names.api_keys, names.api_keys_changed)
        for tenant, limits in tenants.items():
            key, self.keys[tenant] = new_key(tenant, PRESETS["backend"])
            await stored.add(key)
            await TenantLimits(redis, names.limits).set(tenant, limits)
        await redis.aclose()

    def warm_up(self) -> None:
        for _ in range(WARM_UP):
            self.first_text_ms()

    def first_text_ms(self) -> float:
        """From the other's POST to its first text; the generation is read to its end."""
        body, headers = json.dumps({"prompt": AT_ONCE}), "Accept: text/event-stream\r\nConnection: close\r\n"
        asked = request("POST", "/v1/streams", self.keys[OTHER], body, headers)
        began_s = time.perf_counter()
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(asked.encode())
            received = b""
            while b"event: text_delta" not in received:
                if not (some := connection.recv(65536)):
                    raise SystemExit(f"no text came: {received!r}")
                received += some
            took_ms = (time.perf_counter() - began_s) * 1000
            while connection.recv(65536):
                pass
        return took_ms


def request(method: str, path: str, credential: str, body: str = "", headers: str = "") -> str:
    content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {credential}\r\n"
        f"{headers}{content}\r\n{body}"
    )


@contextmanager
def on_cores_of_the_product() -> Iterator[None]:
    """What is started here has one core, and this process with all that it starts later has the others."""
    cores = sorted(os.sched_getaffinity(0) | _CORES_OF_THE_PRODUCT)
    if len(cores) < 2:
        yield
        return
    _CORES_OF_THE_PRODUCT.add(cores[0])
    os.sched_setaffinity(0, _CORES_OF_THE_PRODUCT)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores[1:])


_CORES_OF_THE_PRODUCT: set[int] = set()


# -- a measurement -------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """Of the other tenant, in one measurement."""

    text_ms: float
    """Median."""
    text_p95_ms: float
    delivery_p99_ms: float
    busy: float
    """Of a core: server, worker and Redis together."""


def measure(site: Site, seconds: float) -> Sample:
    site.viewers.ask("begin")
    texts: list[float] = []
    meter, began_s = CpuMeter(site.parts), time.monotonic()
    until_s = began_s + seconds
    while time.monotonic() < until_s or len(texts) < 2:
        texts.append(site.first_text_ms())
        time.sleep(random.uniform(*PAUSE_S))
    busy = sum(meter.spent_us().values()) / 1e6 / (time.monotonic() - began_s)
    delays_ms = [us / 1000 for us in site.viewers.ask("end")["delays_us"]]
    p95 = quantiles(texts, n=20, method="inclusive")[-1]
    return Sample(median(texts), p95, p99(delays_ms), busy)


class Measured(NamedTuple):
    alone: list[Sample]
    beside: list[Sample]


COLUMNS = (
    *("the neighbour", "asks/s", "first text alone, ms", "beside", "ratio", "least", "greatest"),
    *("ratio of p95", "viewers' p99 alone, ms", "beside", "ratio", "least", "greatest", "busy alone", "beside"),
)


def _row(name: str, asks: str, measured: Measured) -> list[str]:
    busy = [f"{median(sample.busy for sample in of):.0%}" for of in measured]
    return [name, asks, *_ratios(measured, TEXT), _ratio(measured, "text_p95_ms"), *_ratios(measured, VIEWERS), *busy]


TEXT, VIEWERS = "text_ms", "delivery_p99_ms"


def _ratios(measured: Measured, figure: str) -> list[str]:
    alone, beside = _figures(measured, figure)
    ratio = ratio_of(alone, beside)
    return [number(median(alone)), number(median(beside)), *(f"{value:.2f}" for value in ratio or ())]


def _ratio(measured: Measured, figure: str) -> str:
    return _ratios(measured, figure)[2]


def _figures(measured: Measured, figure: str) -> tuple[list[float], list[float]]:
    return [getattr(of, figure) for of in measured.alone], [getattr(of, figure) for of in measured.beside]


def _failures(name: str, measured: Measured) -> list[str]:
    told = {TEXT: "first text", VIEWERS: "viewers' p99"}
    ratios = {figure: ratio_of(*_figures(measured, figure)) for figure in told}
    return [
        f"{name}: another's {told[figure]} is {ratio.middle:.2f} times that of alone"
        for figure, ratio in ratios.items()
        if ratio and ratio.middle > MOST_RATIO
    ]


def tenants(options: Options) -> list[Table]:
    return [_at_limits(options), _with_a_queue(options)]


# -- at its limits -------------------------------------------------------------------------------------


class Asking(NamedTuple):
    requests: Sequence[str]
    held: Sequence[str] = ()
    """Connections that it has: as many as it may."""
    anew: bool = False
    """Each over a connection of its own."""


class Limit(NamedTuple):
    name: str
    asking: Callable[[Site, str], Asking]
    """By a tenant of this name."""
    limits: Mapping[str, int] = MappingProxyType({})
    """Its own."""


def _starts(site: Site, tenant: str) -> Asking:
    return Asking([request("POST", "/v1/streams", site.keys[tenant], json.dumps({"prompt": AT_ONCE}))])


def _external_starts(site: Site, tenant: str) -> Asking:
    return Asking([request("POST", "/v1/streams", site.keys[tenant], json.dumps({"producer": "external"}))])


def _viewers(site: Site, tenant: str) -> Asking:
    viewing = _viewing(asyncio.run(_quiet_stream(site, tenant)), site.keys[tenant])
    return Asking([viewing], [viewing] * VIEWERS_MOST, anew=True)


def _viewers_of_a_user(site: Site, tenant: str) -> Asking:
    """All that a user may have, with ten tokens; and as many more tokens as no token's own rate stops."""
    sid = asyncio.run(_quiet_stream(site, tenant))
    viewing = [_viewing(sid, token) for token in _tokens(site, tenant, sid, 210)]
    return Asking(viewing[10:], viewing[:10] * 5, anew=True)


def _viewers_of_a_token(site: Site, tenant: str) -> Asking:
    sid = asyncio.run(_quiet_stream(site, tenant))
    [token] = _tokens(site, tenant, sid, 1)
    return Asking([_viewing(sid, token)], [_viewing(sid, token)] * 5, anew=True)


def _texts(site: Site, tenant: str) -> Asking:
    sid = asyncio.run(_quiet_stream(site, tenant))
    [token] = _tokens(site, tenant, sid, 1)
    return Asking([request("GET", f"/v1/streams/{sid}/text", token)])


def _guesses(_: Site, tenant: str) -> Asking:
    """Of another key each time: none is known from the one before."""
    address = "X-Forwarded-For: 203.0.113.7\r\n"
    guessed = [new_key(tenant, PRESETS["backend"])[1] for _ in range(500)]
    return Asking([request("GET", f"/v1/streams/{new_sid()}", key, headers=address) for key in guessed])


VIEWERS_MOST = 50

LIMITS = (
    Limit("creations_per_minute=60", _starts, {"creations_per_minute": 60}),
    Limit("streams_running=20: external", _external_starts, {"streams_running": 20, "creations_per_minute": 10**6}),
    Limit(f"viewers={VIEWERS_MOST}", _viewers, {"viewers": VIEWERS_MOST}),
    Limit("viewers of a subject: 50", _viewers_of_a_user),
    Limit("viewers of a token: 5, connects_per_minute: 60", _viewers_of_a_token),
    Limit("connects_per_minute: 60, /text", _texts),
    Limit("unauthorized_per_minute: 60", _guesses),
)


async def _quiet_stream(site: Site, tenant: str) -> str:
    """One that somebody writes, who says nothing."""
    redis = connect(site.redis_url)
    log = StreamLog(redis, lease_s=LONG_LEASE_S)
    new = NewStream(tenant=tenant, session=tenant, model="bench/none")
    await log.create(new)
    await log.claim(new.sid, new_claim_id(), "bench")
    await redis.aclose()
    return new.sid


def _viewing(sid: str, credential: str) -> str:
    return request("GET", f"/v1/streams/{sid}/events", credential, headers="Accept: text/event-stream\r\n")


def _tokens(site: Site, tenant: str, sid: str, count: int) -> list[str]:
    """Of one user."""
    headers = {"Authorization": f"Bearer {site.keys[tenant]}"}
    with httpx2.Client(base_url=f"http://127.0.0.1:{site.port}", headers=headers, trust_env=False) as client:
        body = {"sub": "one", "streams": [sid]}
        return [client.post("/v1/tokens", json=body).raise_for_status().json()["token"] for _ in range(count)]


def _at_limits(options: Options) -> Table:
    rounds = 1 if options.short else options.rounds or ROUNDS
    seconds = MEASURED_S_SHORT if options.short else MEASURED_S
    measured = {limit.name: Measured([], []) for limit in LIMITS}
    answers: dict[str, Counter[str]] = {limit.name: Counter() for limit in LIMITS}
    asked_s = Counter[str]()
    with ExitStack() as stack:
        names = {limit.name: f"neighbour-{n}" for n, limit in enumerate(LIMITS)}
        site = Site(stack, {names[limit.name]: limit.limits for limit in LIMITS})
        neighbour = python_agent(stack, "bench.load.neighbour", str(site.port))
        asking = {limit.name: limit.asking(site, names[limit.name]) for limit in LIMITS}
        for round_ in range(rounds):
            print(f"  … tenants, round {round_ + 1}", file=sys.stderr)
            for name, of in measured.items():
                for is_alone in (True, False) if round_ % 2 == 0 else (False, True):
                    if is_alone:
                        of.alone.append(measure(site, seconds))
                    else:
                        sample, answer = _beside(site, neighbour, asking[name], seconds)
                        of.beside.append(sample)
                        answers[name].update(answer["answers"])
                        asked_s[name] += answer["seconds"]
    return Table(
        "tenants: one at each of its limits; what another notices",
        COLUMNS,
        [_row(name, number(answers[name].total() / asked_s[name]), of) for name, of in measured.items()],
        [
            f"Medians of {rounds} rounds of {seconds:g} s each, alone and beside; ratios: each round's own. At most "
            f"{MOST_RATIO:g}. Busy: server, worker and Redis, of a core.",
            *(f"Answers to {name}: {_counted(answers[name])}." for name in measured),
        ],
        [] if options.short else [failure for name, of in measured.items() for failure in _failures(name, of)],
    )


def _beside(site: Site, neighbour: Agent, asking: Asking, seconds: float) -> tuple[Sample, dict[str, Any]]:
    about = {"requests": asking.requests, "held": asking.held, "anew": asking.anew}
    neighbour.ask("begin", per_s=PER_S, **about)
    sample = measure(site, seconds)
    return sample, neighbour.ask("end")


def _counted(answers: Counter[str]) -> str:
    return ", ".join(f"{count:,} × {answer}" for answer, count in answers.most_common())


# -- with a queue --------------------------------------------------------------------------------------


class Backlog(NamedTuple):
    name: str
    prompt: str
    limits: Mapping[str, int] = MappingProxyType({})


BACKLOGS = (
    Backlog("of 10 s each", AT_A_PACE),
    Backlog("of 10 s each, streams_running=20, weight=10", AT_A_PACE, {"streams_running": 20, "weight": 10}),
    Backlog("that end at once", AT_ONCE),
)
NEIGHBOUR = "neighbour"


def _with_a_queue(options: Options) -> Table:
    rounds = 1 if options.short else options.rounds or ROUNDS
    seconds = MEASURED_S_SHORT if options.short else MEASURED_S
    queued = QUEUED_SHORT if options.short else QUEUED
    measured = {backlog.name: Measured([], []) for backlog in BACKLOGS}
    left: dict[str, list[int]] = {backlog.name: [] for backlog in BACKLOGS}
    for round_ in range(rounds):
        for backlog in BACKLOGS:
            print(f"  … tenants, round {round_ + 1}: {queued:,} queued, {backlog.name}", file=sys.stderr)
            with ExitStack() as stack:
                site = Site(stack, {NEIGHBOUR: backlog.limits})
                measured[backlog.name].alone.append(measure(site, seconds))
                asyncio.run(_queue(site, backlog, queued))
                measured[backlog.name].beside.append(measure(site, seconds))
                left[backlog.name].append(asyncio.run(_still_waiting(site)))
    return Table(
        f"tenants: one has {queued:,} generations queued; what another notices",
        COLUMNS,
        [_row(name, "–", of) for name, of in measured.items()],
        [
            f"Medians of {rounds} rounds of {seconds:g} s each; ratios: each round's own. At most {MOST_RATIO:g}. The "
            f"worker runs {CONCURRENCY} generations at a time.",
            *(f"Queued {name}: {median(left[name]):,.0f} still waited after the measurement." for name in left),
        ],
        [] if options.short else [failure for name, of in measured.items() for failure in _failures(name, of)],
    )


async def _queue(site: Site, backlog: Backlog, count: int) -> None:
    """As the server does for a POST, without its part."""
    redis, keys = connect(site.redis_url), Keys()
    log, queue, slots = StreamLog(redis), connect_queue(site.redis_url, keys, connections=16), asyncio.Semaphore(16)
    request = {"messages": [{"role": "user", "content": backlog.prompt}], "max_tokens": 1024}
    weight = backlog.limits.get("weight", 1)

    async def one() -> None:
        async with slots:
            new = NewStream(tenant=NEIGHBOUR, session="s", model="anthropic/claude-bench", request=request)
            await log.create(new)
            await enqueue(queue, keys, new.sid, tenant=NEIGHBOUR, weight=weight)

    await asyncio.gather(*(one() for _ in range(count)))
    await queue.aclose(close_connection_pool=True)
    await redis.aclose()


async def _still_waiting(site: Site) -> int:
    redis, keys = connect(site.redis_url), Keys()
    waiting = await redis.zcard(keys.jobs_of(None)) + await redis.zcard(keys.parked(NEIGHBOUR))
    await redis.aclose()
    return int(waiting)
