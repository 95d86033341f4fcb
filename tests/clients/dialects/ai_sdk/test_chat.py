"""useChat of ai 5, 6 and 7 (its Chat, without a page): it has no cursor, and replaces what it had."""

from __future__ import annotations

import random
from itertools import accumulate
from typing import Any

import pytest

from tests.clients.dialects.ai_sdk.recorded import ALL_KINDS, DONE, SECRET, Told
from tests.clients.dialects.node import Clients
from tests.js.cutting import Cut
from tests.rig.deployment import HTTP, Deployment, until
from tests.rig.long import LONG

pytestmark = pytest.mark.npm

PATH = "/v1/ai-sdk/chat"
VERSIONS = (5, 6, 7) if LONG else (7,)
"""The newest, and in the long form the majors before: 2 s of CPU each."""
HELD = "[[tokens=6 rate=0 ttft_ms=0 stall_at=6]]"
"""An answer that goes on until somebody stops it."""
SAID = "This is a stand-in and no"
TOOL = {"name": "ask", "description": "Asks.", "input_schema": {"type": "object", "properties": {"q": {}}}}


def told(message: dict[str, Any], kind: str = "text") -> str:
    return "".join(part["text"] for part in message["parts"] if part["type"] == kind)


def newest(deployment: Deployment, chat: str) -> dict[str, Any]:
    streams = HTTP.get(f"{deployment.url}/v1/sessions/{chat}").raise_for_status().json()["streams"]
    assert streams
    found: dict[str, Any] = streams[0]
    return found


def newest_text(deployment: Deployment, chat: str) -> str:
    streams = HTTP.get(f"{deployment.url}/v1/sessions/{chat}").json().get("streams")
    return HTTP.get(f"{deployment.url}/v1/streams/{streams[0]['id']}/text").text if streams else ""


async def stop(deployment: Deployment, chat: str, text: str = SAID) -> None:
    """Once it has said that."""

    def has_said() -> bool:
        sid = newest(deployment, chat)["id"]
        return bool(HTTP.get(f"{deployment.url}/v1/streams/{sid}/text").text == text)

    await until(has_said, "all is said")
    answer = HTTP.post(f"{deployment.urls[1]}{PATH}/{chat}/stop").raise_for_status()
    assert (answer.status_code, answer.headers["x-lastevent-stream"]) == (204, newest(deployment, chat)["id"])


def frames_now(deployment: Deployment, path: str) -> list[bytes]:
    """What a viewer has of a stream that has said all of ALL_KINDS, and goes on."""
    body = b""
    with HTTP.stream("GET", f"{deployment.url}{path}") as answer:
        pieces = answer.iter_raw()
        while b'"Done."}\n\n' not in body:
            body += next(pieces)
    return [frame + b"\n\n" for frame in body.replace(b": ping\n", b"").split(b"\n\n")[:-1]]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_whole_answer_is_its_message(clients: Clients, version: int) -> None:
    prompt = "[[thinking=2 tokens=5 rate=0 ttft_ms=0]]"
    got = await clients.run(
        f"chat-{version}", f"{PATH}?ui={version}&show=thinking", chatId=f"whole-{version}", text=prompt
    )
    question, answer = got["messages"]
    assert (question["role"], answer["role"]) == ("user", "assistant")
    assert told(answer) == "This is a stand-in and"
    assert told(answer, "reasoning") != ""
    assert all(part.get("state", "done") == "done" for part in answer["parts"])
    assert (got["statuses"], got["errors"]) == (["ready"], [])
    [done] = [part["data"] for part in got["data"] if part["type"] == "data-done"]
    assert done["usage"]["output_tokens"] == 7


