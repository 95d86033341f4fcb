"""GET /v1/streams/{id}/events in detail (design §6): cursors, formats, headers, the end and what is none."""

import re
import signal
import time
from collections.abc import Callable

import pytest
import redis

from broker.live.hub import LOOK_S
from tests.rig.deployment import Deployment, wait_until
from tests.web.wire import Api, Exchange, frames, ids, ndjson, problem

BAD_CURSORS = [
    *("-1", "+1", "1_0", "01", "00", "-0", "1.0", "1e3", "0x1", "1 2", "１", "٣", "²", "NaN", "null", "none", "abc"),
    *("9007199254740992", "99999999999999999999999999", "1-0", "1,x", "Earliest", "LATEST", "[1]", "1\t2"),
]
NDJSON = "application/x-ndjson"


@pytest.fixture
def finished(api: Api) -> str:
    """1 queued, 2 start, 3 4 5 text_delta, 6 done."""
    return api.finished("a", "b", "c")


@pytest.fixture
def running(api: Api) -> str:
    """1 queued, 2 start, 3 text_delta."""
    sid = api.start_external()
    api.append(sid, ("start", {}), ("text_delta", {"text": "a"})).raise_for_status()
    return sid


# -- the wire --------------------------------------------------------------------------------------------


def test_a_frame_is_event_one_line_of_data_and_id(api: Api, finished: str) -> None:
    body = api.follow(finished).read_to_end()
    assert re.fullmatch(
        rb"retry: [0-9]{4}\nevent: queued\ndata: {}\nid: 1\n\nevent: start\ndata: {}\nid: 2\n\n"
        rb'event: text_delta\ndata: {"text":"a"}\nid: 3\n\nevent: text_delta\ndata: {"text":"b"}\nid: 4\n\n'
        rb'event: text_delta\ndata: {"text":"c"}\nid: 5\n\n'
        rb'event: done\ndata: {"stop_reason":"end_turn"}\nretry: [6-9][0-9]{4}\nid: 6\n\n',
        body,
    )


def test_retry_is_one_to_two_seconds_and_each_viewers_own(api: Api, finished: str) -> None:
    retries = [frames(api.follow(finished).read_to_end())[0].retry for _ in range(12)]
    assert all(retry is not None and 1000 <= retry <= 2000 for retry in retries)
    assert len(set(retries)) > 3


def test_retry_stands_in_the_first_frame_and_nowhere_else(api: Api, finished: str) -> None:
    for query in ("", "?last_event_id=4", "?compact=1", "?follow=0"):
        got = frames(api.follow(finished, query).read_to_end())
        assert [frame.retry is not None for frame in got] == [True] + [False] * (len(got) - 1)


def test_the_headers_are_these(api: Api, finished: str) -> None:
    with api.follow(finished, Accept_Encoding="gzip, br, deflate, zstd") as viewer:
        viewer.read_to_end()
    assert viewer.status == 200
    assert viewer.header("content-type") == "text/event-stream; charset=utf-8"
    assert viewer.header("cache-control") == "no-store, no-transform"
    assert viewer.header("x-accel-buffering") == "no"
    assert viewer.header("transfer-encoding") == "chunked"
    assert viewer.header("content-encoding") is None
    assert viewer.header("content-length") is None


def test_head_answers_without_a_body(api: Api, running: str, finished: str) -> None:
    for sid in (running, finished):
        answer = api.http.head(f"/v1/streams/{sid}/events")
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert api.http.head(f"/v1/streams/{finished}/events?last_event_id=6").status_code == 204
    assert api.http.head("/v1/streams/nope/events").status_code == 404
    ndjson = api.http.head(f"/v1/streams/{running}/events", headers={"Accept": NDJSON})
    assert ndjson.headers["content-type"] == NDJSON


