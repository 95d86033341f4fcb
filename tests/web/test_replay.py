"""The log for operators: /replay at its own pace, /export whole."""

import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.rig.deployment import Deployment, wait_until
from tests.web.wire import Api, Exchange, frames, ids, ndjson, problem


def replay(api: Api, sid: str, query: str = "", **headers: str) -> Exchange:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Exchange(api.url, "GET", f"/v1/streams/{sid}/replay{query}", named)


@pytest.fixture
def finished(api: Api) -> str:
    """1 queued, 2 start, 3 4 5 text_delta, 6 done, within a few ms."""
    return api.finished("a", "b", "c")


def test_replay_at_speed_0_is_the_whole_log_at_once(api: Api, finished: str) -> None:
    with replay(api, finished, "?speed=0") as answer:
        body = answer.read_to_end()
    assert answer.status == 200
    assert answer.is_complete
    content_type = answer.header("content-type")
    assert content_type
    assert content_type.startswith("text/event-stream")
    followed = api.follow(finished).read_to_end()
    assert re.sub(rb"(?m)^retry: [0-9]+\n", b"", body) == re.sub(rb"(?m)^retry: [0-9]+\n", b"", followed)


def test_from_and_to_bound_it(api: Api, finished: str) -> None:
    for query, wanted in (
        ("from=3", [3, 4, 5, 6]),
        ("to=2", [1, 2]),
        ("from=3&to=4", [3, 4]),
        ("from=6&to=9007199254740991", [6]),
        ("from=5&to=4", []),
        ("from=7", []),
    ):
        with replay(api, finished, f"?speed=0&{query}") as answer:
            assert ids(answer.read_to_end()) == wanted
        assert answer.status == 200


def test_it_keeps_the_pace_times_the_speed(api: Api) -> None:
    sid = api.start_external()
    began = time.monotonic()
    while time.monotonic() < began + 1.2:  # the log's own pace is what is tested: one event an exchange
        api.append(sid, ("text_delta", {"text": "."}))
    api.append(sid, ("done", {}))
    log = ndjson(api.get(f"/v1/streams/{sid}/export").content)
    lasted_s = (log[-1]["t"] - log[0]["t"]) / 1000
    for speed in (2, 8):
        began = time.monotonic()
        with replay(api, sid, f"?speed={speed}") as answer:
            answer.read_until(lambda body: b"id: 1\n" in body)
            assert time.monotonic() - began < lasted_s / speed + 1
            assert ids(answer.read_to_end()) == [event["id"] for event in log]
        assert lasted_s / speed * 0.9 < time.monotonic() - began < lasted_s / speed + 2


def test_a_browser_that_was_cut_goes_on_and_stops_at_the_end(api: Api, finished: str) -> None:
    with replay(api, finished, "?speed=0", Last_Event_ID="4") as answer:
        assert ids(answer.read_to_end()) == [5, 6]
    with replay(api, finished, "?speed=0&from=2&to=5", Last_Event_ID="3") as answer:
        assert ids(answer.read_to_end()) == [4, 5]
    for query, cursor in (("", "6"), ("?to=4", "4"), ("?to=4", "5")):
        with replay(api, finished, query, Last_Event_ID=cursor) as answer:
            assert answer.status == 204


@pytest.mark.parametrize(
    "query",
    ["speed=-1", "speed=nan", "speed=inf", "speed=x", "speed=10001", "from=0", "from=-1", "from=1.5", "to=0", "to=x"],
)
def test_a_pace_or_place_that_is_none_is_refused(api: Api, finished: str, query: str) -> None:
    problem(api.get(f"/v1/streams/{finished}/replay?{query}"), 422, "invalid_request")


def test_a_bad_cursor_is_refused(api: Api, finished: str) -> None:
    problem(api.get(f"/v1/streams/{finished}/replay", headers={"Last-Event-ID": "1_0"}), 400, "bad_cursor")


def test_a_stream_that_runs_is_replayed_as_far_as_it_is(api: Api) -> None:
    sid = api.start_external()
    with replay(api, sid, "?speed=0") as answer:
        assert ids(answer.read_to_end()) == [1]


def test_the_slowest_pace_there_is_still_begins(api: Api, finished: str) -> None:
    with replay(api, finished, "?speed=5e-324") as answer:
        answer.read_until(lambda body: b"id: 1\n" in body)


def test_a_replay_counts_as_a_viewer_wherever_one_counts(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    deployment = own_deployment(servers=1, workers=0, LASTEVENT_MAX_VIEWERS="2", LASTEVENT_HEARTBEAT_S="0.1")
    api = open_api(deployment.url)
    sid = api.start_external()
    for kind in ("text_delta", "text_delta", "done"):  # an exchange each: at this speed, a quarter of an hour apart
        api.append(sid, (kind, {}))
    with ExitStack() as stack, ThreadPoolExecutor(5) as together:
        replays = list(together.map(lambda _: stack.enter_context(replay(api, sid, "?speed=0.000001")), range(5)))
        statuses = sorted(together.map(lambda answer: answer.status, replays))
        assert statuses == [200, 200, 429, 429, 429]
        first, second = (answer for answer in replays if answer.status == 200)
        for answer in (first, second):
            answer.read_until(lambda body: b": ping\n" in body)  # it waits for event 2, and says that it lives
        for answer in replays:
            if answer.status == 429:
                assert answer.header("content-type") == "application/problem+json"
        said = api.get("/metrics").text
        assert re.search(r"^lastevent_viewers\{\S+ 2\.0$", said, re.MULTILINE)
        assert not re.search(r"^lastevent_sent_bytes_total\{\S+ 0\.0$", said, re.MULTILINE)
        first.close()
        one = re.compile(r"^lastevent_viewers\{\S+ 1\.0$", re.MULTILINE)
        wait_until(lambda: one.search(api.get("/metrics").text), "the one that left is forgotten")
        deployment.servers[0].send(signal.SIGTERM)
        second.read_to_end()
        assert not second.is_complete
        assert b": draining\n" in second.body
        assert deployment.servers[0].wait(20) == 0
        deployment.servers[0].start()
        deployment.wait_until_ready()
        views = open_api(deployment.url).get(f"/v1/streams/{sid}/views").json()["views"]
        assert sorted((view["format"], view["how"], view["last_id"]) for view in views) == [
            ("replay", "drained", 1),
            ("replay", "left", 1),
        ]


def test_export_is_the_whole_log_as_a_file(api: Api, finished: str) -> None:
    answer = api.get(f"/v1/streams/{finished}/export")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    assert answer.headers["content-disposition"] == f'attachment; filename="{finished}.ndjson"'
    assert answer.content == api.follow(finished, Accept="application/x-ndjson").read_to_end()
    assert [frame[:3] for frame in frames(api.follow(finished).read_to_end())] == [
        (line["id"], line["event"], line["data"]) for line in ndjson(answer.content)
    ]


def test_a_replay_after_the_latest_event_is_over(api: Api) -> None:
    sid = api.finished("a")
    assert api.get(f"/v1/streams/{sid}/replay?speed=0&last_event_id=latest").status_code == 204
    assert api.get(f"/v1/streams/{sid}/replay?speed=0&last_event_id=earliest").status_code == 200
