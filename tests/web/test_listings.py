"""Listings of streams and sessions: every filter, and pages that neither skip nor repeat."""

import uuid
from itertools import chain
from typing import Any
from urllib.parse import quote

import pytest

from tests.web.wire import Api, problem, walked


@pytest.fixture
def session() -> str:
    """A session of the test's own: the deployment is shared."""
    return f"s-{uuid.uuid4()}"


def listed(api: Api, **params: Any) -> list[str]:
    answer = api.get("/v1/streams", params=params)
    assert answer.status_code == 200, answer.text
    return [stream["id"] for stream in answer.json()["streams"]]


def test_streams_are_listed_newest_first(api: Api, other_api: Api, session: str) -> None:
    made = [api.start_external(session_id=session) for _ in range(5)]
    assert sorted(listed(api, session_id=session)) == sorted(made)
    found = other_api.get("/v1/streams", params={"session_id": session}).json()["streams"]
    times = [stream["created_at"] for stream in found]
    assert times == sorted(times, reverse=True)
    shown = api.record(found[0]["id"])
    del shown["request"], shown["webhook"]
    assert found[0] == shown


def test_pages_neither_skip_nor_repeat(api: Api, session: str) -> None:
    made = {api.start_external(session_id=session) for _ in range(12)}
    for limit in (1, 5, 6, 12, 13, 200):
        pages = walked(api, "/v1/streams", "streams", session_id=session, limit=limit)
        ids = [sid for page in pages for sid in page]
        assert len(ids) == len(set(ids))
        assert set(ids) == made
        assert all(len(page) <= limit for page in pages)


def test_a_stream_that_comes_between_two_pages_disturbs_neither(api: Api, session: str) -> None:
    made = {api.start_external(session_id=session) for _ in range(4)}
    first = api.get("/v1/streams", params={"session_id": session, "limit": 2}).json()
    api.start_external(session_id=session)
    second = api.get("/v1/streams", params={"session_id": session, "limit": 2, "cursor": first["next"]}).json()
    assert {stream["id"] for stream in first["streams"] + second["streams"]} == made


def test_streams_are_filtered_by_user_state_and_session(api: Api, session: str) -> None:
    by_ann = api.start_external(session_id=session, user_id="ann")
    by_bob = api.start_external(session_id=session, user_id="bob")
    nobodys = api.start_external(session_id=session)
    api.append(by_bob, ("done", {}))
    api.append(nobodys, ("error", {}))
    assert listed(api, session_id=session, user_id="ann") == [by_ann]
    assert listed(api, session_id=session, state="running") == [by_ann]
    assert listed(api, session_id=session, state="done") == [by_bob]
    assert listed(api, session_id=session, state="error") == [nobodys]
    assert listed(api, session_id=session, state="cancelled") == []
    assert listed(api, session_id=session, state="done", user_id="ann") == []
    assert listed(api, session_id=f"{session}x") == []
    assert by_ann in listed(api, user_id="ann", limit=200)


def test_streams_are_filtered_by_time(api: Api, session: str) -> None:
    sid = api.start_external(session_id=session)
    created = api.record(sid)["created_at"]
    year = int(created[:4])
    for after, before, found in (
        (created, created, [sid]),
        (f"{year - 1}-01-01T00:00:00Z", None, [sid]),
        (f"{year + 2}-01-01T00:00:00Z", None, []),
        (None, f"{year - 1}-01-01T00:00:00Z", []),
        (None, f"{year + 2}-01-01T00:00:00+02:00", [sid]),
        (f"{year + 2}-01-01T00:00:00Z", f"{year - 1}-01-01T00:00:00Z", []),
    ):
        asked = {"created_after": after, "created_before": before}
        assert listed(api, session_id=session, **{name: value for name, value in asked.items() if value}) == found


def test_a_session_shows_its_streams(api: Api, session: str) -> None:
    made = {api.start_external(session_id=session) for _ in range(3)}
    page = api.get(f"/v1/sessions/{session}").json()
    assert page["id"] == session
    assert {stream["id"] for stream in page["streams"]} == made
    assert page["next"] is None
    pages = walked(api, f"/v1/sessions/{session}", "streams", limit=2)
    assert list(chain(*pages)) == [stream["id"] for stream in page["streams"]]


