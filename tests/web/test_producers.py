"""External producers: append, retry, be told where to go on, keep the lease."""

import re
import string
import uuid
from collections.abc import Callable

import pytest

from broker.log.event import NOTICES, OF_CLIENTS
from tests.rig.deployment import Deployment
from tests.web.wire import Api, frames, ids, ndjson, problem


@pytest.fixture
def sid(api: Api) -> str:
    return api.start_external()


def tail(api: Api, sid: str) -> int:
    last: int = api.record(sid)["last_event_id"]
    return last


def delta(text: str) -> tuple[str, dict[str, str]]:
    return "text_delta", {"text": text}


def test_its_creation_gives_the_producer_its_epoch(api: Api) -> None:
    answer = api.post("/v1/streams", {"producer": "external", "metadata": {"m": 1}})
    stream = answer.json()
    assert (answer.status_code, stream["epoch"], stream["state"], stream["last_event_id"]) == (201, 1, "running", 1)
    assert (stream["model"], stream["provider"], stream["producer"]) == (None, None, "external")
    assert stream["started_at"]


ASKED = {
    "model": "open-ai/some[model]/v2",
    "system": "Be brief.",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "What was asked"}]}],
}


def test_an_external_stream_says_what_was_asked(api: Api, other_api: Api) -> None:
    session = f"asked-{uuid.uuid4()}"
    sid = api.start_external(session_id=session, **ASKED)
    record = other_api.record(sid)
    assert record["request"] == {"messages": ASKED["messages"], "system": ASKED["system"]}
    assert (record["model"], record["provider"], record["state"]) == (ASKED["model"], "open-ai", "running")
    listed = api.get("/v1/streams", params={"model": ASKED["model"], "session_id": session, "include": "request"})
    assert [one["request"] for one in listed.json()["streams"]] == [record["request"]]
    assert listed.json()["streams"][0]["state"] == "running"
    assert problem(api.post(f"/v1/streams/{sid}/regenerate"), 422, "invalid_request")
    by_prompt = api.record(api.start_external(prompt="What was asked"))
    assert by_prompt["request"] == {"messages": [{"role": "user", "content": "What was asked"}]}


def test_an_external_stream_without_a_start_is_running(api: Api, sid: str) -> None:
    assert api.append(sid, delta("text")).status_code == 200
    session = api.record(sid)["session_id"]
    [listed] = api.get(f"/v1/sessions/{session}").json()["streams"]
    assert [record["state"] for record in (api.record(sid), listed)] == ["running", "running"]


def test_appended_events_are_numbered_in_order(api: Api, sid: str) -> None:
    assert api.append(sid, ("start", {}), delta("a")).json() == {"last_event_id": 3}
    assert api.append(sid, delta("b")).json() == {"last_event_id": 4}
    assert ids(api.follow(sid, "?follow=0").read_to_end()) == [1, 2, 3, 4]


def test_with_first_sending_again_is_harmless(api: Api, other_api: Api, sid: str) -> None:
    for server in (api, other_api, api):
        assert server.append(sid, delta("a"), delta("b"), first=2).json() == {"last_event_id": 3}
    assert api.append(sid, delta("b"), delta("c"), first=3).json() == {"last_event_id": 4}
    assert api.append(sid, delta("a"), first=2).json() == {"last_event_id": 4}
    assert api.get(f"/v1/streams/{sid}/text").text == "abc"


def test_sending_the_ending_again_is_harmless_too(api: Api, sid: str) -> None:
    for _ in range(3):
        assert api.append(sid, delta("a"), ("done", {}), first=2).json() == {"last_event_id": 3}
    assert ids(api.follow(sid).read_to_end()) == [1, 2, 3]


def test_a_gap_is_refused_and_says_where_to_go_on(api: Api, sid: str) -> None:
    api.append(sid, delta("a"))
    said = problem(api.append(sid, delta("c"), first=4), 409, "append_gap")
    assert said["last_event_id"] == 2
    assert tail(api, sid) == 2
    assert api.append(sid, delta("b"), delta("c"), first=said["last_event_id"] + 1).json() == {"last_event_id": 4}


def test_event_1_is_the_brokers(api: Api, sid: str) -> None:
    assert problem(api.append(sid, delta("a"), first=1), 409, "append_gap")["last_event_id"] == 1
    assert tail(api, sid) == 1


