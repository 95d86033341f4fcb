"""Producers on a real server: what the log has in the end, whatever was refused, lost, killed or rolled back."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lastevent import AsyncClient, Client, StreamError
from lastevent.client import once, outbox
from tests.faults.test_redis import roll_back, save
from tests.lastevent.obstacles import HURDLES, obstacles
from tests.rig.deployment import HTTP, Deployment, Process, until
from tests.rig.long import LONG

PRODUCERS = 20
EVENTS = 600 if LONG else 120
PAUSE_S = 0.05
ENDINGS = {"done", "error", "cancelled"}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endings are sent again at once: what is tested is not how long that takes."""
    monkeypatch.setattr(outbox, "AGAIN_S", (0.01, 0.02))
    monkeypatch.setattr(once, "ANSWER_S", 0.5)


@pytest.fixture
async def client(deployment: Deployment, soon: None) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(deployment.url) as client:
        yield client


@pytest.fixture
def blocking(deployment: Deployment, soon: None) -> Iterator[Client]:
    with Client(deployment.url) as client:
        yield client


def written(deployment: Deployment, sid: str) -> list[dict[str, Any]]:
    """What a producer has: without `queued`, and the log's last line, which is its seal."""
    return [event for event in deployment.log_of(sid) if event.get("id", 0) >= 2]


def texts(deployment: Deployment, sid: str) -> list[str]:
    return [event["data"]["text"] for event in written(deployment, sid) if event["event"] == "text_delta"]


def record(deployment: Deployment, sid: str) -> dict[str, Any]:
    found: dict[str, Any] = HTTP.get(f"{deployment.url}/v1/streams/{sid}").json()
    return found


def require_exact(deployment: Deployment, sid: str, expected: list[str]) -> None:
    events = written(deployment, sid)
    assert texts(deployment, sid) == expected
    assert [event["id"] for event in events] == list(range(2, len(expected) + 3))
    assert [event["event"] for event in events if event["event"] in ENDINGS] == ["done"]
    assert events[-1]["event"] == "done"


# -- what is written ---------------------------------------------------------------------------------------


async def test_what_is_said_in_the_block_is_in_the_log_when_it_is_left(
    client: AsyncClient, deployment: Deployment
) -> None:
    async with client.producer(session_id="said", prompt="Say it", metadata={"a": 1}) as out:
        await out.status("Thinking…")
        await out.text("Grüße ")
        await out.event("acme.seen", url="https://example.com", kind="page")
        await out.text("🚲")
        assert out.last_event_id == 5
        sid = out.id
    events = written(deployment, sid)
    assert [(event["id"], event["event"], event["data"]) for event in events] == [
        (2, "status", {"message": "Thinking…"}),
        (3, "text_delta", {"text": "Grüße "}),
        (4, "acme.seen", {"url": "https://example.com", "kind": "page"}),
        (5, "text_delta", {"text": "🚲"}),
        (6, "done", {}),
    ]
    now = record(deployment, sid)
    assert (now["state"], now["session_id"], now["metadata"]) == ("done", "said", {"a": 1})
    assert now["request"]["messages"] == [{"role": "user", "content": "Say it"}]


def test_what_a_thread_says_is_in_the_log_when_the_block_is_left(blocking: Client, deployment: Deployment) -> None:
    with blocking.producer() as out:
        for n in range(1000):
            out.text(f"{n} ")
    require_exact(deployment, out.id, [f"{n} " for n in range(1000)])


