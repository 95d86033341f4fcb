"""archive: finished streams into the archive and back out, on each database.

1,000 streams of 500 events are read by HTTP, archived by a worker, taken out of Redis, and read again: every byte must
be the same. Then everything is verified. Then, in an archive of 100,000 streams, every filter of a listing is asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from typing import NamedTuple

import httpx
import orjson
import sqlalchemy as sa
from redis.asyncio import Redis

from bench.contestants.lastevent import start_server
from bench.meter import CpuMeter
from bench.processes import clean_environment, start, start_redis, temporary_folder
from bench.scenario import Options
from bench.table import Table, number
from bench.tree import REPOSITORY
from broker.archive.database import Database
from broker.archive.heads import open_heads
from broker.archive.signing import PUBLIC_NAME, load_or_make_signer
from broker.archive.writer import ArchiveWriter, finished
from broker.log.event import Event, encode_data
from broker.log.meta import Meta, new_claim_id, new_sid
from broker.log.steps import Append, Unsent
from broker.log.stream_log import StreamLog
from tests.archive.archive import NOW_MS, meta_of
from tests.archive.postgres import USER, connect, postgres_binaries, running_postgres
from tests.rig.streams import new_stream

STREAMS, STREAMS_SHORT = 1000, 20
EVENTS, EVENTS_SHORT = 500, 50
LISTED, LISTED_SHORT = 100_000, 500
ADDED_AT_ONCE = 1000
USERS, SESSIONS, MODELS, STATES = 1000, 20_000, 5, ("done", "done", "done", "done", "error", "cancelled")
ASKED = 21
PROSE = re.findall(r"\s*\S+", "\n".join(topics.values()))
"""A language model's answer is prose; this much of it comes with Python. A word an event, as models give them."""


class Where(NamedTuple):
    name: str
    url: str
    folder: Path


def archive(options: Options) -> list[Table]:
    moved, listed = [], []
    failures: list[str] = []
    with ExitStack() as stack:
        for where in _databases(stack):
            print(f"  … {where.name}: moving", file=sys.stderr)
            moved.append(asyncio.run(_move(where, options, failures)))
        for where in _databases(stack):
            print(f"  … {where.name}: listing", file=sys.stderr)
            listed.append(asyncio.run(_list(where, options)))
    streams, events = _counts(options)
    notes = ["Read: by HTTP, every event, one connection. KB: the whole database with its indexes, beside NDJSON."]
    columns = (
        "database",
        "archived/s",
        "worker ms each",
        "read/s, Redis",
        "archive",
        "KB each",
        "NDJSON KB",
        "verify s",
    )
    filters = [name for name, _ in listed[0][1]]
    rows = [[name, *(number(ms) for _, ms in asked)] for name, asked in listed]
    total = LISTED_SHORT if options.short else LISTED
    return [
        Table(f"archive: {streams:,} streams of {events} events", columns, moved, notes, failures),
        Table(
            f"archive: a page of 50 of {total:,} archived streams, ms at the median",
            ("database", *filters),
            rows,
            [f"By HTTP, one caller, {ASKED} different values each."],
        ),
    ]


def _counts(options: Options) -> tuple[int, int]:
    return (STREAMS_SHORT, EVENTS_SHORT) if options.short else (STREAMS, EVENTS)


def _databases(stack: ExitStack) -> Iterator[Where]:
    folder = temporary_folder(stack)
    yield Where("SQLite", f"sqlite:///{folder}/archive.db", folder)
    if binaries := postgres_binaries():
        socket = stack.enter_context(running_postgres(binaries))
        name = f"bench_{new_sid()}"
        with connect(socket) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        yield Where("PostgreSQL", f"postgresql:///{name}?host={socket}&user={USER}", temporary_folder(stack))


