"""HttpAgent, which replays a run, and TanStack AI's connection, which goes on where it was cut."""

from __future__ import annotations

import random

import pytest

from tests.clients.dialects.ag_ui.recorded import PATH, RESTARTS, SECRET, Ended, asked, read, record
from tests.clients.dialects.node import Clients
from tests.dialects.ag_ui.logs import found_in
from tests.js.cutting import Cut, How
from tests.rig.deployment import HTTP, Deployment, until
from tests.rig.long import LONG

pytestmark = pytest.mark.npm

STREAMS = ("kinds", "error", "cancelled", "restart")
HOWS: tuple[How, ...] = ("reset", "close")
SAID = "This is a stand-in and no model:"


@pytest.fixture(scope="module")
def ended(pair: Deployment) -> dict[str, Ended]:
    return record(pair)


def test_both_servers_say_the_same_and_nothing_of_what_is_internal(pair: Deployment, ended: dict[str, Ended]) -> None:
    for one in ended.values():
        assert read(pair, one.run_id, 1).events == one.events
        assert read(pair, one.run_id, 1).ids == one.ids
        assert SECRET.encode() not in one.body


@pytest.mark.parametrize("name", STREAMS)
async def test_the_validator_finds_nothing(ended: dict[str, Ended], name: str) -> None:
    assert await found_in(ended[name].body) == []


@pytest.mark.parametrize("name", STREAMS)
async def test_wherever_it_is_cut_tanstack_has_each_event_once_from_the_other_server(
    clients: Clients, ended: dict[str, Ended], name: str
) -> None:
    one = ended[name]
    whole = await clients.run("join", PATH, runId=one.run_id)
    assert [chunk["type"] for chunk in whole["chunks"]] == [event["type"] for event in one.events]
    numbers = random.Random(name)
    places = {*one.ends[:-1], *numbers.sample(range(one.ends[0], len(one.body)), 400 if LONG else 25)}
    begun = [
        (place, clients.begin("join", PATH, [Cut(place, numbers.choice(HOWS))], runId=one.run_id))
        for place in sorted(places)
    ]
    for place, case in begun:
        got = await clients.result(case)
        assert got["chunks"] == whole["chunks"], place
        assert [m["parts"] for m in got["messages"]] == [m["parts"] for m in whole["messages"]], place
        assert "failed" not in got["seen"]
        [_, *again] = clients.cutter.asked[case]
        assert len(again) == 1
        # It counts an event once it has its `data:` line: the blank line behind it may be missing.
        has = sum(end - 1 <= place for end in one.ends)
        assert again[0].headers["last-event-id"] == one.ids[has - 1], place


@pytest.mark.parametrize("name", STREAMS)
async def test_http_agent_reads_each_run_and_its_verifier_finds_nothing(
    clients: Clients, ended: dict[str, Ended], name: str
) -> None:
    one = ended[name]
    got = await clients.run("http", PATH, joins=one.run_id)
    assert got["events"] == one.events
    match name:
        case "kinds":
            assert (got["seen"]["outcome"], got["seen"]["pendingToolCallIds"]) == ("success", ["c2"])
            roles = [message["role"] for message in got["messages"]]
            assert roles == ["reasoning", "assistant", "tool", "assistant"]
            [call] = got["messages"][1]["toolCalls"]
            assert call["id"] == got["messages"][2]["toolCallId"] == "c1"
            assert got["messages"][3]["toolCalls"][0]["function"] == {"name": "ask", "arguments": '{"q":"where?"}'}
        case "error":
            assert got["seen"]["error"] == {"type": "RUN_ERROR", "message": "It broke.", "code": "provider_error"}
        case "cancelled":
            assert got["seen"]["outcome"] == "cancelled"


async def test_a_run_that_is_taken_back_leaves_the_last_attempt_alone(
    clients: Clients, ended: dict[str, Ended]
) -> None:
    one = ended["restart"]
    assert [event["type"] for event in one.events].count("MESSAGES_SNAPSHOT") == 1
    had = [{"id": "asked", "role": "user", "content": RESTARTS}]
    http = await clients.run("http", PATH, joins=one.run_id, messages=had)
    told = [(m["role"], m["content"]) for m in http["messages"]]
    assert told == [("user", RESTARTS), ("reasoning", "A stand-in"), ("assistant", SAID)]
    join = await clients.run("join", PATH, runId=one.run_id)
    texts = [
        p["content"] for m in join["messages"] if m["role"] == "assistant" for p in m["parts"] if p["type"] == "text"
    ]
    assert texts == [SAID]


async def test_a_run_that_http_agent_starts_and_loses_is_the_same_run_when_it_asks_again(
    clients: Clients, pair: Deployment
) -> None:
    given = {"threadId": "lost", "runId": "lost-1", "text": "[[tokens=7 rate=0 ttft_ms=0]]"}
    cut = await clients.run("http", PATH, [Cut(700)], **given)
    assert cut["seen"]["failed"]
    got = await clients.run("http", PATH, **given)
    assert got["messages"][-1]["content"] == SAID
    listed = HTTP.get(f"{pair.url}/v1/streams", params={"session_id": "lost"}).json()["streams"]
    assert len(listed) == 1


