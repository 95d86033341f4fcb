"""langgraph-sdk of Python, unmodified: threads, runs, and cuts after which it comes back by itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from langgraph_sdk import get_client, get_sync_client
from langgraph_sdk.errors import APIStatusError, ConflictError, NotFoundError, UnprocessableEntityError

from broker.dialects.langgraph import sid_of
from tests.clients.dialects.langgraph_sdk.recorded import MODES, Part, recorded
from tests.js.cutting import Cut, cutting
from tests.rig.deployment import HTTP, Deployment
from tests.rig.streams import expire_lease, with_redis

AT_ONCE = "[[ttft_ms=0 rate=0 tokens=3]]"
WITHOUT_END = "[[ttft_ms=0 stall_at=2]]"


def asks(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def texts(values: Any) -> list[str]:
    return [message["content"] for message in values["messages"]]


@pytest.fixture
async def client(deployment: Deployment) -> AsyncIterator[Any]:
    async with get_client(url=f"{deployment.url}/langgraph", api_key=None) as client:
        yield client


async def parts_of(stream: AsyncIterator[Any]) -> list[Part]:
    return [(part.id, part.event, part.data) async for part in stream]


# -- runs and threads ----------------------------------------------------------------------------------------------


async def test_a_thread_holds_its_turns(client: Any) -> None:
    thread = await client.threads.create()
    assert (thread["status"], thread["values"]) == ("idle", {})
    thread_id = thread["thread_id"]
    assert (await client.threads.get_state(thread_id))["checkpoint"] is None
    said = [part async for part in client.runs.stream(thread_id, "agent", input=asks(f"One {AT_ONCE}"))]
    assert [part.event for part in said] == ["metadata", "values", "values", "end"]
    assert said[-1].data["status"] == "success"
    behind = await client.runs.wait(thread_id, "agent", input=asks(f"Two {AT_ONCE}"))
    assert texts(behind) == [f"One {AT_ONCE}", "This is a", f"Two {AT_ONCE}", "This is a"]
    assert behind["messages"][:2] == said[-2].data["messages"]
    assert len({message["id"] for message in behind["messages"]}) == 4
    state = await client.threads.get_state(thread_id)
    assert (state["values"], state["next"]) == (behind, [])
    assert (await client.threads.get(thread_id))["values"] == behind
    listed = await client.runs.list(thread_id)
    assert [run["status"] for run in listed] == ["success", "success"]
    assert listed[-1]["run_id"] == said[0].data["run_id"]
    assert await client.runs.list(thread_id, status="error") == []


async def test_a_run_without_a_thread_has_one_of_its_own(client: Any) -> None:
    behind = await client.runs.wait(None, "agent", input=asks(f"Alone {AT_ONCE}"))
    assert texts(behind) == [f"Alone {AT_ONCE}", "This is a"]
    said = [part async for part in client.runs.stream(None, "agent", input=asks(AT_ONCE), version="v2")]
    assert [part["type"] for part in said] == ["metadata", "values", "values"]


async def test_a_run_goes_on_in_the_background_and_is_joined(client: Any) -> None:
    created: list[Any] = []
    run = await client.runs.create(
        "joined", "agent", input=asks(AT_ONCE), stream_mode=["messages-tuple"], on_run_created=created.append
    )
    assert created == [{"run_id": run["run_id"], "thread_id": "joined"}]
    said = await parts_of(client.runs.join_stream("joined", run["run_id"]))
    assert {name for _, name, _ in said} == {"metadata", "messages", "end"}
    assert texts(await client.runs.join("joined", run["run_id"])) == [AT_ONCE, "This is a"]
    assert (await client.runs.get("joined", run["run_id"]))["status"] == "success"
    only = await parts_of(client.runs.join_stream("joined", run["run_id"], last_event_id=said[-2][0]))
    assert only == said[-1:]


async def test_a_run_is_cancelled_and_says_so_as_its_end(client: Any) -> None:
    run = await client.runs.create("cancelled", "agent", input=asks(WITHOUT_END))
    joining = client.runs.join_stream("cancelled", run["run_id"], stream_mode=["messages-tuple", "values"])
    said = [await anext(joining) for _ in range(3)]
    assert said[-1].data[0]["content"] == "This"
    assert (await client.threads.get("cancelled"))["status"] == "busy"
    await client.runs.cancel("cancelled", run["run_id"], wait=True)
    said += [part async for part in joining]
    assert [part.data["status"] for part in said if part.event == "end"] == ["interrupted"]
    assert said[-1].event == "end"
    assert texts(said[-2].data) == [WITHOUT_END, "".join(part.data[0]["content"] for part in said[2:-2])]
    assert (await client.runs.get("cancelled", run["run_id"]))["status"] == "interrupted"


async def test_a_run_that_failed_ends_with_its_error_and_its_thread_says_why(client: Any) -> None:
    refused = asks("[[ttft_ms=0 status=400]]")
    said = await parts_of(client.runs.stream("failed", "agent", input=refused))
    assert said[-1][1:] == ("error", {"error": "provider_refused", "message": said[-1][2]["message"]})
    state = await client.threads.get_state("failed")
    assert state["tasks"][0]["error"].startswith("provider_refused: ")
    assert (await client.threads.get("failed"))["status"] == "error"
    with pytest.raises(Exception, match="provider_refused"):
        await client.runs.wait("failed-too", "agent", input=refused)
    assert "__error__" in await client.runs.wait("failed-three", "agent", input=refused, raise_error=False)


async def test_a_busy_thread_takes_a_run_only_in_the_place_of_the_other(client: Any) -> None:
    first = await client.runs.create("busy", "agent", input=asks(WITHOUT_END))
    with pytest.raises(ConflictError, match="multitask_strategy"):
        await client.runs.create("busy", "agent", input=asks(AT_ONCE))
    behind = await client.runs.wait("busy", "agent", input=asks(AT_ONCE), multitask_strategy="interrupt")
    assert (texts(behind)[0], texts(behind)[-2:]) == (WITHOUT_END, [AT_ONCE, "This is a"])
    assert (await client.runs.get("busy", first["run_id"]))["status"] == "interrupted"
    await client.runs.create("busy", "agent", input=asks(WITHOUT_END))
    again = await client.runs.wait("busy", "agent", input=asks(AT_ONCE), multitask_strategy="rollback")
    assert texts(again) == [*texts(behind), AT_ONCE, "This is a"]


async def test_a_run_begins_at_any_state_of_its_thread(client: Any) -> None:
    await client.runs.wait("forked", "agent", input=asks(f"One {AT_ONCE}"))
    await client.runs.wait("forked", "agent", input=asks(f"Two {AT_ONCE}"))
    states = await client.threads.get_history("forked")
    assert [len(state["values"].get("messages", [])) for state in states] == [4, 3, 2, 1, 0]
    for state, older in itertools.pairwise(states):
        assert state["parent_checkpoint"] == older["checkpoint"]
    edited = await client.runs.wait("forked", "agent", input=asks(f"Won {AT_ONCE}"), checkpoint=states[4]["checkpoint"])
    assert texts(edited) == [f"Won {AT_ONCE}", "This is a"]
    again = await client.runs.wait("forked", "agent", checkpoint_id=states[1]["checkpoint"]["checkpoint_id"])
    assert texts(again) == texts(states[0]["values"])
    assert again["messages"][:3] == states[1]["values"]["messages"]
    newest = (await client.threads.get_history("forked", limit=1))[0]
    assert newest["values"] == again
    before = await client.threads.get_history("forked", before=states[1]["checkpoint"])
    assert before == states[2:]


async def test_a_tool_s_result_goes_into_the_next_run(client: Any) -> None:
    tool = {"name": "find", "description": "Finds.", "input_schema": {"type": "object", "properties": {}}}
    asked = {"messages": [{"role": "user", "content": 'Where? [[ttft_ms=0 rate=0 call=find:{"order":"A17"}]]'}]}
    behind = await client.runs.wait("tools", "agent", input=asked, context={"tools": [tool]})
    [call] = behind["messages"][-1]["tool_calls"]
    assert (call["name"], call["args"]) == ("find", {"order": "A17"})
    result = {"messages": [{"type": "tool", "tool_call_id": call["id"], "content": "on its way"}]}
    behind = await client.runs.wait("tools", "agent", input=result, context={"tools": [tool]})
    assert [message["type"] for message in behind["messages"]] == ["human", "ai", "tool", "ai"]
    assert "on its way" in behind["messages"][-1]["content"]


async def test_what_follows_a_schema_is_in_the_state_by_itself(client: Any) -> None:
    configured = {"configurable": {"output_schema": {"type": "object"}}}
    behind = await client.runs.wait("structured", "agent", input=asks("[[ttft_ms=0 json=1]]"), config=configured)
    assert isinstance(behind["structured_response"], dict)


async def test_what_there_is_not_is_refused_in_langgraph_s_form(client: Any, deployment: Deployment) -> None:
    with pytest.raises(NotFoundError):
        await client.assistants.get("agent")
    with pytest.raises(NotFoundError):
        await client.store.get_item(["a"], key="b")
    run = await client.runs.create("one-thread", "agent", input=asks(AT_ONCE))
    with pytest.raises(NotFoundError, match="no such run"):
        await client.runs.get("another-thread", run["run_id"])
    with pytest.raises(UnprocessableEntityError, match="interrupt_before") as refused:
        await client.runs.create("refused", "agent", input=asks(AT_ONCE), interrupt_before="*")
    assert refused.value.code == "invalid_request"
    with pytest.raises(UnprocessableEntityError, match=r"^agent:"):
        await client.runs.create("refused", "nobody", input=asks(AT_ONCE))
    with pytest.raises(APIStatusError, match="Last-Event-ID"):
        await parts_of(client.runs.join_stream("one-thread", run["run_id"], last_event_id="seven"))
    await client.threads.create(thread_id="one-thread", if_exists="do_nothing")
    with pytest.raises(ConflictError, match="if_exists"):
        await client.threads.create(thread_id="one-thread")
    with pytest.raises(UnprocessableEntityError, match="slash"):
        await client.threads.create(thread_id="a/b")
    base = f"{deployment.url}/langgraph"
    ignored = {"assistant_id": "agent", "input": asks(AT_ONCE), "durability": "exit", "config": {"tags": ["a"]}}
    told = HTTP.post(f"{base}/runs/wait", json=ignored).headers
    assert told["x-lastevent-ignored"] == "config.tags, durability"
    assert HTTP.get(f"{base}/ok").json() == {"ok": True}
    assert HTTP.post(f"{base}/runs/stream", content=b"{").json().keys() == {"detail", "code"}


def test_the_synchronous_client_does_the_same(deployment: Deployment) -> None:
    with get_sync_client(url=f"{deployment.url}/langgraph", api_key=None) as client:
        said = list(client.runs.stream("sync", "agent", input=asks(AT_ONCE), stream_mode="messages-tuple"))
        assert "".join(part.data[0]["content"] for part in said if part.event == "messages") == "This is a"
        assert texts(client.threads.get_state("sync")["values"]) == [AT_ONCE, "This is a"]


async def test_the_same_start_again_under_its_key_is_the_same_run(deployment: Deployment) -> None:
    url = f"{deployment.url}/langgraph/threads/again/runs"
    for asked in (f"One {AT_ONCE}", f"Two {AT_ONCE}"):
        headers = {"Idempotency-Key": f"langgraph-{asked[:3]}"}
        body = {"assistant_id": "agent", "input": asks(asked)}
        [first, again] = [HTTP.post(f"{url}/wait", json=body, headers=headers) for _ in range(2)]
        assert first.status_code == 200
        assert (first.content, first.headers["location"]) == (again.content, again.headers["location"])
    assert len(HTTP.get(url).json()) == 2


async def test_a_cursor_of_which_the_log_knows_nothing_takes_back_what_was_said_and_begins_anew(client: Any) -> None:
    run = await client.runs.create("lost", "agent", input=asks(AT_ONCE))
    await client.runs.join("lost", run["run_id"])
    whole = await parts_of(client.runs.join_stream("lost", run["run_id"], stream_mode=MODES))
    joined = client.runs.join_stream("lost", run["run_id"], stream_mode=MODES, last_event_id="9000000-0")
    said = [(name, data) for _, name, data in await parts_of(joined)]
    at = next(number for number, (name, data) in enumerate(said) if name == "custom" and data["event"] == "gap")
    assert ("messages/partial", "") in [(name, data[0]["content"]) for name, data in said[:at] if "partial" in name]
    assert ("values", whole[1][2]) in said[:at]
    assert said[at + 1 :] == [(name, data) for _, name, data in whole[2:]]


# -- cuts ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Reconnecting without a Last-Event-ID")
async def test_a_run_that_is_cut_anywhere_is_followed_on_the_other_server_and_each_part_comes_once(
    deployment: Deployment,
) -> None:
    run = recorded(deployment, "cut-python")
    async with cutting(*deployment.ports) as cutter:
        cuts = run.cuts(2500)
        cutter.cuts = {case: [cut] for case, cut in cuts.items()}
        async with get_client(url=f"{cutter.url}/langgraph", api_key=None) as client:

            async def follow(case: str) -> list[Part]:
                joined = client.runs.join_stream(run.thread_id, run.run_id, stream_mode=MODES, headers={"case": case})
                return await parts_of(joined)

            said = await asyncio.gather(*map(follow, cuts))
        assert {len(asked) for case, asked in cutter.asked.items() if int(case) < len(run.body)} == {2}
    assert [case for case, parts in zip(cuts, said, strict=True) if parts != run.parts] == []
    print(f"{len(cuts)} places")


async def test_a_start_that_is_cut_goes_on_by_its_location(deployment: Deployment) -> None:
    places = (450, 700, 1500, 2600)
    async with cutting(*deployment.ports) as cutter:
        cutter.cuts = {str(at): [Cut(at), Cut(at)] for at in places}
        async with get_client(url=f"{cutter.url}/langgraph", api_key=None) as client:

            async def run(case: str) -> list[Part]:
                asked = asks("[[ttft_ms=0 rate=0 tokens=20]]")
                started = client.runs.stream(
                    f"started-{case}", "agent", input=asked, stream_mode=MODES, headers={"case": case}
                )
                return await parts_of(started)

            said = await asyncio.gather(*(run(str(at)) for at in places))
            for at, parts in zip(places, said, strict=True):
                run_id = parts[0][2]["run_id"]
                assert parts == await parts_of(client.runs.join_stream(f"started-{at}", run_id, stream_mode=MODES))
        assert {asked.method for asked in cutter.asked["1500"]} == {"POST", "GET"}
        assert min(len(cutter.asked[str(at)]) for at in places) >= 2


async def test_of_a_worker_that_was_killed_the_run_is_the_next_one_s(own_deployment: Callable[..., Deployment]) -> None:
    deployment = own_deployment(servers=1)
    asked = asks("Twice. [[ttft_ms=0 tokens=3 rate=0 stall_at=2]]")
    async with get_client(url=f"{deployment.url}/langgraph", api_key=None) as client:
        stream = client.runs.stream("killed", "agent", input=asked, stream_mode=["values", "messages-tuple"])
        said = [await anext(stream) for _ in range(3)]
        run_id = said[0].data["run_id"]
        [worker] = deployment.workers
        worker.kill()
        await asyncio.to_thread(with_redis, deployment, lambda log: expire_lease(log, sid_of(run_id)))
        worker.start()
        while said[-1].event != "messages" or said[-1].data[0]["id"] != f"run-{run_id}-2":
            said.append(await anext(stream))
        await client.runs.cancel("killed", run_id)
        said += [part async for part in stream]
    names = [part.event for part in said]
    again = names.index("metadata", 1)
    assert said[again].data == {"run_id": run_id, "attempt": 2}
    before, taken_back, behind = said[2:again], said[again + 1 : again + 3], said[again + 3 : -2]
    assert [part.data[0]["type"] for part in taken_back[:-1]] == ["remove"] * len(
        {part.data[0]["id"] for part in before}
    )
    assert taken_back[-1].data == said[1].data
    assert texts(said[-2].data)[1] == "".join(part.data[0]["content"] for part in behind)
    assert said[-1].data["status"] == "interrupted"