@pytest.mark.parametrize("name", ["a/b", "a b", "a?b#c", "ü🙂", "%41", "*", "{x}", "[1]", '"', "x" * 200])
def test_a_session_may_be_called_almost_anything(api: Api, name: str) -> None:
    sid = api.start_external(session_id=name)
    assert sid in listed(api, session_id=name)
    found = api.get(f"/v1/sessions/{quote(name, safe='')}").json()
    assert found["id"] == name
    assert sid in [stream["id"] for stream in found["streams"]]


def test_sessions_are_listed_the_newest_stream_first(api: Api, session: str) -> None:
    names = [f"{session}-{n}" for n in range(5)]
    for name in names:
        api.start_external(session_id=name)
    api.start_external(session_id=names[0])
    mine = [
        name for page in walked(api, "/v1/sessions", "sessions", limit=2) for name in page if name.startswith(session)
    ]
    assert sorted(mine) == names
    last = {one["id"]: one["last_stream_at"] for one in api.get("/v1/sessions?limit=200").json()["sessions"]}
    assert list(last.values()) == sorted(last.values(), reverse=True)


def test_pages_and_sessions_have_the_sums_of_their_streams(api: Api, session: str) -> None:
    for ending in (
        {"usage": {"input_tokens": 10, "output_tokens": 5, "provider": {"x": 1}}, "cost_usd": 0.1},
        {"usage": {"input_tokens": 20, "output_tokens": 7, "thinking_tokens": 3}, "cost_usd": 0.2},
        {"usage": {"input_tokens": 1}, "usage_incomplete": True},
    ):
        api.append(api.start_external(session_id=session), ("error", ending)).raise_for_status()
    api.start_external(session_id=session)
    tokens = {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "thinking_tokens": 3}
    whole = {
        "usage": {"input_tokens": 31, "output_tokens": 12, **tokens},
        "cost_usd": 0.3,
        "usage_incomplete": True,
        "without_price": 1,
    }
    assert api.get("/v1/streams", params={"session_id": session}).json()["totals"] == whole
    first = api.get(f"/v1/sessions/{session}", params={"limit": 2}).json()
    assert first["session_totals"] == {**whole, "streams": 4, "is_whole": True}
    assert first["totals"] != whole
    second = api.get(f"/v1/sessions/{session}", params={"limit": 2, "cursor": first["next"]}).json()
    assert "session_totals" not in second
    for name in ("input_tokens", "output_tokens"):
        assert first["totals"]["usage"][name] + second["totals"]["usage"][name] == whole["usage"][name]


def test_a_stream_without_a_session_gets_one_of_its_own(api: Api) -> None:
    sessions = {api.record(api.start_external())["session_id"] for _ in range(3)}
    assert len(sessions) == 3


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=201", "limit=-1", "limit=x", "limit=1.5", "limit=", "state=Done", "state=x", "state="),
        *("created_after=yesterday", "created_before=2020-13-01", "created_after=nan", "created_after=inf"),
        *("created_after=1e400", "created_before=-1e400", f"cursor={'x' * 1201}"),
    ],
)
def test_a_filter_that_is_none_is_refused(api: Api, query: str) -> None:
    problem(api.get(f"/v1/streams?{query}"), 422, "invalid_request")


@pytest.mark.parametrize(
    "cursor", ["x", "!!!!", "MQ", "LTE6eA", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OnM", "ü", "MTow%00", "/w", "MV8wOng"]
)
def test_a_cursor_that_is_none_is_refused(api: Api, cursor: str) -> None:
    problem(api.get("/v1/streams", params={"cursor": cursor}), 400, "bad_cursor")
    problem(api.get("/v1/sessions", params={"cursor": cursor}), 400, "bad_cursor")
    problem(api.get("/v1/sessions/x", params={"cursor": cursor}), 400, "bad_cursor")


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "0", "-62135596800", "253402300799"]
)
def test_the_ends_of_time_are_times(api: Api, moment: str) -> None:
    for name in ("created_after", "created_before"):
        assert api.get("/v1/streams", params={name: moment}).status_code == 200