def test_two_requests_share_a_connection_when_the_first_has_its_proper_end(api: Api, finished: str) -> None:
    # An answer that ended properly leaves the connection usable, a HEAD's too.
    request = f"GET /v1/streams/{finished}/events HTTP/1.1\r\nHost: {api.http.base_url.netloc.decode()}\r\n\r\n"
    head = request.replace("GET", "HEAD", 1)
    last = request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
    with Exchange(api.url, "GET", f"/v1/streams/{finished}/events") as first:
        first.read_to_end()
        first.send((head + last).encode())
        rest = first.read_all()
    assert rest.count(b"HTTP/1.1 200 OK") == 2
    assert rest.count(b"event: done\n") == rest.count(b"\nid: 6\n\n") == 1


# -- cursors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(6))
def test_a_viewer_gets_what_follows_its_cursor(api: Api, other_api: Api, finished: str, after: int) -> None:
    wanted = list(range(after + 1, 7))
    assert ids(api.follow(finished, Last_Event_ID=str(after)).read_to_end()) == wanted
    assert ids(other_api.follow(finished, f"?last_event_id={after}").read_to_end()) == wanted
    assert ids(api.follow(finished, f"?lastEventId={after}").read_to_end()) == wanted


def test_of_all_cursors_the_greatest_counts(api: Api, finished: str) -> None:
    """An app that starts from a kept cursor sends that one, and the newer one beside it, at each reconnect."""
    assert ids(api.follow(finished, "?last_event_id=1", Last_Event_ID="4").read_to_end()) == [5, 6]
    assert ids(api.follow(finished, "?last_event_id=4", Last_Event_ID="1").read_to_end()) == [5, 6]
    assert ids(api.follow(finished, "?last_event_id=4&lastEventId=1").read_to_end()) == [5, 6]
    assert ids(api.follow(finished, "?last_event_id=1&last_event_id=4").read_to_end()) == [5, 6]
    assert ids(api.follow(finished, Last_Event_ID="1, 4").read_to_end()) == [5, 6]
    assert ids(api.follow(finished, "?last_event_id=latest", Last_Event_ID="4").read_to_end()) == [5, 6]
    path = f"/v1/streams/{finished}/events"
    with Exchange(api.url, "GET", path, [("Last-Event-ID", "4"), ("Last-Event-ID", "1")]) as twice:
        assert ids(twice.read_to_end()) == [5, 6]


@pytest.mark.parametrize("cursor", ["4 ", "4\t", " 4", "4 \t "])
def test_blanks_around_a_field_are_not_of_it(api: Api, finished: str, cursor: str) -> None:
    path = f"/v1/streams/{finished}/events"
    with Exchange(api.url, "GET", path, [("Last-Event-ID", cursor), ("Accept", f"{NDJSON} ")]) as viewer:
        assert [event["id"] for event in ndjson(viewer.read_to_end())] == [5, 6]


def test_an_empty_cursor_counts_as_absent(api: Api, finished: str) -> None:
    assert ids(api.follow(finished, Last_Event_ID="").read_to_end()) == [1, 2, 3, 4, 5, 6]
    assert ids(api.follow(finished, "?last_event_id=").read_to_end()) == [1, 2, 3, 4, 5, 6]
    assert ids(api.follow(finished, "?last_event_id=4", Last_Event_ID="").read_to_end()) == [5, 6]
    assert ids(api.follow(finished, "?last_event_id=&lastEventId=4").read_to_end()) == [5, 6]


def test_earliest_is_the_beginning(api: Api, finished: str) -> None:
    assert ids(api.follow(finished, Last_Event_ID="earliest").read_to_end()) == [1, 2, 3, 4, 5, 6]


def test_who_joins_at_the_latest_event_is_told_at_once_which_that_is(api: Api, running: str) -> None:
    """Or it would come back without an id after a cut, and miss what was said meanwhile, without a notice."""
    with api.follow(running, "?last_event_id=latest") as viewer, api.follow(running, Accept=NDJSON) as other:
        assert re.fullmatch(rb"retry: [0-9]{4}\nid: 3\n\n", viewer.read_until(lambda body: body.endswith(b"\n\n")))
        assert viewer.header("last-event-id") == "3"
        assert other.header("last-event-id") is None, "it asked for all"


