"""WorkflowChatTransport: it counts the chunks that it has, and asks for the next."""

from __future__ import annotations

import random

import pytest

from tests.clients.dialects.ai_sdk.recorded import ALL_KINDS, DONE, SECRET, Ended, Told, read, record
from tests.clients.dialects.node import Clients
from tests.js.cutting import Cut, How
from tests.rig.deployment import HTTP, Deployment
from tests.rig.long import LONG

pytestmark = pytest.mark.npm

PATH = "/v1/ai-sdk/workflow"
STREAMS = ("kinds", "error", "cancelled", "restart")
HOWS: tuple[How, ...] = ("reset", "close", "end")


@pytest.fixture(scope="module")
def ended(deployment: Deployment) -> dict[str, Ended]:
    return record(deployment)


def test_both_servers_say_the_same_and_nothing_of_what_is_internal(
    deployment: Deployment, ended: dict[str, Ended]
) -> None:
    for one in ended.values():
        url = f"{deployment.urls[1]}{PATH}/{one.sid}/stream"
        assert HTTP.get(url).content == one.body
        assert SECRET.encode() not in one.body


@pytest.mark.parametrize("name", STREAMS)
async def test_wherever_it_is_cut_it_has_each_chunk_once_from_the_other_server(
    clients: Clients, ended: dict[str, Ended], name: str
) -> None:
    one = ended[name]
    whole = await clients.run("workflow", PATH, chatId=one.sid)
    assert whole["chunks"] == one.chunks
    numbers = random.Random(name)
    ends = one.ends[:-1] if LONG or name in ("kinds", "restart") else one.ends[-7:-1]  # they begin as the first does
    places = {*ends, *numbers.sample(range(1, len(one.body)), 400 if LONG else 6)}
    begun = [
        (place, clients.begin("workflow", PATH, [Cut(place, numbers.choice(HOWS))], chatId=one.sid))
        for place in sorted(places)
    ]
    for place, case in begun:
        got = await clients.result(case)
        assert got["chunks"] == one.chunks, place
        assert got["message"] == whole["message"], place
        assert got["ended"] == [len(one.chunks)]
        if place < one.ends[-2]:  # else it has the finish
            has = sum(end <= place for end in one.ends)
            assert clients.requests(case) == [f"{PATH}/{one.sid}/stream?startIndex={n}" for n in (0, has)], place


async def test_what_an_attempt_said_is_taken_back(clients: Clients, ended: dict[str, Ended]) -> None:
    one = ended["restart"]
    got = await clients.run("workflow", PATH, chatId=one.sid)
    assert [chunk["type"] for chunk in one.chunks].count("reset-step") == 1
    told = "".join(part["text"] for part in got["message"]["parts"] if part["type"] == "text")
    assert told == "This is a stand-in and no model:"


@pytest.mark.parametrize("back", [1, 3, 6, 1000])
async def test_from_the_end_it_reads_on_also_if_it_is_cut(clients: Clients, ended: dict[str, Ended], back: int) -> None:
    one = ended["restart"]
    last = one.chunks[-back:]
    whole = await clients.run("workflow", PATH, chatId=one.sid, startIndex=-back)
    case = clients.begin("workflow", PATH, [Cut(len(one.frames[-2]))], chatId=one.sid, startIndex=-back)
    got = await clients.result(case)
    assert got["chunks"] == whole["chunks"]
    assert last[-1] == whole["chunks"][-1]
    if back > 1:
        next_index = int(clients.requests(case)[1].rpartition("=")[2])
        assert next_index >= max(0, len(one.chunks) - back)


async def test_a_run_that_it_starts_is_cut_and_goes_on_by_its_id(clients: Clients, deployment: Deployment) -> None:
    text = "[[tokens=12 rate=0 ttft_ms=0 cut_at=5 cut_times=1]] Go."
    case = clients.begin("workflow", PATH, [Cut(300), Cut(150)], chatId="any", text=text)
    got = await clients.result(case)
    [start, first, second] = clients.requests(case)
    assert start == PATH
    sid = first.split("/")[4]
    assert second.split("/")[4] == sid
    assert got["chunks"] == read(deployment, sid).chunks
    record = HTTP.get(f"{deployment.url}/v1/streams/{sid}").json()
    assert record["state"] == "done"


async def test_a_chat_is_its_newest_run(clients: Clients, deployment: Deployment) -> None:
    prompt = {"session_id": "chat/1"}
    first, second = (deployment.create(f"[[tokens={n} rate=0 ttft_ms=0]]", **prompt) for n in (2, 4))
    for sid in (first, second):
        deployment.wait_until_ended(sid)
    got = await clients.run("workflow", PATH, chatId="chat/1")
    assert got["message"]["id"] == f"msg_{second}"


@pytest.mark.parametrize("beyond", [0, 7])
async def test_whoever_has_all_chunks_and_more_is_told_that_it_is_over(
    clients: Clients, ended: dict[str, Ended], beyond: int
) -> None:
    one = ended["kinds"]
    case = clients.begin("workflow", PATH, chatId=one.sid, startIndex=len(one.chunks) + beyond)
    assert (await clients.result(case))["chunks"] == [{"type": "finish", "finishReason": "other"}]
    assert len(clients.requests(case)) == 1


def test_whoever_has_more_than_there_is_of_a_run_that_goes_on_comes_back_until_it_is_there(
    deployment: Deployment,
) -> None:
    """Redis has lost it, and its writer puts it back."""
    stream = Told(deployment)
    url = f"{deployment.url}{PATH}/{stream.sid}/stream"
    answer = HTTP.get(f"{url}?startIndex=4")
    assert (answer.status_code, answer.content) == (200, b"")
    stream.tell(*ALL_KINDS[:6], DONE)
    assert HTTP.get(f"{url}?startIndex=4").content.startswith(b"data: ")


async def test_a_run_that_is_not_there_is_an_error_in_words(clients: Clients) -> None:
    with pytest.raises(AssertionError, match="404 stream_not_found: There is no run"):
        await clients.run("workflow", PATH, chatId="nobody's")