@pytest.mark.parametrize("version", VERSIONS)
async def test_wherever_it_is_cut_the_other_servers_replay_is_the_whole_answer(
    clients: Clients, deployment: Deployment, version: int
) -> None:
    chat, path = f"cut-{version}", f"{PATH}?ui={version}"
    stream = Told(deployment, chat)
    stream.tell(*ALL_KINDS)
    frames = frames_now(deployment, f"{PATH}/{chat}/stream?ui={version}")
    assert SECRET.encode() not in b"".join(frames)
    ends = list(accumulate(map(len, frames)))
    inside = random.Random(version).sample(range(1, ends[-1]), 150 if LONG else 5)
    ends = ends if LONG or version == 7 else ends[::5]
    given = {"chatId": chat, "resumes": 1}
    cut = [clients.begin(f"chat-{version}", path, [Cut(place)], **given) for place in sorted({*ends, *inside})]
    uncut = clients.begin(f"chat-{version}", path, chatId=chat)

    await until(lambda: clients.follows(uncut, 1), "one is not cut")
    await until(lambda: all(clients.follows(name, 2) for name in cut), "all others have been cut, and are back")
    stream.tell(DONE)
    whole = await clients.result(uncut)
    assert told(whole["messages"][0]) == "Ich fahre 🚲 mit\u0085Rad.Meanwhile. Done."
    for name in cut:
        got = await clients.result(name)
        assert got["messages"] == whole["messages"]
        assert (got["statuses"], got["finished"][-1]) == (["error", "ready"], whole["finished"][-1])


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_answer_that_it_asked_for_is_cut_resumed_and_stopped(
    clients: Clients, deployment: Deployment, version: int
) -> None:
    chat = f"asked-{version}"
    case = clients.begin(f"chat-{version}", PATH, [Cut(150)], chatId=chat, text=HELD, resumes=1)
    await until(lambda: clients.follows(case, 2, SAID), "it is back, and has all")
    assert clients.requests(case)[1] == f"{PATH}/{chat}/stream"
    await stop(deployment, chat)
    got = await clients.result(case)
    assert (got["statuses"], told(got["messages"][-1])) == (["error", "ready"], SAID)
    assert newest(deployment, chat)["state"] == "cancelled"


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_page_that_kept_a_part_of_the_answer_shows_it_once(
    clients: Clients, deployment: Deployment, version: int
) -> None:
    chat = f"kept-{version}"
    stream = Told(deployment, chat)
    stream.tell(("text_delta", {"text": "One. "}), ("text_delta", {"text": "Two. "}))
    question = {"id": "q", "role": "user", "parts": [{"type": "text", "text": "Count."}]}
    parts = [{"type": "step-start"}, {"type": "text", "text": "One. ", "state": "streaming"}]
    kept = [question, {"id": f"msg_{stream.sid}", "role": "assistant", "parts": parts}]
    case = clients.begin(f"chat-{version}", f"{PATH}?ui={version}", chatId=chat, messages=kept)
    await until(lambda: clients.follows(case, 1, "One. Two. "), "it has what there is")
    stream.tell(("text_delta", {"text": "Three."}), DONE)
    messages = (await clients.result(case))["messages"]
    assert [message["id"] for message in messages] == ["q", f"msg_{stream.sid}"]
    assert told(messages[1]) == "One. Two. Three."


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_runs_nowhere_is_nothing_to_resume(clients: Clients, version: int) -> None:
    got = await clients.run(f"chat-{version}", PATH, chatId="nobody's")
    assert (got["statuses"], got["messages"], got["errors"]) == (["ready"], [], [])


@pytest.mark.parametrize("version", VERSIONS)
async def test_its_own_tool_runs_in_the_page_and_the_answer_goes_on_in_the_same_message(
    clients: Clients, version: int
) -> None:
    body = {"tools": [TOOL], "max_tokens": 500}
    asked = '[[rate=0 ttft_ms=0 call=ask:{"q":"where"}]]'
    given = {"chatId": f"tool-{version}", "text": asked, "tool": {"place": "there"}, "body": body}
    case = clients.begin(f"chat-{version}", f"{PATH}?ui={version}", **given)
    got = await clients.result(case)
    assert [call["input"] for call in got["calls"]] == [{"q": "where"}]
    _, answer = got["messages"]
    assert [part["type"] for part in answer["parts"]] == ["step-start", "tool-ask", "step-start", "text"]
    assert answer["parts"][1]["output"] == {"place": "there"}
    assert "there" in told(answer)
    assert (got["errors"], len(clients.requests(case))) == ([], 2)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_refusal_is_an_error_in_words(clients: Clients, version: int) -> None:
    got = await clients.run(f"chat-{version}", PATH, chatId="x", text="Hello", body={"max_tokens": -1})
    assert got["statuses"] == ["error"]
    assert "max_tokens" in got["errors"][0]


async def test_an_answer_in_a_form_is_asked_for_by_its_schema(clients: Clients) -> None:
    schema = {"type": "object", "properties": {"answer": {"const": "of nobody"}}, "required": ["answer"]}
    body = {"output_schema": schema}
    got = await clients.run("chat-7", PATH, chatId="form", text="[[json=1 rate=0 ttft_ms=0]]", body=body)
    [done] = [part["data"] for part in got["data"] if part["type"] == "data-done"]
    assert done["schema_violation"]["message"]


def test_the_same_key_is_the_same_answer_and_what_was_ignored_is_told(deployment: Deployment) -> None:
    body = {"id": "key", "messages": [{"role": "user", "parts": [{"type": "text", "text": HELD}]}], "color": "red"}
    headers = {"Idempotency-Key": "once"}
    with HTTP.stream("POST", f"{deployment.urls[0]}{PATH}", json=body, headers=headers) as first:
        with HTTP.stream("POST", f"{deployment.urls[1]}{PATH}", json=body, headers=headers) as second:
            assert first.headers["x-vercel-ai-ui-message-stream"] == "v1"
            assert first.headers["x-lastevent-ignored"] == "color"
            assert first.headers["x-lastevent-stream"] == second.headers["x-lastevent-stream"]
        HTTP.post(f"{deployment.url}{PATH}/key/stop").raise_for_status()
