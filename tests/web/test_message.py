"""GET /message: the answer as the next request gives it back."""

from tests.rig.deployment import Deployment, wait_until
from tests.web.wire import Api, problem

NATIVE = [
    {"type": "thinking", "thinking": {"$lastevent": "thinking", "characters": 2}, "signature": "sig=="},
    {"type": "text", "text": {"$lastevent": "text", "characters": 3}},
    {"type": "tool_use", "id": "c1", "name": "weather", "input": {"$lastevent": "input", "tool_call_id": "c1"}},
]
CALL = {"tool_call_id": "c1", "tool": "weather"}
TURN = {"turn": 0, "provider": "anthropic", "model": "claude-haiku-4-5", "native": NATIVE}
SAID = (
    *(("thinking_delta", {"text": "hm"}), ("text_delta", {"text": "🙂a"}), ("text_delta", {"text": "b"})),
    *(("tool_start", {**CALL, "client": True}), ("tool_args", {**CALL, "args": {"at": "Győr"}, "complete": True})),
    *(("internal.turn", TURN), ("done", {"stop_reason": "tool_use"})),
)


def test_the_message_of_an_answer_is_what_the_provider_said(api: Api, other_api: Api) -> None:
    sid = api.start_external()
    api.append(sid, *SAID).raise_for_status()
    answer = other_api.get(f"/v1/streams/{sid}/message")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "sig=="},
            {"type": "text", "text": "🙂ab"},
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {"at": "Győr"}},
        ],
        "native": {"provider": "anthropic", "model": "claude-haiku-4-5"},
    }


def test_the_message_of_a_text_is_the_text(api: Api, deployment: Deployment) -> None:
    sid = deployment.create("[[tokens=5 rate=0 ttft_ms=0]] hello")
    deployment.wait_until_ended(sid)
    text = api.get(f"/v1/streams/{sid}/text").text
    message = api.get(f"/v1/streams/{sid}/message").json()
    assert message["role"] == "assistant"
    assert "".join(block["text"] for block in message["content"]) == text


def test_an_answer_that_runs_has_no_message_yet(api: Api) -> None:
    sid = api.start_external()
    api.append(sid, ("text_delta", {"text": "a"}))
    problem(api.get(f"/v1/streams/{sid}/message"), 409, "stream_running")
    api.append(sid, ("cancelled", {}))
    assert api.get(f"/v1/streams/{sid}/message").json()["content"] == [{"type": "text", "text": "a"}]


def test_a_restart_within_one_page_of_the_log_and_before_it(api: Api, deployment: Deployment) -> None:
    """Of what came before the last restart nothing is left."""
    sid = deployment.create("[[tokens=4 rate=0 ttft_ms=0 cut_at=2]] broken thrice")
    assert deployment.wait_until_ended(sid)["state"] == "error"
    [block] = api.get(f"/v1/streams/{sid}/message").json()["content"]
    assert block["text"] == api.get(f"/v1/streams/{sid}/text").text


def test_who_takes_the_message_has_seen_the_text(api: Api) -> None:
    sid = api.finished("a")
    api.get(f"/v1/streams/{sid}/message").raise_for_status()
    wait_until(lambda: api.get(f"/v1/streams/{sid}/views").json()["views"], "it is on record")
    [view] = api.get(f"/v1/streams/{sid}/views").json()["views"]
    assert (view["format"], view["first_id"], view["last_id"]) == ("text", 1, 4)


def test_no_stream_has_no_message(api: Api) -> None:
    problem(api.get("/v1/streams/nope/message"), 404, "stream_not_found")


def test_a_turn_that_refers_to_what_is_not_there_is_a_problem_that_says_so(api: Api) -> None:
    sid = api.start_external()
    api.append(sid, ("internal.turn", TURN), ("done", {})).raise_for_status()
    said = problem(api.get(f"/v1/streams/{sid}/message"), 500, "log_damaged")
    assert "/export" in said["detail"]


def test_a_long_answer_has_its_message(api: Api) -> None:
    """Several pages of the log."""
    sid = api.start_external()
    for _ in range(5):
        api.append(sid, *[("text_delta", {"text": "words "})] * 999).raise_for_status()
    api.append(sid, ("done", {})).raise_for_status()
    assert api.get(f"/v1/streams/{sid}/message").json()["content"] == [{"type": "text", "text": "words " * 4995}]
