"""GET /v1/sessions/{id}/events and GET /v1/events in detail: notices, cursors, ends, rights, places and records."""

import re
import uuid
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from broker.dialects.vector import parse
from tests.rig.deployment import Deployment, wait_until
from tests.web.credentials import KEY
from tests.web.wire import Api, Exchange, problem

NDJSON = "application/x-ndjson"
FRAME = re.compile(
    rb"(?:retry: [0-9]+\n)?(?:: ping\n)*event: (?P<kind>[^\n]*)\ndata: (?P<data>[^\n]*)"
    rb"(?:(?:\nretry: (?P<late>[0-9]+))?\nid: (?P<id>[^\n]+))?"
)
POSITION = re.compile(rb"(?:retry: [0-9]+\n)?id: (?P<id>[^\n]+)")


@pytest.fixture
def session() -> str:
    return f"s-{uuid.uuid4().hex[:8]}"


def seen(body: bytes) -> list[tuple[str, Any, str | None]]:
    """(kind, data, id) of each complete frame; where the viewer stands before them is left out."""
    found = []
    for block in body.split(b"\n\n")[:-1]:
        if POSITION.fullmatch(block):
            continue
        frame = FRAME.fullmatch(block)
        assert frame, f"not a frame: {block!r}"
        cursor = frame["id"].decode() if frame["id"] else None
        found.append((frame["kind"].decode(), orjson.loads(frame["data"]), cursor))
    return found


def events(body: bytes) -> list[tuple[str, int]]:
    """(stream, id) of each event."""
    return [_own(cursor) for _, _, cursor in seen(body) if cursor]


def _own(cursor: str) -> tuple[str, int]:
    sid, _, n = cursor.rpartition(".")[2].partition("-")
    return sid, int(n)


def last_cursor(body: bytes) -> str:
    return [cursor for _, _, cursor in seen(body) if cursor][-1]


def notices(body: bytes, kind: str) -> list[Any]:
    return [data for name, data, cursor in seen(body) if name == kind and cursor is None]


def running(api: Api, session: str, *texts: str) -> str:
    sid = api.start_external(session_id=session)
    api.append(sid, ("start", {}), *(("text_delta", {"text": text}) for text in texts)).raise_for_status()
    return sid


def finish(api: Api, sid: str) -> None:
    api.append(sid, ("done", {"stop_reason": "end_turn"})).raise_for_status()


def follow(api: Api, path: str, **headers: str) -> Exchange:
    return api.exchange("GET", path, [(name.replace("_", "-"), value) for name, value in headers.items()])


def has(sid: str, n: int) -> Callable[[bytes], bool]:
    return lambda body: f".{sid}-{n}\n\n".encode() in body


def test_a_session_is_what_runs_from_its_beginning_and_whatever_starts_later(
    api: Api, other_api: Api, session: str
) -> None:
    old = api.finished("old", session_id=session)
    first = running(api, session, "a")
    with follow(other_api, f"/v1/sessions/{session}/events") as viewer:
        viewer.read_until(has(first, 3))
        second = running(api, session, "b")
        viewer.read_until(has(second, 3))
        finish(api, first)
        body = viewer.read_until(has(first, 4))
    assert viewer.status == 200
    assert viewer.header("content-type") == "text/event-stream; charset=utf-8"
    assert [n for sid, n in events(body) if sid == first] == [1, 2, 3, 4]
    assert [n for sid, n in events(body) if sid == second] == [1, 2, 3]
    assert old not in {sid for sid, _ in events(body)}
    told = notices(body, "stream")
    assert [one["stream"] for one in told] == [first, second]
    assert told[0] == {"stream": first, "state": "running", "created_at": api.record(first)["created_at"]}


