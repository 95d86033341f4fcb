"""The Python client against the table, blocking and asynchronous, in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lastevent import Answer, AsyncClient, Client, Event, StreamError, fold
from lastevent.client.following import World
from lastevent.client.partial import partial
from tests.conformance.scripted import AsyncTransport, Server, Transport, folded
from tests.conformance.virtual import LONG_S, Loop, Stopped, ThreadClock, TooLong, Wall
from tests.rig.long import LONG

CASES = json.loads(Path(__file__).with_name("conformance.json").read_text())["cases"]
WALL = "2026-11-29T05:00:00Z"
SERVER = "http://le.test"
AFTERWARDS_S = 600
CHANCES = (0.0, 0.999999)
STEP = 1 if LONG else 7
"""`cut: every` is each so many-th byte."""

OURS = {"events", "raw"}


def not_ours(case: Mapping[str, Any]) -> str | None:
    """What a case needs that this client has not: an app's signs, a storage, an address that is not there yet."""
    client = case.get("client", {})
    if "signs" in case:
        return "signs"
    if "storage_fails" in case or {"user", "key"} & set(client) or not OURS.issuperset(case.get("kept", {})):
        return "storage"
    if "hidden" in client:
        return "hidden"
    if "url" in client or client.get("to", SERVER).startswith("/"):
        return "address of a page"
    return None


FOLDS = [case for case in CASES if "fold" in case]
PARTIALS = [case for case in CASES if "partial" in case]
RUNS = [case for case in CASES if not case.keys() & {"fold", "partial"}]
RUN_HERE = [case for case in RUNS if not not_ours(case)]


def test_what_is_not_of_this_client_needs_a_page() -> None:
    left_out = Counter(not_ours(case) for case in RUNS if not_ours(case))
    assert left_out == {"signs": 29, "storage": 24, "address of a page": 11}
    assert (len(FOLDS), len(PARTIALS), len(RUN_HERE)) == (56, 2, 179)


