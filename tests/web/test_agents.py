"""Streams of agents over HTTP: which agents there are, how one is started, told something, and allowed something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from broker.log.agents import Agents, Announced
from broker.log.inputs import Entry
from broker.log.keys import Keys
from broker.log.stream_log import StreamLog
from tests.rig.deployment import Deployment
from tests.rig.streams import tell_as_much_as_may_wait, with_redis
from tests.web.wire import Api, problem

APP = "tests-of-http"
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "limit": {"type": "integer"}},
    "required": ["question"],
    "additionalProperties": False,
}
SUPPORT = Announced(APP, SCHEMA, ["args"], [{"name": "refund", "title": "Refunding"}])
DIGEST = Announced(APP, None, [], [])
ASK = {"agent": "support", "input": {"question": "Where is A17?"}}


@pytest.fixture(scope="module", autouse=True)
def announced(deployment: Deployment) -> Iterator[None]:
    """As a worker with an app would. The deployment's own have none, so these streams stay queued."""
    with_redis(deployment, lambda log: Agents(log.redis, log.keys).announce({"support": SUPPORT, "digest": DIGEST}))
    yield
    with_redis(deployment, lambda log: log.redis.delete(log.keys.agents, log.keys.jobs_of(APP)))


@pytest.fixture
def start(api: Api) -> Iterator[Callable[..., dict[str, Any]]]:
    """start(**body): a stream of the agent `support`, which the test need not end."""
    started = []

    def post(**body: Any) -> dict[str, Any]:
        answer = api.post("/v1/streams", {**ASK, **body})
        assert answer.status_code == 201, answer.text
        record: dict[str, Any] = answer.json()
        started.append(record["id"])
        return record

    yield post
    for sid in started:
        api.post(f"/v1/streams/{sid}/cancel")


@pytest.fixture
def sid(start: Callable[..., dict[str, Any]]) -> str:
    found: str = start()["id"]
    return found


def told(deployment: Deployment, sid: str) -> list[Entry]:
    return with_redis(deployment, lambda log: log.inputs.read(sid))


def stored(deployment: Deployment, sid: str, field: str) -> Any:
    async def read(log: StreamLog) -> Any:
        [meta] = await log.read_meta(sid)
        return getattr(meta, field)

    return with_redis(deployment, read)


# -- which there are, and how one starts ---------------------------------------------------------------------


def test_agents_are_listed_with_what_they_take_and_show(api: Api) -> None:
    agents = {agent["name"]: agent for agent in api.get("/v1/agents").json()["agents"]}
    support = {"name": "support", "app": APP, "input_schema": SCHEMA, "show": ["args"]}
    assert agents["support"] == {**support, "tools": [{"name": "refund", "title": "Refunding"}]}
    assert agents["digest"]["input_schema"] is None


def test_a_stream_of_an_agent_names_it_and_has_its_input_and_no_model(
    start: Callable[..., dict[str, Any]], api: Api
) -> None:
    record = start()
    assert (record["agent"], record["request"]) == ("support", ASK)
    assert (record["model"], record["provider"]) == (None, None)
    assert api.get(f"/v1/streams/{record['id']}").json()["agent"] == "support"


@pytest.mark.parametrize("message", [{"prompt": "Hi"}, {"messages": [{"role": "user", "content": "Hi"}]}])
def test_an_agent_may_be_given_messages(
    api: Api, start: Callable[..., dict[str, Any]], message: dict[str, Any]
) -> None:
    answer = api.post("/v1/streams", {"agent": "digest", **message})
    assert answer.json()["request"] == {"agent": "digest", "messages": [{"role": "user", "content": "Hi"}]}
    api.post(f"/v1/streams/{answer.json()['id']}/cancel")


def test_it_waits_in_the_queue_of_its_app(deployment: Deployment, sid: str) -> None:
    keys = Keys()
    places = with_redis(deployment, lambda log: log.redis.zrange(keys.jobs_of(APP), 0, -1))
    assert sid.encode() in places
    assert sid.encode() not in with_redis(deployment, lambda log: log.redis.zrange(keys.jobs, 0, -1))


@pytest.mark.parametrize(
    ("asked", "shown"), [({}, ["args"]), ({"show": []}, []), ({"show": ["thinking"]}, ["thinking"])]
)
def test_what_is_shown_is_what_was_asked_for_or_else_what_the_agent_says(
    deployment: Deployment, start: Callable[..., dict[str, Any]], asked: dict[str, Any], shown: list[str]
) -> None:
    assert stored(deployment, start(**asked)["id"], "show") == shown


