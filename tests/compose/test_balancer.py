"""What nginx passes on is what the servers say, at once; and whatever becomes of one of them, viewers lose nothing."""

import asyncio
import functools
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.compose.balancer import AUTHORIZED, Balanced, Balancer
from tests.compose.visitor import KeyedProducer, Visitor, get
from tests.rig.deployment import HTTP, until
from tests.viewers.viewer import post

PROMPT = "Grüße aus dem Tunnel 🚇 漢字"
MIB = 2**20


async def test_a_stream_through_nginx_is_byte_for_byte_the_server_s_own_and_never_compressed(
    balanced: Balanced,
) -> None:
    record = balanced.create(prompt=f"{PROMPT} [[tokens=70 rate=100 ttft_ms=0]]")
    direct, live, late = (Visitor(record, **{"Accept-Encoding": "gzip, br"}) for _ in range(3))
    answers = await asyncio.gather(direct.view(balanced.ports[0]), live.view(balanced.nginx.port))
    answers.append(await late.view(balanced.nginx.port))

    assert direct.ids == list(range(1, 74))
    assert live.bytes == late.bytes == direct.bytes
    assert all(answer.has_final_chunk for answer in answers)
    for name in ("content-type", "cache-control", "content-encoding", "x-content-type-options"):
        assert len({answer.headers.get(name) for answer in answers}) == 1, name
    assert "content-encoding" not in answers[1].headers
    assert (await late.view(balanced.nginx.port)).status == 204


async def test_an_event_arrives_within_a_second_while_its_stream_stays_open(balanced: Balanced) -> None:
    record = balanced.create(producer="external")
    producer, viewer = KeyedProducer(record, balanced.nginx.port), Visitor(record)
    view = asyncio.create_task(viewer.view(balanced.nginx.port))
    await until(lambda: viewer.has_seen(1), "the first event has come", limit_s=5)
    for event_id in (2, 3, 4):
        await producer.write("one small event")
        await until(lambda event_id=event_id: viewer.has_seen(event_id), "it is there", limit_s=1)
    assert not view.done()
    await producer.finish()
    assert (await view).has_final_chunk


async def test_a_viewer_that_leaves_nginx_leaves_its_server(balanced: Balanced) -> None:
    record = balanced.create(producer="external")
    before = sum(balanced.viewers())
    views = [asyncio.create_task(Visitor(record).view(balanced.nginx.port)) for _ in range(10)]
    await until(lambda: sum(balanced.viewers()) == before + 10, "they are connected")
    for view in views:
        view.cancel()
    await asyncio.wait(views)
    await until(lambda: sum(balanced.viewers()) == before, "their servers know that they have gone")
    await KeyedProducer(record, balanced.nginx.port).finish()


async def test_viewers_of_a_killed_server_resume_on_the_other_one_with_exactly_what_they_missed(
    own_balanced: Balanced,
) -> None:
    viewers, uncut = await _viewed_while(own_balanced, lambda: own_balanced.servers[0].kill())
    cuts = [viewer for viewer in viewers if len(viewer.answers) > 1]
    assert 0 < len(cuts) < len(viewers), "each of the two servers had some"
    for viewer in cuts:
        assert viewer.answers[0].is_cut, "the final chunk would say that the stream has ended"
    _assert_nothing_lost(viewers, uncut)


async def test_viewers_of_a_draining_server_are_sent_to_the_other_one_and_nobody_sees_an_error(
    own_balanced: Balanced,
) -> None:
    asked: Counter[int] = Counter()
    async with _asking(own_balanced, asked):
        viewers, uncut = await _viewed_while(own_balanced, lambda: own_balanced.servers[0].send(signal.SIGTERM))
    await asyncio.to_thread(own_balanced.servers[0].wait)

    sent_away = [viewer for viewer in viewers if b": draining\n" in viewer.answers[0].body]
    assert sent_away
    assert all(viewer.answers[0].is_cut for viewer in sent_away)
    assert {answer.status for viewer in viewers for answer in viewer.answers} == {200}
    assert asked.keys() == {200}
    _assert_nothing_lost(viewers, uncut)


async def _viewed_while(balanced: Balanced, happening: Callable[[], object]) -> tuple[list[Visitor], Visitor]:
    """Viewers through nginx, who come back until the end, and one that was not there when it happened."""
    record = balanced.create(producer="external")
    producer = KeyedProducer(record, balanced.ports[1])
    viewers = [Visitor(record) for _ in range(10)]
    async with asyncio.TaskGroup() as group:
        for viewer in viewers:
            group.create_task(viewer.view_to_the_end(balanced.nginx.port))
        await until(lambda: all(viewer.has_seen(1) for viewer in viewers), "all are connected")
        await asyncio.to_thread(happening)
        while not any(len(viewer.answers) > 1 for viewer in viewers):
            await producer.write("before, between and after")
        await producer.write(*"some more of it")
        await producer.finish()
    uncut = Visitor(record)
    await uncut.view(balanced.ports[1])
    return viewers, uncut


def _assert_nothing_lost(viewers: list[Visitor], uncut: Visitor) -> None:
    assert uncut.events[-1].kind == "done"
    assert uncut.ids == list(range(1, len(uncut.ids) + 1))
    for viewer in viewers:
        assert viewer.ids == uncut.ids
        assert viewer.bytes == uncut.bytes


