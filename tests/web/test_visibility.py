"""What users see of a stream: nothing that is internal, by whatever way they read it, and all of the rest."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import pytest
import redis

from tests.conftest import deployment_in
from tests.rig.deployment import Deployment, wait_until
from tests.web.wire import LIMIT_S, Api, frames, ndjson, problem

pytestmark = pytest.mark.processes

KEY = "a-key-of-at-least-thirty-two-characters"
SECRET = "what-the-model-thought-of-the-customer"
NDJSON = "application/x-ndjson"

HIDDEN = [
    *(("internal.thinking_delta", {"text": f"{SECRET} {n}"}) for n in range(3)),
    ("internal.tool_args", {"tool_call_id": "a", "tool": "find", "args": {"q": SECRET}, "complete": True}),
    ("internal.tool_result", {"tool_call_id": "a", "tool": "find", "output": SECRET}),
    ("internal.text_delta", {"text": SECRET}),
]
SHOWN = [("start", {}), *(("text_delta", {"text": f"{n} "}) for n in range(4))]


def events(rounds: int = 2) -> list[tuple[str, Any]]:
    """With holes of several sizes, also at the front and before the end."""
    said = [*HIDDEN[:1], *SHOWN]
    for n in range(rounds):
        said += [*HIDDEN[n % 5 :], ("text_delta", {"text": f"more {n} "}), *HIDDEN[:n], ("status", {"message": "yes"})]
    return [*said, *HIDDEN]


DONE = ("done", {"stop_reason": "end_turn"})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("visibility")
    (folder / "masks.toml").write_text("[[mask]]\nname = 'none'\npattern = 'never-said'\n")
    settings = {
        "LASTEVENT_ARCHIVE_URL": f"sqlite:///{folder}/archive.db",
        "LASTEVENT_ARCHIVE_AFTER_S": "0",
        "LASTEVENT_API_KEYS": KEY,
        "LASTEVENT_REDACT_FILE": str(folder / "masks.toml"),
        "LASTEVENT_CONNECTS_PER_MINUTE": "100000",
    }
    with deployment_in(folder, servers=1, **settings) as deployment:
        yield deployment


@pytest.fixture
def owner(served: Deployment, open_api: Callable[..., Api]) -> Api:
    return open_api(served.url, KEY)


@pytest.fixture
def user(served: Deployment, open_api: Callable[..., Api]) -> Api:
    return open_api(served.url)


def token_of(owner: Api, sid: str) -> str:
    return str(owner.record(sid)["events_url"]).partition("?")[2]


def finished(owner: Api) -> str:
    sid = owner.start_external()
    owner.append(sid, *events(), DONE).raise_for_status()
    return sid


def leave_redis(served: Deployment, owner: Api, sid: str) -> None:
    wait_until(lambda: owner.record(sid)["archived_at"], "it is archived")
    with closing(redis.Redis.from_url(served.redis_url)) as client:
        client.delete(f"le:{{{sid}}}:log", f"le:{{{sid}}}:meta")


def public_ids(owner: Api, sid: str) -> list[int]:
    log = ndjson(owner.get(f"/v1/streams/{sid}/events?follow=0", headers={"Accept": NDJSON}).content)
    return [line["id"] for line in log if not line["event"].startswith("internal.")]


def ids_of(body: bytes, accept: str) -> list[int]:
    if accept == NDJSON:
        return [line["id"] for line in ndjson(body) if "id" in line]
    return [int(line[4:]) for line in body.split(b"\n") if line.startswith(b"id: ")]


def get_http_1_0(url: str, path: str, accept: str) -> bytes:
    """The whole answer, head and all."""
    at = urlsplit(url)
    with socket.create_connection((at.hostname, at.port), timeout=LIMIT_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {at.netloc}\r\nAccept: {accept}\r\n\r\n".encode())
        received = b""
        while more := connection.recv(65536):
            received += more
        return received


# -- no byte of it -----------------------------------------------------------------------------------------------

FORMS = [(accept, compact) for accept in ("text/event-stream", NDJSON) for compact in ("0", "1")]


@pytest.mark.parametrize(("accept", "compact"), FORMS)
def test_a_user_who_follows_live_gets_no_byte_of_what_is_internal(
    served: Deployment, owner: Api, user: Api, accept: str, compact: str
) -> None:
    sid = owner.start_external()
    path = f"/v1/streams/{sid}/events?{token_of(owner, sid)}&compact={compact}"
    viewer = user.exchange("GET", path, [("Accept", accept)])
    narrowed = owner.follow(sid, f"?audience=public&compact={compact}", Accept=accept)
    operator = owner.follow(sid, f"?compact={compact}", Accept=accept)
    for one in (viewer, narrowed, operator):
        one.read_until(lambda body: b"queued" in body)
    for event in events():
        owner.append(sid, event).raise_for_status()
    owner.append(sid, *events(), DONE).raise_for_status()
    for one in (viewer, narrowed, operator):
        one.read_to_end()
        assert one.is_complete, "an empty chunk would have ended it before"
        assert all(one.chunks)
    expected = public_ids(owner, sid)
    for body in (viewer.body, narrowed.body):
        assert SECRET.encode() not in body
        assert b"internal" not in body
        seen = ids_of(body, accept)
        assert seen == expected if compact == "0" else set(seen) < set(expected)
        assert seen[-1] == expected[-1]
    assert SECRET.encode() in operator.body, "who has a key sees everything"


@pytest.mark.parametrize("is_archived", [False, True])
def test_a_user_who_reads_what_has_ended_gets_no_byte_of_what_is_internal(
    served: Deployment, owner: Api, user: Api, *, is_archived: bool
) -> None:
    sid = finished(owner)
    token, expected = token_of(owner, sid), public_ids(owner, sid)
    if is_archived:
        leave_redis(served, owner, sid)
    answers: dict[str, bytes] = {}
    for query in (token, f"{token}&audience=public", "audience=public"):
        reader = user if token in query else owner
        for accept, compact in FORMS:
            for follow in "01":
                path = f"/v1/streams/{sid}/events?{query}&compact={compact}&follow={follow}"
                body = reader.get(path, headers={"Accept": accept}).content
                answers[f"{path} {accept}"] = body
                if compact == "0":
                    assert ids_of(body, accept) == expected, path
        text = reader.get(f"/v1/streams/{sid}/text?{query}")
        assert text.text == "0 1 2 3 more 0 more 1 "
        assert int(text.headers["last-event-id"]) == expected[-1]
        answers[f"text {query}"] = text.content
    for accept, compact in FORMS:
        path = f"/v1/streams/{sid}/events?{token}&compact={compact}"
        answers[f"1.0 {accept} {compact}"] = get_http_1_0(served.url, path, accept)
    answers["record"] = user.get(f"/v1/streams/{sid}?{token}").content
    for path in ("replay?speed=0&", "replay?speed=10000&", "export?", "export?redacted=1&"):
        answers[path] = owner.get(f"/v1/streams/{sid}/{path}audience=public").content
        assert ids_of(answers[path], "text/event-stream" if "replay" in path else NDJSON) == expected
    for what, answer in answers.items():
        assert SECRET.encode() not in answer, what
        assert b"internal" not in answer, what
        assert answer


def test_the_answer_of_a_post_is_what_users_see_if_it_is_asked_for(owner: Api) -> None:
    body = orjson.dumps({"prompt": "[[thinking=3 tokens=3 rate=0 ttft_ms=0]]"})
    asked = [("Accept", "text/event-stream"), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    bodies = {}
    for query in ("", "?audience=public"):
        viewer = owner.exchange("POST", f"/v1/streams{query}", asked, body)
        bodies[query] = viewer.read_to_end()
        assert viewer.is_complete
    assert b"event: internal." in bodies[""]
    assert b"event: internal." not in bodies["?audience=public"]
    assert frames(bodies["?audience=public"])[-1].event == "done"


def test_a_token_cannot_ask_for_more_and_an_audience_that_is_none_is_refused(owner: Api, user: Api) -> None:
    sid = finished(owner)
    token = token_of(owner, sid)
    for path in ("events", "text"):
        problem(user.get(f"/v1/streams/{sid}/{path}?{token}&audience=all"), 403, "forbidden")
        problem(user.get(f"/v1/streams/{sid}/{path}?{token}&audience=everybody"), 422, "invalid_request")
        assert owner.get(f"/v1/streams/{sid}/{path}?audience=all").is_success


# -- cuts, and holes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["text/event-stream", NDJSON])
def test_a_user_cut_at_a_hundred_places_gets_each_public_event_once(owner: Api, user: Api, accept: str) -> None:
    sid = owner.start_external()
    owner.append(sid, *events(rounds=40), DONE).raise_for_status()
    token, expected = token_of(owner, sid), public_ids(owner, sid)
    assert len(expected) > 80
    assert expected != list(range(1, len(expected) + 1)), "there are holes"
    path = f"/v1/streams/{sid}/events?{token}"
    whole = user.get(path, headers={"Accept": accept}).content
    for cut in range(1, len(whole), len(whole) // 100):
        complete = whole[:cut].rpartition(b"\n\n" if accept != NDJSON else b"\n")[0]
        seen = ids_of(complete + b"\n\n", accept)
        cursor = {"Last-Event-ID": str(seen[-1])} if seen else {}
        rest = user.get(path, headers={"Accept": accept, **cursor}).content
        assert seen + ids_of(rest, accept) == expected, cut


def test_a_user_whose_cursor_is_hidden_or_the_latest_goes_on_from_there(owner: Api, user: Api) -> None:
    sid = owner.start_external()
    owner.append(sid, ("start", {}), *HIDDEN).raise_for_status()
    path = f"/v1/streams/{sid}/events?{token_of(owner, sid)}"
    latest = user.exchange("GET", path, [("Last-Event-ID", "latest")])
    between = user.exchange("GET", path, [("Last-Event-ID", "4")])
    assert latest.read_chunk()
    assert f"id: {2 + len(HIDDEN)}\n\n".encode() in latest.body, "it is told where it stands"
    assert (between.read_chunk() or b"").startswith(b"retry: ")
    owner.append(sid, *HIDDEN, ("text_delta", {"text": "now"}), *HIDDEN, DONE).raise_for_status()
    for viewer in (latest, between):
        assert [frame.event for frame in frames(viewer.read_to_end())][-2:] == ["text_delta", "done"]
        assert SECRET.encode() not in viewer.body
    assert (latest.is_complete, between.is_complete) == (True, True)


def test_a_replay_of_nothing_but_hidden_events_is_over(owner: Api) -> None:
    sid = finished(owner)
    first = public_ids(owner, sid)[-2] + 1
    path = f"/v1/streams/{sid}/replay?speed=0&from={first}&to={first + len(HIDDEN) - 1}"
    resumed = {"Last-Event-ID": str(first - 1)}
    assert owner.get(path, headers=resumed).status_code == 200
    assert owner.get(f"{path}&audience=public", headers=resumed).status_code == 204


# -- silence, and the record ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_user_is_given_signs_of_life_while_only_hidden_events_flow(
    served: Deployment, owner: Api, version: str
) -> None:
    sid = owner.start_external()
    at = urlsplit(served.url)
    path = f"/v1/streams/{sid}/events?{token_of(owner, sid)}&heartbeat_s=1"
    with socket.create_connection((at.hostname, at.port), timeout=LIMIT_S) as viewer:
        viewer.sendall(f"GET {path} HTTP/{version}\r\nHost: {at.netloc}\r\n\r\n".encode())
        viewer.settimeout(0.05)
        body = b""
        for _ in range(200):  # the flow of hidden events goes on all the while
            owner.append(sid, HIDDEN[0]).raise_for_status()
            with suppress(TimeoutError):
                body += viewer.recv(65536)
            if body.count(b": ping\n") == 2:
                break
    assert body.count(b": ping\n") == 2
    assert SECRET.encode() not in body


def test_the_access_record_says_for_whose_eyes_a_reading_was_and_which_public_events_it_had(
    owner: Api, user: Api
) -> None:
    sid = finished(owner)
    token, expected = token_of(owner, sid), public_ids(owner, sid)
    for accept, compact in FORMS:
        user.get(f"/v1/streams/{sid}/events?{token}&compact={compact}&last_event_id=3", headers={"Accept": accept})
    user.get(f"/v1/streams/{sid}/text?{token}")
    for path in ("export?", "replay?speed=0&"):
        owner.get(f"/v1/streams/{sid}/{path}audience=public")
    live = {"public-sse", "public-sse-compact", "public-ndjson", "public-ndjson-compact"}

    def views() -> dict[str, httpx.Response]:
        found = owner.get(f"/v1/streams/{sid}/views").json()["views"]
        return {view["format"]: view for view in found if view["format"].startswith("public-") and view["closed_at"]}

    wait_until(lambda: views().keys() == live | {"public-text", "public-export", "public-replay"}, "all are recorded")
    for form, view in views().items():
        first = next(n for n in expected if n > 3) if form in live else expected[0]
        assert (view["first_id"], view["last_id"]) == (first, expected[-1]), form
