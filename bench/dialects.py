"""dialects: viewers of each dialect beside as many native ones, in turn, round by round; and what it costs to resume.

What must hold (issue 30): 1,000 viewers of one stream at most at 1.3 × the native CPU an event; a resume at event 9,000
of 10,000 at most at 3 ×, from the second viewer on.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple
from uuid import UUID

from bench.catch_up import write_stream
from bench.contestants.lastevent import start_lastevent, start_server
from bench.contestants.side import SERVER, Shape
from bench.delivery import Sample, watch
from bench.load.agent import python_agent
from bench.meter import CpuMeter
from bench.processes import start_redis
from bench.relay import MEASURED_S, WARM_UP_S
from bench.scenario import Options
from bench.table import Table, number

AGENT, SINK = "bench.load.dialect_viewers", "lastevent_words"
ROUNDS = 3
SHAPE, SHORT = Shape(1, 1000, 20), Shape(1, 20, 20)
EVENTS, EVENTS_SHORT = 10_000, 200
RESUMES, RESUMES_SHORT = 20, 2

NATIVE = "native"


class Way(NamedTuple):
    """How a stream is followed in a form. `path`: by its id. `resume`: the request's path and headers, by the id and
    the frame behind which it goes on.
    """

    path: Callable[[str], str]
    resume: Callable[[str, bytes], tuple[str, Mapping[str, str]]]


def _langgraph(sid: str) -> str:
    return f"/langgraph/threads/{sid}/runs/{UUID(sid)}/stream?stream_mode=messages-tuple"


def _response(sid: str, number: str = "") -> str:
    after = f"&starting_after={number}" if number else ""
    return f"/v1/responses/resp_{sid}?stream=true{after}"


def _durable(sid: str, behind: int = 0) -> str:
    return f"/v1/ds/events/{sid}?offset={behind:016d}_{0:016d}&live=sse"


def _by_id(path: Callable[[str], str]) -> Way:
    def resume(sid: str, frame: bytes) -> tuple[str, Mapping[str, str]]:
        return path(sid), {"Last-Event-ID": _found(rb"id: ([0-9-]+)", frame)}

    return Way(path, resume)


def _found(pattern: bytes, frame: bytes) -> str:
    found = re.search(pattern, frame)
    assert found, frame
    return found[1].decode()


WAYS: dict[str, Way] = {
    NATIVE: _by_id(lambda sid: f"/v1/streams/{sid}/events"),
    "responses": Way(
        lambda sid: _response(sid), lambda sid, frame: (_response(sid, _found(rb'_number":([0-9]+)', frame)), {})
    ),
    "ag-ui": _by_id(lambda sid: f"/v1/ag-ui?runId={sid}&offset=-1"),
    "langgraph": _by_id(_langgraph),
    "durable streams": Way(
        lambda sid: _durable(sid), lambda sid, frame: (_durable(sid, int(_found(rb'"id":([0-9]+)', frame))), {})
    ),
}
"""Those with a cursor by which a frame is found again."""

CHUNKS = "ai-sdk-workflow"


def _chunk_path(sid: str, start: int = 0) -> str:
    return f"/v1/ai-sdk/workflow/{sid}/stream?startIndex={start}"


def dialects(options: Options) -> list[Table]:
    rounds = 1 if options.short else options.rounds or ROUNDS
    return [_fan_out(options, rounds), _resume(options, rounds)]


def _fan_out(options: Options, rounds: int) -> Table:
    shape = SHORT if options.short else SHAPE
    paths = {name: way.path for name, way in WAYS.items()} | {CHUNKS: _chunk_path}
    samples: dict[str, list[Sample]] = {name: [] for name in paths}
    failures = []
    for round_ in range(rounds):
        for name in list(paths) if round_ % 2 == 0 else list(paths)[::-1]:
            print(f"  … {shape.viewers:,} viewers, round {round_ + 1}: {name}", file=sys.stderr)
            with ExitStack() as stack:
                side = start_lastevent(stack, shape, sink=SINK)
                viewers = python_agent(stack, AGENT)
                sids = [path.split("/")[3] for path in side.paths]
                viewers.ask("connect", port=side.port, paths=list(map(paths[name], sids)), each=shape.viewers_each)
                warm_up_s, seconds = (0.5, 1.0) if options.short else (WARM_UP_S, MEASURED_S)
                sample = watch(side, [viewers], shape, warm_up_s=warm_up_s, seconds=seconds)
            samples[name].append(sample)
            if wrong := sample.missing + sample.doubled:
                failures.append(f"{name}: viewers miss, or have twice, {wrong} events")
    rows = []
    for name, of in samples.items():
        ratios = [one.cpu_us[SERVER] / native.cpu_us[SERVER] for one, native in zip(of, samples[NATIVE], strict=True)]
        p99 = number(median(one.p99_ms for one in of))
        rows.append([name, number(median(one.cpu_us[SERVER] for one in of)), f"{median(ratios):.2f}", p99])
    title = f"dialects: {shape.viewers:,} viewers of one stream, {shape.events_per_s:g} events/s, medians of {rounds}"
    return Table(title, ("form", "server µs/event", "× native", "p99 ms"), rows, failures=failures)


def _resume(options: Options, rounds: int) -> Table:
    events = EVENTS_SHORT if options.short else EVENTS
    resumes = RESUMES_SHORT if options.short else RESUMES
    words = [f" word {n}" for n in range(events)]
    behind = f" word {events * 9 // 10}".encode()
    ms: dict[str, list[float]] = {}
    first: dict[str, float] = {}
    failures = []
    with ExitStack() as stack:
        _, redis_port = start_redis(stack)
        redis_url = f"redis://127.0.0.1:{redis_port}"
        server_pid, port = start_server(stack, redis_url, LASTEVENT_CONNECTS_PER_MINUTE="1000000")
        sid = asyncio.run(write_stream(redis_url, words))
        asked: dict[str, tuple[str, Mapping[str, str]]] = {}
        for name, way in WAYS.items():
            asked[name] = way.resume(sid, _frame(_read(port, way.path(sid)), behind))
        chunks = [frame for frame in _read(port, _chunk_path(sid)).split(b"\n\n") if b"data: {" in frame]
        at = next(n for n, frame in enumerate(chunks) if behind + b'"' in frame)
        asked[CHUNKS] = _chunk_path(sid, at + 1), {}
        for round_ in range(rounds):
            for name in list(asked) if round_ % 2 == 0 else list(asked)[::-1]:
                meter = CpuMeter({SERVER: server_pid})
                for _ in range(resumes):
                    rest = _read(port, *asked[name])
                    if rest.count(b" word ") < events // 10 - 1 or behind + b'"' in rest.split(b"\n\n")[0]:
                        failures.append(f"{name}: a resume does not begin behind its cursor")
                ms.setdefault(name, []).append(meter.spent_us()[SERVER] / 1000 / resumes)
        # What the first one pays: another server, which has folded nothing.
        for name in asked:
            pid, other = start_server(stack, redis_url)
            _read(other, "/readyz")
            meter = CpuMeter({SERVER: pid})
            _read(other, *asked[name])
            first[name] = meter.spent_us()[SERVER] / 1000
    rows = []
    for name, of in ms.items():
        ratios = [one / native for one, native in zip(of, ms[NATIVE], strict=True)]
        rows.append([name, number(median(of)), f"{median(ratios):.2f}", number(first[name])])
    title = f"dialects: resumed at event {events * 9 // 10:,} of {events:,}, CPU of the server, medians of {rounds}"
    return Table(title, ("form", "ms", "× native", "first of a server, ms"), rows, failures=failures)


def _frame(body: bytes, behind: bytes) -> bytes:
    return next(frame for frame in body.split(b"\n\n") if behind + b'"' in frame)


def _read(port: int, path: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A body, to its end."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n{lines}\r\n".encode())
        body = bytearray()
        while some := sock.recv(2**18):
            body += some
    if not body.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"the answer to {path} is {bytes(body[:300])!r}")
    return bytes(body)