def test_nothing_is_added_to_what_has_ended(api: Api, sid: str) -> None:
    api.append(sid, ("done", {}))
    problem(api.append(sid, delta("late")), 409, "stream_closed")
    problem(api.append(sid, delta("late"), first=3), 409, "stream_closed")
    problem(api.append(sid, delta("late"), ("done", {}), first=2), 409, "stream_closed")
    assert tail(api, sid) == 2


@pytest.mark.parametrize("epoch", [1, 2, 99])
def test_that_a_stream_has_ended_is_said_before_anything_about_epochs(api: Api, sid: str, epoch: int) -> None:
    api.post(f"/v1/streams/{sid}/cancel")
    problem(api.append(sid, delta("late"), epoch=epoch), 409, "stream_closed")


@pytest.mark.parametrize("epoch", [2, 1_000_000, 2**53 - 1])
def test_an_epoch_that_was_never_given_out_writes_nothing(api: Api, sid: str, epoch: int) -> None:
    problem(api.append(sid, delta("x"), epoch=epoch), 409, "writer_superseded")
    problem(api.post(f"/v1/streams/{sid}/heartbeat", {"epoch": epoch}), 409, "writer_superseded")
    assert tail(api, sid) == 1
    assert api.append(sid, delta("x")).status_code == 200


def test_a_heartbeat_renews_the_lease(api: Api, sid: str) -> None:
    said = api.post(f"/v1/streams/{sid}/heartbeat", {"epoch": 1}).json()
    assert said["last_event_id"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said["lease_until"])
    assert said["lease_until"] > api.record(sid)["created_at"]
    api.append(sid, ("done", {}))
    problem(api.post(f"/v1/streams/{sid}/heartbeat", {"epoch": 1}), 409, "stream_closed")
    problem(api.post("/v1/streams/nope/heartbeat", {"epoch": 1}), 404, "stream_not_found")


def test_only_an_external_stream_takes_events(api: Api, deployment: Deployment) -> None:
    sid = deployment.create("[[tokens=1 rate=0 ttft_ms=0]]")
    deployment.wait_until_ended(sid)
    before = api.record(sid)
    problem(api.append(sid, delta("x")), 403, "forbidden")
    problem(api.post(f"/v1/streams/{sid}/heartbeat", {"epoch": 1}), 403, "forbidden")
    assert api.record(sid) == before


@pytest.mark.parametrize(
    "kind", ["queued", "restart", "gap", "", "Text", "1a", "a-b", "a b", "a\n", "_a", "a" * 65, "ä", "a\x00"]
)
def test_a_kind_that_is_none_or_the_brokers_own_is_refused_with_its_whole_batch(api: Api, sid: str, kind: str) -> None:
    problem(api.append(sid, delta("a"), (kind, {}), delta("b")), 422, "invalid_request")
    assert tail(api, sid) == 1


def test_any_other_kind_is_taken(api: Api, sid: str) -> None:
    kinds = ["a", "a" * 64, "tool_start", "acme.v1.thing_2", "z..", "status", "thinking_delta", "messages"]
    api.append(sid, *[(kind, {}) for kind in kinds]).raise_for_status()
    assert [frame.event for frame in frames(api.follow(sid, "?follow=0").read_to_end())][1:] == kinds


@pytest.mark.parametrize("kind", sorted(NOTICES | OF_CLIENTS))
def test_a_kind_that_a_client_would_take_for_something_else_is_refused(api: Api, sid: str, kind: str) -> None:
    said = problem(api.append(sid, delta("a"), (kind, {})), 422, "invalid_request")
    assert said["detail"].startswith("events.1: ")
    assert tail(api, sid) == 1


def test_a_number_that_would_change_is_refused_with_its_place_and_any_other_is_kept(api: Api, sid: str) -> None:
    path, batch = f"/v1/streams/{sid}/events", b'{"epoch":1,"events":[{"event":"a","data":{"n":%b}}]}'
    headers = {"Content-Type": "application/json"}
    said = problem(
        api.http.post(path, content=batch % b"18446744073709551616", headers=headers), 422, "invalid_request"
    )
    assert said["detail"].startswith("events.0.data: ")
    assert api.http.post(path, content=batch % b"18446744073709551615", headers=headers).status_code == 200
    metadata = b'{"producer":"external","metadata":{"n":123456789012345678901234567890}}'
    said = problem(api.http.post("/v1/streams", content=metadata, headers=headers), 422, "invalid_request")
    assert said["detail"].startswith("metadata: ")
    assert b'{"n":18446744073709551615}' in api.get(f"/v1/streams/{sid}/export").content