def test_latest_is_only_what_comes_from_now_on(api: Api, running: str, finished: str) -> None:
    with api.follow(running, Last_Event_ID="latest") as viewer:
        api.append(running, ("text_delta", {"text": "b"}), ("done", {}))
        assert ids(viewer.read_to_end()) == [4, 5]
    assert api.follow(finished, "?last_event_id=latest").status == 204


def test_at_the_terminal_event_the_answer_is_204(api: Api, other_api: Api, finished: str) -> None:
    for server in (api, other_api):
        with server.follow(finished, Last_Event_ID="6") as viewer:
            assert viewer.status == 204
            assert viewer.header("content-length") in (None, "0")
    assert api.get(f"/v1/streams/{finished}/events?last_event_id=6", headers={"Accept": NDJSON}).status_code == 204


@pytest.mark.parametrize("beyond", ["7", "1000001", "9007199254740991"])
def test_beyond_the_end_the_terminal_event_comes_alone(api: Api, finished: str, beyond: str) -> None:
    for query in ("", "?follow=0", "?compact=1"):
        with api.follow(finished, query, Last_Event_ID=beyond) as viewer:
            assert ids(viewer.read_to_end()) == [6]
            assert viewer.is_complete
    assert [
        event["id"] for event in ndjson(api.follow(finished, Accept=NDJSON, Last_Event_ID=beyond).read_to_end())
    ] == [6]


def test_beyond_the_tail_of_a_running_stream_a_viewer_waits(api: Api, running: str) -> None:
    with api.follow(running, Last_Event_ID="5") as viewer:
        api.append(running, *[("text_delta", {"text": str(n)}) for n in range(4)])  # 4 to 7
        viewer.read_until(lambda body: b"id: 7\n" in body)
        api.append(running, ("done", {}))
        assert ids(viewer.read_to_end()) == [6, 7, 8]


def test_beyond_the_tail_a_stream_that_ends_first_still_tells_its_end(api: Api, running: str) -> None:
    with api.follow(running, Last_Event_ID="500") as viewer:
        api.append(running, ("done", {}))
        assert ids(viewer.read_to_end()) == [4]
    assert viewer.is_complete


@pytest.mark.parametrize("cursor", BAD_CURSORS)
def test_what_is_no_cursor_is_refused(api: Api, running: str, cursor: str) -> None:
    path = f"/v1/streams/{running}/events"
    problem(api.get(path, params={"last_event_id": cursor}), 400, "bad_cursor")
    problem(api.get(path, params={"lastEventId": cursor}), 400, "bad_cursor")
    if cursor == cursor.strip():  # HTTP itself takes white space off a header
        problem(api.get(path, headers={"Last-Event-ID": cursor.encode()}), 400, "bad_cursor")
        problem(api.get(path, headers={"Last-Event-ID": cursor.encode(), "Accept": NDJSON}), 400, "bad_cursor")


@pytest.mark.parametrize("cursor", [" 1x", " 1", "1 ", "\t1", "1\n", "1\x00", "\u00a01"])
def test_white_space_makes_no_cursor(api: Api, running: str, cursor: str) -> None:
    problem(api.get(f"/v1/streams/{running}/events", params={"last_event_id": cursor}), 400, "bad_cursor")


def test_a_plus_in_the_query_is_a_space_and_no_cursor(api: Api, running: str) -> None:
    problem(api.get(f"/v1/streams/{running}/events?last_event_id=+1"), 400, "bad_cursor")