def test_several_threads_may_say_something(blocking: Client, deployment: Deployment) -> None:
    with blocking.producer() as out:
        threads = [threading.Thread(target=lambda: [out.text("x") for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    require_exact(deployment, out.id, ["x"] * 200)


async def test_an_exception_ends_the_stream_with_the_name_of_its_type_alone(
    client: AsyncClient, blocking: Client, deployment: Deployment
) -> None:
    async def fail() -> str:
        async with client.producer() as out:
            sids.append(out.id)
            await out.text("a")
            raise ZeroDivisionError("the key is lek_abc")

    def fail_blocking() -> None:
        with blocking.producer() as out:
            sids.append(out.id)
            out.text("a")
            raise ZeroDivisionError("the key is lek_abc")

    sids: list[str] = []
    with pytest.raises(ZeroDivisionError):
        await fail()
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(fail_blocking)
    for sid in sids:
        assert [event["event"] for event in written(deployment, sid)] == ["text_delta", "error"]
        assert written(deployment, sid)[-1]["data"] == {
            "code": "producer_failed",
            "message": "The producer has failed: ZeroDivisionError.",
            "recoverable": False,
        }


async def test_a_cancelled_task_ends_its_stream_as_cancelled(client: AsyncClient, deployment: Deployment) -> None:
    async def produce() -> None:
        async with client.producer() as out:
            opened.set_result(out.id)
            await out.text("a")
            await asyncio.Event().wait()

    opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(produce())
    sid = await opened
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [event["event"] for event in written(deployment, sid)] == ["text_delta", "cancelled"]


async def test_an_ending_of_ones_own_is_the_only_one(client: AsyncClient, deployment: Deployment) -> None:
    async with client.producer() as out:
        await out.event("done", stop_reason="end_turn", usage={"input_tokens": 3, "output_tokens": 1})
        with pytest.raises(StreamError) as raised:
            await out.text("late")
    assert raised.value.code == "stream_closed"
    assert [event["event"] for event in written(deployment, out.id)] == ["done"]
    assert record(deployment, out.id)["usage"]["output_tokens"] == 1


async def test_what_cannot_be_said_is_an_error_where_it_is_said_and_nothing_is_lost_by_it(
    client: AsyncClient, deployment: Deployment
) -> None:
    async with client.producer() as out:
        await out.text("a")
        for kind, data in [("restart", {}), ("message", {}), ("a", {"n": float("nan")}), ("a", {"t": "\udc00"})]:
            with pytest.raises(ValueError):
                await out.event(kind, **data)
        await out.text("b")
    require_exact(deployment, out.id, ["a", "b"])


async def test_an_event_that_the_server_refuses_is_said_at_the_next_call_and_the_stream_ends_with_an_error(
    client: AsyncClient, deployment: Deployment
) -> None:
    sids = []

    async def produce(has_left: bool) -> None:
        async with client.producer() as out:
            sids.append(out.id)
            await out.text("a")
            await until(lambda: record(deployment, out.id)["last_event_id"] == 2, "it is there")
            await out.event("acme.count", n=2**70)
            while not has_left:
                await out.text("b")
                await asyncio.sleep(0.01)

    for has_left in (False, True):
        with pytest.raises(StreamError, match=r"events\.0\.data") as raised:
            await produce(has_left)
        assert (raised.value.code, raised.value.status) == ("invalid_request", 422)
    for sid in sids:
        assert [event["event"] for event in written(deployment, sid)] == ["text_delta", "error"]
        assert "StreamError" in written(deployment, sid)[-1]["data"]["message"]


# -- who else writes ---------------------------------------------------------------------------------------


async def test_a_stream_that_somebody_cancels_raises_at_the_next_call(
    client: AsyncClient, deployment: Deployment
) -> None:
    async def produce(has_left: bool) -> None:
        async with client.producer() as out:
            sids.append(out.id)
            await client.cancel(out.id)
            await out.text("a")
            while not has_left:
                await out.text("b")
                await asyncio.sleep(0.01)

    sids: list[str] = []
    for has_left in (False, True):
        with pytest.raises(StreamError) as raised:
            await produce(has_left)
        assert (raised.value.code, raised.value.status) == ("stream_closed", 409)
    assert [record(deployment, sid)["state"] for sid in sids] == ["cancelled", "cancelled"]


async def test_of_two_processes_with_one_key_the_one_that_writes_behind_the_other_is_told(
    client: AsyncClient, deployment: Deployment
) -> None:
    async def interfere() -> None:
        async with client.producer(idempotency_key="two") as second:
            assert second.id == first.id
            await first.text("of the first")
            await until(lambda: record(deployment, first.id)["last_event_id"] == 2, "it is there")
            await second.text("of the second")

    async with client.producer(idempotency_key="two") as first:
        with pytest.raises(StreamError) as raised:
            await interfere()
        assert raised.value.code == "writer_superseded"
        await first.text(", and more")
    require_exact(deployment, first.id, ["of the first", ", and more"])


async def test_a_process_goes_on_where_another_one_with_its_key_was(
    client: AsyncClient, deployment: Deployment
) -> None:
    body = {"idempotency_key": "resumed", "session_id": "s"}
    gone = client.producer(**body)
    await gone.__aenter__()
    await gone.text("a")
    await gone.event("acme.seen", n=1.5)
    await until(lambda: record(deployment, gone.id)["last_event_id"] == 3, "it is there")
    assert gone._sending
    gone._sending.cancel()

    async with client.producer(**body) as out:
        assert [(event.id, event.kind, event.data) for event in out.written] == [
            (2, "text_delta", {"text": "a"}),
            (3, "acme.seen", {"n": 1.5}),
        ]
        await out.text("b")
    assert texts(deployment, out.id) == ["a", "b"]
    with pytest.raises(StreamError) as raised:
        async with client.producer(**body):
            pass
    assert raised.value.code == "stream_closed"
    assert "done" in str(raised.value)


async def test_a_stream_that_was_started_elsewhere_is_written_by_its_id(
    client: AsyncClient, deployment: Deployment
) -> None:
    started = await client.call("POST", "/v1/streams", {"producer": "external"})
    async with client.producer(id=started["id"], epoch=started["epoch"]) as out:
        await out.text("a")
    require_exact(deployment, started["id"], ["a"])
    with pytest.raises(ValueError, match="id alone"):
        client.producer(id=started["id"], session_id="s")
    with pytest.raises(StreamError) as raised:
        async with client.producer(id="none"):
            pass
    assert (raised.value.code, raised.value.status) == ("stream_not_found", 404)


# -- a server that is not there ----------------------------------------------------------------------------


async def test_beyond_2000_unsent_events_it_waits_and_goes_on_when_they_are_taken(
    deployment: Deployment, soon: None
) -> None:
    async with (
        obstacles(deployment.ports[0]) as between,
        AsyncClient(between.url) as client,
        client.producer() as out,
    ):
        between.share = 1.0
        for _ in range(outbox.MOST_UNSENT):
            await out.text("x")
        waiting = asyncio.ensure_future(out.text("y"))
        await asyncio.sleep(0.2)  # no time is long enough to see that it waits
        assert not waiting.done()
        between.share = 0.0
        await waiting
    require_exact(deployment, out.id, ["x"] * outbox.MOST_UNSENT + ["y"])


async def test_patience_ends(deployment: Deployment, soon: None) -> None:
    async def produce() -> None:
        async with client.producer() as out:
            between.share = 1.0
            await out.text("a")

    async with obstacles(deployment.ports[0]) as between, AsyncClient(between.url, patience_s=0.5) as client:
        with pytest.raises(StreamError) as raised:
            await produce()
    assert raised.value.code == "lost"


async def test_an_exception_is_not_held_up_by_a_server_that_is_away_and_close_waits_for_its_ending(
    deployment: Deployment, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lastevent.client.producer.LEAVING_S", 0.1)

    async def fail() -> None:
        async with client.producer() as out:
            sids.append(out.id)
            between.share = 1.0
            await out.text("a")
            raise ZeroDivisionError

    sids: list[str] = []
    async with obstacles(deployment.ports[0]) as between:
        async with AsyncClient(between.url) as client:
            with pytest.raises(ZeroDivisionError):
                await fail()
            between.share = 0.0
        assert [event["event"] for event in written(deployment, sids[0])] == ["text_delta", "error"]


def test_threads_get_through_what_is_refused_dropped_and_unanswered(deployment: Deployment, soon: None) -> None:
    def produce(client: Client, number: int) -> None:
        with client.producer(idempotency_key=f"thread-{number}") as out:
            sids[number] = out.id
            for n in range(100):
                out.text(f"{n} ")
                between_events.wait(0.005)

    async def all_of_them() -> None:
        async with obstacles(deployment.ports[0]) as between:
            between.share = 0.3
            with Client(between.url) as client:
                await asyncio.gather(*(asyncio.to_thread(produce, client, number) for number in range(4)))
                await asyncio.to_thread(client.close)

    between_events = threading.Event()
    sids: dict[int, str] = {}
    asyncio.run(all_of_them())
    for sid in sids.values():
        require_exact(deployment, sid, [f"{n} " for n in range(100)])


# -- everything at once ------------------------------------------------------------------------------------


async def test_20_producers_through_everything_that_can_be_lost(
    own_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    """Requests are refused, dropped and unanswered; Redis is rolled back, the process killed, and both."""
    deployment = own_deployment(servers=1, workers=0)

    def streams() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = HTTP.get(f"{deployment.url}/v1/sessions/produced").json().get("streams", [])
        return found

    async def have(events: int) -> None:
        def have_all() -> bool:
            tails = [stream["last_event_id"] for stream in streams()]
            return len(tails) == PRODUCERS and min(tails) > events

        await until(have_all, f"all have {events}", every_s=0.1)

    def states() -> set[str]:
        return {stream["state"] for stream in streams()}

    def producing(url: str, name: str) -> Process:
        arguments = [url, str(PRODUCERS), str(EVENTS), str(PAUSE_S)]
        argv = [sys.executable, "-m", "tests.lastevent.produce", *arguments]
        return Process(name, argv, {}, tmp_path)

    async with obstacles(deployment.ports[0]) as between:
        between.share = 0.25
        one, two = producing(between.url, "one"), producing(between.url, "two")
        one.start()
        await have(EVENTS // 8)
        save(deployment)
        await have(EVENTS // 4)
        await roll_back(deployment)  # the process has what Redis has lost
        await have(EVENTS // 4)
        save(deployment)
        await have(EVENTS // 2)
        one.kill()
        two.start()
        await until(lambda: two.output.read_text().count("open") == PRODUCERS, "all were taken over")
        await roll_back(deployment)  # what this one has only read is lost
        (tmp_path / "half").touch()
        await have(3 * EVENTS // 4)
        save(deployment)
        await have(EVENTS)
        between.share = 0.0
        (tmp_path / "all").touch()
        await until(lambda: states() == {"done"}, "all have ended", every_s=0.1)
        await roll_back(deployment)  # endings that were answered are lost
        assert states() == {"running"}
        assert await asyncio.to_thread(two.wait, 60) == 0, two.output.read_text()
        assert all(between.met[hurdle] for hurdle in HURDLES), between.met
        print(sum(between.met[hurdle] for hurdle in HURDLES), "requests of", between.met.total(), "met a hurdle")

    opened = [line.split() for line in two.output.read_text().splitlines() if line.startswith("open")]
    assert all(int(last_id) == EVENTS // 2 + 1 == int(count) + 1 for _, _, last_id, count in opened)
    numbers = []
    for stream in streams():
        number = texts(deployment, stream["id"])[0].partition(".")[0]
        numbers.append(int(number))
        require_exact(deployment, stream["id"], [f"{number}.{n} " for n in range(EVENTS)])
    assert sorted(numbers) == [*range(PRODUCERS)]