def test_the_cursor_resumes_on_another_server_what_ran_and_what_began_and_ended_meanwhile(
    api: Api, other_api: Api, session: str
) -> None:
    first = running(api, session, "a")
    with follow(api, f"/v1/sessions/{session}/events") as viewer:
        body = viewer.read_until(has(first, 3))
    between = api.finished("x", "y", session_id=session)
    finish(api, first)
    with follow(other_api, f"/v1/sessions/{session}/events?last_event_id={last_cursor(body)}") as viewer:
        more = viewer.read_until(lambda body: has(first, 4)(body) and has(between, 5)(body))
    assert sorted(events(more)) == sorted([(first, 4), *((between, n) for n in range(1, 6))])
    for header in (
        {"Last_Event_ID": last_cursor(more)},
        {"Last_Event_ID": last_cursor(body) + ", " + last_cursor(more)},
    ):
        with follow(api, f"/v1/sessions/{session}/events?follow=0", **header) as viewer:
            assert events(viewer.read_to_end()) == []
        assert viewer.is_complete


def test_who_comes_for_the_first_time_is_told_at_once_where_it_stands(api: Api, session: str) -> None:
    with follow(api, f"/v1/sessions/{session}/events") as viewer:
        told = viewer.read_until(lambda body: b"\n\n" in body)
    position = POSITION.fullmatch(told.split(b"\n\n")[0])
    assert position
    assert viewer.header("last-event-id") == position["id"].decode()
    sid = api.finished("a", session_id=session)  # began and ended while nobody was there
    with follow(api, f"/v1/sessions/{session}/events?follow=0", Last_Event_ID=position["id"].decode()) as viewer:
        assert events(viewer.read_to_end()) == [(sid, n) for n in range(1, 5)]


def test_what_runs_is_named_before_its_first_event(api: Api, session: str) -> None:
    sid = running(api, session)
    with follow(api, f"/v1/sessions/{session}/events") as viewer:
        cursor = viewer.header("last-event-id")
    assert cursor
    assert parse(cursor).named == {sid: 0}
    finish(api, sid)
    with follow(api, f"/v1/sessions/{session}/events?follow=0", Last_Event_ID=cursor) as viewer:
        assert events(viewer.read_to_end()) == [(sid, 1), (sid, 2), (sid, 3)]


def test_ndjson_has_stream_cursor_and_id_first(api: Api, session: str) -> None:
    sid = running(api, session, 'a"id":7,\n')
    with follow(api, f"/v1/sessions/{session}/events?follow=0", Accept=NDJSON) as viewer:
        lines = viewer.read_to_end().splitlines()
    assert viewer.is_complete
    [told, *got] = map(orjson.loads, lines)
    assert (told["event"], told["data"]["stream"]) == ("stream", sid)
    assert [list(one) for one in got] == [["stream", "cursor", "id", "event", "data", "t"]] * 3
    assert [(one["stream"], one["id"]) for one in got] == [(sid, 1), (sid, 2), (sid, 3)]
    assert all(one["cursor"].endswith(f".{sid}-{one['id']}") for one in got)
    assert got[2]["data"] == {"text": 'a"id":7,\n'}


def test_a_session_may_be_named_with_slashes(api: Api, session: str) -> None:
    sid = running(api, f"{session}/a/b")
    with follow(api, f"/v1/sessions/{session}/a/b/events?follow=0") as viewer:
        assert events(viewer.read_to_end()) == [(sid, 1), (sid, 2)]


def test_text_that_waits_is_merged_if_asked(api: Api, session: str) -> None:
    sid = running(api, session, "a", "b", "c")
    with follow(api, f"/v1/sessions/{session}/events?follow=0&compact=1") as viewer:
        assert events(viewer.read_to_end()) == [(sid, 1), (sid, 2), (sid, 5)]


def test_silence_is_broken(api: Api, session: str) -> None:
    running(api, session)
    with follow(api, f"/v1/sessions/{session}/events?heartbeat=event&heartbeat_s=1") as viewer:
        viewer.read_until(lambda body: body.count(b"event: ping\ndata: {}\n\n") == 2)
    assert len(notices(viewer.body, "ping")) == 2


