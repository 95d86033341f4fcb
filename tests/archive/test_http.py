"""What callers see of the archive: the same cursor after Redis, who saw what, the seal, erasure, masks."""

from __future__ import annotations

import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
import redis

from broker.service.masking import PLACES
from broker.service.masks import Watch, load_masks
from tests.conftest import deployment_in
from tests.rig.deployment import Deployment, wait_until
from tests.web.wire import Api, frames, ids, ndjson, problem, walked

NDJSON = "application/x-ndjson"
KEY, MASKED_KEY = "a-key-that-may-do-everything-here", "a-key-that-sees-no-e-mails-at-all"
MASKS = """
[[mask]]
name = "e-mail"
pattern = '[a-z]+@[a-z]+[.]org'
[[mask]]
name = "card"
path = "metadata.card"
[[mask]]
name = "slow"
pattern = '(?:zq|zqzq)+$'
"""
SLOW = {"texts": ["zq" * 22 + "!"] * 5_000}  # each takes the slow mask some 10 ms


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two servers and a worker over an archive, which takes what has ended at once."""
    folder = tmp_path_factory.mktemp("archived")
    (folder / "masks.toml").write_text(MASKS)
    settings = {
        "LASTEVENT_ARCHIVE_URL": f"sqlite:///{folder}/archive.db",
        "LASTEVENT_ARCHIVE_AFTER_S": "0",
        "LASTEVENT_API_KEYS": KEY,
        "LASTEVENT_MASKED_KEYS": MASKED_KEY,
        "LASTEVENT_REDACT_FILE": str(folder / "masks.toml"),
        "LASTEVENT_MAX_METADATA_BYTES": "1000000",
    }
    with deployment_in(folder, **settings) as deployment:
        yield deployment


@pytest.fixture
def api(archived: Deployment) -> Iterator[Api]:
    with closing(Api(archived.urls[0], KEY)) as api:
        yield api


@pytest.fixture
def masked(archived: Deployment) -> Iterator[Api]:
    with closing(Api(archived.urls[1], MASKED_KEY)) as api:
        yield api


def until_archived(api: Api, sid: str) -> str:
    wait_until(lambda: api.record(sid)["archived_at"], f"{sid} is archived")
    return sid


def leave_redis(archived: Deployment, *sids: str) -> None:
    """Their retention there is over."""
    with closing(redis.Redis.from_url(archived.redis_url)) as client:
        for sid in sids:
            client.delete(f"le:{{{sid}}}:log", f"le:{{{sid}}}:meta")


def without_retry(body: bytes) -> bytes:
    return re.sub(rb"(?m)^(retry: [0-9]+|: ping)\n", b"", body)


def everything(api: Api, sid: str) -> dict[str, Any]:
    """All that can be read of a finished stream."""
    bodies: dict[str, Any] = {}
    for cursor in ("0", "1", "2", "4", "5", "999", "latest", "earliest"):
        for accept in ("text/event-stream", NDJSON):
            for query in ("", "?follow=0", "?compact=1"):
                answer = api.follow(sid, query, Accept=accept, Last_Event_ID=cursor)
                body = without_retry(answer.read_to_end()) if answer.status == 200 else b""
                bodies[f"{cursor} {accept} {query}"] = (answer.status, body, answer.is_complete)
    record = api.record(sid)
    text = api.get(f"/v1/streams/{sid}/text")
    bodies["text"] = (text.content, text.headers["last-event-id"])
    bodies["record"] = {name: value for name, value in record.items() if name not in ("archived_at", "events_url")}
    bodies["message"] = api.get(f"/v1/streams/{sid}/message").json()
    bodies["export"] = api.get(f"/v1/streams/{sid}/export").content
    replayed = api.exchange("GET", f"/v1/streams/{sid}/replay?speed=0&from=2")
    bodies["replay"] = without_retry(replayed.read_to_end())
    return bodies


# -- the same cursor after Redis -----------------------------------------------------------------------------


def test_a_stream_reads_the_same_after_it_has_left_redis(api: Api, archived: Deployment) -> None:
    sids = [
        api.finished("Grüße", " aus", " dem\n", " Tunnel 🚇"),
        archived_generation(api, "[[thinking=3 tokens=9 rate=0 ttft_ms=0]]", user_id="ann", metadata={"a": [1]}),
        archived_generation(api, "[[tokens=9 rate=0 ttft_ms=0 error_at=4]]"),
    ]
    before = [everything(api, until_archived(api, sid)) for sid in sids]
    leave_redis(archived, *sids)
    assert [everything(api, sid) for sid in sids] == before


def test_a_run_reads_the_same_from_the_archive_and_its_id_names_no_other(api: Api, archived: Deployment) -> None:
    messages = [{"id": "1", "role": "user", "content": "[[tokens=9 rate=0 ttft_ms=0 cut_at=4 cut_times=1]]"}]
    asked = {"threadId": "t", "runId": "archived", "messages": messages}
    run = api.post("/v1/ag-ui", json=asked)
    sid = until_archived(api, run.headers["x-lastevent-stream"])
    leave_redis(archived, sid)
    assert api.post("/v1/ag-ui", json=asked).content == run.content
    assert api.get("/v1/ag-ui?runId=archived").content == run.content
    with closing(redis.Redis.from_url(archived.redis_url)) as client:
        client.delete(*client.keys("le:idem:*"))
    assert api.post("/v1/ag-ui", json=asked).status_code == 409, "the archive does not know what was asked"


def archived_generation(api: Api, prompt: str, **body: Any) -> str:
    sid: str = api.post("/v1/streams", json={"prompt": prompt, **body}).json()["id"]
    return sid


def test_what_has_ended_takes_no_more_wherever_it_is(api: Api, archived: Deployment) -> None:
    sid = until_archived(api, api.finished("a"))
    leave_redis(archived, sid)
    ended = api.post(f"/v1/streams/{sid}/cancel").json()
    assert ended == {"state": "done", "last_event_id": 4, "stopped_after": 3, "already": True}
    body = {"epoch": 1, "events": [{"event": "text_delta", "data": {}}]}
    problem(api.post(f"/v1/streams/{sid}/events", json=body), 409, "stream_closed")
    problem(api.post(f"/v1/streams/{sid}/heartbeat", json={"epoch": 1}), 409, "stream_closed")


def test_what_only_the_archive_has_can_be_generated_again(api: Api, archived: Deployment) -> None:
    sid = until_archived(api, archived_generation(api, "[[tokens=3 rate=0]] again", user_id="bob"))
    leave_redis(archived, sid)
    again = api.post(f"/v1/streams/{sid}/regenerate").json()
    assert (again["regenerates"], again["user_id"]) == (sid, "bob")
    assert again["request"] == api.record(sid)["request"]


def test_an_idempotency_key_finds_its_stream_in_the_archive(api: Api, archived: Deployment) -> None:
    body, key = {"prompt": "[[tokens=3 rate=0]]"}, {"Idempotency-Key": uuid.uuid4().hex}
    sid = api.post("/v1/streams", json=body, headers=key).json()["id"]
    until_archived(api, sid)
    leave_redis(archived, sid)
    answer = api.post("/v1/streams", json=body, headers=key)
    assert (answer.status_code, answer.json()["id"]) == (200, sid)


def test_a_post_sent_again_is_answered_from_the_archive(api: Api, archived: Deployment) -> None:
    body = orjson.dumps({"prompt": "[[tokens=3 rate=0 ttft_ms=0]] again"})
    headers = [
        *(("Accept", "text/event-stream"), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))),
        ("Idempotency-Key", uuid.uuid4().hex),
    ]
    first = api.exchange("POST", "/v1/streams", headers, body)
    seen = ids(first.read_to_end())
    sid = until_archived(api, str(first.header("location")).rpartition("/")[2])
    leave_redis(archived, sid)
    again = api.exchange("POST", "/v1/streams", [*headers, ("Last-Event-ID", "2")], body)
    assert ids(again.read_to_end()) == seen[2:]
    assert again.is_complete


def test_a_damaged_row_is_no_fault_of_the_others(api: Api, archived: Deployment) -> None:
    session = f"s-{uuid.uuid4()}"
    older, sid = (until_archived(api, api.finished("a", session_id=session)) for _ in range(2))
    leave_redis(archived, older, sid)
    with closing(sqlite3.connect(archived.folder / "archive.db", timeout=10)) as database, database:
        [record] = database.execute("SELECT record FROM streams WHERE sid = ?", [sid]).fetchone()
        [brief] = database.execute("SELECT brief FROM briefs WHERE sid = ?", [sid]).fetchone()
        database.execute("UPDATE streams SET record = x'ff00' WHERE sid = ?", [sid])
        database.execute("UPDATE briefs SET brief = x'ff00' WHERE sid = ?", [sid])
    try:
        problem(api.get(f"/v1/streams/{sid}"), 500, "archive_damaged")
        assert api.get(f"/v1/streams/{sid}/verify").json()["verdict"] == "broken"
        assert walked(api, "/v1/streams", "streams", session_id=session, limit=1) == [[], [older], []]
    finally:
        with closing(sqlite3.connect(archived.folder / "archive.db", timeout=10)) as database, database:
            database.execute("UPDATE streams SET record = ? WHERE sid = ?", [record, sid])
            database.execute("UPDATE briefs SET brief = ? WHERE sid = ?", [brief, sid])


# -- listings ------------------------------------------------------------------------------------------------


def test_listings_hold_what_is_in_redis_and_what_is_in_the_archive_once(api: Api, archived: Deployment) -> None:
    session = f"s-{uuid.uuid4()}"
    made = [api.finished("a", session_id=session, user_id="ann" if n % 2 else "bob") for n in range(7)]
    for sid in made:
        until_archived(api, sid)
    leave_redis(archived, *made[:4])
    made += [api.start_external(session_id=session, user_id="ann") for _ in range(3)]
    for limit in (1, 3, 10, 50):
        listed = list(chain.from_iterable(walked(api, "/v1/streams", "streams", session_id=session, limit=limit)))
        assert sorted(listed) == sorted(made), "each once"
        assert listed == newest_first(api, made)
    found = api.get("/v1/streams", params={"session_id": session, "user_id": "ann"}).json()["streams"]
    assert {stream["id"] for stream in found} == {*made[1:7:2], *made[7:]}
    sessions = [one["id"] for one in api.get("/v1/sessions?limit=200").json()["sessions"]]
    assert sessions.count(session) == 1


def test_a_session_that_has_gone_on_hides_none_that_is_older(api: Api, archived: Deployment) -> None:
    """The archive has an older stream of it, which is not to be listed: its page has one entry less."""
    mark = uuid.uuid4().hex
    made = [api.finished("a", session_id=f"{session} {mark}") for session in ("oldest", "goes on", "newest")]
    for sid in made:
        until_archived(api, sid)
    api.start_external(session_id=f"goes on {mark}")
    expected = [f"goes on {mark}", f"newest {mark}", f"oldest {mark}"]
    for limit in (1, 2, 200):
        listed = chain.from_iterable(walked(api, "/v1/sessions", "sessions", limit=limit))
        assert [session for session in listed if mark in session] == expected


def newest_first(api: Api, sids: list[str]) -> list[str]:
    """Streams of one millisecond stand in the reverse order of their ids."""
    return sorted(sids, key=lambda sid: (api.record(sid)["created_at"], sid), reverse=True)


def test_streams_are_filtered_by_model_wherever_they_are(api: Api, archived: Deployment) -> None:
    model = f"anthropic/m-{uuid.uuid4().hex[:8]}"
    there = until_archived(api, archived_generation(api, "[[tokens=1 rate=0]]", model=model))
    leave_redis(archived, there)
    here = archived_generation(api, "[[tokens=1 rate=0]]", model=model)
    found = api.get("/v1/streams", params={"model": model}).json()["streams"]
    assert [stream["id"] for stream in found] == [here, there]


# -- who saw what ----------------------------------------------------------------------------------------------


def test_an_answer_of_50_000_tokens_is_generated_followed_resumed_archived_and_replayed(
    api: Api,
) -> None:
    tokens = 50_000
    asked = {"prompt": f"[[tokens={tokens} rate=0 ttft_ms=0]]", "max_tokens": 64_000}
    sid = api.post("/v1/streams", asked).json()["id"]
    first = api.follow(sid).read_to_end()
    assert first.endswith(b"\n\n")
    assert [frame.id for frame in frames(first)] == list(range(1, tokens + 4))
    assert [frame.id for frame in frames(api.follow(sid, last_event_id="40000").read_to_end())] == list(
        range(40_001, tokens + 4)
    )
    wait_until(lambda: api.record(sid)["archived_at"], "it is archived")
    assert api.record(sid)["state"] == "done"
    assert ids(api.exchange("GET", f"/v1/streams/{sid}/replay?speed=0").read_to_end()) == ids(first)
    assert ndjson(api.get(f"/v1/streams/{sid}/export").content)[tokens + 2]["id"] == tokens + 3
    assert len(api.get(f"/v1/streams/{sid}/text").text.split()) == tokens
    assert api.get(f"/v1/streams/{sid}/verify").json()["verdict"] == "verified"


READINGS = ("text", "export", "record", "listing")


def connections(api: Api, sid: str) -> list[dict[str, Any]]:
    """The records of those that followed it, without those that only read it."""
    views = api.get(f"/v1/streams/{sid}/views").json()["views"]
    return [view for view in views if view["format"] not in READINGS]


def views_of(api: Api, sid: str, count: int) -> list[dict[str, Any]]:
    """As soon as so many have ended."""
    found: list[dict[str, Any]] = []

    def are_there() -> bool:
        found[:] = connections(api, sid)
        return len([view for view in found if view["how"]]) == count

    wait_until(are_there, f"{count} viewers' records have ended")
    return found


def test_each_viewer_leaves_a_record(api: Api, archived: Deployment) -> None:
    sid = api.start_external()
    api.append(sid, ("text_delta", {"text": "a"}), ("text_delta", {"text": "b"}))
    phone = api.follow(sid, User_Agent="a phone", X_Forwarded_For="192.0.2.7")
    phone.read_until(lambda body: b"id: 3\n" in body)
    [view] = views_open(api, sid)
    assert (view["user_agent"], view["forwarded_for"]) == ("a phone", "192.0.2.7")
    assert (view["how"], view["closed_at"]) == (None, None)
    phone.close()
    [view] = views_of(api, sid, 1)
    assert (view["first_id"], view["last_id"], view["how"], view["requested"]) == (1, 3, "left", 0)
    assert view["who"].startswith("key:")
    laptop = api.follow(sid, Accept=NDJSON, Last_Event_ID="3", User_Agent="a laptop")
    wait_until(lambda: len(views_open(api, sid)) == 1, "the laptop is there")
    for text in ("c", "d", "e"):
        api.append(sid, ("text_delta", {"text": text}))
    api.append(sid, ("done", {}))
    assert ids_of_lines(laptop.read_to_end()) == [4, 5, 6, 7]
    views = views_of(api, sid, 2)
    assert [(view["first_id"], view["last_id"], view["how"], view["format"]) for view in views] == [
        (1, 3, "left", "sse"),
        (4, 7, "finished", "ndjson"),
    ]
    times = [view[name] for view in views for name in ("opened_at", "closed_at")]
    assert times == sorted(times)
    until_archived(api, sid)
    leave_redis(archived, sid)
    assert views_of(api, sid, 2) == views


def views_open(api: Api, sid: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def are_there() -> bool:
        found[:] = [view for view in connections(api, sid) if view["how"] is None]
        return bool(found)

    wait_until(are_there, "somebody is there")
    return found


def ids_of_lines(body: bytes) -> list[int]:
    return [event["id"] for event in ndjson(body)]


def test_a_replay_and_a_post_that_streams_leave_records_too(api: Api) -> None:
    body = orjson.dumps({"prompt": "[[tokens=3 rate=0 ttft_ms=0]]"})
    length = ("Content-Length", str(len(body)))
    headers = [("Accept", "text/event-stream"), ("Content-Type", "application/json"), length]
    answer = api.exchange("POST", "/v1/streams", headers, body)
    answer.read_to_end()
    sid = str(answer.header("location")).rpartition("/")[2]
    api.exchange("GET", f"/v1/streams/{sid}/replay?speed=0&from=3").read_to_end()
    posted, replayed = views_of(api, sid, 2)
    assert (posted["format"], posted["first_id"], posted["how"]) == ("sse", 1, "finished")
    assert (replayed["format"], replayed["first_id"], replayed["how"]) == ("replay", 3, "finished")
    assert replayed["last_id"] == posted["last_id"]


def readings(api: Api, sid: str, count: int) -> list[dict[str, Any]]:
    """As soon as so many are on record."""
    found: list[dict[str, Any]] = []

    def are_there() -> bool:
        views = api.get(f"/v1/streams/{sid}/views").json()["views"]
        found[:] = [view for view in views if view["format"] in READINGS]
        return len(found) >= count

    wait_until(are_there, f"{count} readings are on record")
    return found


def test_reading_without_following_leaves_a_record_too(api: Api, masked: Api, archived: Deployment) -> None:
    """Once a caller, form, stream and hour: the second round comes within it, or begins the next."""
    session = f"s-{uuid.uuid4()}"
    sid = api.finished("a", session_id=session)
    for _ in range(2):
        api.get(f"/v1/streams/{sid}/text")
        api.get(f"/v1/streams/{sid}/export")
        api.record(sid)
        api.get("/v1/streams", params={"session_id": session})
        api.get(f"/v1/sessions/{session}")
        masked.get(f"/v1/streams/{sid}/text")
    found = readings(api, sid, 5)
    assert len(found) in (5, 10)
    mine = {view["who"] for view in found if view["format"] == "record"}
    said = {(view["format"], view["last_id"], view["how"], view["who"] in mine) for view in found}
    assert said == {
        *(("text", 4, "finished", True), ("export", 4, "finished", True), ("text", 4, "finished", False)),
        *(("record", None, "finished", True), ("listing", None, "finished", True)),
    }
    assert all(view["opened_at"] == view["closed_at"] for view in found)
    until_archived(api, sid)
    leave_redis(archived, sid)
    assert len(readings(api, sid, 5)) == len(found)


def test_a_tombstone_is_read_without_a_record(api: Api, archived: Deployment) -> None:
    """Nothing of its content is shown, and erasing must leave nothing new behind."""
    sid = until_archived(api, api.finished("a"))
    assert api.delete(f"/v1/streams/{sid}").status_code == 204
    with closing(Api(archived.urls[1], KEY)) as other:  # which has recorded none of this stream's readings
        other.record(sid)
        other.get("/v1/streams?limit=200")
        seen = until_archived(other, other.finished("later"))
        readings(other, seen, 1)
    with closing(redis.Redis.from_url(archived.redis_url)) as client:
        # What was read before it was erased may be written afterwards; the archiver then takes it away.
        wait_until(lambda: not client.exists(f"le:{{{sid}}}:views"), "nothing is left")


def test_views_are_read_in_pages_wherever_they_are(api: Api, archived: Deployment) -> None:
    sid = api.finished("a")
    for _ in range(7):
        api.follow(sid).read_to_end()
    views_of(api, sid, 7)
    api.get("/metrics")
    whole = api.get(f"/v1/streams/{sid}/views").json()
    assert whole["next"] is None
    expected = [view["id"] for view in whole["views"]]
    for limit in (1, 2, 7, 200):
        pages = walked(api, f"/v1/streams/{sid}/views", "views", limit=limit)
        assert list(chain.from_iterable(pages)) == expected
        assert all(len(page) <= limit for page in pages)
    problem(api.get(f"/v1/streams/{sid}/views", params={"cursor": "x"}), 400, "bad_cursor")
    problem(api.get(f"/v1/streams/{sid}/views", params={"limit": 201}), 422, "invalid_request")


# -- the seal --------------------------------------------------------------------------------------------------


def test_a_stream_is_verified_against_its_seal(api: Api, archived: Deployment) -> None:
    sid = api.start_external()
    nothing = {"seal": None, "erasure": None, "is_head_known": False, "findings": []}
    unsealed = {"id": sid, "verdict": "not_sealed", **nothing}
    assert api.get(f"/v1/streams/{sid}/verify").json() == unsealed
    api.append(sid, ("text_delta", {"text": "a"}), ("done", {}))
    until_archived(api, sid)
    checked = api.get(f"/v1/streams/{sid}/verify").json()
    assert (checked["verdict"], checked["findings"], checked["is_head_known"]) == ("verified", [], True)
    assert checked["seal"]["sealed_at"] == api.record(sid)["archived_at"]
    with closing(sqlite3.connect(archived.folder / "archive.db", timeout=10)) as database, database:
        [before] = database.execute("SELECT session FROM streams WHERE sid = ?", [sid]).fetchone()
        database.execute("UPDATE streams SET session = 'another' WHERE sid = ?", [sid])
    checked = api.get(f"/v1/streams/{sid}/verify").json()
    with closing(sqlite3.connect(archived.folder / "archive.db", timeout=10)) as database, database:
        database.execute("UPDATE streams SET session = ? WHERE sid = ?", [before, sid])
    assert checked["verdict"] == "broken"
    assert [finding["what"] for finding in checked["findings"]] == ["row_changed"]


def forge(archived: Deployment, sid: str, *, is_marked: bool) -> None:
    """Somebody who can write to Redis tells another story there."""
    log, meta = f"le:{{{sid}}}:log", f"le:{{{sid}}}:meta"
    with closing(redis.Redis.from_url(archived.redis_url)) as client:
        entries: Any = client.xrange(log)
        client.delete(log)
        for name, fields in entries:
            client.xadd(log, {**fields, b"d": fields[b"d"].replace(b"the truth", b"a forgery")}, name)
        client.hset(meta, mapping={"user": "eve", "ending": '{"usage":{"forged":1}}'})
        if not is_marked:
            client.hdel(meta, "archived")
        client.pexpire(log, 60_000)


@pytest.mark.parametrize("is_marked", [True, False], ids=["", "and archived was removed"])
def test_what_is_shown_of_a_sealed_stream_is_what_was_sealed_whatever_redis_says(
    api: Api, archived: Deployment, is_marked: bool
) -> None:
    session = f"s-{uuid.uuid4()}"
    sid = until_archived(api, api.finished("the truth", user_id="ann", session_id=session))
    names = ("record", "text", "export", "replay")
    before = {name: shown for name, shown in everything(api, sid).items() if name in names}
    assert api.get(f"/v1/streams/{sid}/verify").json()["verdict"] == "verified"
    forge(archived, sid, is_marked=is_marked)
    after = everything(api, sid)
    assert {name: after[name] for name in names} == before
    [listed] = api.get("/v1/streams", params={"session_id": session}).json()["streams"]
    assert listed["user_id"] == "ann"
    checked = api.get(f"/v1/streams/{sid}/verify").json()
    assert b"a forgery" in api.follow(sid).read_to_end(), "who follows is served by Redis"
    assert checked["verdict"] == "differs"
    assert [finding["what"] for finding in checked["findings"]] == ["copy_record_differs", "copy_log_differs"]
    leave_redis(archived, sid)
    assert api.get(f"/v1/streams/{sid}/verify").json()["verdict"] == "verified"
    assert b"the truth" in api.follow(sid).read_to_end()


def test_a_stream_that_redis_says_is_running_again_differs(api: Api, archived: Deployment) -> None:
    sid = until_archived(api, api.finished("the truth"))
    with closing(redis.Redis.from_url(archived.redis_url)) as client:
        client.hset(f"le:{{{sid}}}:meta", "state", "running")
        assert api.get(f"/v1/streams/{sid}/verify").json()["verdict"] == "differs"
        client.hset(f"le:{{{sid}}}:meta", "state", "done")
    assert api.get(f"/v1/streams/{sid}/verify").json()["verdict"] == "verified"


def test_an_export_ends_with_the_seal_it_can_be_checked_with(api: Api) -> None:
    sid = until_archived(api, api.finished("a"))
    *events, last = ndjson(api.get(f"/v1/streams/{sid}/export").content)
    assert [event["id"] for event in events] == [1, 2, 3, 4]
    assert set(last["seal"]) == {"statement", "signature", "salt", "record"}
    assert orjson.loads(last["seal"]["record"])["id"] == sid


def test_who_cancelled_is_in_the_ending_that_is_sealed(api: Api) -> None:
    sid = api.start_external()
    api.post(f"/v1/streams/{sid}/cancel").raise_for_status()
    [*_, ending, _] = ndjson(api.get(f"/v1/streams/{until_archived(api, sid)}/export").content)
    mine = {view["who"] for view in readings(api, sid, 1)}
    assert (ending["event"], {ending["data"]["by"]}) == ("cancelled", mine)
    assert ending["data"]["by"].startswith("key:")


# -- erasure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["both", "archive alone"])
def test_an_erased_stream_is_gone_but_for_its_tombstone_and_its_seal(
    api: Api, archived: Deployment, where: str
) -> None:
    sid = until_archived(api, api.finished("the-secret", user_id="ann", session_id=f"s-{uuid.uuid4()}"))
    session, archived_at = (api.record(sid)[name] for name in ("session_id", "archived_at"))
    if where == "archive alone":
        leave_redis(archived, sid)
    assert api.delete(f"/v1/streams/{sid}").status_code == 204
    for path in ("events", "text", "export", "replay"):
        problem(api.get(f"/v1/streams/{sid}/{path}"), 410, "stream_expired")
    problem(api.post(f"/v1/streams/{sid}/regenerate"), 410, "stream_expired")
    left = api.record(sid)
    assert left["archived_at"] == archived_at
    assert (left["state"], left["user_id"], left["session_id"], left["request"]) == ("done", None, None, None)
    assert left["erased_at"]
    assert left["erased_by"].startswith("key:")
    checked = api.get(f"/v1/streams/{sid}/verify").json()
    assert (checked["verdict"], checked["erasure"]["by"]) == ("erased", left["erased_by"])
    assert checked["erasure"]["reason"] == "requested"
    assert api.get(f"/v1/streams/{sid}/views").json()["views"] == []
    assert api.get("/v1/streams", params={"session_id": session}).json()["streams"] == []
    assert api.delete(f"/v1/streams/{sid}").status_code == 204
    leave_redis(archived, sid)
    problem(api.get(f"/v1/streams/{sid}/events"), 410, "stream_expired")
    alone = api.record(sid)
    assert {name for name in left if left[name] != alone[name]} <= {"erased_at", "events_url"}, "its token is new"


def test_a_person_is_erased_on_order_and_the_order_forgets_who_it_was(api: Api, archived: Deployment) -> None:
    name = f"ann-{uuid.uuid4()}"
    archived_one = until_archived(api, api.finished("the-secret", user_id=name))
    runs = api.start_external(user_id=name)
    ordered = api.post("/v1/erasures", {"user_id": name, "reason": "she asked"})
    erasure = ordered.json()
    assert (ordered.status_code, ordered.headers["location"]) == (202, f"/v1/erasures/{erasure['id']}")
    assert (erasure["state"], erasure["found"], erasure["erased"]) == ("ordered", 0, 0)

    def at_the_end() -> dict[str, Any] | None:
        found: dict[str, Any] = api.get(f"/v1/erasures/{erasure['id']}").json()
        return found if found["state"] == "done" else None

    wait_until(at_the_end, "it is done")
    done = at_the_end()
    assert done
    assert (done["found"], done["erased"], done["reason"], name in str(done)) == (2, 2, "she asked", False)
    for sid in (archived_one, runs):
        problem(api.get(f"/v1/streams/{sid}/text"), 410, "stream_expired")
        assert api.get(f"/v1/streams/{sid}/verify").json()["verdict"] == "erased"
    assert api.record(runs)["state"] == "cancelled"
    [deed] = [one for one in deeds(api, what="erasure_ordered") if one["detail"] == {"erasure": erasure["id"]}]
    assert deed["who"] == done["by"]
    assert name not in str(deeds(api))


@pytest.mark.parametrize(
    "body", [{}, {"user_id": "a", "session_id": "b"}, {"user_id": ""}, {"user_id": "a", "reason": ""}]
)
def test_an_order_says_whom_and_one_of_both(api: Api, body: dict[str, str]) -> None:
    problem(api.post("/v1/erasures", body), 422, "invalid_request")


def test_an_unknown_erasure_is_404_and_a_masked_key_orders_none(api: Api, masked: Api) -> None:
    problem(api.get("/v1/erasures/none"), 404, "erasure_not_found")
    problem(masked.post("/v1/erasures", {"user_id": "a"}), 403, "insufficient_scope")
    problem(masked.get("/v1/deeds"), 403, "insufficient_scope")


# -- deeds -------------------------------------------------------------------------------------------------------


def deeds(api: Api, **which: Any) -> list[dict[str, Any]]:
    """All of them, page by page."""
    found: list[dict[str, Any]] = []
    page: dict[str, Any] = {"next": None}
    while True:
        page = api.get("/v1/deeds", params={**which, **({"cursor": page["next"]} if page["next"] else {})}).json()
        found += page["deeds"]
        if page["next"] is None:
            return found


def test_what_a_caller_does_with_a_stream_is_a_deed_once_and_stays_one_in_the_archive(
    api: Api, archived: Deployment
) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first, again = (api.post("/v1/streams", {"producer": "external"}, headers=key) for _ in range(2))
    sid = first.json()["id"]
    assert (again.status_code, again.json()["id"]) == (200, sid)
    for _ in range(2):
        api.post(f"/v1/streams/{sid}/cancel").raise_for_status()
    until_archived(api, sid)
    assert api.delete(f"/v1/streams/{sid}").status_code == 204

    def whats() -> list[str]:
        return [deed["what"] for deed in deeds(api, stream=sid)]

    wait_until(lambda: len(whats()) == 3, "all are written")
    before = deeds(api, stream=sid)
    assert [deed["what"] for deed in before] == ["erased", "cancelled", "created"]
    assert before[2]["request_id"] == first.headers["x-request-id"]
    assert {deed["who"] for deed in before} == {api.record(sid)["erased_by"]}
    with closing(redis.Redis.from_url(archived.redis_url)) as client:
        of_it = sid.encode()
        wait_until(lambda: not any(of_it in d[b"d"] for _, d in client.xrange("le:deeds")), "they are archived")
    assert deeds(api, stream=sid) == before
    assert deeds(api, stream=sid, limit=1) == before
    assert [deed["what"] for deed in deeds(api, stream=sid, what="created")] == ["created"]
    assert deeds(api, stream=sid, who="key:nobody") == []
    assert deeds(api, stream=sid, before="2020-01-01T00:00:00Z") == deeds(api, stream=sid, after="2099-01-01") == []
    assert deeds(api, stream=sid, before="0157-10-25T05:50:17+14:00") == []
    assert deeds(api, stream=sid, after="0157-10-25T05:50:17+14:00") == before
    problem(api.get("/v1/deeds", params={"what": "read"}), 422, "invalid_request")


def test_an_erased_stream_is_hidden_before_the_archive_has_followed(api: Api, archived: Deployment) -> None:
    session = f"s-{uuid.uuid4()}"
    sid = until_archived(api, api.finished("the-secret", user_id="ann", session_id=session))
    [worker] = archived.workers
    worker.send(signal.SIGSTOP)
    try:
        assert api.delete(f"/v1/streams/{sid}").status_code == 202
        [listed] = [
            one for one in api.get("/v1/streams?limit=200&include=request").json()["streams"] if one["id"] == sid
        ]
        assert (listed["user_id"], listed["session_id"], listed["request"]) == (None, None, None)
        assert api.get(f"/v1/streams/{sid}/views").json()["views"] == []
        problem(api.get(f"/v1/streams/{sid}/text"), 410, "stream_expired")
        problem(api.get(f"/v1/streams/{sid}/message"), 410, "stream_expired")
    finally:
        worker.send(signal.SIGCONT)
    wait_until(lambda: api.get(f"/v1/streams/{sid}/verify").json()["verdict"] == "erased", "the archive has followed")


def test_what_runs_cannot_be_erased(api: Api) -> None:
    sid = api.start_external()
    problem(api.delete(f"/v1/streams/{sid}"), 409, "stream_running")
    problem(api.delete("/v1/streams/nobody"), 404, "stream_not_found")


# -- masks ---------------------------------------------------------------------------------------------------------


def test_a_masked_key_reads_what_has_ended_under_masks(api: Api, masked: Api, archived: Deployment) -> None:
    texts = ("Write to a", "nn@exam", "ple.or", "g today")
    sid = api.finished(*texts, metadata={"card": "4111", "note": "bob@example.org"})
    hidden = "Write to ███████████████ today"
    for _ in range(2):
        assert masked.get(f"/v1/streams/{sid}/text").text == hidden
        streamed = frames(masked.follow(sid).read_to_end())
        assert "".join(frame.data.get("text", "") for frame in streamed) == hidden
        assert ids(masked.follow(sid).read_to_end()) == ids(api.follow(sid).read_to_end())
        assert masked.record(sid)["metadata"] == {"card": "█████", "note": "█" * 15}
        [listed] = [one for one in masked.get("/v1/streams").json()["streams"] if one["id"] == sid]
        assert listed["metadata"] == masked.record(sid)["metadata"]
        exported = masked.get(f"/v1/streams/{sid}/export").text
        assert '{"redacted":["e-mail","card","slow"]}' in exported
        assert "example" not in exported
        assert "4111" not in exported
        until_archived(api, sid)
        leave_redis(archived, sid)
    assert masked.get(f"/v1/streams/{sid}/verify").json()["verdict"] == "verified"


def test_a_masked_key_changes_nothing_and_sees_nothing_that_runs(api: Api, masked: Api) -> None:
    sid = api.start_external()
    for path in ("/text", "/events"):
        problem(masked.get(f"/v1/streams/{sid}{path}"), 403, "forbidden")
    for answer in (
        masked.get(f"/v1/streams/{sid}/message"),
        masked.post("/v1/streams", json={"prompt": "x"}),
        masked.post(f"/v1/streams/{sid}/cancel"),
        masked.post(f"/v1/streams/{sid}/events", json={"epoch": 1, "events": []}),
        masked.delete(f"/v1/streams/{sid}"),
        masked.get("/metrics"),
        masked.get("/v1/sessions"),
    ):
        problem(answer, 403, "insufficient_scope")
    assert "token" not in masked.record(sid)["events_url"]


def test_masks_find_what_each_delta_alone_would_hide_from_them(api: Api, masked: Api) -> None:
    sid = api.finished("bob@example.org", "anisation.org", "!")
    assert masked.get(f"/v1/streams/{sid}/text").text == "█" * 15 + "anisation.org!"
    pieces = [("text_delta", {"text": text, "tool_call_id": str(n)}) for n, text in enumerate(("bob@exam", "ple.org"))]
    split = api.start_external()
    api.append(split, *pieces, ("done", {"usage": {"by": "ann@example.org"}}))
    assert masked.get(f"/v1/streams/{split}/text").text == "█" * 15
    assert masked.record(split)["usage"] == {"by": "█" * 15}
    problem(masked.get(f"/v1/streams/{split}/message"), 403, "insufficient_scope")
    views_of(api, sid, 0)
    api.follow(sid, User_Agent="of ann@example.org").read_to_end()
    views_of(api, sid, 1)
    assert connections(masked, sid)[0]["user_agent"] == f"of {'█' * 15}"


def test_who_sees_everything_can_export_with_masks_and_is_told_so(api: Api) -> None:
    sid = until_archived(api, api.finished("ann@example.org"))
    whole, redacted = (api.get(f"/v1/streams/{sid}/export{query}").text for query in ("", "?redacted=1"))
    assert "ann@example.org" in whole
    assert "ann@example.org" not in redacted
    *_, note, seal = ndjson(redacted.encode())
    assert note == {"redacted": ["e-mail", "card", "slow"]}
    assert set(seal["seal"]) == {"statement", "signature"}, "with the salt a masked word could be guessed"


def test_nobody_waits_for_masked_reads_and_who_finds_no_place_is_sent_away(
    api: Api, masked: Api, archived: Deployment
) -> None:
    sid, other = api.finished("x", metadata=SLOW), api.finished("y")
    masks_on = urlsplit(archived.urls[1])
    ask = f"GET /v1/streams/{sid} HTTP/1.1\r\nHost: {masks_on.netloc}\r\nAuthorization: Bearer {MASKED_KEY}\r\n\r\n"
    with ExitStack() as stack:
        readers = [
            stack.enter_context(socket.create_connection((masks_on.hostname, masks_on.port))) for _ in range(PLACES + 1)
        ]
        for reader in readers:
            reader.sendall(ask.encode())
        [refused], _, _ = select.select(readers, [], [], 30)
        answer = b""
        while not answer.endswith(b"}"):
            answer += refused.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"masks_too_slow" in answer
        assert b"retry-after: 5\r\n" in answer.lower()
        readers.remove(refused)
        assert masked.get(f"/v1/streams/{sid}/verify").status_code == 200
        with closing(Api(archived.urls[1], KEY)) as beside:
            assert beside.record(other)["id"] == other
        assert select.select(readers, [], [], 0)[0] == []
    wait_until(lambda: masked.get(f"/v1/streams/{other}").status_code == 200, "those who left have freed their places")


# -- an archive that is away ------------------------------------------------------------------------------------------


def test_an_archive_that_is_away_takes_nothing_from_what_redis_has(
    own_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    nowhere = f"postgresql:///x?host={tmp_path}&user=nobody"
    key = tmp_path / "key.pem"
    deployment = own_deployment(
        servers=1,
        workers=0,
        LASTEVENT_ARCHIVE_URL=nowhere,
        LASTEVENT_SEAL_KEY=str(key),
        LASTEVENT_SEAL_HEADS=str(tmp_path / "heads"),
    )
    with closing(Api(deployment.url)) as api:
        _require_what_redis_has(api)


def _require_what_redis_has(api: Api) -> None:
    sid = api.finished("a")
    assert ids(api.follow(sid).read_to_end()) == [1, 2, 3, 4]
    assert api.get(f"/v1/streams/{sid}/text").text == "a"
    assert (api.record(sid)["state"], api.get(f"/v1/streams/{sid}/export").status_code) == ("done", 503)
    problem(api.get("/v1/streams/nobody"), 503, "archive_unavailable")
    problem(api.get("/v1/streams"), 503, "archive_unavailable")
    polite = api.follow("nobody")
    assert polite.status == 200
    assert b": archive_unavailable\n" in polite.read_to_end()
    assert not polite.is_complete
    text = api.get("/metrics").text
    assert "lastevent_view_records_lost_total 0.0" in text


# -- docs/AUDIT.md ----------------------------------------------------------------------------------------------------


def test_the_verifier_that_the_documentation_shows_is_all_it_takes(
    api: Api, archived: Deployment, tmp_path: Path
) -> None:
    document = (Path(__file__).parents[2] / "docs" / "AUDIT.md").read_text()
    [program] = re.findall(r"^```python\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    sid = until_archived(api, api.finished("Grüße \u2028 aus\r\n", "dem Tunnel 🚇", user_id="ünn"))
    exported = api.get(f"/v1/streams/{sid}/export").content

    def says(content: bytes) -> str:
        (tmp_path / "export").write_bytes(content)
        argv = [sys.executable, "-c", program, str(tmp_path / "export"), str(archived.folder / "seal-public.pem")]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    assert says(exported).startswith(f"verified: {sid} seal ")
    first, second, *others = exported.splitlines(keepends=True)
    for changed in (
        b"".join([second, first, *others]),
        b"".join([first, *others]),
        exported.replace(b"Tunnel", b"Turnel"),
        exported.replace("ünn".encode(), b"eve"),
        exported.replace(b'\\"number\\":', b'\\"number\\":1'),
    ):
        assert changed != exported
        assert says(changed) == ""


def test_the_masks_that_the_documentation_shows_are_masks(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "AUDIT.md").read_text()
    [masks] = re.findall(r"^```toml\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    (tmp_path / "masks.toml").write_text(masks)
    redactor = load_masks(tmp_path / "masks.toml")
    record = {"metadata": {"customer": {"card": 4111}, "note": "write to ann@example.org."}}
    assert redactor.mask_record(record, Watch())["metadata"] == {
        "customer": {"card": "█████"},
        "note": "write to " + "█" * 16,
    }
