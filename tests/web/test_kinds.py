"""`?kinds=`: a viewer is sent these kinds alone, by every way, and nothing else is different for it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from tests.rig.deployment import Deployment, wait_until
from tests.web.wire import Api, frames, ndjson, problem

pytestmark = pytest.mark.processes

NDJSON = "application/x-ndjson"
FORMS = [(accept, compact) for accept in ("text/event-stream", NDJSON) for compact in ("0", "1")]
ALWAYS = {"restart", "done", "error", "cancelled"}

SAID: list[tuple[str, Any]] = [
    ("start", {}),
    *[("text_delta", {"text": f"{n} "}) for n in range(3)],
    ("sentence", {"text": "0 1 2", "index": 0}),
    ("internal.thinking_delta", {"text": "hidden"}),
    ("status", {"message": "on"}),
    *[("text_delta", {"text": f"{n} "}) for n in range(3, 6)],
    ("sentence", {"text": "3 4 5", "index": 1}),
    ("text_delta", {"text": "the rest"}),
]
DONE: tuple[str, Any] = ("done", {"stop_reason": "end_turn"})

SPOKEN = {"prompt": "Speak [[tokens=200 rate=400 ttft_ms=0]]", "sentences": True}


def finished(api: Api) -> str:
    sid = api.start_external()
    api.append(sid, *SAID, DONE).raise_for_status()
    return sid


def read(body: bytes, accept: str = "text/event-stream") -> list[tuple[int | None, str]]:
    if accept == NDJSON:
        return [(line.get("id"), line["event"]) for line in ndjson(body)]
    return [(frame.id, frame.event) for frame in frames(body)]


def expected(kinds: set[str]) -> list[tuple[int, str]]:
    """`queued` is 1."""
    return [(n, kind) for n, (kind, _) in enumerate([*SAID, DONE], 2) if kind in kinds | ALWAYS]


@pytest.mark.parametrize(("accept", "compact"), FORMS)
def test_these_kinds_alone_are_sent_and_the_ending(api: Api, accept: str, compact: str) -> None:
    sid = finished(api)
    query = f"?kinds=sentence,status&compact={compact}"
    assert read(api.follow(sid, query, Accept=accept).read_to_end(), accept) == expected({"sentence", "status"})
    assert read(api.follow(sid, f"{query}&audience=public", Accept=accept).read_to_end(), accept) == expected(
        {"sentence", "status"}
    )


@pytest.mark.parametrize(("accept", "compact"), FORMS)
def test_so_it_is_live(api: Api, other_api: Api, accept: str, compact: str) -> None:
    sid = api.start_external()
    query = f"?kinds=sentence&compact={compact}"
    viewers = [one.follow(sid, query, Accept=accept) for one in (api, other_api)]
    whole = api.follow(sid, "", Accept=accept)
    whole.read_until(lambda body: b"queued" in body)
    for event in SAID:
        api.append(sid, event).raise_for_status()
    for viewer in viewers:
        viewer.read_until(lambda body: b"3 4 5" in body)
    api.append(sid, DONE).raise_for_status()
    for viewer in viewers:
        assert read(viewer.read_to_end(), accept) == expected({"sentence"})
        assert viewer.is_complete
        assert all(viewer.chunks)
    assert len(read(whole.read_to_end(), accept)) == 1 + len(SAID) + 1, "whoever asks for no kinds is sent all"


def test_what_was_taken_back_is_told_to_whoever_chose(own_deployment: Callable[..., Deployment]) -> None:
    deployment = own_deployment(servers=1)
    sid = deployment.create("Break [[tokens=60 rate=0 ttft_ms=0 cut_at=30 cut_times=1]]", sentences=True)
    deployment.wait_until_ended(sid)
    spoken = [line for line in deployment.log_of(sid) if line.get("event") in ("sentence", "restart", "done")]
    api = Api(deployment.url)
    seen = ndjson(api.get(f"/v1/streams/{sid}/events?kinds=sentence", headers={"Accept": NDJSON}).content)
    api.close()
    assert [line["id"] for line in seen] == [line["id"] for line in spoken]
    assert [line["event"] for line in seen].count("restart") == 1


def test_of_several_parameters_all_kinds_count(api: Api) -> None:
    sid = finished(api)
    body = api.follow(sid, "?kinds=sentence&kinds=status,start").read_to_end()
    assert read(body) == expected({"sentence", "status", "start"})


def test_what_is_internal_is_shown_to_those_alone_who_may_see_it(api: Api) -> None:
    sid = finished(api)
    query = "?kinds=internal.thinking_delta"
    assert read(api.follow(sid, query).read_to_end()) == expected({"internal.thinking_delta"})
    assert read(api.follow(sid, f"{query}&audience=public").read_to_end()) == expected(set())


@pytest.mark.parametrize(
    "kinds",
    [
        "",
        ",",
        "sentence,",
        "Sentence",
        "a b",
        "sentence,%20status",
        "%0a",
        "x" * 65,
        ",".join(f"k{n}" for n in range(33)),
    ],
)
def test_other_names_are_refused(api: Api, kinds: str) -> None:
    sid = finished(api)
    for path in ("events?", "replay?speed=0&"):
        assert "kinds" in problem(api.get(f"/v1/streams/{sid}/{path}kinds={kinds}"), 422, "invalid_request")["detail"]


def test_a_viewer_names_as_many_as_32(api: Api) -> None:
    sid = finished(api)
    kinds = ",".join(f"k{n}" for n in range(31))
    assert read(api.follow(sid, f"?kinds={kinds},sentence").read_to_end()) == expected({"sentence"})


def test_a_replay_has_these_kinds_alone(api: Api) -> None:
    sid = finished(api)
    body = api.exchange("GET", f"/v1/streams/{sid}/replay?speed=0&kinds=status").read_to_end()
    assert read(body) == expected({"status"})


def test_a_start_that_is_answered_with_the_stream_has_them_too(api: Api) -> None:
    body = orjson.dumps(SPOKEN)
    headers = [
        ("Accept", "text/event-stream"),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
    ]
    seen = read(api.exchange("POST", "/v1/streams?kinds=sentence", headers, body).read_to_end())
    assert {kind for _, kind in seen} == {"sentence", "done"}


# -- nothing else is different -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_signs_of_life_come_while_nothing_is_shown(api: Api, version: str) -> None:
    """Live viewers and those without a lane, while a flow of other events goes on."""
    sid = api.start_external()
    at = urlsplit(api.url)
    with socket.create_connection((at.hostname, at.port), timeout=30) as viewer:
        path = f"/v1/streams/{sid}/events?kinds=sentence&heartbeat_s=1"
        viewer.sendall(f"GET {path} HTTP/{version}\r\nHost: {at.netloc}\r\n\r\n".encode())
        viewer.settimeout(0.05)
        body = b""
        for _ in range(200):
            api.append(sid, ("text_delta", {"text": "not chosen"})).raise_for_status()
            with suppress(TimeoutError):
                body += viewer.recv(65536)
            if body.count(b": ping\n") == 2:
                break
    assert body.count(b": ping\n") == 2
    assert b"not chosen" not in body


def test_who_has_the_ending_gets_204(api: Api) -> None:
    sid = finished(api)
    [*_, (ending, _)] = expected(set())
    assert api.get(f"/v1/streams/{sid}/events?kinds=sentence&last_event_id={ending}").status_code == 204
    before = api.get(f"/v1/streams/{sid}/events?kinds=sentence&last_event_id={ending - 1}")
    assert [kind for _, kind in read(before.content)] == ["done"]


def test_resumed_at_each_sentence_none_comes_twice_and_none_is_missing(api: Api, other_api: Api) -> None:
    record = api.post("/v1/streams", SPOKEN).json()
    sid = record["id"]
    live = read(api.follow(sid, "?kinds=sentence").read_to_end())
    assert len(live) > 10
    assert api.get(f"/v1/streams/{sid}/text").text.split() == [
        word
        for line in ndjson(api.get(f"/v1/streams/{sid}/events?kinds=sentence", headers={"Accept": NDJSON}).content)
        if line["event"] == "sentence"
        for word in line["data"]["text"].split()
    ]
    for accept in ("text/event-stream", NDJSON):
        for n, (at, kind) in enumerate(live):
            answer = other_api.get(
                f"/v1/streams/{sid}/events?kinds=sentence&last_event_id={at}", headers={"Accept": accept}
            )
            assert read(answer.content, accept) == live[n + 1 :]
            assert (answer.status_code == 204) == (kind == "done")


def test_cut_at_each_sentence_while_it_is_said_none_comes_twice_and_none_is_missing(api: Api, other_api: Api) -> None:
    sid = api.post("/v1/streams", SPOKEN).json()["id"]
    seen: list[tuple[int | None, str]] = []
    while not (seen and seen[-1][1] == "done"):
        viewer = (api, other_api)[len(seen) % 2].follow(
            sid, f"?kinds=sentence&last_event_id={seen[-1][0] if seen else 0}"
        )
        body = viewer.read_until(lambda body: b"\n\n" in body)
        viewer.close()
        seen += read(body[: body.rindex(b"\n\n") + 2])
    assert seen == read(api.follow(sid, "?kinds=sentence").read_to_end())


def test_the_access_record_says_that_kinds_were_chosen_and_which_events_were_had(api: Api) -> None:
    sid = finished(api)
    for accept, compact in FORMS:
        api.get(f"/v1/streams/{sid}/events?kinds=sentence&compact={compact}", headers={"Accept": accept})
    api.get(f"/v1/streams/{sid}/events?kinds=sentence&audience=public")
    api.get(f"/v1/streams/{sid}/replay?kinds=sentence&speed=0")
    named = {f"{name}-kinds" for name in ("sse", "sse-compact", "ndjson", "ndjson-compact", "public-sse", "replay")}

    def views() -> dict[str, Any]:
        found = api.get(f"/v1/streams/{sid}/views").json()["views"]
        return {view["format"]: view for view in found if view["closed_at"]}

    wait_until(lambda: views().keys() >= named, "all are recorded")
    (first, _), *_, (last, _) = expected({"sentence"})
    assert {(views()[name]["first_id"], views()[name]["last_id"]) for name in named} == {(first, last)}


# -- asking for sentences ------------------------------------------------------------------------------------------


def stored(api: Api, sid: str) -> list[str]:
    return [kind for _, kind in read(api.follow(sid).read_to_end()) if kind == "sentence"]


def test_sentences_are_told_to_whoever_asks_for_them_and_again_when_it_is_regenerated(api: Api) -> None:
    short = {"prompt": "[[tokens=40 rate=0 ttft_ms=0]]"}
    assert stored(api, api.post("/v1/streams", short).json()["id"]) == []
    sid = api.post("/v1/streams", {**short, "sentences": True, "language": "en-GB"}).json()["id"]
    told = stored(api, sid)
    assert told
    assert stored(api, api.post(f"/v1/streams/{sid}/regenerate").json()["id"]) == told
    assert "sentences" not in api.record(sid)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"sentences": "yes"}, "sentences"),
        ({"sentences": True, "language": "english please"}, "language"),
        ({"sentences": True, "language": ""}, "language"),
        ({"sentences": True, "language": "en-"}, "language"),
        ({"sentences": True, "language": "x" * 9}, "language"),
        ({"language": "en"}, "sentences"),
        ({"sentences": True, "producer": "external"}, "`sentence` events itself"),
        ({"language": "en", "producer": "external"}, "sentences"),
    ],
)
def test_what_cannot_be_told_is_refused_with_advice(api: Api, body: dict[str, Any], why: str) -> None:
    answer = api.post("/v1/streams", {"prompt": "Hello", **body})
    assert why in orjson.dumps(problem(answer, 422, "invalid_request")).decode()


@pytest.mark.parametrize("language", ["en", "de-CH-1996", "zh-Hans-CN", "sr-Latn", "hy"])
def test_a_language_is_a_tag_of_bcp_47(api: Api, language: str) -> None:
    answer = api.post("/v1/streams", {"prompt": "[[tokens=1]]", "sentences": True, "language": language})
    assert answer.status_code == 201, answer.text


def test_a_switch_that_is_off_may_have_a_language(api: Api) -> None:
    answer = api.post("/v1/streams", {"prompt": "[[tokens=1]]", "sentences": False, "language": "en"})
    assert answer.status_code == 201, answer.text