@asynccontextmanager
async def _asking(balanced: Balanced, statuses: Counter[int]) -> AsyncIterator[None]:
    """Somebody asks for a stream's record all the time; `statuses` counts the answers."""
    record = balanced.create(producer="external")

    async def ask() -> None:
        while True:
            statuses[(await get(balanced.nginx.port, f"/v1/streams/{record['id']}")).status] += 1

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.wait([asking])
        await KeyedProducer(record, balanced.nginx.port).finish()


# -- a POST is never started twice -----------------------------------------------------------------------


class Mute:
    """Two servers behind nginx that take a request and close without an answer; `asked` is all they were asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.nginx: Balancer

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head.partition(" HTTP/")[0])
        if found := re.search(r"^content-length: (\d+)", head, re.MULTILINE | re.IGNORECASE):
            await reader.readexactly(int(found[1]))
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def mute(tmp_path: Path, certificate: Path, require: Callable[[str, str], str]) -> AsyncIterator[Mute]:
    require("nginx", "nginx")
    mute = Mute()
    listen = functools.partial(asyncio.start_server, mute.take, "127.0.0.1", 0)
    async with await listen() as one, await listen() as other:
        mute.nginx = Balancer(tmp_path, certificate, [server.sockets[0].getsockname()[1] for server in (one, other)])
        await asyncio.to_thread(mute.nginx.start)
        yield mute
        await asyncio.to_thread(mute.nginx.process.stop)


async def test_a_post_that_a_server_may_have_taken_is_sent_to_no_other_one(mute: Mute) -> None:
    lost = await post(mute.nginx.port, "/v1/streams", {"prompt": "x"})
    assert mute.asked == ["POST /v1/streams"]
    assert lost.status == 502
    assert lost.headers["content-type"] == "application/problem+json"
    assert lost.json["code"] == "server_lost"
    assert "retry-after" not in lost.headers, "it is not for everybody to repeat"


async def test_a_get_that_a_server_did_not_answer_is_sent_to_the_next_one(mute: Mute) -> None:
    unanswered = await get(mute.nginx.port, "/v1/streams/abc")
    assert mute.asked == ["GET /v1/streams/abc"] * 2
    assert unanswered.status == 503


async def test_posts_around_the_death_of_a_server_start_at_most_one_stream_each(own_balanced: Balanced) -> None:
    outcomes: dict[str, int | str] = {}

    async def start(session: str) -> None:
        body = {"producer": "external", "session_id": session}
        try:
            outcomes[session] = (await post(own_balanced.nginx.port, "/v1/streams", body, AUTHORIZED)).status
        except asyncio.IncompleteReadError:
            outcomes[session] = "cut"  # killed between the head of its answer and the body

    async with asyncio.TaskGroup() as group:
        for n in range(200):
            group.create_task(start(f"session-{own_balanced.nginx.port}-{n}"))
            if n % 10 == 9:
                await until(lambda n=n: len(outcomes) > n - 20, "they are being answered")
            if n == 99:
                group.create_task(asyncio.to_thread(own_balanced.servers[0].kill))

    counted = Counter(outcomes.values())
    print(f"200 POSTs around the death of a server: {dict(counted)}")
    assert counted[201] > 150
    assert counted.keys() <= {201, 502, "cut"}
    for session, outcome in outcomes.items():
        listed = HTTP.get(f"{own_balanced.nginx.url}/v1/sessions/{session}", headers=AUTHORIZED).json()["streams"]
        assert len(listed) == 1 or (len(listed) == 0 and outcome == 502)


# -- limits and headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "limit"), [("/v1/streams", 32 * MIB), ("/v1/streams/x/cancel", MIB)], ids=str)
async def test_a_body_of_the_limit_reaches_the_server_and_one_byte_more_is_refused_as_the_server_would(
    balanced: Balanced, path: str, limit: int
) -> None:
    bodies = [b'{"prompt": "%s"}' % (b"x" * (size - len('{"prompt": ""}'))) for size in (limit, limit + 1)]
    kept, refused = [HTTP.post(f"{balanced.nginx.url}{path}", content=body, headers=AUTHORIZED) for body in bodies]
    direct = HTTP.post(f"http://127.0.0.1:{balanced.ports[0]}{path}", content=bodies[1], headers=AUTHORIZED)
    assert "x-request-id" in kept.headers
    assert kept.status_code != 413
    assert "x-request-id" not in refused.headers
    assert refused.status_code == direct.status_code == 413
    assert refused.json()["code"] == direct.json()["code"]
    assert refused.headers["content-type"] == direct.headers["content-type"]


async def test_no_log_holds_a_read_token_whatever_goes_wrong(own_balanced: Balanced) -> None:
    record = own_balanced.create(producer="external")
    token = record["events_url"].partition("token=")[2]
    viewer = Visitor(record)
    view = asyncio.create_task(viewer.view(own_balanced.nginx.port))
    await until(lambda: viewer.has_seen(1), "it is connected")
    await asyncio.to_thread(own_balanced.kill_servers)
    await view
    await viewer.view(own_balanced.nginx.port)
    await until(lambda: own_balanced.nginx.log.count(f"GET /v1/streams/{record['id']}/events ") == 2, "both are logged")
    assert len(token) > 40
    assert token not in own_balanced.nginx.log