def test_a_batch_is_taken_or_refused_whole(api: Api, sid: str) -> None:
    refused = [
        [delta("a"), ("done", {}), delta("b")],
        [("done", {}), ("error", {})],
        [delta("a")] * 1001,
        [],
    ]
    for events in refused:
        problem(api.append(sid, *events), 422, "invalid_request")
    for body in (
        {"epoch": 1, "events": [{"event": "a", "data": {}}, {"event": "a", "data": []}]},
        {"epoch": 1, "events": [{"event": "a", "data": {}}, {"event": "a", "data": None}]},
        {"epoch": 1, "events": [{"event": "a", "data": {}}, {"event": "a"}]},
        {"epoch": 1, "events": [{"event": "a", "data": {}}, {"event": "a", "data": {}, "id": 7}]},
        {"epoch": 1, "events": [{"event": "a", "data": {}}, None]},
        {"epoch": 1, "events": {"event": "a", "data": {}}},
    ):
        problem(api.post(f"/v1/streams/{sid}/events", body), 422, "invalid_request")
    assert tail(api, sid) == 1


def test_a_stream_that_is_full_ends_and_says_so(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    api = open_api(own_deployment(servers=1, workers=0, LASTEVENT_MAX_EVENTS="5", LASTEVENT_MAX_BYTES="2000").url)
    for events in ([delta("a")] * 5, [delta("x" * 2000)]):
        sid = api.start_external()
        problem(api.append(sid, *events), 409, "stream_closed")
        got = frames(api.follow(sid).read_to_end())
        assert [frame.event for frame in got] == ["queued", "error"]
        assert got[-1].data["code"] == "stream_limit"
        problem(api.append(sid, delta("b")), 409, "stream_closed")
    sid = api.start_external()
    assert api.append(sid, *[delta("a")] * 4).json() == {"last_event_id": 5}
    assert api.append(sid, ("done", {"what": "the ending always has room"})).json() == {"last_event_id": 6}


def test_every_character_arrives_unchanged(api: Api, sid: str) -> None:
    controls = "".join(map(chr, range(32))) + "\x7f\x80\x85\x9b\xa0"
    texts = [
        *(
            "\x00",
            "\r",
            "\n",
            "\r\n",
            "\n\n",
            "a\rb\nc\r\nd\n\ne",
            "\u2028",
            "\u2029",
            "\x85",
            "\ufeff",
            "\ufffe\uffff",
        ),
        *(
            "🙂👨‍👩‍👧",
            "e\u0301",
            "\U0010ffff",
            "\u202e",
            string.printable,
            controls,
            "data: x\n\nid: 99\n\n",
            ": ping\n\n",
        ),
        *('"', "\\", "\\u0000", "</script>", "", " ", "retry: 5\n"),
    ]
    api.append(sid, *map(delta, texts), ("done", {"reason": controls})).raise_for_status()
    sse = api.follow(sid).read_to_end()
    assert [frame.data["text"] for frame in frames(sse) if frame.event == "text_delta"] == texts
    lines = ndjson(api.follow(sid, Accept="application/x-ndjson").read_to_end())
    assert [line["data"]["text"] for line in lines if line["event"] == "text_delta"] == texts
    assert [line["id"] for line in lines] == list(range(1, len(texts) + 3))
    assert api.get(f"/v1/streams/{sid}/text").content == "".join(texts).encode()
    assert ndjson(api.get(f"/v1/streams/{sid}/export").content) == lines
    [merged] = [frame for frame in frames(api.follow(sid, "?compact=1").read_to_end()) if frame.event == "text_delta"]
    assert merged.data["text"] == "".join(texts)
    # A line break that some reader knows must not stand raw anywhere in the body.
    assert sse.decode().count("\n") == len(sse.decode().splitlines())


def test_keys_and_depths_arrive_unchanged_too(api: Api, sid: str) -> None:
    nested: object = "x"
    for _ in range(58):
        nested = [nested]
    data = {
        "\x00\r\n\u2028🙂": nested,
        "int": 2**53,
        "negative": -(2**63),
        "float": 1e-300,
        "zero": 0.0,
        "big": 2**64 - 1,
    }
    api.append(sid, ("acme", data)).raise_for_status()
    assert frames(api.follow(sid, "?follow=0").read_to_end())[-1].data == data
