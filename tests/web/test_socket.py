"""What is said on a socket: ops, follows, windows (docs/API.md, sockets)."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import orjson
import pytest

from broker.dialects.vector import MAX_NAMED
from broker.live.conversation import RETRY_S
from broker.log.steps import Append, Claimed
from broker.log.stream_log import StreamLog
from broker.store.connect import connect
from tests.conftest import deployment_in
from tests.rig.deployment import HTTP, Deployment, until
from tests.rig.streams import running, taken_over, text
from tests.web.speaker import Speaker, code_of, speaker
from tests.web.test_websocket import frame
from tests.web.wire import Api

pytestmark = pytest.mark.processes

HANDSHAKE = (
    b"GET /v1/socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
EXTERNAL = {"producer": "external"}
DONE = {"event": "done", "data": {}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One server, and nobody who would take over what a test has left lying."""
    with deployment_in(tmp_path_factory.mktemp("alone"), servers=1, workers=0, LASTEVENT_SOCKET_FOLLOWS="3") as found:
        yield found


@pytest.fixture
def producer(alone: Deployment, open_api: Callable[..., Api]) -> Producer:
    return Producer(open_api(alone.url))


class Producer:
    """Of external streams."""

    def __init__(self, api: Api) -> None:
        self.api = api

    def stream(self, words: int = 0, *, ends: bool = False, **fields: Any) -> str:
        sid: str = self.api.post("/v1/streams", {**EXTERNAL, **fields}).json()["id"]
        if words:
            self.words(sid, words)
        if ends:
            self.end(sid)
        return sid

    def words(self, sid: str, count: int) -> None:
        events = [{"event": "text_delta", "data": {"text": f"w{n} "}} for n in range(count)]
        for start in range(0, count, 500):
            self.append(sid, events[start : start + 500])

    def end(self, sid: str) -> None:
        self.append(sid, [DONE])

    def append(self, sid: str, events: list[dict[str, Any]]) -> None:
        answer = self.api.post(f"/v1/streams/{sid}/events", {"epoch": 1, "events": events})
        assert answer.status_code == 200, answer.text


