"""The Python client on real servers: cut anywhere, left, refused, and while Redis is away."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any

import pytest

from lastevent import Answer, AsyncClient, Client, StreamError
from lastevent.client import asynchronous, sync
from tests.js.cutting import Cut, Cutter, How, cutting
from tests.rig.deployment import HTTP, Deployment, until, wait_until
from tests.rig.long import LONG
from tests.viewers.producer import Producer

PACE = 50
"""How many times shorter waits are than they would be."""

STEP = 1 if LONG else 7
PROMPT = "Wörter 漢字 🚲🧑\u200d🚀 [[ttft_ms=0 thinking=1 cut_at=2 cut_times=1 tokens=6 rate=0]]"
"""Of two attempts: the provider breaks off the first one."""
MANY = 16
KEY = "a-key-of-thirty-two-and-more-of-it"
HOWS: tuple[How, ...] = ("reset", "close", "end")

HURRIED = sync.WORLD._replace(sleep=lambda s: time.sleep(s / PACE))
ASYNC_HURRIED = asynchronous.WORLD._replace(sleep=lambda s: asyncio.sleep(s / PACE))


@pytest.fixture(scope="module")
def ended(deployment: Deployment) -> str:
    sid = deployment.create(PROMPT)
    deployment.wait_until_ended(sid)
    return sid


def text_of(deployment: Deployment, sid: str) -> str:
    return HTTP.get(f"{deployment.url}/v1/streams/{sid}/text").text


def open_viewers(deployment: Deployment, sid: str) -> int:
    views = HTTP.get(f"{deployment.url}/v1/streams/{sid}/views").json()["views"]
    return sum(view["closed_at"] is None for view in views if view["format"].startswith("sse"))


# -- cut anywhere --------------------------------------------------------------------------------------------


async def follow_cut(cutter: Cutter, cut: Cut, sid: str, is_async: bool) -> tuple[list[int], Answer]:
    case = f"{is_async}-{cut.how}-{cut.after}"
    cutter.cuts[case] = [cut]
    if is_async:
        async with AsyncClient(cutter.url, headers={"case": case}, world=ASYNC_HURRIED) as client:
            stream = client.follow(sid)
            return [event.id or 0 async for event in stream], stream.answer

    def follow() -> tuple[list[int], Answer]:
        with Client(cutter.url, headers={"case": case}, world=HURRIED) as client:
            stream = client.follow(sid)
            return [event.id or 0 for event in stream], stream.answer

    return await asyncio.to_thread(follow)


async def each(cases: Iterable[Any], follow: Callable[[Any], Any]) -> list[Any]:
    places = asyncio.Semaphore(MANY)

    async def one(case: Any) -> Any:
        async with places:
            return await follow(case)

    return await asyncio.gather(*(one(case) for case in cases))


@pytest.mark.parametrize("is_async", [True, False], ids=["AsyncClient", "Client"])
async def test_a_stream_that_is_cut_anywhere_has_no_seam(deployment: Deployment, ended: str, is_async: bool) -> None:
    body = HTTP.get(f"{deployment.url}/v1/streams/{ended}/events?compact=1").content
    step = STEP if is_async else STEP * 5
    cuts = [Cut(at, how) for at, how in zip(range(0, len(body) + 1, step), cycle(HOWS))]
    ids_of_log = [event["id"] for event in deployment.log_of(ended)]
    async with cutting(*deployment.ports) as cutter:
        found = await each(cuts, lambda cut: follow_cut(cutter, cut, ended, is_async))
    text = text_of(deployment, ended)
    assert text
    for ids, answer in found:
        assert (answer.text, answer.state, answer.restarts) == (text, "done", 1)
        assert ids == sorted(set(ids))
        assert set(ids) <= set(ids_of_log), "what waits is merged"
        assert ids[-1] == answer.cursor == ids_of_log[-1]
    print(f"{len(cuts)} cuts of {len(body)} bytes")


# -- leaving -------------------------------------------------------------------------------------------------


async def test_leaving_the_loop_closes_the_connection_and_another_loop_goes_on(deployment: Deployment) -> None:
    producer = await Producer.create(deployment.ports[0])
    await producer.write("one ", "two ")
    async with AsyncClient(deployment.url) as client:
        stream = client.follow(producer.sid)
        async for event in stream:
            if event.kind == "text_delta":
                break
        await until(lambda: open_viewers(deployment, producer.sid) == 0, "nobody follows")
        await producer.write("three")
        await producer.finish()
        rest = [event.kind async for event in stream]
        assert (rest[-1], stream.answer.text) == ("done", "one two three")


def test_leaving_the_loop_closes_the_connection_of_a_thread(deployment: Deployment) -> None:
    producer = asyncio.run(Producer.create(deployment.ports[0]))
    with Client(deployment.url) as client:
        for event in client.follow(producer.sid):
            assert event.kind == "queued"
            wait_until(lambda: open_viewers(deployment, producer.sid) == 1, "it is followed")
            break
        wait_until(lambda: open_viewers(deployment, producer.sid) == 0, "nobody follows")


@pytest.mark.parametrize("how", ["cancelled", "raised", "never iterated"])
async def test_however_it_is_left_the_connection_is_closed(deployment: Deployment, how: str) -> None:
    async with AsyncClient(deployment.url) as client:
        stream = await client.start("x [[ttft_ms=60000]]")
        began = asyncio.Event()

        async def follow() -> None:
            async for _ in stream:
                began.set()
                if how == "raised":
                    raise KeyError

        if how == "never iterated":
            await stream.close()
        else:
            task = asyncio.create_task(follow())
            await began.wait()
            if how == "cancelled":
                task.cancel()
            with pytest.raises((KeyError, asyncio.CancelledError)):
                await task
        await until(lambda: open_viewers(deployment, stream.id) == 0, "nobody follows")
        await stream.cancel("left")


# -- what is called ------------------------------------------------------------------------------------------


async def test_a_conversation_by_the_asynchronous_client(deployment: Deployment) -> None:
    async with AsyncClient(deployment.url) as client:
        stream = await client.start("Hello [[tokens=5 rate=0]]", session_id="talk-async", metadata={"a": 1})
        kinds = [event.kind async for event in stream]
        assert (kinds[0], kinds[-1]) == ("queued", "done")
        assert stream.answer.text == text_of(deployment, stream.id)
        again = await stream.regenerate()
        answer = await again
        assert answer.state == "done"
        assert again.id != stream.id
        page = await client.list(session_id="talk-async", limit=1)
        assert [record["id"] for record in page["streams"]] == [again.id]
        rest = await client.list(session_id="talk-async", cursor=page["next"])
        assert [record["id"] for record in rest["streams"]] == [stream.id]
        assert "talk-async" in [one["id"] for one in (await client.sessions())["sessions"]]
        assert len((await client.session("talk-async"))["streams"]) == 2
        log = [json.loads(line) for line in (await client.export(stream.id)).splitlines()]
        assert [event["event"] for event in log[:2]] == ["queued", "start"]
        raw = [event async for event in client.follow(stream.id, raw=True)]
        assert [(one.id, one.kind, one.data, one.t) for one in raw] == [tuple(one.values()) for one in log[: len(raw)]]
        assert await client.erase(stream.id)
        assert "text" not in (await client.call("GET", f"/v1/streams/{stream.id}"))


def test_a_conversation_by_the_blocking_client(deployment: Deployment) -> None:
    with Client(deployment.url) as client:
        stream = client.start([{"role": "user", "content": "Hello [[tokens=5 rate=0]]"}], session_id="talk")
        assert stream.wait().text == text_of(deployment, stream.id)
        answer = stream.regenerate().wait()
        assert answer.state == "done"
        assert len(client.session("talk")["streams"]) == 2


def test_what_was_kept_is_gone_on_with(deployment: Deployment, ended: str) -> None:
    with Client(deployment.url) as client:
        stream = client.follow(ended)
        for event in stream:
            if event.kind == "restart":
                break
        kept = stream.answer.to_json()
        rest = client.follow(ended, answer=kept)
        given = [event.id or 0 for event in rest]
        assert given[0] > json.loads(kept)["cursor"]
        assert rest.answer.text == text_of(deployment, ended)
        assert list(client.follow(ended, answer=rest.answer)) == [], "it has ended: nobody is asked"


def test_behind_a_cursor_only_what_follows_is_given(deployment: Deployment, ended: str) -> None:
    with Client(deployment.url) as client:
        ids = [event.id or 0 for event in client.follow(ended)]
        assert [event.id for event in client.follow(ended, cursor=ids[-2])] == ids[-1:]
        at_end = client.follow(ended, cursor=ids[-1])
        assert list(at_end) == []
        assert (at_end.answer.state, at_end.answer.incomplete) == ("done", True)


def test_a_cancel_is_heard_by_the_loop(deployment: Deployment) -> None:
    with Client(deployment.url) as client:
        stream = client.start("x [[ttft_ms=60000]]")
        for event in stream:
            if event.kind == "queued":
                assert client.cancel(stream.id, "enough")["state"] == "cancelled"
        assert stream.answer.state == "cancelled"


def test_a_refusal_says_what_the_server_said(deployment: Deployment) -> None:
    with Client(deployment.url) as client:
        with pytest.raises(StreamError) as refused:
            client.start("x", model=1)
        assert (refused.value.status, refused.value.title) == (422, "The request is not valid")
        with pytest.raises(StreamError) as unknown:
            client.call("GET", "/v1/sessions?limit=no")
        assert unknown.value.status == 422


async def test_a_stream_that_nobody_knows_is_an_error_and_not_awaited_for_ever(deployment: Deployment) -> None:
    async with AsyncClient(deployment.url, world=ASYNC_HURRIED) as client:
        with pytest.raises(StreamError) as unknown:
            await client.follow("nobody-knows-it")
        assert (unknown.value.code, unknown.value.status) == ("stream_not_found", 404)


def test_without_a_server_a_call_says_so_and_a_stream_is_lost_when_patience_is_over() -> None:
    lost: list[StreamError] = []
    with Client("http://127.0.0.1:1", patience_s=0.5) as client:
        with pytest.raises(StreamError) as unreachable:
            client.list()
        assert unreachable.value.code == "unreachable"
        with pytest.raises(StreamError) as over:
            client.follow("x", on_lost=lost.append).wait()
    assert over.value.code == "lost"
    assert "gave up after 0.5 s" in str(over.value)
    assert {error.code for error in lost} == {"lost"}


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://a b", "http://x?y=1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="such as"):
        Client(url)


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "ä"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="ASCII"):
        AsyncClient("http://127.0.0.1:1", token)


# -- tokens --------------------------------------------------------------------------------------------------


async def test_tokens_are_asked_for_and_renewed(own_deployment: Callable[..., Deployment]) -> None:
    """The second one, since the first opens nothing; of a function that is asynchronous, or is not."""
    deployment = own_deployment(servers=1, LASTEVENT_API_KEYS=KEY)
    whys: list[str | None] = []

    def blocking(why: str | None) -> str:
        whys.append(why)
        return KEY if why else "another"

    async def asynchronously(why: str | None) -> str:
        return blocking(why)

    async with AsyncClient(deployment.url, asynchronously) as client:
        stream = await client.start("Hello [[tokens=3 rate=0]]")
        answer = await stream
        assert answer.state == "done"
        assert whys == [None, "refused"]
        minted = await client.token("ann", streams=[stream.id], ttl_s=60)
        assert whys == [None, "refused"], "what is known is not asked for"
    whys.clear()
    with Client(deployment.url, blocking) as client:
        assert await asyncio.to_thread(client.list) is not None
        assert whys == [None, "refused"]
    with Client(deployment.url, minted["token"]) as client:
        assert (await asyncio.to_thread(client.follow(stream.id).wait)).text == answer.text
        with pytest.raises(StreamError) as refused:
            await asyncio.to_thread(client.list)
        assert refused.value.status == 403


# -- Redis away, a server killed ------------------------------------------------------------------------------


async def test_while_redis_is_away_streams_wait_and_a_start_is_done_once(
    own_deployment: Callable[..., Deployment],
) -> None:
    deployment = own_deployment(servers=1, workers=1)
    async with AsyncClient(deployment.url) as client, asyncio.timeout(60):
        stream = await client.start("Hello [[tokens=60 rate=30]]", session_id="away")
        async for event in stream:
            if event.kind == "text_delta":
                break
        deployment.valkey.kill()
        following = asyncio.create_task(stream.wait())
        starting = asyncio.create_task(client.start("Second [[tokens=3 rate=0]]", session_id="away"))
        await until(lambda: not deployment.is_ready(), "the server knows that Redis is away")
        deployment.valkey.start()
        answer = await following
        second = await starting
        assert answer.text == text_of(deployment, stream.id)
        assert (await second).state == "done"
        assert len((await client.session("away"))["streams"]) == 2


def test_a_thread_that_follows_can_be_told_apart_from_one_that_cancels(deployment: Deployment) -> None:
    """One client, two threads."""
    with Client(deployment.url) as client:
        stream = client.start("x [[ttft_ms=60000]]")
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(stream.wait()))
        thread.start()
        stream.cancel()
        thread.join(20)
        assert answers[0].state == "cancelled"


def test_a_stream_is_read_by_the_loop_that_began_last(deployment: Deployment) -> None:
    with Client(deployment.url) as client:
        stream = client.start("x [[ttft_ms=60000]]")
        events = iter(stream)
        assert next(events).kind == "queued"
        stream.cancel()
        assert stream.wait().state == "cancelled"
        with pytest.raises(RuntimeError, match="Another loop"):
            list(events)
