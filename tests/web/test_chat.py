"""Chat Completions and Messages: their errors, what they leave out, a request that is repeated, what a start keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.rig.deployment import Deployment
from tests.web.wire import Api

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
BOTH = pytest.mark.parametrize("path", [CHAT, MESSAGES])
HELLO = [{"role": "user", "content": "Hello [[tokens=2 rate=0 ttft_ms=0]]"}]
LEAST = {"model": "anthropic/claude-sonnet-5-5", "max_tokens": 50, "messages": HELLO}


def ask(api: Api, path: str, key: str | None = None, **body: Any) -> httpx.Response:
    return api.post(path, {**LEAST, **body}, headers={"Idempotency-Key": key} if key else {})


def text_of(answer: httpx.Response) -> str:
    told = answer.raise_for_status().json()
    found: str = told["content"][0]["text"] if "content" in told else told["choices"][0]["message"]["content"]
    return found


def error_of(answer: httpx.Response) -> tuple[int, str, str, str]:
    """Its status, type, code and message; of the form that its dialect has."""
    told = answer.json()
    if "type" in told:
        assert told.keys() == {"type", "error", "request_id"}
        assert (told["type"], told["request_id"]) == ("error", answer.headers["request-id"])
        code, _, message = told["error"]["message"].partition(": ")
        return answer.status_code, told["error"]["type"], code, message
    assert told.keys() == {"error"}
    assert told["error"].keys() == {"message", "type", "param", "code"}
    return answer.status_code, told["error"]["type"], told["error"]["code"], told["error"]["message"]


@BOTH
def test_an_answer_names_its_stream_and_the_model_as_it_was_asked_for(api: Api, path: str) -> None:
    answer = ask(api, path, model="claude-sonnet-5-5")
    sid = answer.headers["x-lastevent-stream"]
    assert text_of(answer) == "This is"
    told = answer.json()
    assert told["id"] in (f"chatcmpl-{sid}", f"msg_{sid}")
    assert told["model"] == "claude-sonnet-5-5"
    assert api.record(sid)["request"]["max_tokens"] == 50


@BOTH
def test_what_is_left_out_is_named(api: Api, path: str) -> None:
    assert ask(api, path, top_p=0.5, seed=None, new_field=1).headers["x-lastevent-ignored"] in (
        *("new_field, top_p", "new_field, seed, top_p"),
    )
    streamed = ask(api, path, top_p=0.5, stream=True)
    assert streamed.headers["x-lastevent-ignored"] == "top_p"
    assert "x-lastevent-ignored" not in ask(api, path).headers


@BOTH
@pytest.mark.parametrize(
    ("body", "status", "code", "begins"),
    [
        ({"model": None}, 400, "invalid_request", "model: "),
        ({"messages": "a"}, 400, "invalid_request", "messages: "),
        ({"model": "nobody/knows"}, 404, "model_not_found", "model: "),
        ({"temperature": 7}, 400, "invalid_request", "temperature: "),
        ({"stream": "yes"}, 400, "invalid_request", "stream: "),
    ],
)
def test_what_is_wrong_is_told_in_the_dialects_form(
    api: Api, path: str, body: dict[str, Any], status: int, code: str, begins: str
) -> None:
    before = api.newest_ids()
    found = error_of(ask(api, path, **body))
    assert found[0] == status
    assert found[1] in ("invalid_request_error", "not_found_error")
    assert found[2] == code
    assert found[3].startswith(begins)
    assert api.newest_ids() == before


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        (CHAT, {"stop": ["a"] * 99}, "stop: "),
        (CHAT, {"reasoning_effort": "much"}, "reasoning_effort: "),
        (CHAT, {"user": ""}, "user: "),
        (MESSAGES, {"output_config": {"effort": "much"}}, "output_config.effort: "),
    ],
)
def test_a_field_is_called_what_the_caller_calls_it(api: Api, path: str, body: dict[str, Any], place: str) -> None:
    assert error_of(ask(api, path, **body))[3].startswith(place)


def test_openais_errors_name_the_field(api: Api) -> None:
    assert ask(api, CHAT, n=2).json()["error"]["param"] == "n"


@BOTH
def test_what_is_no_json_is_told_in_the_dialects_form(api: Api, path: str) -> None:
    told = api.http.post(path, content=b"{", headers={"Content-Type": "application/json"})
    assert error_of(told)[::2] == (400, "invalid_json")
    assert error_of(api.http.post(path, content=b"{}"))[::2] == (415, "unsupported_media_type")


@BOTH
def test_a_request_that_is_repeated_has_the_same_answer(api: Api, path: str) -> None:
    first, again = ask(api, path, f"again-{path}"), ask(api, path, f"again-{path}")
    streamed = ask(api, path, f"again-{path}", stream=True)
    assert first.json() == again.json()
    assert streamed.headers["x-lastevent-stream"] == first.headers["x-lastevent-stream"]
    other = ask(api, path, f"again-{path}", messages=[{"role": "user", "content": "Another"}])
    assert error_of(other)[::2] == (400, "invalid_request")


@BOTH
def test_thinking_is_shown_to_who_asks_for_it(api: Api, path: str) -> None:
    thinks = [{"role": "user", "content": "Hello [[thinking=2 tokens=2 rate=0 ttft_ms=0]]"}]
    asked = {**LEAST, "messages": thinks}
    assert "A stand-in" not in api.post(path, asked).text
    assert "A stand-in" in api.post(f"{path}?show=thinking", asked).text
    assert error_of(api.post(f"{path}?show=all", asked))[::2] == (400, "invalid_request")


def test_a_number_of_tokens_is_not_told_here(api: Api) -> None:
    assert error_of(api.post(f"{MESSAGES}/count_tokens", LEAST))[:3] == (404, "not_found_error", "not_found")


def test_a_structured_answer_is_asked_for_in_the_dialects_words(api: Api) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "number"}}, "required": ["sum"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    asked = (
        ask(api, CHAT, response_format=form),
        ask(api, MESSAGES, output_config={"format": {"type": "json_schema", "schema": schema}}),
    )
    for answer in asked:
        answer.raise_for_status()
        assert api.record(answer.headers["x-lastevent-stream"])["request"]["output_schema"] == schema
    wrong = {**form, "json_schema": {"schema": {"type": "nothing"}}}
    refused = error_of(ask(api, CHAT, response_format=wrong))
    assert refused[::2] == (400, "invalid_request")
    assert refused[3].startswith("response_format.json_schema.schema")


def test_models_are_listed_as_each_api_lists_them(api: Api) -> None:
    name = "anthropic/claude-sonnet-5-5"
    theirs = {"anthropic-version": "2023-06-01"}
    openais = api.get(f"/v1/models/{name}").raise_for_status().json()
    assert openais == {"id": name, "object": "model", "created": 0, "owned_by": "anthropic"}
    assert openais in api.get("/v1/models").json()["data"]
    whole = api.get("/v1/models", headers=theirs).json()
    anthropics = api.get(f"/v1/models/{name}", headers=theirs).raise_for_status().json()
    assert anthropics in whole["data"]
    assert (anthropics["type"], anthropics["id"]) == ("model", name)
    ids = [one["id"] for one in whole["data"]]
    assert (whole["first_id"], whole["last_id"], whole["has_more"]) == (ids[0], ids[-1], False)
    page = api.get("/v1/models", headers=theirs, params={"limit": 1}).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (ids[:1], len(ids) > 1)
    behind = api.get("/v1/models", headers=theirs, params={"after_id": ids[0]}).json()
    assert [one["id"] for one in behind["data"]] == ids[1:]


def test_a_model_that_is_not_there_is_told_in_each_apis_form(api: Api) -> None:
    assert error_of(api.get("/v1/models/nobody/knows"))[:3] == (404, "invalid_request_error", "model_not_found")
    theirs = {"anthropic-version": "2023-06-01"}
    assert error_of(api.get("/v1/models/a", headers=theirs))[:3] == (404, "not_found_error", "model_not_found")


def test_a_key_is_taken_from_each_header(own_deployment: Callable[..., Deployment]) -> None:
    key, other = "correct-horse-battery-staple-and-more", "another-key-that-nobody-knows-at-all"
    api = Api(own_deployment(servers=1, workers=0, LASTEVENT_API_KEYS=key).url)
    try:
        for header in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}, {"api-key": key}):
            for path in (CHAT, MESSAGES):
                assert api.post(path, {}, headers=header).status_code == 400
            assert api.get("/v1/models", headers=header).status_code == 200
        both = {"Authorization": f"Bearer {key}", "x-api-key": other}
        for headers in ({}, {"x-api-key": other}, both):
            assert error_of(api.post(CHAT, LEAST, headers=headers))[:3] == (401, "authentication_error", "unauthorized")
            assert error_of(api.post(MESSAGES, LEAST, headers=headers))[1] == "authentication_error"
    finally:
        api.close()
