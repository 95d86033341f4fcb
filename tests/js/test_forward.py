"""lastevent/server: an app's own endpoint, as docs/CLIENTS.md has it, under frameworks, in front of a real server."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.recipes import recipe
from tests.conftest import deployment_in
from tests.js.upstream import Upstream, upstream_of
from tests.rig.deployment import HTTP, Deployment, until
from tests.viewers.viewer import Answer, Connection, Event, connect, parse

pytestmark = pytest.mark.npm

LIMIT_S = 30.0
KEY = "a-key-of-the-back-end-which-no-client-may-see"
OURS = {"Authorization": f"Bearer {KEY}"}
ANN = {"x-user": "ann", "Cookie": "session=of-the-app", "Authorization": "Bearer of-the-app"}
RECIPES = {
    "chat.js": "Next.js, Hono, Express: through your own endpoint",
    "hono-app.js": "Hono",
    "express-app.js": "Express",
    "app/api/chat/[[...at]]/route.js": "Next.js",
    "token.js": "Follow by a token",
    "ask.js": "Start through it, follow by a token",
}
FRAMEWORKS = pytest.mark.parametrize("framework", ["hono", "express"])
PROMPT = "Grüße 🚲 [[tokens=60 rate=60 ttft_ms=0 thinking=3]]"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment_in(tmp_path_factory.mktemp("keyed"), servers=1, LASTEVENT_API_KEYS=KEY) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def app(js: Path, keyed: Deployment) -> Path:
    """The folder of an app that is made of the recipes."""
    for name, heading in RECIPES.items():
        (js / name).parent.mkdir(parents=True, exist_ok=True)
        (js / name).write_text(recipe(heading).replace("https://stream.example.com", keyed.url))
    return js


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
async def endpoint(app: Path, keyed: Deployment, framework: str) -> AsyncIterator[Endpoint]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(upstream_of(keyed.ports[0]))
        environment = {**os.environ, "LASTEVENT_URL": upstream.url, "LASTEVENT_API_KEY": KEY}
        node = await asyncio.create_subprocess_exec(
            "node", "endpoint.mjs", framework, cwd=app, env=environment, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert node.stdout
            yield Endpoint(int(await node.stdout.readline()), upstream)
            assert node.returncode is None, "it has outlived what clients and servers did"
        finally:
            if node.returncode is None:
                node.kill()
            await node.communicate()


@asynccontextmanager
async def handler(app: Path, upstream: Upstream, trial: str, **options: Any) -> AsyncIterator[Any]:
    """What route.mjs says of a trial. Its process is there until this is left."""
    environment = {**os.environ, "LASTEVENT_URL": upstream.url, "LASTEVENT_API_KEY": KEY}
    node = await asyncio.create_subprocess_exec(
        *("node", "route.mjs", trial, json.dumps(options)),
        cwd=app,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    try:
        assert node.stdout
        async with asyncio.timeout(LIMIT_S):
            yield json.loads(await node.stdout.readline())
    finally:
        node.kill()
        await node.communicate()


def events_of(answer: Answer) -> list[Event]:
    return [event for block in answer.blocks if (event := parse(block))]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if event.kind == "text_delta")


def asked(keyed: Deployment, path: str) -> httpx.Response:
    return HTTP.get(f"{keyed.url}{path}", headers=OURS)


def viewers(keyed: Deployment) -> int:
    lines = keyed.scrape("server-0").splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("lastevent_viewers{"))


def external(keyed: Deployment) -> str:
    """A stream of ann's whose events the test writes."""
    body = {"producer": "external", "user_id": "ann"}
    sid: str = HTTP.post(f"{keyed.url}/v1/streams", headers=OURS, json=body).json()["id"]
    return sid


def write(keyed: Deployment, sid: str, kind: str = "text_delta", **data: str) -> None:
    body = {"epoch": 1, "events": [{"event": kind, "data": data}]}
    answer = HTTP.post(f"{keyed.url}/v1/streams/{sid}/events", headers=OURS, json=body)
    assert answer.status_code == 200, answer.text