@pytest.mark.parametrize(
    "sid", ["nope", "0" * 32, "a b", "%00", "%7Bx%7D", "..%2F..", "ü", "x" * 4000, "%ff", "*", "%0d%0a"]
)
def test_an_id_of_any_shape_that_is_no_stream_is_404(api: Api, sid: str) -> None:
    for path in ("", "/events", "/text", "/export", "/replay"):
        answer = api.get(f"/v1/streams/{sid}{path}")
        assert answer.status_code == 404, (path, answer.text)
    for path in ("/cancel", "/regenerate"):
        problem(api.post(f"/v1/streams/{sid}{path}"), 404, "stream_not_found") if "2F" not in sid else None


@pytest.mark.parametrize("query", ["compact=2", "compact=true", "compact=", "follow=2", "follow=no", "follow=1.0"])
def test_an_option_that_is_none_is_refused(api: Api, running: str, query: str) -> None:
    problem(api.get(f"/v1/streams/{running}/events?{query}"), 422, "invalid_request")


# -- forms -----------------------------------------------------------------------------------------------


def test_compact_merges_the_texts_of_the_backlog_under_the_last_ones_id(api: Api) -> None:
    sid = api.start_external()
    thoughts = [("thinking_delta", {"text": text}) for text in ("hm", "m")]
    texts = [("text_delta", {"text": text}) for text in ("a", "b", "c")]
    apart = [("text_delta", {"text": "x", "agent": "two"}), ("status", {"message": "m"}), ("text_delta", {"text": "d"})]
    api.append(sid, *thoughts, *texts, *apart, ("done", {})).raise_for_status()
    got = [frame[:3] for frame in frames(api.follow(sid, "?compact=1").read_to_end())]
    assert got == [
        (1, "queued", {}),
        (3, "thinking_delta", {"text": "hmm"}),
        (6, "text_delta", {"text": "abc"}),
        (7, "text_delta", {"text": "x", "agent": "two"}),
        (8, "status", {"message": "m"}),
        (9, "text_delta", {"text": "d"}),
        (10, "done", {}),
    ]
    assert [event["id"] for event in ndjson(api.follow(sid, "?compact=1", Accept=NDJSON).read_to_end())] == [
        frame[0] for frame in got
    ]


def test_every_id_of_a_compact_answer_is_a_cursor(api: Api, finished: str) -> None:
    for cursor in range(6):
        got = frames(api.follow(finished, f"?compact=1&last_event_id={cursor}").read_to_end())
        text = "".join(frame.data["text"] for frame in got if frame.event == "text_delta")
        assert text == "abc"[max(0, cursor - 2) :]


def test_follow_0_is_the_backlog_and_a_proper_end(api: Api, running: str) -> None:
    with api.follow(running, "?follow=0") as viewer:
        assert ids(viewer.read_to_end()) == [1, 2, 3]
    assert viewer.is_complete
    for query in ("?follow=0&last_event_id=3", "?follow=0&last_event_id=latest", "?follow=0&last_event_id=99"):
        with api.follow(running, query) as viewer:
            assert ids(viewer.read_to_end()) == []
        assert viewer.is_complete


def test_ndjson_is_the_same_events_an_object_a_line(api: Api, finished: str) -> None:
    with api.follow(finished, Accept=NDJSON) as viewer:
        body = viewer.read_to_end()
    assert viewer.is_complete
    assert viewer.header("content-type") == NDJSON
    events = ndjson(body)
    assert [event.keys() for event in events] == [{"id": 1, "event": 1, "data": 1, "t": 1}.keys()] * 6
    as_sse = frames(api.follow(finished).read_to_end())
    assert [(event["id"], event["event"], event["data"]) for event in events] == [frame[:3] for frame in as_sse]
    times = [event["t"] for event in events]
    assert times == sorted(times)
    assert all(abs(time - times[0]) < 60_000 for time in times)
    assert all(type(time) is int for time in times)


def test_events_reach_a_follower_of_another_server_as_they_are_appended(api: Api, other_api: Api, running: str) -> None:
    with other_api.follow(running) as viewer:
        viewer.read_until(lambda body: b"id: 3\n" in body)
        for n in range(4, 9):
            api.append(running, ("text_delta", {"text": str(n)}))
            viewer.read_until(lambda body, n=n: b"id: %d\n" % n in body)
        api.append(running, ("done", {}))
        assert ids(viewer.read_to_end()) == list(range(1, 10))