def named(cases: list[Any]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


# -- folds, cut JSON -----------------------------------------------------------------------------------------


@named(FOLDS)
def test_folds(case: Any) -> None:
    answer = Answer()
    for number, kind, data in case["fold"]:
        before, said = answer.to_json(), json.dumps(data)
        after = fold(answer, Event.received(number, kind, data))
        assert (answer.to_json(), json.dumps(data)) == (before, said), "a fold changed what was there"
        assert after is answer or after.to_json() != before, f"{number} made a new answer that is the same"
        for name, value in vars(after).items():
            is_its_own = name == "tools" and kind.startswith("tool_")
            old = getattr(answer, name)
            assert is_its_own or value is old or value != old, f"{number} copied {name}"
        answer = after
        assert Answer.from_json(answer.to_json()) == answer
    assert list(differences(case["expect"]["answer"], json.loads(answer.to_json()), "answer")) == []


@named(PARTIALS)
def test_cut_json_says(case: Any) -> None:
    for text, said in case["partial"]:
        assert (text, partial(text)) == (text, said)


# -- runs ----------------------------------------------------------------------------------------------------


def how_often(case: Any, length: int) -> Iterator[tuple[float, int]]:
    if not any(entry.get("cut") == "every" for entry in case.get("script", [])):
        yield from ((random, 0) for random in CHANCES)
    for cut in range(0, length, STEP):
        yield CHANCES[cut % 2], cut


@named(RUN_HERE)
@pytest.mark.parametrize("client", ["Client", "AsyncClient"])
def test_runs(case: Any, client: str) -> None:
    run = run_blocking if client == "Client" else run_asynchronous
    _, length = run(case, CHANCES[0], 0)
    runs = 0
    for random, cut in how_often(case, length):
        runs += 1
        wrong, _ = run(case, random, cut)
        assert (random, cut, wrong) == (random, cut, [])
    assert runs


class Seen:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.whys: list[str | None] = []
        self.outcome = ""
        self.code: str | None = None
        self.answer = Answer()
        self.url: str | None = None
        self.painted: str | None = None
        self.wrong: list[str] = []


def options(case: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the client, and of follow."""
    client = case.get("client", {})
    of_client = {"silence_s": client["silence_ms"] / 1000} if "silence_ms" in client else {}
    if "token" in client and "token_ms" not in client:
        of_client["token"] = client["token"]
    kept = case.get("kept")
    answer = kept and (folded(case["log"][: kept["events"]]) if "events" in kept else kept["raw"])
    return of_client, {"answer": answer}


class Tokens:
    """What a token function gives, or how it does not: steps that both kinds of it take."""

    def __init__(self, client: Mapping[str, Any], seen: Seen) -> None:
        self.client, self.seen, self.at = client, seen, 0
        self.is_there = "tokens" in client or "token_ms" in client

    def asked(self, why: str | None) -> int:
        self.seen.whys.append(why)
        self.at += bool(why)
        return len(self.seen.whys)

    def said(self, call: int, why: str | None) -> str | None:
        given = self.client.get("tokens") or [self.client["token"]]
        if call in self.client.get("token_fails", []):
            self.at -= bool(why)
            raise OSError("network")
        if call in self.client.get("token_empty", []):
            self.at -= bool(why)
            return "" if call % 2 else "<h1>\nBad gateway"
        found: str | None = given[min(self.at, len(given) - 1)]
        return found


def run_blocking(case: Any, random: float, cut: int) -> tuple[list[str], int]:
    stop_ms = case.get("stop_at_ms")
    clock = ThreadClock(None if stop_ms is None else stop_ms / 1000)
    server, seen = Server(case, clock, cut), Seen()
    app = case.get("client", {})
    tokens = Tokens(app, seen)
    of_client, of_follow = options(case)

    def token(why: str | None) -> str | None:
        call = tokens.asked(why)
        if call in app.get("token_stops", []):
            raise Stopped
        clock.sleep(app.get("token_ms", 0) / 1000)
        if call in app.get("token_never", []):
            clock.sleep(LONG_S)
        return tokens.said(call, why)

    if tokens.is_there:
        of_client["token"] = token
    http = httpx2.Client(transport=Transport(server))
    world = World(clock.now, wall(case, clock), lambda: random, clock.sleep)
    client = Client(SERVER, http=http, world=world, **of_client)
    stream = None
    try:
        stream = client.start(app["start"]) if "start" in app else client.follow("s1", **of_follow)
        seen.painted = stream.answer.text
        for event in stream:
            take(seen, event)
            if len(seen.ids) == app.get("leaves_after"):
                break
            clock.sleep(app.get("slow_ms", 0) / 1000)
        seen.outcome = "ended" if stream.answer.has_ended else "stopped"
    except StreamError as error:
        seen.outcome, seen.code = "failed", error.code
    except Stopped:
        seen.outcome = "stopped"
    except TooLong:
        seen.outcome = "running"
    return judged(case, server, seen, stream), server.length


def run_asynchronous(case: Any, random: float, cut: int) -> tuple[list[str], int]:
    loop = Loop()
    server, seen = Server(case, loop, cut), Seen()
    app = case.get("client", {})
    tokens = Tokens(app, seen)
    of_client, of_follow = options(case)

    async def token(why: str | None) -> str | None:
        call = tokens.asked(why)
        if call in app.get("token_stops", []):
            task.cancel()
        await asyncio.sleep(app.get("token_ms", 0) / 1000)
        if call in app.get("token_never", []):
            await asyncio.sleep(LONG_S)
        return tokens.said(call, why)

    if tokens.is_there:
        of_client["token"] = token
    streams = []

    async def follow() -> None:
        http = httpx2.AsyncClient(transport=AsyncTransport(server))
        world = World(loop.time, wall(case, loop), lambda: random, asyncio.sleep)
        client = AsyncClient(SERVER, http=http, world=world, **of_client)
        stream = await client.start(app["start"]) if "start" in app else client.follow("s1", **of_follow)
        streams.append(stream)
        seen.painted = stream.answer.text
        async for event in stream:
            take(seen, event)
            if len(seen.ids) == app.get("leaves_after"):
                break
            await asyncio.sleep(app.get("slow_ms", 0) / 1000)
        seen.outcome = "ended" if stream.answer.has_ended else "stopped"

    async def whole() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task], timeout=LONG_S)
        told = len(server.requests)
        if not task.done():
            seen.outcome = "running"
            task.cancel()
        await asyncio.sleep(AFTERWARDS_S)
        if len(server.requests) > told:
            seen.wrong.append("a request came afterwards")
        seen.wrong += [f"{left} is left" for left in asyncio.all_tasks() if left is not asyncio.current_task()]
        try:
            await task
        except asyncio.CancelledError:
            seen.outcome = seen.outcome or "stopped"
        except StreamError as error:
            seen.outcome, seen.code = "failed", error.code

    task = loop.create_task(follow())
    if "stop_at_ms" in case:
        loop.call_at(case["stop_at_ms"] / 1000, task.cancel)
    try:
        loop.run_until_complete(whole())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
    return judged(case, server, seen, streams[0] if streams else None), server.length


def wall(case: Any, clock: Any) -> Wall:
    began = datetime.fromisoformat(case.get("wall", WALL)).timestamp()
    return Wall(clock, began, case.get("wall_jumps", []))


def take(seen: Seen, event: Event) -> None:
    assert event.id is not None
    if seen.ids and event.id <= seen.ids[-1]:
        seen.wrong.append(f"the iterator gave {event.id} again")
    seen.ids.append(event.id)


# -- what was expected ---------------------------------------------------------------------------------------


def judged(case: Any, server: Server, seen: Seen, stream: Any) -> list[str]:
    wrong = [*server.wrong, *seen.wrong]
    expect = case["expect"]
    requests = server.requests
    answer = json.loads(stream.answer.to_json()) if stream else json.loads(Answer().to_json())

    def same(name: str, wanted: Any, found: Any) -> None:
        wrong.extend(differences(wanted, found, name))

    def within(limits: list[float], ms: float, name: str) -> None:
        if not limits[0] - 1e-3 <= ms <= limits[1] + 1e-3:
            wrong.append(f"{name}: {ms}")

    if server.open:
        wrong.append("a connection is left open")
    if "answer" in expect:
        same("answer", expect["answer"], answer)
    if "ids" in expect:
        same("ids", expect["ids"], seen.ids)
    is_done = expect.get("answer", {}).get("state") == "done"
    same("outcome", expect.get("outcome", "ended" if is_done else seen.outcome), seen.outcome)
    if "code" in expect:
        same("code", expect["code"], seen.code)
    if expect.get("url"):
        same("url", expect["url"], stream.url)
    if "requests" in expect:
        same("requests", len(expect["requests"]), len(requests))
        for n, (wanted, found) in enumerate(zip(expect["requests"], requests, strict=False), 1):
            compare_request(f"request {n}", wanted, found, same, within)
    if "count" in expect:
        same("count", expect["count"], len(requests))
    gaps = [after["at_ms"] - before["at_ms"] for before, after in pairwise(requests)]
    for gap in gaps if "requests_gap_ms" in expect else []:
        within(expect["requests_gap_ms"], gap, "a gap")
    if "last_gap_ms" in expect:
        within(expect["last_gap_ms"], gaps[-1], "the last gap")
    if expect.get("same_key"):
        same("keys", 1, len({one["key"] for one in requests if one["method"] == "POST"}))
    if "painted" in expect:
        same("painted", expect["painted"], seen.painted)
    if "token_whys" in expect:
        same("token_whys", expect["token_whys"], seen.whys)
    for name, is_wanted in (("has_request_at_ms", True), ("no_request_between_ms", False)):
        if name in expect and is_wanted != any(expect[name][0] <= one["at_ms"] <= expect[name][1] for one in requests):
            wrong.append(f"not so: {name}")
    return wrong


def compare_request(name: str, wanted: Mapping[str, Any], found: Mapping[str, Any], same: Any, within: Any) -> None:
    for field, value in wanted.items():
        if field == "at_ms":
            within(value, found["at_ms"], name)
        elif field == "path_ends":
            same(f"{name}.path", True, found["path"].partition("?")[0].endswith(value))
        elif field == "key" and value is True:
            same(f"{name} has a key", True, bool(found["key"]))
        elif field == "key_not":
            same(f"{name} has another key", True, bool(found["key"]) and found["key"] != value)
        else:
            same(f"{name}.{field}", value, found[field])


def differences(wanted: Any, found: Any, name: str) -> Iterator[str]:
    """Objects: at least these, but `{}` is empty; lists: as long, each at least these; None: also what is not there."""
    if isinstance(wanted, dict) and isinstance(found, dict) and (wanted or not found):
        for key, value in wanted.items():
            yield from differences(value, found.get(key), f"{name}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for n, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from differences(one, other, f"{name}.{n}")
    elif wanted != found or isinstance(wanted, bool) != isinstance(found, bool):
        yield f"{name} is {found!r}, not {wanted!r}"