async def test_a_run_that_tanstack_starts_goes_on_by_its_id_after_each_cut(clients: Clients, pair: Deployment) -> None:
    text = "[[tokens=40 rate=0 ttft_ms=0 cut_at=5 cut_times=1]]"
    case = clients.begin("tanstack", PATH, [Cut(400), Cut(300), Cut(900)], threadId="goes-on", text=text)
    got = await clients.result(case)
    assert got["seen"]["errors"] == []
    posts = clients.cutter.asked[case]
    assert [post.method for post in posts] == ["POST"] * 4
    run_id = posts[0].headers["x-run-id"]
    assert {post.headers["x-run-id"] for post in posts} == {run_id}
    one = read(pair, run_id)
    assert [chunk["type"] for chunk in got["chunks"]] == [event["type"] for event in one.events]
    [text_part] = got["messages"][-1]["parts"]
    assert text_part["content"].startswith(SAID)


async def test_the_same_run_with_another_body_is_409(clients: Clients, pair: Deployment) -> None:
    HTTP.post(f"{pair.url}{PATH}", json=asked("[[tokens=1 rate=0 ttft_ms=0]]", "twice")).raise_for_status()
    got = await clients.run("http", PATH, threadId="t", runId="twice", text="Something else")
    assert "HTTP 409" in got["seen"]["failed"]
    assert "runId" in got["seen"]["failed"], "it has sent no Idempotency-Key"
    again = HTTP.post(f"{pair.urls[1]}{PATH}", json=asked("[[tokens=1 rate=0 ttft_ms=0]]", "twice"))
    assert again.content == read(pair, "twice").body


async def test_a_thread_is_hydrated_with_its_messages_and_the_run_that_is_under_way(
    clients: Clients, pair: Deployment
) -> None:
    HTTP.post(f"{pair.url}{PATH}", json=asked("[[tokens=7 rate=0 ttft_ms=0]]", "h1", "hydrates")).raise_for_status()
    over = (await clients.run("hydrate", PATH, threadId="hydrates"))["hydrated"]
    assert [(m["role"], m["parts"][0]["content"]) for m in over["messages"]][1] == ("assistant", SAID)
    assert over["activeRun"] is None
    first = read(pair, "h1")
    [start] = [event for event in first.events if event["type"] == "TEXT_MESSAGE_START"]
    assert over["messages"][1]["id"] == start["messageId"]
    nothing = (await clients.run("hydrate", PATH, threadId="nobody's"))["hydrated"]
    assert nothing == {"messages": [], "activeRun": None, "interrupts": None, "page": nothing["page"]}


async def test_a_run_under_way_is_named_and_joined(clients: Clients, pair: Deployment) -> None:
    with HTTP.stream("POST", f"{pair.url}{PATH}", json=asked("[[tokens=1000000 rate=1]]", "h2", "under way")) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if "TEXT_MESSAGE_CONTENT" in line)
        sid = answer.headers["x-lastevent-stream"]
        going = (await clients.run("hydrate", PATH, threadId="under way"))["hydrated"]
        assert going["activeRun"] == {"runId": "h2"}
        assert [message["role"] for message in going["messages"]] == ["user"]
        joined, http = clients.begin("join", PATH, runId="h2"), clients.begin("http", PATH, joins="h2")
        await until(lambda: clients.cutter.answering() == 2, "both read")
        pings = 0
        while pings < 10:  # they get as many, between two frames
            pings += next(lines) == ": ping"
        HTTP.post(f"{pair.url}/v1/streams/{sid}/cancel", json={}).raise_for_status()
        got, by_http = await clients.result(joined), await clients.result(http)
    assert got["chunks"][-1]["outcome"] == {"type": "cancelled"}
    assert by_http["seen"]["outcome"] == "cancelled"
    assert [event["type"] for event in by_http["events"]] == [chunk["type"] for chunk in got["chunks"]]


def test_what_is_not_there_and_what_is_wrong_is_said_in_one_form(pair: Deployment) -> None:
    once = asked("[[tokens=1 rate=0 ttft_ms=0]]", "ignoring", state={"a": 1}, forwardedProps={"theme": "dark"})
    assert HTTP.post(f"{pair.url}{PATH}", json=once).headers["x-lastevent-ignored"] == "state, forwardedProps"
    missing = HTTP.get(f"{pair.url}{PATH}", params={"runId": "none"})
    assert (missing.status_code, missing.json()["code"]) == (404, "stream_not_found")
    cursor = HTTP.get(f"{pair.url}{PATH}", params={"runId": "none"}, headers={"Last-Event-ID": "7"})
    assert (cursor.status_code, cursor.json()["code"]) == (400, "bad_cursor")
    wrong = HTTP.post(f"{pair.url}{PATH}", json={**asked("x", "r"), "messages": [{"role": "robot"}]})
    assert (wrong.status_code, wrong.json()) == (
        400,
        {"message": "messages[0].role: it is none of AG-UI", "code": "invalid_request"},
    )


async def test_a_cursor_whose_event_is_lost_takes_all_back_and_begins_again(
    clients: Clients, pair: Deployment, ended: dict[str, Ended]
) -> None:
    one = ended["kinds"]
    answer = HTTP.get(f"{pair.url}{PATH}", params={"runId": one.run_id}, headers={"Last-Event-ID": "9000001-0"})
    frames = [frame for frame in answer.content.split(b"\n\n") if frame]
    assert frames[0].endswith(b'"requested":0,"earliest":0,"reason":"log_lost_tail"}}')
    assert b"MESSAGES_SNAPSHOT" in frames[1]
    assert frames[2:][-1] == one.frames[-1].rstrip(b"\n")