def test_the_same_bytes_come_to_whoever_opens_early_midway_and_late(api: Api) -> None:
    sid = api.start_external()
    with api.follow(sid) as early:
        early.read_until(lambda body: b"id: 1\n" in body)
        api.append(sid, ("text_delta", {"text": "a"}))
        with api.follow(sid) as midway:
            midway.read_until(lambda body: b"id: 2\n" in body)
            api.append(sid, ("text_delta", {"text": "b"}), ("done", {}))
            bodies = [early.read_to_end(), midway.read_to_end(), api.follow(sid).read_to_end()]
    bare = {re.sub(rb"(?m)^retry: [0-9]+\n", b"", body) for body in bodies}
    assert len(bare) == 1


def test_kinds_nobody_knows_and_any_data_pass_through(api: Api) -> None:
    sid = api.start_external()
    odd = {"agent": "two", "deep": {"list": [1, 2.5, None, True, "x"]}, "": "", "id": 7}
    api.append(sid, ("acme.thing_9", odd), ("cancelled", {})).raise_for_status()
    assert frames(api.follow(sid).read_to_end())[1][:3] == (2, "acme.thing_9", odd)


def test_a_long_backlog_comes_whole(api: Api) -> None:
    sid = api.start_external()
    for _ in range(3):
        api.append(sid, *[("text_delta", {"text": "x" * 50})] * 1000).raise_for_status()
    api.append(sid, ("done", {}))
    for query in ("", "?follow=0"):
        assert ids(api.follow(sid, query).read_to_end()) == list(range(1, 3003))
    assert ids(api.follow(sid, "?compact=1").read_to_end())[-1] == 3002
    assert len(api.get(f"/v1/streams/{sid}/text").text) == 150_000
    assert len(ndjson(api.get(f"/v1/streams/{sid}/export").content)) == 3002


# -- how it ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["done", "error", "cancelled"])
def test_the_body_ends_properly_after_a_terminal_event(api: Api, running: str, ending: str) -> None:
    with api.follow(running) as viewer, api.follow(running, Accept=NDJSON) as other:
        api.append(running, (ending, {}))
        assert frames(viewer.read_to_end())[-1].event == ending
        assert ndjson(other.read_to_end())[-1]["event"] == ending
    assert viewer.is_complete
    assert other.is_complete