def test_run_again_it_is_the_same_agent_with_the_same_input(deployment: Deployment, api: Api, sid: str) -> None:
    again = api.post(f"/v1/streams/{sid}/regenerate").json()
    assert (again["agent"], again["request"], again["regenerates"]) == ("support", ASK, sid)
    assert stored(deployment, again["id"], "show") == ["args"]
    assert again["id"].encode() in with_redis(deployment, lambda log: log.redis.zrange(log.keys.jobs_of(APP), 0, -1))
    api.post(f"/v1/streams/{again['id']}/cancel")


def test_an_idempotency_key_tells_one_input_from_another(api: Api, sid: str) -> None:
    key = {"Idempotency-Key": f"agent-{sid}"}
    first = api.post("/v1/streams", ASK, headers=key)
    assert api.post("/v1/streams", ASK, headers=key).json()["id"] == first.json()["id"]
    other = {**ASK, "input": {"question": "Where is A18?"}}
    for body in (other, {**ASK, "show": []}, {"agent": "digest", "input": ASK["input"]}):
        problem(api.post("/v1/streams", body, headers=key), 422, "invalid_request")
    api.post(f"/v1/streams/{first.json()['id']}/cancel")


@pytest.mark.parametrize(("name", "near"), [("suport", "did you mean `support`? "), ("sEcReT", "")])
def test_an_agent_that_nobody_has_is_refused_and_some_that_there_are_are_named(api: Api, name: str, near: str) -> None:
    before = api.newest_ids()
    said = problem(api.post("/v1/streams", {"agent": name, "input": {}}), 422, "unknown_agent")
    assert said["detail"] == f"agent: {near}There are digest, support."
    assert api.newest_ids() == before


def test_an_input_that_the_agent_does_not_take_is_refused_with_its_place_and_no_echo(api: Api) -> None:
    before = api.newest_ids()
    answer = api.post("/v1/streams", {"agent": "support", "input": {"question": "?", "limit": "sEcReT"}})
    said = problem(answer, 422, "invalid_input")
    assert said["detail"] == "input at /limit: it must be integer."
    assert api.newest_ids() == before


REFUSED = {
    "input without an agent": {"prompt": "x", "input": 1},
    "input alone": {"input": 1},
    "neither": {"agent": "support"},
    "both": {**ASK, "prompt": "x"},
    "a null beside a prompt": {"agent": "support", "input": None, "prompt": "x"},
    "not a name": {**ASK, "agent": "../x"},
    "too large": {**ASK, "input": {"question": "x" * 256 * 1024}},
    "what is not shown": {**ASK, "show": ["secrets"]},
    "model": {**ASK, "model": "anthropic/x"},
    "system": {**ASK, "system": "x"},
    "max_tokens": {**ASK, "max_tokens": 5},
    "tools": {**ASK, "tools": []},
    "output_schema": {**ASK, "output_schema": {}},
    "provider_options": {**ASK, "provider_options": {}},
    "on_tool_effects": {**ASK, "on_tool_effects": "fail"},
    "transform with an agent": {**ASK, "transform": "react"},
    "transform": {"prompt": "x", "transform": "other"},
    "no tags": {"prompt": "x", "transform": {"tags": []}},
    "no tag": {"prompt": "x", "transform": {"tags": ["<a>"]}},
    "an external agent": {**ASK, "producer": "external"},
    "an external show": {"producer": "external", "show": []},
    "an external transform": {"producer": "external", "transform": "react"},
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together_is_refused(api: Api, body: dict[str, Any]) -> None:
    problem(api.post("/v1/streams", body), 422, "invalid_request")


@pytest.mark.parametrize("transform", ["react", {"tags": ["think", "tool"]}])
def test_a_plain_stream_may_show_more_and_have_its_text_transformed(
    deployment: Deployment, api: Api, transform: Any
) -> None:
    prompt = "[[tokens=1 rate=0 ttft_ms=0]]"
    record = api.post("/v1/streams", {"prompt": prompt, "show": ["thinking"], "transform": transform}).json()
    assert record["request"]["transform"] == transform
    assert stored(deployment, record["id"], "show") == ["thinking"]
    api.post(f"/v1/streams/{record['id']}/cancel")


# -- told something ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "data"),
    [
        ({"text": "And A18?"}, {"text": "And A18?"}),
        ({"data": None}, {"data": None}),
        ({"data": {"a": [1]}, "interrupt": True}, {"data": {"a": [1]}, "interrupt": True}),
    ],
)
def test_what_an_agent_is_told_waits_for_it_under_the_id_that_the_caller_gets(
    deployment: Deployment, api: Api, sid: str, body: dict[str, Any], data: dict[str, Any]
) -> None:
    answer = api.post(f"/v1/streams/{sid}/input", body)
    assert answer.status_code == 200
    assert [(entry.id, entry.data) for entry in told(deployment, sid)] == [(answer.json()["id"], data)]


