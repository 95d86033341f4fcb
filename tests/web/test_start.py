"""POST /v1/streams and regenerate: both forms, and what an Idempotency-Key makes of eight at once."""

import base64
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from tests.rig.deployment import Deployment, wait_until
from tests.web.wire import Api, Exchange, frames, ids, ndjson, problem

QUICK = "[[tokens=3 rate=0 ttft_ms=0]] hello"
RECORD = {
    *("id", "state", "session_id", "user_id", "model", "provider", "attempt", "last_event_id", "created_at"),
    *("started_at", "first_text_at", "finished_at", "archived_at", "usage", "metadata", "regenerates", "request"),
    *("events_url", "cost_usd", "usage_incomplete"),
}
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def post_as_sse(api: Api, body: bytes, **headers: str) -> Exchange:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    own = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Accept", "text/event-stream")]
    return Exchange(api.url, "POST", "/v1/streams", [*own, *named], body)


def test_a_post_is_answered_with_the_new_stream_and_where_it_is(api: Api) -> None:
    answer = api.post("/v1/streams", {"prompt": QUICK, "session_id": "s 1", "user_id": "ü", "metadata": {"a": [1]}})
    assert answer.status_code == 201
    stream = answer.json()
    assert stream.keys() >= RECORD
    assert answer.headers["location"] == f"/v1/streams/{stream['id']}"
    assert stream["events_url"] == f"/v1/streams/{stream['id']}/events"
    assert (stream["session_id"], stream["user_id"], stream["metadata"]) == ("s 1", "ü", {"a": [1]})
    assert stream["last_event_id"] >= 1
    assert stream["request"]["messages"] == [{"role": "user", "content": QUICK}]
    assert stream["archived_at"] is None
    assert stream["regenerates"] is None


def test_a_finished_stream_has_its_times_and_usage(api: Api, deployment: Deployment) -> None:
    sid = deployment.create(QUICK)
    stream = deployment.wait_until_ended(sid)
    times = [stream[f"{what}_at"] for what in ("created", "started", "first_text", "finished")]
    assert times == sorted(times)
    assert all(re.fullmatch(TIME, time) for time in times)
    assert (stream["state"], stream["provider"], stream["attempt"]) == ("done", "anthropic", 1)
    assert stream["usage"]["output_tokens"] == 3
    assert stream["model"].startswith("anthropic/")


def test_with_accept_event_stream_the_answer_is_the_stream_itself(api: Api) -> None:
    with post_as_sse(api, b'{"prompt":"[[tokens=5 rate=0]] hi"}') as answer:
        body = answer.read_to_end()
    assert answer.status == 200
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert answer.is_complete
    got = frames(body)
    assert [frame.id for frame in got] == list(range(1, 9))
    kinds = [frame.event for frame in got]
    assert kinds == ["queued", "start", *["text_delta"] * 5, "done"]
    location = answer.header("location")
    assert location
    assert api.get(location).json()["last_event_id"] == 8


def test_the_body_is_as_asked_for(api: Api) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": QUICK}]}]
    asked = {"messages": messages, "system": "be brief", "model": "anthropic/some-model", "max_tokens": 7}
    stream = api.post("/v1/streams", asked).json()
    assert stream["model"] == "anthropic/some-model"
    assert stream["request"] == {"messages": messages, "system": "be brief", "max_tokens": 7}


EVERYTHING: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": QUICK, "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": "ok",
            "native": {"provider": "openai", "model": "gpt-5", "content": [{"a": 1}]},
        },
        {"role": "user", "content": "go on"},
    ],
    "system": [{"type": "text", "text": "short", "cache_control": {"type": "ephemeral"}}],
    "max_tokens": 0,
    "tools": [{"name": "f", "input_schema": {"type": "object"}}, {"type": "web_search_20250305", "name": "web_search"}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "effort": "xhigh",
    "stop_sequences": ["\n\n", "STOP"],
    "temperature": 0.5,
    "output_schema": {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "string"}}},
    "provider_options": {"anthropic": {"service_tier": "auto"}, "openai-chat": {"extra_body": {"top_k": 3}}},
    "on_tool_effects": "restart",
}


