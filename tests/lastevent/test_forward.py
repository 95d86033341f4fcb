"""forward and stream_bytes: an app's own endpoint in Python, under its frameworks, in front of a real server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
import pytest

from bench.ports import free_port
from tests.conftest import deployment_in
from tests.js.upstream import Upstream, upstream_of
from tests.rig.deployment import HTTP, Deployment, Process, until, wait_until
from tests.rig.long import LONG
from tests.viewers.viewer import Answer, Connection, Event, bare, connect, parse

pytestmark = pytest.mark.processes

LIMIT_S = 30.0
KEY = "a-key-of-the-back-end-which-no-client-may-see"
OURS = {"Authorization": f"Bearer {KEY}"}
ANN = {"Cookie": "session=of-the-app", "Authorization": "Bearer of-the-app"}
PROMPT = "Grüße 🚲 [[tokens=60 rate=60 ttft_ms=0 thinking=3]]"
GONE = 60 if LONG else 18
"""Clients that leave, at three moments."""

FRAMEWORKS = pytest.mark.parametrize("framework", ["fastapi", "middleware", "django", "flask"])
ASGI = pytest.mark.parametrize("framework", ["fastapi", "middleware"])


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment_in(tmp_path_factory.mktemp("keyed"), servers=1, LASTEVENT_API_KEYS=KEY) as deployment:
        yield deployment


class App(NamedTuple):
    process: Process
    port: int
    behind: int
    """The port of its server: of the upstream that a test puts there."""

    @property
    def said(self) -> str:
        return self.process.output.read_text()


Apps = Callable[[str], App]


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apps]:
    """The app of a framework: one for all tests."""
    folder = tmp_path_factory.mktemp("apps")
    started: dict[str, App] = {}

    def app(framework: str) -> App:
        if framework not in started:
            behind = free_port()
            argv = [sys.executable, "-m", "tests.lastevent.endpoint_apps", framework, f"http://127.0.0.1:{behind}", KEY]
            process = Process(framework, argv, {}, folder)
            process.start()
            wait_until(lambda: "\n" in process.output.read_text(), "it listens")
            started[framework] = App(process, int(process.output.read_text().split()[0]), behind)
        return started[framework]

    yield app
    for one in started.values():
        one.process.kill()


@dataclass
class Endpoint:
    port: int
    upstream: Upstream

    @asynccontextmanager
    async def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: Any = None
    ) -> AsyncIterator[tuple[Connection, Answer]]:
        async with asyncio.timeout(LIMIT_S), connect(self.port) as connection:
            connection.send(method, path, {**ANN, **(headers or {})}, json.dumps(body).encode() if body else b"")
            answer = await connection.read_head()
            yield connection, answer

    async def whole(self, method: str, path: str, headers: dict[str, str] | None = None, body: Any = None) -> Answer:
        async with self.ask(method, path, headers, body) as (connection, answer):
            await connection.read_body(answer)
        return answer


@asynccontextmanager
async def endpoint(keyed: Deployment, app: App) -> AsyncIterator[Endpoint]:
    async with upstream_of(keyed.ports[0], app.behind) as upstream:
        yield Endpoint(app.port, upstream)
        assert app.process.is_alive(), "it has outlived what clients and servers did"
        upstream.cut()


def events_of(answer: Answer) -> list[Event]:
    return [event for block in answer.blocks if (event := parse(block))]


def asked(keyed: Deployment, path: str) -> httpx.Response:
    return HTTP.get(f"{keyed.url}{path}", headers=OURS)


def viewers(keyed: Deployment) -> int:
    lines = keyed.scrape("server-0").splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("lastevent_viewers{"))


def external(keyed: Deployment) -> str:
    """A stream whose events the test writes."""
    sid: str = HTTP.post(f"{keyed.url}/v1/streams", headers=OURS, json={"producer": "external"}).json()["id"]
    return sid


def write(keyed: Deployment, sid: str, kind: str = "text_delta", **data: str) -> None:
    body = {"epoch": 1, "events": [{"event": kind, "data": data}]}
    answer = HTTP.post(f"{keyed.url}/v1/streams/{sid}/events", headers=OURS, json=body)
    assert answer.status_code == 200, answer.text


@FRAMEWORKS
async def test_the_bytes_are_the_servers_own_and_no_event_waits_for_the_next_one(
    framework: str, keyed: Deployment, apps: Apps
) -> None:
    sid = external(keyed)
    async with endpoint(keyed, apps(framework)) as there:
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "gzip", "Last-Event-ID": "1"}
        async with there.ask("GET", f"/api/chat/{sid}/events?compact=1&audience=all", headers) as (connection, seen):
            pieces = connection.pieces(seen)
            for n in range(2, 8):
                await asyncio.to_thread(write, keyed, sid, text="Grüße 🚲")
                while b"\nid: %d\n" % n not in seen.body:
                    await anext(pieces)
            await asyncio.to_thread(write, keyed, sid, "done")
            async for _ in pieces:
                pass
        again = await there.whole("GET", f"/api/chat/{sid}/events?compact=1", {"Last-Event-ID": "3"})
        head = there.upstream.heads[0]
        nothing = await there.whole("GET", f"/api/chat/{sid}/events", {"Last-Event-ID": "8"})
        missing = await there.whole("GET", "/api/chat/0123/events", {"Accept": "application/x-ndjson"})
    own = HTTP.get(
        f"{keyed.url}/v1/streams/{sid}/events?compact=1&audience=public", headers={**OURS, "Last-Event-ID": "3"}
    )
    assert bare(bytes(again.body)) == bare(own.content)
    assert [event.id for event in events_of(seen)] == [*range(2, 9)]
    assert (seen.status, seen.has_final_chunk, again.has_final_chunk) == (200, True, True)
    assert nothing.status == 204
    assert (missing.status, missing.json["code"]) == (404, "stream_not_found")
    for answer in (seen, again):
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"
    assert head.startswith(f"GET /v1/streams/{sid}/events?compact=1&audience=public HTTP")
    assert f"Authorization: Bearer {KEY}" in head
    assert "of-the-app" not in head


@FRAMEWORKS
async def test_a_cut_stays_a_cut(framework: str, keyed: Deployment, apps: Apps) -> None:
    sid = external(keyed)
    write(keyed, sid, text="Grüße 🚲")
    async with endpoint(keyed, apps(framework)) as there:
        async with there.ask("GET", f"/api/chat/{sid}/events") as (connection, cut):
            pieces = connection.pieces(cut)
            while b"\nid: 2\n" not in cut.body:
                await anext(pieces)
            there.upstream.cut()
            async for _ in pieces:
                pass
        await asyncio.to_thread(write, keyed, sid, "done")
        rest = await there.whole("GET", f"/api/chat/{sid}/events", {"Last-Event-ID": "2"})
    assert (cut.has_final_chunk, rest.has_final_chunk) == (False, True)
    assert [event.id for event in events_of(cut) + events_of(rest)] == [1, 2, 3]


@ASGI
async def test_clients_that_leave_leave_nothing_open(framework: str, keyed: Deployment, apps: Apps) -> None:
    """Before the server has answered, before the first byte of the body was read, and in the middle of it."""

    async def leave_unanswered() -> None:
        async with connect(there.port) as connection:
            connection.send("GET", events, ANN)
            await until(lambda: upstream.asking >= 1, "the server is asked")

    async def leave_at_the_head() -> None:
        async with connect(there.port) as connection:
            connection.send("GET", events, ANN)
            await connection.read_head()

    async def leave_in_the_middle() -> None:
        async with there.ask("GET", events) as (connection, answer):
            await anext(connection.pieces(answer))

    sid = external(keyed)
    events = f"/api/chat/{sid}/events"
    app = apps(framework)
    said = len(app.said)
    async with endpoint(keyed, app) as there:
        upstream = there.upstream
        for leave in (leave_at_the_head, leave_in_the_middle):
            await asyncio.gather(*(leave() for _ in range(GONE // 3)))
            await until(lambda: upstream.asking == 0, f"all of {leave.__name__} are gone")
        upstream.is_silent = True
        await asyncio.gather(*(leave_unanswered() for _ in range(GONE // 3)))
        await until(lambda: upstream.asking == 0, "all that had no answer are gone")
        async with connect(there.port) as connection:
            connection.send("POST", "/api/chat", ANN, b'{"prompt": "Hello"}')
            await until(lambda: upstream.asking == 1, "the server is asked")
        await until(lambda: upstream.asking == 0, "the POST that has no answer is gone")
        upstream.is_silent = False
        await asyncio.to_thread(write, keyed, sid, "done")
        assert (await there.whole("GET", events)).has_final_chunk
        await until(lambda: viewers(keyed) == 0, "nobody follows")
        assert "Traceback" not in app.said[said:]


@pytest.mark.parametrize("framework", ["django", "flask"])
async def test_who_leaves_a_thread_is_gone_when_the_server_says_the_next_thing(
    framework: str, keyed: Deployment, apps: Apps
) -> None:
    sid = external(keyed)
    async with endpoint(keyed, apps(framework)) as there:
        for _ in range(GONE // 6):
            async with there.ask("GET", f"/api/chat/{sid}/events") as (connection, answer):
                await anext(connection.pieces(answer))
        await until(lambda: there.upstream.asking == 0, "all are gone")


@pytest.mark.parametrize("framework", ["fastapi", "flask"])
async def test_what_ails_between_endpoint_and_server_is_not_the_clients_fault(
    framework: str, keyed: Deployment, apps: Apps
) -> None:
    sid, said = external(keyed), []
    async with endpoint(keyed, apps(framework)) as there:
        for status in ("401 Unauthorized", "403 Forbidden", "307 Temporary Redirect"):
            lines = [f"HTTP/1.1 {status}", "WWW-Authenticate: Bearer", "Location: /elsewhere", "Content-Length: 2"]
            there.upstream.answer = "\r\n".join([*lines, "", "{}"]).encode()
            said.append(await there.whole("GET", f"/api/chat/{sid}/events"))
        there.upstream.answer = None
        there.upstream.cut_at = b"HTTP/1.1 "
        said.append(await there.whole("GET", f"/api/chat/{sid}/events"))
    assert [(answer.status, answer.json["code"]) for answer in said] == [
        *[(502, "key_refused")] * 3,
        (503, "server_unreachable"),
    ]
    for answer in said:
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert not answer.headers.keys() & {"www-authenticate", "location"}


async def test_an_answer_that_was_started_through_an_endpoint_is_resumed_through_it(
    keyed: Deployment, apps: Apps
) -> None:
    async with endpoint(keyed, apps("fastapi")) as there:
        headers = {"Accept": "text/event-stream", "Idempotency-Key": "by-fastapi"}
        async with there.ask("POST", "/api/chat", headers, {"prompt": PROMPT}) as (connection, begun):
            await connection.read_body(begun, cut=lambda body: len(body) if b"\nid: 30\n" in body else None)
        location = begun.headers["location"]
        before = events_of(begun)
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(before[-1].id)}
        rest = await there.whole("GET", f"{location}/events", headers)
        latest = await there.whole("GET", f"/api/latest?id={location.rpartition('/')[2]}", headers)
    sid = location.removeprefix("/api/chat/")
    events = before + events_of(rest)
    text = "".join(event.text for event in events if event.kind == "text_delta")
    assert text == asked(keyed, f"/v1/streams/{sid}/text").text
    assert bare(bytes(rest.body)) == bare(bytes(latest.body))
    assert rest.has_final_chunk


async def test_no_key_no_token_and_nothing_of_what_was_asked_reaches_a_client(keyed: Deployment, apps: Apps) -> None:
    once = {"Idempotency-Key": "a-start"}
    body = {"prompt": "x" * 300_000 + "[[tokens=3 rate=0 ttft_ms=0]]"}
    async with endpoint(keyed, apps("fastapi")) as there:
        started = await there.whole("POST", "/api/chat", once, body)
        again = await there.whole("POST", "/api/chat", once, body)
        another = await there.whole("POST", "/api/chat", once, {"prompt": "another"})
        place = started.headers["location"]
        events = await there.whole("GET", f"{place}/events")
        text = await there.whole("GET", f"{place}/text")
        now = await there.whole("GET", place)
        ended = await there.whole("POST", f"{place}/cancel", {}, {"reason": "user"})
        heads = len(there.upstream.heads)
        nowhere = [
            await there.whole("GET", f"{place}/export"),
            await there.whole("GET", f"{place}/replay"),
            await there.whole("GET", "/api/chat/%2e%2e%2fkeys/events"),
            await there.whole("GET", f"{place}/events%0a"),
            await there.whole("GET", f"{place}/../../keys"),
            await there.whole("GET", "/api/chat/ä/events".encode().decode("latin-1")),
            await there.whole("DELETE", f"{place}/events"),
            await there.whole("POST", f"{place}/events"),
            await there.whole("GET", f"{place}//events"),
        ]
        assert there.upstream.heads[heads:] == [], "none of these is sent"
    told = dict(started.json)
    state = told.pop("state"), told.pop("attempt"), told.pop("last_event_id") >= 1
    assert state in [("queued", 0, True), ("running", 1, True), ("done", 1, True)]
    assert told == {"id": place.rpartition("/")[2], "agent": None, "events_url": f"{place}/events"}
    assert (started.status, again.status, again.headers["location"], another.status) == (201, 200, place, 422)
    assert now.json["events_url"] == f"{place}/events"
    assert ended.json["already"] is True
    assert (text.status, text.headers["last-event-id"]) == (200, str(events_of(events)[-1].id))
    assert {answer.status for answer in nowhere} <= {404, 400}, "the web server refuses some itself"
    for answer in (started, again, another, events, text, ended, now):
        everything = f"{answer.headers} {answer.body.decode()}"
        assert KEY not in everything
        assert "token=" not in everything
        assert "xxx" not in everything