def test_silence_is_broken_by_heartbeats(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    api = open_api(own_deployment(servers=1, workers=0, LASTEVENT_HEARTBEAT_S="0.1").url)
    sid = api.start_external()
    with api.follow(sid, "?last_event_id=latest") as viewer:  # a heartbeat that comes first opens the answer
        body = viewer.read_until(lambda body: body.endswith(b": ping\n"))
        assert re.fullmatch(rb"retry: [0-9]{4}\nid: 1\n\n(: ping\n)+", body)
    with api.follow(sid) as viewer, api.follow(sid, Accept=NDJSON) as other:
        viewer.read_until(lambda body: body.endswith(b": ping\n: ping\n"))
        other.read_until(lambda body: body.endswith(b"}\n\n\n"))
        api.append(sid, ("done", {}))
        assert ids(viewer.read_to_end()) == [1, 2]
        assert [event["id"] for event in ndjson(other.read_to_end())] == [1, 2]
    with api.follow(sid, "?last_event_id=1") as resumed:
        assert resumed.read_to_end().count(b"ping") == 0


def test_a_viewer_chooses_how_often_it_hears_and_in_which_form(api: Api) -> None:
    sid = api.start_external()
    query = "?heartbeat=event&heartbeat_s=1"
    with api.follow(sid, query) as viewer, api.follow(sid, query, Accept=NDJSON) as other:
        body = viewer.read_until(lambda body: body.count(b"event: ping\ndata: {}\n\n") == 2)
        assert [(frame.id, frame.event) for frame in frames(body)] == [(1, "queued"), (None, "ping"), (None, "ping")]
        lines = other.read_until(lambda body: body.count(b"\n") == 2)
        assert ndjson(lines)[1] == {"event": "ping", "data": {}}
    for bad in ("heartbeat=yes", "heartbeat_s=0", "heartbeat_s=61", "heartbeat_s=nan"):
        problem(api.get(f"/v1/streams/{sid}/events?{bad}"), 422, "invalid_request")


def test_a_killed_server_cuts_and_the_viewer_resumes_elsewhere(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    deployment = own_deployment(servers=2, workers=0)
    first, second = (open_api(url) for url in deployment.urls)
    sid = first.start_external()
    with first.follow(sid) as viewer:
        first.append(sid, ("text_delta", {"text": "a"}))
        viewer.read_until(lambda body: b"id: 2\n" in body)
        deployment.servers[0].send(signal.SIGKILL)
        assert ids(viewer.read_to_end()) == [1, 2]
    assert not viewer.is_complete
    second.append(sid, ("text_delta", {"text": "b"}), ("done", {}))
    assert ids(second.follow(sid, Last_Event_ID="2").read_to_end()) == [3, 4]


def test_a_drain_cuts_between_two_frames_and_says_when_to_come_back(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    deployment = own_deployment(servers=2, workers=0)
    first, second = (open_api(url) for url in deployment.urls)
    sid = first.start_external()
    with first.follow(sid) as viewer, first.follow(sid, Accept=NDJSON) as other:
        viewer.read_until(lambda body: b"id: 1\n" in body)
        other.read_until(lambda body: b'"id":1' in body)
        deployment.servers[0].send(signal.SIGTERM)
        body = viewer.read_to_end()
        lines = other.read_to_end()
        assert deployment.servers[0].wait(20) == 0
    assert re.fullmatch(rb"retry: [0-9]+\n[^\x00]*\nid: 1\n\nretry: [0-9]{4}\n: draining\n", body)
    assert not viewer.is_complete
    assert [event["id"] for event in ndjson(lines)] == [1]
    assert not other.is_complete
    second.append(sid, ("done", {}))
    assert ids(second.follow(sid, Last_Event_ID="1").read_to_end()) == [2]
    assert b"Traceback" not in deployment.servers[0].output.read_bytes()


def test_viewers_that_leave_are_forgotten(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    deployment = own_deployment(servers=1, workers=0)
    api = open_api(deployment.url)
    sid = api.start_external()
    viewers = [api.follow(sid) for _ in range(5)]

    def connected() -> float:
        said = api.get("/metrics").text
        return sum(float(line.split()[-1]) for line in said.splitlines() if re.match(r"lastevent_viewers(\{| )", line))

    wait_until(lambda: connected() == 5, "five viewers are counted")
    for viewer in viewers:
        viewer.close()
    wait_until(lambda: connected() == 0, "they are forgotten")
    assert b"Traceback" not in deployment.servers[0].output.read_bytes()


def test_viewers_whose_streams_vanish_are_cut_within_seconds_and_find_nothing_when_they_return(
    api: Api, deployment: Deployment
) -> None:
    with redis.Redis.from_url(deployment.redis_url) as client:
        sids = [api.start_external() for _ in range(2)]
        viewers = [api.follow(sid) for sid in sids]
        for viewer in viewers:
            viewer.read_chunk()
        for sid, what in zip(sids, ("meta", "*"), strict=True):
            client.delete(*client.keys(f"le:{{{sid}}}:{what}"))
        began_s = time.monotonic()
        for sid, viewer in zip(sids, viewers, strict=True):
            viewer.read_to_end()
            assert not viewer.is_complete
            assert api.get(f"/v1/streams/{sid}/events").status_code in (404, 410)
        assert time.monotonic() - began_s < 2 * LOOK_S + 1
        client.delete(*(f"le:{{{sid}}}:log" for sid in sids))