def test_what_the_providers_take_is_kept_as_it_was_given(api: Api) -> None:
    answer = api.post("/v1/streams", {**EVERYTHING, "model": "anthropic/some-model"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["request"] == EVERYTHING
    sid = answer.json()["id"]
    api.post(f"/v1/streams/{sid}/cancel")
    assert api.record(sid)["request"] == EVERYTHING


@pytest.mark.parametrize(
    ("model", "first", "provider", "chain"),
    [
        ("anthropic/claude-sonnet-5-5", "anthropic/claude-sonnet-5-5", "anthropic", None),
        ("openai-chat/meta-llama/Llama-3[free]", "openai-chat/meta-llama/Llama-3[free]", "openai-chat", None),
        ("openai/ft:gpt-5-mini:acme::Ab3_x", "openai/ft:gpt-5-mini:acme::Ab3_x", "openai", None),
        ("gemini/models/gemini-3@001+x", "gemini/models/gemini-3@001+x", "gemini", None),
        ("fast", "fast", None, None),
        (["fast"], "fast", None, None),
        (["openai/gpt-5", "fast"], "openai/gpt-5", "openai", ["openai/gpt-5", "fast"]),
    ],
)
def test_a_model_is_of_a_provider_or_a_name_alone_and_several_are_a_chain(
    api: Api, model: object, first: str, provider: str | None, chain: list[str] | None
) -> None:
    stream = api.post("/v1/streams", {"prompt": QUICK, "model": model}).json()
    api.post(f"/v1/streams/{stream['id']}/cancel")
    assert (stream["model"], stream["provider"]) == (first, provider)
    assert stream["request"].get("model") == chain


def test_of_eight_posts_at_once_with_one_key_one_starts_a_stream(api: Api, other_api: Api) -> None:
    key = {"Idempotency-Key": "eight-at-once"}
    before = api.newest_ids()
    with ThreadPoolExecutor(8) as pool:
        posts = [
            pool.submit((api, other_api)[n % 2].post, "/v1/streams", {"prompt": QUICK}, headers=key) for n in range(8)
        ]
        answers = [post.result() for post in posts]
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert len(api.newest_ids() - before) == 1


def test_a_key_is_for_one_request(api: Api) -> None:
    key = {"Idempotency-Key": "one-request"}
    first = api.post("/v1/streams", {"prompt": QUICK}, headers=key)
    assert first.status_code == 201
    before = api.newest_ids()
    problem(api.post("/v1/streams", {"prompt": QUICK, "max_tokens": 5}, headers=key), 422, "invalid_request")
    again = api.http.post(
        "/v1/streams",
        content=b' { "prompt" :"' + QUICK.encode() + b'"}',
        headers={**key, "Content-Type": "application/json"},
    )
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert api.newest_ids() == before


def test_a_key_whose_stream_redis_has_lost_makes_it_again_and_no_id_changes_its_meaning(
    deployment: Deployment, api: Api, other_api: Api
) -> None:
    key, as_ndjson = {"Idempotency-Key": "lost"}, {"Accept": "application/x-ndjson"}
    sid = api.post("/v1/streams", {"prompt": QUICK}, headers=key).json()["id"]
    before = ndjson(api.get(f"/v1/streams/{sid}/events", headers=as_ndjson).content)
    with redis.Redis.from_url(deployment.redis_url) as client:  # rolled back to after the reservation
        [name] = client.scan_iter("le:idem:*:lost")
        client.set(name, client.get(name).replace(b"created", b"reserved"), ex=86_400 - 30)
        client.delete(f"le:{{{sid}}}:meta", f"le:{{{sid}}}:log")
    again = other_api.post("/v1/streams", {"prompt": QUICK}, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, sid)
    after = ndjson(other_api.get(f"/v1/streams/{sid}/events", headers=as_ndjson).content)
    assert [event["event"] for event in after] == [event["event"] for event in before]
    # Either its writer still kept the ending, and has put all of it back, or it ran once more, further on.
    assert after[1:] == before[1:] or after[1]["id"] > 30_000_000


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ü"])
def test_a_key_is_visible_ascii_of_bounded_length(api: Api, key: str) -> None:
    before = api.newest_ids()
    answer = api.post("/v1/streams", {"prompt": QUICK}, headers={"Idempotency-Key": key.encode()})
    problem(answer, 422, "invalid_request")
    assert api.newest_ids() == before


def test_a_client_that_posts_again_with_its_key_continues_the_stream(api: Api, other_api: Api) -> None:
    body = b'{"prompt":"[[tokens=6 rate=0]] again"}'
    with post_as_sse(api, body, Idempotency_Key="continue") as first:
        first.read_until(lambda body: len(frames(body)) >= 3)
        full = frames(first.read_to_end())
    with post_as_sse(other_api, body, Idempotency_Key="continue", Last_Event_ID="4") as second:
        rest = frames(second.read_to_end())
    assert second.status == 200
    assert second.header("location") == first.header("location")
    assert [frame[:3] for frame in rest] == [frame[:3] for frame in full[4:]]
    with post_as_sse(api, body, Idempotency_Key="continue", Last_Event_ID=str(full[-1].id)) as third:
        assert third.status == 204


def test_a_last_event_id_without_a_key_starts_nothing(api: Api) -> None:
    before = api.newest_ids()
    for accept in ("text/event-stream", "application/json"):
        headers = {"Last-Event-ID": "3", "Accept": accept}
        problem(api.post("/v1/streams", {"prompt": QUICK}, headers=headers), 400, "bad_cursor")
    assert api.newest_ids() == before


def test_a_bad_cursor_with_a_key_starts_nothing(api: Api) -> None:
    before = api.newest_ids()
    headers = {"Last-Event-ID": "1_0", "Idempotency-Key": "bad-cursor", "Accept": "text/event-stream"}
    problem(api.post("/v1/streams", {"prompt": QUICK}, headers=headers), 400, "bad_cursor")
    assert api.newest_ids() == before


def test_an_empty_last_event_id_counts_as_absent(api: Api) -> None:
    answer = api.post("/v1/streams", {"prompt": QUICK}, headers={"Last-Event-ID": ""})
    assert answer.status_code == 201


def test_the_stream_is_there_the_moment_post_returns_on_every_server(api: Api, other_api: Api) -> None:
    sid = api.post("/v1/streams", {"prompt": QUICK}).json()["id"]
    with other_api.follow(sid) as viewer:
        assert ids(viewer.read_to_end()) == list(range(1, 7))
    assert viewer.is_complete


def test_regenerate_runs_the_same_request_again_in_the_same_session(api: Api, deployment: Deployment) -> None:
    asked = {"prompt": QUICK, "session_id": "regen", "user_id": "u", "metadata": {"k": 1}, "on_worker_loss": "fail"}
    first = api.post("/v1/streams", asked).json()
    answer = api.post(f"/v1/streams/{first['id']}/regenerate")
    assert answer.status_code == 201
    second = answer.json()
    assert second["id"] != first["id"]
    assert answer.headers["location"] == f"/v1/streams/{second['id']}"
    assert second["regenerates"] == first["id"]
    for same in ("session_id", "user_id", "metadata", "request", "model"):
        assert second[same] == first[same]
    for sid in (first["id"], second["id"]):
        deployment.wait_until_ended(sid)
    texts = {api.get(f"/v1/streams/{sid}/text").text for sid in (first["id"], second["id"])}
    assert len(texts) == 1


def test_regenerate_knows_keys_and_the_stream_form(api: Api) -> None:
    sid = api.post("/v1/streams", {"prompt": QUICK}).json()["id"]
    key = {"Idempotency-Key": "regen-key"}
    first = api.post(f"/v1/streams/{sid}/regenerate", {}, headers=key)
    again = api.post(f"/v1/streams/{sid}/regenerate", headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    streamed = api.post(f"/v1/streams/{sid}/regenerate", headers={**key, "Accept": "text/event-stream"})
    assert streamed.status_code == 200
    assert ids(streamed.content) == list(range(1, 7))


def test_a_photo_in_base64_is_started_with_and_stays_as_it_was(api: Api) -> None:
    photo = {"type": "base64", "media_type": "image/jpeg", "data": base64.b64encode(os.urandom(6 * 2**20)).decode()}
    content = [{"type": "image", "source": photo}, {"type": "text", "text": "[[tokens=3 ttft_ms=0 rate=0]]"}]
    answer = api.post("/v1/streams", {"messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 201
    assert len(answer.content) < 2000, "who has just sent it does not get it back"
    sid = answer.json()["id"]
    assert frames(api.follow(sid).read_to_end())[-1].event == "done"
    assert api.record(sid)["request"]["messages"] == [{"role": "user", "content": content}]
    again = api.post(f"/v1/streams/{sid}/regenerate").json()["id"]
    assert frames(api.follow(again).read_to_end())[-1].event == "done"


def test_regenerate_of_an_external_stream_is_refused(api: Api) -> None:
    sid = api.finished("x")
    before = api.newest_ids()
    problem(api.post(f"/v1/streams/{sid}/regenerate"), 422, "invalid_request")
    problem(api.post("/v1/streams/nope/regenerate"), 404, "stream_not_found")
    problem(api.post(f"/v1/streams/{sid}/regenerate", {"prompt": "other"}), 422, "invalid_request")
    assert api.newest_ids() == before


def test_a_failure_of_the_provider_is_an_ending_that_says_why(api: Api, deployment: Deployment) -> None:
    sid = deployment.create("[[tokens=5 rate=0 ttft_ms=0 status=400]]")
    assert deployment.wait_until_ended(sid)["state"] == "error"
    last: Any = frames(api.get(f"/v1/streams/{sid}/events?follow=0").content)[-1]
    assert last.event == "error"
    assert last.data.keys() >= {"code", "message", "recoverable"}
    wait_until(lambda: api.record(sid)["finished_at"], "the stream has finished")