async def test_a_stream_comes_as_its_ndjson_and_then_it_is_over(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(3)
    async with speaker(alone.url) as talks:
        answer = await talks.ask("follow", stream=sid)
        assert answer == {"event": "ok", "ref": 1, "stream": sid, "data": {"cursor": 0}}
        await asyncio.to_thread(producer.words, sid, 3)
        await asyncio.to_thread(producer.end, sid)
        assert await talks.over(sid) == "done"
    assert talks.events(sid) == alone.log_of(sid)
    told = [message["event"] for message in talks.heard]
    assert told[:2] == ["hello", "ok"], "first"
    assert told[-1] == "over"
    assert len(told) == 3 + len(talks.events(sid))


async def test_who_has_the_ending_is_told_that_it_is_over_at_once(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(3, ends=True)
    tail = alone.log_of(sid)[-1]["id"]
    async with speaker(alone.url) as talks:
        for cursor in (tail, "latest"):
            await talks.ask("follow", stream=sid, cursor=cursor)
            assert await talks.over(sid) == "done"
        assert talks.ids(sid) == []
        await talks.ask("follow", stream=sid, cursor=tail - 1)
        assert await talks.over(sid) == "done"
        assert talks.ids(sid) == [tail]


async def test_the_latest_cursor_is_told_where_it_stands(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(5)
    tail = alone.log_of(sid)[-1]["id"]
    async with speaker(alone.url) as talks:
        assert (await talks.ask("follow", stream=sid, cursor="latest"))["data"] == {"cursor": tail}
        await asyncio.to_thread(producer.end, sid)
        await talks.over(sid)
        assert talks.ids(sid) == [tail + 1]


async def test_several_streams_come_each_in_order(alone: Deployment, producer: Producer) -> None:
    sids = [producer.stream(700) for _ in range(3)]
    async with speaker(alone.url) as talks:
        for sid in sids:
            await talks.say({"op": "follow", "stream": sid})
        for sid in sids:
            await asyncio.to_thread(producer.words, sid, 20)
            await asyncio.to_thread(producer.end, sid)
        overs = 0
        while overs < len(sids):
            overs += (await talks.hear())["event"] == "over"
    for sid in sids:
        assert talks.events(sid) == alone.log_of(sid)


async def test_a_socket_follows_so_many_streams_each_once(alone: Deployment, producer: Producer) -> None:
    sids = [producer.stream() for _ in range(4)]
    async with speaker(alone.url) as talks:
        for sid in sids[:3]:
            assert (await talks.ask("follow", stream=sid))["event"] == "ok"
        assert code_of(await talks.ask("follow", stream=sids[0])) == "already_followed"
        assert code_of(await talks.ask("follow", stream=sids[3])) == "too_many_follows"
        assert code_of(await talks.ask("start", **EXTERNAL, follow=True)) == "too_many_follows"
        assert (await talks.ask("unfollow", stream=sids[0]))["event"] == "ok"
        assert (await talks.ask("follow", stream=sids[3]))["event"] == "ok"


async def test_nothing_comes_after_unfollow(alone: Deployment, producer: Producer) -> None:
    left, kept = producer.stream(1), producer.stream(1)
    async with speaker(alone.url) as talks:
        await talks.ask("follow", stream=left)
        await talks.ask("follow", stream=kept)
        await talks.ask("unfollow", stream=left)
        before = talks.ids(left)
        await asyncio.to_thread(producer.end, left)
        await asyncio.to_thread(producer.end, kept)
        await talks.over(kept)
        assert talks.ids(left) == before
        assert (await talks.ask("unfollow", stream=left))["event"] == "ok", "also what is not followed"


# -- windows -----------------------------------------------------------------------------------------------------


async def fenced(talks: Speaker, alone: Deployment, sid: str, tail: int) -> None:
    """A viewer of the same server without a window has got all that is there, and this one's ping was answered."""
    async with speaker(alone.url) as control:
        await control.ask("follow", stream=sid)
        while not control.ids(sid) or control.ids(sid)[-1] < tail:
            await control.hear()
    for _ in range(3):
        await talks.ask("ping")


async def test_a_page_of_the_log_is_cut_at_the_window(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(600)
    ids = [event["id"] for event in alone.log_of(sid)]
    async with speaker(alone.url) as talks:
        await talks.ask("follow", stream=sid, window=100)
        await fenced(talks, alone, sid, ids[-1])
        assert talks.ids(sid) == ids[:100]
        await talks.say({"op": "ack", "stream": sid, "id": ids[49]})
        await fenced(talks, alone, sid, ids[-1])
        assert talks.ids(sid) == ids[:150]
        await talks.say({"op": "ack", "stream": sid, "id": ids[-1] + 1000})  # what it cannot have
        await fenced(talks, alone, sid, ids[-1])
        assert talks.ids(sid) == ids[:250]


async def test_live_events_stop_at_the_window_and_come_after_the_ack(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream()
    async with speaker(alone.url) as talks:
        await talks.ask("follow", stream=sid, window=16)
        for _ in range(20):
            await asyncio.to_thread(producer.words, sid, 1)
        await asyncio.to_thread(producer.end, sid)
        ids = [event["id"] for event in alone.log_of(sid)]
        await fenced(talks, alone, sid, ids[-1])
        assert talks.ids(sid) == ids[:16]
        await talks.say({"op": "ack", "stream": sid, "id": ids[0]})
        await fenced(talks, alone, sid, ids[-1])
        assert talks.ids(sid) == ids[:17]
        await talks.say({"op": "ack", "stream": sid, "id": ids[16]})
        assert await talks.over(sid) == "done"
        assert talks.ids(sid) == ids


async def test_a_window_counts_events_where_a_takeover_makes_ids_jump(alone: Deployment) -> None:
    async with connect(alone.redis_url) as redis, speaker(alone.url) as talks:
        log = StreamLog(redis)
        first = await running(log, tenant="default")
        sid = first.sid
        await talks.ask("follow", stream=sid, window=16)
        await write(log, first, 5)
        second = await taken_over(log, sid)
        await write(log, second, 25)
        ids = [event["id"] for event in alone.log_of(sid)]
        assert ids[-1] > 2 * len(ids), "they jump"
        await fenced(talks, alone, sid, ids[-1])
        assert talks.ids(sid) == ids[:16]
        for n in range(16, len(ids)):
            await talks.say({"op": "ack", "stream": sid, "id": ids[n - 16]})
            await talks.until(lambda message, n=n: message.get("id") == ids[n])  # type: ignore[misc]
            await talks.ask("ping")
            assert talks.ids(sid) == ids[: n + 1]


async def write(log: StreamLog, claimed: Claimed, count: int) -> None:
    for n in range(count):
        await log.append(Append(claimed.sid, claimed.pen, 0, text(f"w{n} ")))


async def test_text_that_is_merged_counts_as_the_event_that_it_becomes(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(3000, ends=True)  # of 10 KB and more
    async with speaker(alone.url) as talks:
        await talks.ask("follow", stream=sid, window=16, compact=True)
        await talks.over(sid)
    assert len(talks.ids(sid)) <= 16
    assert "".join(event["data"].get("text", "") for event in talks.events(sid)) == "".join(
        event["data"].get("text", "") for event in alone.log_of(sid)
    )


async def test_kinds_that_are_not_wanted_do_not_count(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(400)
    producer.append(sid, [{"event": "note", "data": {"n": n}} for n in range(20)])
    producer.end(sid)
    async with speaker(alone.url) as talks:
        await talks.ask("follow", stream=sid, window=16, kinds=["note"])
        tail = alone.log_of(sid)[-1]["id"]
        await fenced(talks, alone, sid, tail)
        assert [event["event"] for event in talks.events(sid)] == ["note"] * 16
        await talks.say({"op": "ack", "stream": sid, "id": talks.ids(sid)[-1]})
        assert await talks.over(sid) == "done"
        assert [event["event"] for event in talks.events(sid)] == ["note"] * 20 + ["done"]


# -- ops ---------------------------------------------------------------------------------------------------------


async def test_a_start_is_answered_with_its_record_and_followed(deployment: Deployment) -> None:
    async with speaker(deployment.url) as talks:
        answer = await talks.ask("start", prompt="Hi [[tokens=5 ttft_ms=0]]", follow={"window": 64})
        sid = answer["stream"]
        assert answer["event"] == "ok"
        assert answer["data"]["id"] == sid
        assert await talks.over(sid) == "done"
        assert talks.events(sid) == deployment.log_of(sid)


async def test_the_same_key_again_is_the_same_stream(alone: Deployment) -> None:
    async with speaker(alone.url) as talks:
        asked = {**EXTERNAL, "idempotency_key": "once", "follow": True}
        sids = {(await talks.ask("start", **asked))["stream"] for _ in range(3)}
        assert len(sids) == 1
        assert code_of(await talks.ask("start", **{**asked, "user_id": "other"})) == "invalid_request"


async def test_a_cancel_is_answered_as_its_route_answers_it(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(2)
    async with speaker(alone.url) as talks:
        await talks.ask("follow", stream=sid)
        ended = await talks.ask("cancel", stream=sid, reason="enough")
        assert ended["data"]["state"] == "cancelled"
        assert not ended["data"]["already"]
        if not any(message["event"] == "over" for message in talks.heard):
            assert await talks.over(sid) == "cancelled"
        assert (await talks.ask("cancel", stream=sid))["data"]["already"]
    [event] = [event for event in alone.log_of(sid) if event["event"] == "cancelled"]
    assert event["data"]["reason"] == "enough"
    await until(lambda: sid in producer.api.get("/v1/deeds?what=cancelled").text, "it is a deed")


async def test_an_input_for_who_takes_none_is_refused_as_by_its_route(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream()
    async with speaker(alone.url) as talks:
        for op in ("input", "interrupt"):
            assert code_of(await talks.ask(op, stream=sid, text="Wait")) == "invalid_request"


async def test_each_ref_is_answered_once_and_a_streams_ops_run_in_order(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(1)
    ops = ["follow", "unfollow"] * 20 + ["follow", "cancel", "unfollow"]
    async with speaker(alone.url) as talks:
        for n, op in enumerate(ops):
            await talks.say({"op": op, "ref": -n, "stream": sid}, {"op": "ping", "ref": f"p{n}"})
        await talks.ask("unfollow", stream=sid)
        answers = [message for message in talks.heard if "ref" in message]
        assert all(answer["event"] == "ok" for answer in answers), answers
        refs = [answer["ref"] for answer in answers if isinstance(answer["ref"], int)]
        assert refs == [*(-n for n in range(len(ops))), 1]
        assert sorted(answer["ref"] for answer in answers if isinstance(answer["ref"], str)) == sorted(
            f"p{n}" for n in range(len(ops))
        )


async def test_an_ack_is_not_answered(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream()
    async with speaker(alone.url) as talks:
        await talks.say({"op": "ack", "ref": 7, "stream": sid, "id": 3}, {"op": "ack", "stream": "nothing", "id": 0})
        await talks.ask("ping")
        assert [message["event"] for message in talks.heard] == ["hello", "ok"]


async def test_a_follow_is_a_viewer_in_the_access_record(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(3)
    async with speaker(alone.url, **{"User-Agent": "a phone"}) as talks:
        await talks.ask("follow", stream=sid, cursor=1)
        await talks.until(lambda message: message.get("id") is not None)

        def view() -> dict[str, Any]:
            views = producer.api.get(f"/v1/streams/{sid}/views").json()["views"]
            return views[0] if views else {}

        await until(lambda: view().get("format") == "socket", "its record is there")
        assert view()["user_agent"] == "a phone"
        assert view()["requested"] == 1
    await until(lambda: view().get("how") == "left", "its record is closed")
    last = alone.log_of(sid)[-1]["id"]
    assert (view()["first_id"], view()["last_id"]) == (2, last)


async def test_a_drain_sends_sockets_away_between_two_messages(own_deployment: Callable[..., Deployment]) -> None:
    own = own_deployment(servers=1, workers=0)
    async with AsyncExitStack() as stack:
        talking = [await stack.enter_async_context(speaker(own.url)) for _ in range(3)]
        sid = (await talking[0].ask("start", **EXTERNAL, follow=True))["stream"]
        own.servers[0].stop()
        for talks in talking:
            code, _ = await talks.closed()
            assert code == 1012
    assert b"Traceback" not in own.servers[0].output.read_bytes()
    own.servers[0].start()
    await asyncio.to_thread(own.wait_until_ready)
    views = HTTP.get(f"{own.url}/v1/streams/{sid}/views").json()["views"]
    assert [view["how"] for view in views] == ["drained"]


async def test_a_stream_that_is_erased_while_it_is_followed_is_refused(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(40, ends=True)
    async with speaker(alone.url) as talks:
        await talks.ask("follow", stream=sid, window=16)
        producer.api.http.delete(f"/v1/streams/{sid}").raise_for_status()
        assert code_of(await talks.ask("follow", stream=sid)) == "already_followed"
        await talks.ask("unfollow", stream=sid)
        assert code_of(await talks.ask("follow", stream=sid)) == "stream_expired"


async def test_who_is_gone_leaves_nothing_behind(alone: Deployment, producer: Producer) -> None:
    sids = [producer.stream(1) for _ in range(2)]
    for _ in range(3):
        async with speaker(alone.url) as talks:
            for sid in sids:
                await talks.say({"op": "follow", "stream": sid, "window": 16})
            await talks.ask("ping")
    for sid in sids:
        producer.end(sid)

    def viewers() -> float:
        lines = alone.scrape("server-0").splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("lastevent_viewers{"))

    await until(lambda: viewers() == 0, "no viewer is there")
    assert b"Traceback" not in alone.servers[0].output.read_bytes()


async def test_presence_comes_for_as_long_as_the_follow_lasts(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(3)
    async with speaker(alone.url) as one, speaker(alone.url) as other:
        await one.ask("follow", stream=sid, presence=True)

        def said() -> list[dict[str, Any]]:
            return [message["data"] for message in one.heard if message["event"] == "presence"]

        async def connections(count: int) -> None:
            while not said() or said()[-1]["connections"] != count:
                await one.hear()

        await connections(1)
        await other.ask("follow", stream=sid)
        await connections(2)
        await other.ask("unfollow", stream=sid)
        await connections(1)
        assert said()[0].keys() == {"connections", "people", "viewers"}
        assert said()[-1] == {"joined": [], "left": [], "connections": 1, "people": 1}
        await one.ask("unfollow", stream=sid)
        heard = len(said())
        await other.ask("follow", stream=sid, presence=True)
        while not [message for message in other.heard if message["event"] == "presence"]:
            await other.hear()
        await one.ask("ping")
        assert len(said()) == heard
        await asyncio.to_thread(producer.end, sid)
        assert await other.over(sid) == "done"
        assert [message["event"] for message in other.heard][-1] == "over"


# -- sessions ----------------------------------------------------------------------------------------------------


async def test_a_session_gives_what_runs_and_what_starts_later(alone: Deployment, producer: Producer) -> None:
    ended = producer.stream(2, ends=True, session_id="talk")
    first = producer.stream(2, session_id="talk")
    async with speaker(alone.url) as talks:
        answer = await talks.ask("follow", session="talk", window=64)
        assert answer["data"]["session"] == "talk"
        assert answer["data"]["cursors"]["streams"] == {ended: "x", first: 0}
        second = await asyncio.to_thread(producer.stream, 2, session_id="talk")
        await asyncio.to_thread(producer.end, first)
        await asyncio.to_thread(producer.end, second)
        for _ in range(2):
            await talks.until(lambda message: message["event"] == "over")
        for sid in (first, second):
            assert talks.events(sid) == alone.log_of(sid)
            told = [message["event"] for message in talks.heard if _of(message) == sid]
            assert (told[0], told[-1]) == ("stream", "over")
        assert talks.ids(ended) == []
        assert code_of(await talks.ask("follow", session="talk")) == "already_followed"
        assert (await talks.ask("unfollow", session="talk"))["event"] == "ok"
        third = await asyncio.to_thread(producer.stream, 1, session_id="talk")
        await talks.ask("ping")
        assert talks.ids(third) == []


async def test_a_session_is_resumed_from_its_cursors(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(5, session_id="resumed")
    async with speaker(alone.url) as talks:
        cursors = (await talks.ask("follow", session="resumed"))["data"]["cursors"]
        await talks.until(lambda message: message.get("id") == 3)
    cursors["streams"][sid] = 3
    missed = producer.stream(1, ends=True, session_id="resumed")
    producer.end(sid)
    async with speaker(alone.url) as talks:
        assert (await talks.ask("follow", session="resumed", cursors=cursors))["event"] == "ok"
        for _ in range(2):
            await talks.until(lambda message: message["event"] == "over")
        assert talks.ids(sid) == [event["id"] for event in alone.log_of(sid)][3:]
        assert talks.events(missed) == alone.log_of(missed)


async def test_a_stream_that_is_followed_by_itself_comes_once(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(2, session_id="both")
    async with speaker(alone.url) as talks:
        await talks.ask("follow", stream=sid)
        await talks.ask("follow", session="both")
        await asyncio.to_thread(producer.words, sid, 3)
        await asyncio.to_thread(producer.end, sid)
        await talks.over(sid)
        assert talks.events(sid) == alone.log_of(sid)


async def test_a_sessions_stream_that_is_given_up_comes_again_from_where_it_was(
    alone: Deployment, producer: Producer
) -> None:
    sid = producer.stream(100, session_id="again")
    async with speaker(alone.url) as talks:
        await talks.ask("follow", session="again", window=16)
        await talks.until(lambda message: message.get("id") == 16)
        await talks.ask("unfollow", stream=sid)
        await talks.until(lambda message: message.get("id", 0) > 16 or message.get("id") == 1)
        assert talks.ids(sid) == [*range(1, 18)]


async def test_a_stream_that_ends_before_its_session_comes_back_to_it_comes_once(
    alone: Deployment, producer: Producer
) -> None:
    sid = producer.stream(2, session_id="before")
    async with speaker(alone.url) as talks:
        await talks.ask("follow", session="before")
        await talks.until(lambda message: message.get("id") == 3)
        await talks.ask("unfollow", stream=sid)
        await talks.ask("follow", stream=sid, cursor=3)
        await asyncio.to_thread(producer.end, sid)
        await talks.over(sid)
        await asyncio.sleep(RETRY_S * 1.2)  # then its session would have it again
        later = await asyncio.to_thread(producer.stream, 1, ends=True, session_id="before")
        await talks.over(later)
        assert talks.events(sid) == alone.log_of(sid)


async def test_what_is_followed_by_itself_goes_on_without_its_session(alone: Deployment, producer: Producer) -> None:
    sid = producer.stream(2, session_id="goes on")
    async with speaker(alone.url) as talks:
        await talks.ask("follow", stream=sid)
        await talks.ask("follow", session="goes on")
        await talks.until(lambda message: message["event"] == "stream")
        await talks.ask("ping")
        await talks.ask("unfollow", session="goes on")
        await asyncio.to_thread(producer.end, sid)
        assert await talks.over(sid) == "done"
        assert talks.events(sid) == alone.log_of(sid)


async def test_of_more_streams_than_cursors_can_name_none_comes_twice(alone: Deployment, producer: Producer) -> None:
    cursors: dict[str, Any] = {}

    def note(message: dict[str, Any]) -> None:
        if "cursors" in (message.get("data") or {}):
            cursors.update(message["data"]["cursors"])
        elif "id" in message:
            cursors["streams"][message["stream"]] = message["id"]

    async with speaker(alone.url) as talks:
        note(await talks.ask("follow", session="many"))
        sids = await asyncio.to_thread(
            lambda: [producer.stream(ends=True, session_id="many") for _ in range(MAX_NAMED + 5)]
        )
        while sum(message["event"] == "over" for message in talks.heard) < len(sids):
            note(await talks.hear())
    for _ in range(2):  # the answer's cursors are as good as those that were sent
        async with speaker(alone.url) as talks:
            await talks.ask("follow", session="many", cursors=cursors)
            later = await asyncio.to_thread(producer.stream, 1, ends=True, session_id="many")
            await talks.over(later)
            assert {message["stream"] for message in talks.heard if "id" in message} == {later}
            for message in talks.heard:
                note(message)


async def test_who_asks_on_and_reads_nothing_leaves_no_viewer_behind(alone: Deployment, producer: Producer) -> None:
    """What it has asked for is still in line when it goes."""
    sid = producer.stream(5_000)
    asked = [{"op": "follow", "stream": sid, "ref": "x" * 64}, {"op": "unfollow", "stream": sid}] * 100
    for _ in range(5):
        left = _left(alone)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            deaf.connect(("127.0.0.1", alone.ports[0]))
            deaf.sendall(HANDSHAKE + b"".join(frame(0x1, orjson.dumps(one)) for one in asked))
            await until(lambda before=left: _left(alone) > before, "it unfollows")
    await until(lambda: _gauge(alone, 'lastevent_viewers{format="socket"}') == 0, "all have gone")


def _left(deployment: Deployment) -> float:
    return _gauge(deployment, 'lastevent_viewers_ended_total{how="left"}')


def _gauge(deployment: Deployment, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)", deployment.scrape("server-0"), re.MULTILINE)
    return float(found[1]) if found else 0


def _of(message: dict[str, Any]) -> Any:
    """Which stream a message is about."""
    return message.get("stream") or (message["data"] or {}).get("stream")


async def test_who_is_written_to_and_says_nothing_is_not_dead_and_who_leaves_a_ping_unanswered_is(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    """A library would answer pings, so this client is a bare connection."""
    heartbeat_s = 0.3
    own = own_deployment(servers=1, workers=0, LASTEVENT_HEARTBEAT_S=str(heartbeat_s))
    producer = Producer(open_api(own.url))
    sid = producer.stream()
    reader, writer = await asyncio.open_connection("127.0.0.1", own.ports[0])
    writer.write(HANDSHAKE + frame(1, orjson.dumps({"op": "follow", "stream": sid})))
    until_s = time.monotonic() + 6 * heartbeat_s  # twice as long as the silence of a dead one
    seen = b""
    count = 0
    while time.monotonic() < until_s:
        await asyncio.to_thread(producer.words, sid, 1)
        count += 1
        while seen.count(b'"text_delta"') < count:
            piece = await asyncio.wait_for(reader.read(65_536), 30)
            assert piece, "it is closed, though it takes what it is sent"
            seen += piece
    with suppress(ConnectionResetError):
        while piece := await asyncio.wait_for(reader.read(65_536), 30):
            seen += piece
    assert b'{"event":"ping"}' in seen
    writer.close()