def test_several_streams_end_properly_when_all_have_ended_and_then_there_is_no_content(
    api: Api, other_api: Api
) -> None:
    first, second, third = api.finished("a", "b"), api.finished("c"), running(api, "s")
    path = f"/v1/events?stream={first}:3&stream={second}:4&stream={third}"
    with follow(api, path) as viewer:
        viewer.read_until(has(third, 2))
        finish(api, third)
        body = viewer.read_to_end()
    assert viewer.is_complete
    assert sorted(events(body)) == sorted([(first, 4), (first, 5), (third, 1), (third, 2), (third, 3)])
    assert all(cursor.startswith("s1.0.") for _, _, cursor in seen(body) if cursor)
    assert re.search(rb"\nretry: [6-9][0-9]{4}\nid: [^\n]+\n\n$", body)
    for header in (("Last-Event-ID", last_cursor(body)),):
        assert other_api.get(path, headers=dict([header])).status_code == 204
        assert other_api.get(f"{path}:3", headers=dict([header])).status_code == 204
    assert other_api.get(f"/v1/events?stream={first}:5&stream={second}:4").status_code == 204


def test_what_is_gone_is_told_and_the_others_go_on(api: Api, session: str) -> None:
    erased, gone, there = api.finished("a"), uuid.uuid4().hex, api.finished("b")
    api.delete(f"/v1/streams/{erased}")
    with follow(api, f"/v1/events?stream={erased}:2&stream={gone}&stream={there}") as viewer:
        body = viewer.read_to_end()
    assert notices(body, "gap") == [{"stream": erased, "reason": "expired"}, {"stream": gone, "reason": "expired"}]
    assert events(body) == [(there, n) for n in range(1, 5)]
    problem(api.get(f"/v1/events?stream={gone}"), 404, "stream_not_found")


def test_a_stream_that_is_erased_while_its_follower_is_away_is_told_of_once(api: Api, session: str) -> None:
    sid = running(api, session, "a")
    with follow(api, f"/v1/sessions/{session}/events") as viewer:
        cursor = last_cursor(viewer.read_until(has(sid, 3)))
    finish(api, sid)
    api.delete(f"/v1/streams/{sid}")
    with follow(api, f"/v1/sessions/{session}/events?follow=0", Last_Event_ID=cursor) as viewer:
        body = viewer.read_to_end()
    assert notices(body, "gap") == [{"stream": sid, "reason": "expired"}]
    position = [found["id"].decode() for block in body.split(b"\n\n") if (found := POSITION.fullmatch(block))]
    with follow(api, f"/v1/sessions/{session}/events?follow=0", Last_Event_ID=position[-1]) as viewer:
        assert seen(viewer.read_to_end()) == []


@pytest.mark.parametrize(
    "cursor", ["7", "latest", "s1", "s1.x", "s1.1.a-1.a-2", "s2.1.a-1", "s1.01", "s1.1.a-", "s1.1.a-1."]
)
def test_a_cursor_that_no_server_gave_is_refused(api: Api, session: str, cursor: str) -> None:
    for path in (f"/v1/sessions/{session}/events", "/v1/events?stream=a"):
        problem(api.get(path, headers={"Last-Event-ID": cursor}), 400, "bad_cursor")


def test_what_is_asked_for_is_checked(api: Api) -> None:
    for query in (
        "",
        "?stream=",
        "?stream=a:b",
        "?stream=a&stream=a",
        "?stream=a:01",
        "?" + "&".join(f"stream=a{n}" for n in range(33)),
    ):
        problem(api.get(f"/v1/events{query}"), 422, "invalid_request")


def test_head_answers_without_a_body(api: Api, session: str) -> None:
    for path in (f"/v1/sessions/{session}/events", f"/v1/events?stream={running(api, session)}"):
        answer = api.http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_more_than_32_streams_are_given_in_the_order_of_their_creation(api: Api, other_api: Api, session: str) -> None:
    streams = [running(api, session, "a") for _ in range(36)]
    with follow(other_api, f"/v1/sessions/{session}/events") as viewer:
        viewer.read_until(lambda body: all(has(sid, 3)(body) for sid in streams[:32]))
        assert [one["stream"] for one in notices(viewer.body, "stream")] == streams[:32]
        for sid in streams[:4]:
            finish(api, sid)
        body = viewer.read_until(lambda body: all(has(sid, 3)(body) for sid in streams))
    assert [one["stream"] for one in notices(body, "stream")] == streams
    assert all(parse(cursor) for _, _, cursor in seen(body) if cursor)