@FRAMEWORKS
async def test_an_answer_that_was_started_through_an_endpoint_is_resumed_through_it(
    framework: str, app: Path, keyed: Deployment
) -> None:
    async with endpoint(app, keyed, framework) as there:
        headers = {"Accept": "text/event-stream", "Idempotency-Key": f"by-{framework}"}
        async with there.ask("POST", "/api/chat?access_token=x", headers, {"prompt": PROMPT}) as (connection, begun):
            await connection.read_body(begun, cut=lambda body: len(body) if b"\nid: 30\n" in body else None)
        location = begun.headers["location"]
        before = events_of(begun)
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(before[-1].id)}
        rest = await there.whole("GET", f"{location}/events?compact=0&audience=all", headers)
        heads = there.upstream.heads

    sid = location.removeprefix("/api/chat/")
    events = before + events_of(rest)
    log = [json.loads(line) for line in asked(keyed, f"/v1/streams/{sid}/export").text.splitlines()]
    public = [event["id"] for event in log if "id" in event and not event["event"].startswith("internal.")]
    assert [event.id for event in events] == public
    assert any(event["event"].startswith("internal.") for event in log if "event" in event), "the key sees more"
    assert text_of(events) == asked(keyed, f"/v1/streams/{sid}/text").text
    assert rest.has_final_chunk
    for answer in (begun, rest):
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"
    assert [head.partition(" HTTP")[0] for head in heads] == [
        "POST /v1/streams?audience=public",
        f"GET /v1/streams/{sid}/events?compact=0&audience=public",
    ]
    for head in heads:
        assert f"authorization: Bearer {KEY}" in head
        assert "of-the-app" not in head


@FRAMEWORKS
async def test_an_event_is_passed_on_before_the_next_one_is_written(
    framework: str, app: Path, keyed: Deployment
) -> None:
    """Express has a `compression` in front that would compress everything."""
    sid = external(keyed)
    loop = asyncio.get_running_loop()
    waited = []
    async with endpoint(app, keyed, framework) as there:
        headers = {"Accept-Encoding": "gzip"}
        async with there.ask("GET", f"/api/chat/{sid}/events", headers) as (connection, answer):
            pieces = connection.pieces(answer)
            for n in range(2, 12):
                await asyncio.to_thread(write, keyed, sid, text="one small event")
                written = loop.time()
                while b"\nid: %d\n" % n not in answer.body:
                    await anext(pieces)
                waited.append(loop.time() - written)
    print(f"{framework}: an event came {[round(s * 1000) for s in waited]} ms after it was written")


@FRAMEWORKS
async def test_a_client_that_leaves_leaves_no_connection_to_the_server(
    framework: str, app: Path, keyed: Deployment
) -> None:
    sid = external(keyed)
    events = f"/api/chat/{sid}/events"
    async with endpoint(app, keyed, framework) as there:
        upstream = there.upstream

        async with there.ask("GET", events) as (connection, answer):
            await anext(connection.pieces(answer))
            assert viewers(keyed) == 1
        await until(lambda: upstream.asking == 0, "the one that has seen an event is gone")

        upstream.is_silent = True
        for method in ("GET", "POST"):
            async with connect(there.port) as connection:
                body = b'{"prompt": "Hello"}' if method == "POST" else b""
                connection.send(method, events if method == "GET" else "/api/chat", ANN, body)
                await until(lambda: upstream.asking == 1, "the server is asked")
            await until(lambda: upstream.asking == 0, f"the {method} that has no answer is gone")
        upstream.is_silent = False

        await asyncio.to_thread(write, keyed, sid, "done")
        assert (await there.whole("GET", events)).has_final_chunk
        await until(lambda: viewers(keyed) == 0, "nobody follows")


@FRAMEWORKS
async def test_a_cut_stays_a_cut_and_an_end_an_end(framework: str, app: Path, keyed: Deployment) -> None:
    sid = external(keyed)
    events = f"/api/chat/{sid}/events"
    for _ in range(3):
        write(keyed, sid, text="Grüße 🚲")
    async with endpoint(app, keyed, framework) as there:
        async with there.ask("GET", events) as (connection, cut):
            pieces = connection.pieces(cut)
            while b"\nid: 4\n" not in cut.body:
                await anext(pieces)
            there.upstream.cut()
            async for _ in pieces:
                pass
        for _ in range(2):
            await asyncio.to_thread(write, keyed, sid, text="Grüße 🚲")
        await asyncio.to_thread(write, keyed, sid, "done")
        rest = await there.whole("GET", events, {"Last-Event-ID": "4"})
        nothing = await there.whole("GET", events, {"Last-Event-ID": "7"})
    assert (cut.has_final_chunk, rest.has_final_chunk) == (False, True)
    assert [event.id for event in events_of(cut) + events_of(rest)] == list(range(1, 8))
    assert nothing.status == 204