def _settings(where: Where, redis_url: str) -> dict[str, str]:
    load_or_make_signer(where.folder / "seal-key.pem")
    return {
        "LASTEVENT_REDIS_URL": redis_url,
        "LASTEVENT_ARCHIVE_URL": where.url,
        "LASTEVENT_ARCHIVE_AFTER_S": "0",
        "LASTEVENT_SEAL_KEY": str(where.folder / "seal-key.pem"),
        "LASTEVENT_SEAL_PUBLIC_KEYS": str(where.folder / PUBLIC_NAME),
        "LASTEVENT_SEAL_HEADS": str(where.folder / "heads.json"),
    }


# -- in and out ----------------------------------------------------------------------------------------------


async def _move(where: Where, options: Options, failures: list[str]) -> list[str]:
    streams, events = _counts(options)
    with ExitStack() as stack:
        _, redis_port = start_redis(stack)
        redis_url = f"redis://127.0.0.1:{redis_port}"
        settings = _settings(where, redis_url)
        _, port = start_server(stack, redis_url, **settings)
        redis = Redis.from_url(redis_url)
        log = StreamLog(redis, is_archived=True)
        sids = [await _finish(log, at, events) for at in range(streams)]
        before, read_s = await _read_all(port, sids)
        worker = start(stack, [sys.executable, "-m", "worker"], LASTEVENT_STANDIN="1", **settings)
        took_s, cpu_ms = await _archived(redis, log, sids, worker)
        await redis.flushall()
        after, read_again_s = await _read_all(port, sids)
        failures += [f"{where.name}: {sid} reads differently" for sid in sids if before[sid] != after[sid]]
        kb, ndjson_kb = await _size_kb(where) / streams, await _ndjson_kb(port, sids[0])
        await redis.aclose()
    verify_s, said = _verify(settings)
    if not said.endswith("nothing has changed"):
        failures.append(f"{where.name}: verify says {said}")
    rates = (streams / took_s, cpu_ms / streams, streams / read_s, streams / read_again_s)
    return [where.name, *map(number, (*rates, kb, ndjson_kb, verify_s))]


async def _finish(log: StreamLog, at: int, events: int) -> str:
    new = new_stream(tenant="default")
    await log.create(new)
    claimed = await log.claim(new.sid, new_claim_id(), "bench")
    words = islice(cycle(PROSE), at * 997 % len(PROSE), None)
    texts = [encode_data({"text": word}) for word in islice(words, events - 2)]
    jitter = random.Random(at)
    times = [NOW_MS + 20 * n + jitter.randrange(20) for n in range(len(texts))]
    unsent = [Unsent("text_delta", text, t) for text, t in zip(texts, times, strict=True)]
    await log.append(Append(new.sid, claimed.pen, claimed.pen.base, [*unsent, Unsent("done", b"{}")]))
    return new.sid


async def _read_all(port: int, sids: list[str]) -> tuple[dict[str, str], float]:
    """Each stream's /events, digested, but for the jittered `retry:`; and how long that took."""
    digests = {}
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http:
        for sid in sids:
            body = (await http.get(f"/v1/streams/{sid}/events")).content
            digests[sid] = hashlib.sha256(body.partition(b"\n")[2]).hexdigest()
    return digests, time.monotonic() - began


async def _archived(redis: Redis, log: StreamLog, sids: list[str], worker: int) -> tuple[float, float]:
    """Until all are archived: seconds from the first one's, and the worker's CPU (ms)."""
    meter = CpuMeter({"worker": worker})
    first = None
    while True:
        async with redis.pipeline(transaction=False) as pipe:
            for sid in sids:
                pipe.hexists(log.keys.stream(sid).meta, "archived")
            count = sum(await pipe.execute())
        if count and first is None:
            first, meter = (time.monotonic(), count), CpuMeter({"worker": worker})
        if count == len(sids):
            break
        await asyncio.sleep(0.02)
    began, had = first or (0.0, 0)
    share = len(sids) / max(1, len(sids) - had)
    return (time.monotonic() - began) * share, meter.spent_us()["worker"] / 1000 * share


