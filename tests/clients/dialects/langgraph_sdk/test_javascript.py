"""@langchain/langgraph-sdk, unmodified, of both majors, and its useStream."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from broker.dialects.langgraph import run_id_of
from tests.clients.dialects.langgraph_sdk.recorded import MODES, recorded
from tests.js.cutting import Cut, cutting
from tests.rig.deployment import HTTP, Deployment

pytestmark = pytest.mark.npm

LIMIT_S = 60
LIBRARIES = ["@langchain/langgraph-sdk", "langgraph-sdk-2"]
AT_ONCE = "[[ttft_ms=0 rate=0 tokens=3]]"
TWICE = "[[ttft_ms=0 rate=0 tokens=4 cut_at=2 cut_times=1]]"


def name_of(library: str) -> str:
    return library.rpartition("/")[2]


async def said(js: Path, program: str, *arguments: str, told: Any = None) -> Any:
    process = await asyncio.create_subprocess_exec(
        *("node", program, *arguments),
        cwd=js,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(LIMIT_S):
        output, errors = await process.communicate(json.dumps(told).encode())
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_a_thread_lives_as_on_langgraph_s_server(js: Path, deployment: Deployment, library: str) -> None:
    story = await said(js, "story.mjs", library, f"{deployment.url}/langgraph")
    assert story["created"]
    assert story["isState"]
    assert story["chunks"] == ["This", " is", " a", ""]
    assert (story["last"]["event"], story["last"]["data"]["status"]) == ("end", "success")
    assert story["waited"] == [f"One {AT_ONCE}", "This is a", f"Two {AT_ONCE}", "This is a"]
    assert story["history"] == [4, 3, 2]
    assert (story["joined"][0], story["joined"][-1], story["status"]) == ("metadata", "end", "interrupted")
    assert story["runs"] == 3
    assert story["failed"].startswith("provider_refused: ")
    assert story["refused"].startswith("HTTP 422: ")
    assert "command:" in story["refused"]


@pytest.mark.parametrize("library", LIBRARIES)
async def test_a_run_that_is_cut_anywhere_is_followed_on_the_other_server_and_each_part_comes_once(
    js: Path, deployment: Deployment, library: str
) -> None:
    run = recorded(deployment, f"cut-{name_of(library)}")
    async with cutting(*deployment.ports) as cutter:
        cuts = run.cuts(2500)
        cutter.cuts = {case: [cut] for case, cut in cuts.items()}
        asked = {"library": library, "url": f"{cutter.url}/langgraph", "modes": MODES, "cases": list(cuts)}
        seen = await said(js, "cut.mjs", told={**asked, "threadId": run.thread_id, "runId": run.run_id})
        assert {len(asked) for case, asked in cutter.asked.items() if int(case) < len(run.body)} == {2}
    different = [
        (cases, parts[:300]) for parts, cases in seen if json.loads(parts) != [list(part) for part in run.parts]
    ]
    assert different == []
    print(f"{len(cuts)} places")


@pytest.mark.parametrize("library", LIBRARIES)
async def test_use_stream_shows_what_was_said_in_the_last_attempt_and_what_the_thread_holds(
    js: Path, deployment: Deployment, library: str
) -> None:
    thread_id = f"page-{name_of(library)}"
    base = f"{deployment.url}/langgraph"
    page = await said(
        js, "react.mjs", library, base, json.dumps({"threadId": thread_id, "says": [f"One {AT_ONCE}", TWICE]})
    )
    assert page["lines"] == [f"human: One {AT_ONCE}", "ai: This is a", f"human: {TWICE}", "ai: This is a stand-in"]
    assert (page["errors"], page["metadata"], page["history"]) == ([], 3, 5)
    state = HTTP.get(f"{base}/threads/{thread_id}/state").json()
    assert state["values"]["messages"][-1]["id"].endswith("-2")


@pytest.mark.parametrize("library", LIBRARIES)
async def test_use_stream_joins_a_run_that_is_cut_and_asks_again_for_another_answer(
    js: Path, deployment: Deployment, library: str
) -> None:
    thread_id = f"joined-{name_of(library)}"
    sid = deployment.create(TWICE, session_id=thread_id)
    async with cutting(*deployment.ports) as cutter:
        script = {"threadId": thread_id, "joins": run_id_of(sid), "regenerates": True}
        cutter.only = "/stream"
        cutter.cuts = {thread_id: [Cut(1500), Cut(900), Cut(10**6), Cut(1500)]}
        page = await said(js, "react.mjs", library, f"{cutter.url}/langgraph", json.dumps(script))
        assert len(cutter.asked[thread_id]) >= 5
    assert page["lines"] == [f"human: {TWICE}", "ai: This is a stand-in"]
    assert (page["errors"], page["branches"]) == ([], 2)