def test_each_open_stream_is_recorded_and_counted_as_a_viewer(api: Api, session: str) -> None:
    first, second = running(api, session, "a"), running(api, session, "b")
    with follow(api, f"/v1/sessions/{session}/events") as viewer:
        viewer.read_until(lambda body: has(first, 3)(body) and has(second, 3)(body))
        finish(api, first)
        viewer.read_until(has(first, 4))

    def views(sid: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = api.get(f"/v1/streams/{sid}/views").json()["views"]
        return [one for one in found if one["format"] == "sse"]

    wait_until(lambda: [one["how"] for sid in (first, second) for one in views(sid)] == ["finished", "left"], "both")
    assert [(one["first_id"], one["last_id"]) for sid in (first, second) for one in views(sid)] == [
        (1, 4),
        (1, 3),
    ]


@pytest.mark.processes
def test_a_token_is_shown_its_own_sessions_or_streams_and_no_more_at_a_time_than_it_has_places(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api], session: str
) -> None:
    settings = {"LASTEVENT_VIEWERS_PER_TOKEN": "2", "LASTEVENT_CORS_ORIGINS": "https://a.example"}
    limited = own_deployment(servers=1, workers=0, LASTEVENT_API_KEYS=KEY, **settings)
    api = open_api(limited.url, KEY)

    def token(**opened: Any) -> Api:
        made = api.post("/v1/tokens", {"sub": "ann", "scope": "streams:read", **opened})
        assert made.status_code in (200, 201), made.text
        return open_api(limited.url, made.json()["token"])

    anns = [api.finished("a", session_id=session, user_id="ann"), api.finished("b", session_id="else", user_id="ann")]
    bobs = running(api, session, "c")
    mine = [api.start_external(session_id=session, user_id="ann") for _ in range(3)]
    of_session, own = token(sessions=[session]), token(own=True)
    with follow(own, f"/v1/sessions/{session}/events?follow=0") as viewer:
        got = viewer.read_to_end()
    assert [one["stream"] for one in notices(got, "stream")] == mine
    assert bobs.encode() not in viewer.body
    with follow(of_session, f"/v1/sessions/{session}/events", Origin="https://a.example") as viewer:
        viewer.read_until(lambda body: len(notices(body, "stream")) == 2)
        assert viewer.header("access-control-allow-origin") == "https://a.example"
        finish(api, bobs)
        viewer.read_until(lambda body: len(notices(body, "stream")) == 3)
        assert [one["stream"] for one in notices(viewer.body, "stream")] == [bobs, *mine[:2]]
        refused = of_session.get(f"/v1/sessions/{session}/events", headers={"Accept": NDJSON})
        problem(refused, 429, "too_many_viewers")
    problem(of_session.get("/v1/sessions/else/events"), 404, "stream_not_found")
    with follow(own, f"/v1/events?stream={anns[0]}&stream={bobs}&stream={anns[1]}") as viewer:
        body = viewer.read_to_end()
    assert notices(body, "gap") == [{"stream": bobs, "reason": "expired"}]
    assert {sid for sid, _ in events(body)} == set(anns)


def test_kinds_leave_out_the_others_of_each_stream(api: Api, session: str) -> None:
    sid = running(api, session, "one", "two")
    with follow(api, f"/v1/sessions/{session}/events?kinds=status") as viewer:
        api.append(sid, ("status", {"text": "thinking"}), ("text_delta", {"text": "three"})).raise_for_status()
        finish(api, sid)
        body = viewer.read_until(has(sid, 7))
    assert events(body) == [(sid, 5), (sid, 7)]
    with follow(api, f"/v1/events?stream={sid}&kinds=start") as viewer:
        assert events(viewer.read_to_end()) == [(sid, 2), (sid, 7)]
    problem(api.get(f"/v1/events?stream={sid}&kinds=No"), 422, "invalid_request")