async def _size_kb(where: Where) -> float:
    if where.name == "SQLite":
        database = Database(where.url)
        async with database.writing() as connection:
            pass
        engine = await database.prepared()
        async with engine.connect() as connection:
            pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
            size = (await connection.exec_driver_sql("PRAGMA page_size")).scalar_one()
        await database.aclose()
        return pages * size / 1000
    database = Database(where.url)
    async with database.reading() as connection:
        tables = "pg_total_relation_size('streams') + pg_total_relation_size('seals') + pg_total_relation_size('views')"
        size = (await connection.execute(sa.text(f"SELECT {tables}"))).scalar_one()
    await database.aclose()
    return size / 1000


async def _ndjson_kb(port: int, sid: str) -> float:
    async with httpx.AsyncClient(trust_env=False) as http:
        lines = (await http.get(f"http://127.0.0.1:{port}/v1/streams/{sid}/export")).content.splitlines()
    return sum(len(line) + 1 for line in lines if "id" in orjson.loads(line)) / 1000


def _verify(settings: dict[str, str]) -> tuple[float, str]:
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "broker", "verify", "--all"],
        env=clean_environment() | settings,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return time.monotonic() - began, (ended.stdout + ended.stderr).strip()


# -- listings --------------------------------------------------------------------------------------------------


async def _list(where: Where, options: Options) -> tuple[str, list[tuple[str, float]]]:
    total = LISTED_SHORT if options.short else LISTED
    await _fill(where, total)
    with ExitStack() as stack:
        _, redis_port = start_redis(stack)
        redis_url = f"redis://127.0.0.1:{redis_port}"
        _, port = start_server(stack, redis_url, **_settings(where, redis_url))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http:
            return where.name, [(name, await _ask(http, values)) for name, values in _filters(total).items()]


async def _ask(http: httpx.AsyncClient, values: list[dict[str, str]]) -> float:
    times = []
    for params in values:
        began = time.monotonic()
        answer = await http.get("/v1/streams", params=params)
        times.append((time.monotonic() - began) * 1000)
        assert answer.status_code == 200, answer.text
    return median(times)


def _filters(total: int) -> dict[str, list[dict[str, str]]]:
    many = range(ASKED)
    moments = [f"{(NOW_MS - 1000 * (total - total // ASKED * at)) / 1000:.3f}" for at in many]
    users, sessions = ([f"{name}-{at * 37}" for at in many] for name in ("user", "session"))
    return {
        "none": [{} for _ in many],
        "before": [{"created_before": moment} for moment in moments],
        "session": [{"session_id": session} for session in sessions],
        "user": [{"user_id": user} for user in users],
        "model": [{"model": f"anthropic/model-{at % MODELS}"} for at in many],
        "state": [{"state": STATES[at % len(STATES)]} for at in many],
        "user + state": [{"user_id": user, "state": "error"} for user in users],
        "model + state": [{"model": f"anthropic/model-{at % MODELS}", "state": "cancelled"} for at in many],
        "nobody's": [{"user_id": f"nobody-{at}"} for at in many],
        "no such pair": [{"model": "anthropic/model-0", "state": "running"} for _ in many],
    } | {"deep page": [{"created_before": moment, "state": "done"} for moment in moments]}


async def _fill(where: Where, total: int) -> None:
    database = Database(where.url)
    signer = load_or_make_signer(where.folder / "seal-key.pem")
    writer = ArchiveWriter(database, signer, open_heads(str(where.folder / "heads.json")))
    log = [Event(1, "queued", b"{}", NOW_MS), Event(2, "done", b"{}", NOW_MS)]
    for start_at in range(0, total, ADDED_AT_ONCE):
        batch = range(start_at, min(total, start_at + ADDED_AT_ONCE))
        await writer.add([finished(new_sid(), _meta(at, total), log) for at in batch], NOW_MS)
    async with database.writing() as connection:
        await connection.execute(sa.text("ANALYZE"))
    await database.aclose()


def _meta(at: int, total: int) -> Meta:
    return meta_of(
        "",
        2,
        tenant="default",
        session=f"session-{at % SESSIONS}",
        user=f"user-{at % USERS}",
        model=f"anthropic/model-{at % MODELS}",
        state=STATES[at % len(STATES)],
        created=str(NOW_MS - 1000 * (total - at)),
    )