async def test_what_ails_between_endpoint_and_server_is_not_the_clients_fault(app: Path, keyed: Deployment) -> None:
    sid = external(keyed)
    said = []
    async with endpoint(app, keyed, "hono") as there:
        for status in ("401 Unauthorized", "403 Forbidden", "307 Temporary Redirect"):
            lines = [f"HTTP/1.1 {status}", "WWW-Authenticate: Bearer", "Location: /elsewhere", "Content-Length: 2"]
            there.upstream.answer = "\r\n".join([*lines, "", "{}"]).encode()
            said.append(await there.whole("GET", f"/api/chat/{sid}/events"))
        there.upstream.answer = None
        there.upstream.cut_at = b"HTTP/1.1 "
        said.append(await there.whole("GET", f"/api/chat/{sid}/events"))
        there.upstream.cut_at = None
        missing = await there.whole("GET", "/api/chat/0123/text")
    assert [(answer.status, answer.json["code"]) for answer in said] == [
        (502, "key_refused"),
        (502, "key_refused"),
        (502, "key_refused"),
        (503, "server_unreachable"),
    ]
    for answer in said:
        assert answer.headers["content-type"] == "application/problem+json"
        assert not answer.headers.keys() & {"www-authenticate", "location"}
    assert (missing.status, missing.json["code"]) == (404, "stream_not_found")


async def test_no_key_no_token_and_nothing_of_what_was_asked_reaches_a_client(app: Path, keyed: Deployment) -> None:
    once = {"Idempotency-Key": "a-start"}
    body = {"prompt": "x" * 300_000 + "[[tokens=3 rate=0 ttft_ms=0]]"}
    async with endpoint(app, keyed, "hono") as there:
        started = await there.whole("POST", "/api/chat", once, body)
        again = await there.whole("POST", "/api/chat", once, body)
        another = await there.whole("POST", "/api/chat", once, {"prompt": "another"})
        place = started.headers["location"]
        events = await there.whole("GET", f"{place}/events")
        text = await there.whole("GET", f"{place}/text")
        ended = await there.whole("POST", f"{place}/cancel", {}, {"reason": "user"})
        nothing = await there.whole("GET", f"{place}/export")
        listing = await there.whole("GET", "/api/chat")
        stranger = await there.whole("GET", f"{place}/events", {"x-user": "bob"})
    sid = place.removeprefix("/api/chat/")
    told = dict(started.json)
    # A worker may have begun, or ended, before the server has read the record that it answers with.
    now = told.pop("state"), told.pop("attempt"), told.pop("last_event_id") >= 1
    assert now in [("queued", 0, True), ("running", 1, True), ("done", 1, True)]
    assert told == {"id": sid, "agent": None, "events_url": f"/api/chat/{sid}/events"}
    assert (started.status, again.status, again.headers["location"], another.status) == (201, 200, place, 422)
    assert ended.json["already"] is True
    assert (text.status, text.headers["last-event-id"]) == (200, str(events_of(events)[-1].id))
    assert (nothing.status, listing.status, stranger.status) == (404, 405, 404)
    for answer in (started, again, another, events, text, ended, nothing):
        everything = f"{answer.headers} {answer.body.decode()}"
        assert KEY not in everything
        assert "token=" not in everything
        assert "xxx" not in everything


async def test_a_start_by_a_route_handler_of_next_is_one_generation_whatever_is_cut(
    app: Path, keyed: Deployment
) -> None:
    async with upstream_of(keyed.ports[0]) as upstream:
        upstream.cut_at = b"id: 20\n"
        async with handler(app, upstream, "start", prompt="Grüße [[tokens=40 rate=0 ttft_ms=0]]") as said:
            pass
        heads = [head.partition(" HTTP")[0] for head in upstream.heads]
    sid = said["url"].removeprefix("/api/chat/").removesuffix("/events")
    assert said["text"] == asked(keyed, f"/v1/streams/{sid}/text").text
    assert said["ids"] == sorted(set(said["ids"]))
    assert said["state"] == "done"
    assert [head.partition("?")[0] for head in heads] == ["POST /v1/streams", f"GET /v1/streams/{sid}/events"]