@pytest.mark.parametrize("body", [{}, {"text": ""}, {"text": "a", "data": 1}, {"text": 5}, {"data": 1, "interrupt": 1}])
def test_an_input_is_a_text_or_data(api: Api, sid: str, body: dict[str, Any]) -> None:
    problem(api.post(f"/v1/streams/{sid}/input", body), 422, "invalid_request")


def test_what_is_too_large_or_too_much_is_refused(deployment: Deployment, api: Api, sid: str) -> None:
    path = f"/v1/streams/{sid}/input"
    problem(api.post(path, {"text": "x" * 256 * 1024}), 413, "body_too_large")

    with_redis(deployment, lambda log: tell_as_much_as_may_wait(log, sid))
    answer = api.post(path, {"text": "one more"})
    assert problem(answer, 429, "rate_limited")["limit"] == "waiting_inputs"
    assert answer.headers["retry-after"]


def test_who_has_no_agent_is_told_nothing(api: Api) -> None:
    external = api.start_external()
    plain = api.post("/v1/streams", {"prompt": "[[tokens=1 rate=0 ttft_ms=0]]"}).json()["id"]
    for sid in (external, plain):
        problem(api.post(f"/v1/streams/{sid}/input", {"text": "x"}), 422, "invalid_request")
        problem(api.post(f"/v1/streams/{sid}/approvals/a1", {"approve": True}), 422, "invalid_request")


def test_who_has_ended_or_never_was_is_told_nothing(deployment: Deployment, api: Api, sid: str) -> None:
    with_redis(deployment, lambda log: log.inputs.ask(sid, "a1", {}))
    api.post(f"/v1/streams/{sid}/cancel")
    for path, body in (("input", {"text": "x"}), ("approvals/a1", {"approve": True})):
        problem(api.post(f"/v1/streams/{sid}/{path}", body), 409, "stream_closed")
        problem(api.post(f"/v1/streams/{'f' * 32}/{path}", body), 404, "stream_not_found")
    assert api.delete(f"/v1/streams/{sid}").status_code == 204
    problem(api.post(f"/v1/streams/{sid}/input", {"text": "x"}), 410, "stream_expired")


# -- allowed something -----------------------------------------------------------------------------------------


def test_an_approval_is_decided_once_and_the_same_decision_again_is_answered_alike(
    deployment: Deployment, api: Api, sid: str
) -> None:
    with_redis(deployment, lambda log: log.inputs.ask(sid, "a 1/ő", {"tool": "refund"}))
    path = f"/v1/streams/{sid}/approvals/a%201%2F%C5%91"
    first = api.post(path, {"approve": False, "reason": "Too much."})
    assert first.status_code == 200
    assert api.post(path, {"approve": False, "reason": "Too much."}).json() == first.json()
    for other in ({"approve": True}, {"approve": False}, {"approve": True, "reason": "Too much."}):
        problem(api.post(path, other), 409, "approval_decided")
    assert told(deployment, sid)[1].data == {"approve": False, "reason": "Too much.", "by": "anyone"}


def test_of_many_who_decide_at_once_one_decides(deployment: Deployment, api: Api, other_api: Api, sid: str) -> None:
    with_redis(deployment, lambda log: log.inputs.ask(sid, "a1", {}))
    path = f"/v1/streams/{sid}/approvals/a1"
    with ThreadPoolExecutor(8) as callers:
        answers = [
            callers.submit((api, other_api)[n % 2].post, path, {"approve": True, "reason": str(n)}) for n in range(8)
        ]
    assert sorted(answer.result().status_code for answer in answers) == [200] + [409] * 7
    assert len(told(deployment, sid)) == 2


def test_what_was_not_asked_for_cannot_be_decided(api: Api, sid: str) -> None:
    problem(api.post(f"/v1/streams/{sid}/approvals/a1", {"approve": True}), 404, "approval_not_found")


@pytest.mark.parametrize("body", [{}, {"approve": "yes"}, {"approve": True, "reason": "x" * 2001}, {"approve": None}])
def test_a_decision_is_yes_or_no(api: Api, sid: str, body: dict[str, Any]) -> None:
    problem(api.post(f"/v1/streams/{sid}/approvals/a1", body), 422, "invalid_request")