async def test_a_page_starts_by_its_endpoint_and_follows_by_a_token(app: Path, keyed: Deployment) -> None:
    async with upstream_of(keyed.ports[0]) as upstream:
        async with handler(app, upstream, "token", prompt="Grüße [[tokens=40 rate=0 ttft_ms=0]]") as said:
            pass
        heads = [head.partition(" HTTP")[0] for head in upstream.heads]
    assert said["state"] == "done"
    assert said["text"] == asked(keyed, said["url"].removeprefix(keyed.url).replace("/events", "/text")).text
    assert heads == ["POST /v1/streams?audience=public", "POST /v1/tokens"], "the endpoint is asked for no event"


async def test_who_cancels_a_body_or_aborts_a_request_leaves_no_connection(app: Path, keyed: Deployment) -> None:
    sid = external(keyed)
    async with upstream_of(keyed.ports[0]) as upstream:
        async with handler(app, upstream, "leave", path=f"/api/chat/{sid}/events"):
            await until(lambda: upstream.asking == 0, "both are gone")
        assert len(upstream.heads) == 2


async def test_a_path_leads_to_a_stream_or_nowhere(app: Path, keyed: Deployment) -> None:
    nowhere = [
        *("/v1/keys", "/v1/streams/../keys", "/v1/streams/a/../../keys", "/v1/streams/a/events/../../b/events"),
        *("/v1/streams/%2e%2e/keys", "/v1/streams/a%2f..%2fkeys/events", "/v1/streams/./a", "/v1/streams/a/."),
        *(
            "//elsewhere.example/v1/streams/a",
            "https://elsewhere.example/v1/streams/a",
            "/\\elsewhere.example/v1/streams/a",
        ),
        *(
            "\\\\elsewhere.example",
            "@elsewhere.example/v1/streams/a",
            "/v1/streams/a#/events",
            "/v1/streams/a;b/events",
        ),
        *("/v1/streams/a/events\n", "/v1/streams/a\t/events", "/v1/streams/ä/events", "/v1/streams/a//events", ""),
        *(
            "/v1/streams/a/export",
            "/v1/streams/a/replay",
            "/v1/streams/a/views",
            "/v1/streams/a/message",
            "/v1/streams",
        ),
    ]
    others = [
        ("DELETE", "/v1/streams/a"),
        ("POST", "/v1/streams/a/events"),
        ("POST", "/v1/tokens"),
        ("POST", "/v1/erasures"),
    ]
    asking = [["GET", path] for path in nowhere] + [list(other) for other in others]
    somewhere = [
        ["GET", "/v1/streams/a-B_9/events?follow=0&access_token=x&audience=all", "http://app/?compact=1&token=y"],
        ["GET", None, "http://app/v1/streams/a/text?last_event_id=3"],
        ["POST", "/v1/streams/a/approvals/0b1c"],
    ]
    async with upstream_of(keyed.ports[0]) as upstream:
        async with handler(app, upstream, "paths", asked=asking) as said:
            assert dict(zip(map(str, asking), map(tuple, said), strict=True)) == {
                str(one): (404, "not_found") for one in asking
            }
        assert upstream.heads == []
        async with handler(app, upstream, "paths", asked=somewhere):
            pass
        assert [head.partition(" HTTP")[0] for head in upstream.heads] == [
            "GET /v1/streams/a-B_9/events?compact=1&follow=0&audience=public",
            "GET /v1/streams/a/text?last_event_id=3&audience=public",
            "POST /v1/streams/a/approvals/0b1c?audience=public",
        ]


async def test_a_body_that_was_read_is_said_to_be_so(app: Path, keyed: Deployment) -> None:
    async with upstream_of(keyed.ports[0]) as upstream, handler(app, upstream, "used", path="/v1/streams") as said:
        assert said == {"name": "TypeError", "message": "The body was read: forward a new Request"}
