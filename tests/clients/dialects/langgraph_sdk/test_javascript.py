"""@langchain/langgraph-sdk, unmodified, of both majors, and its useStream."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from broker.dialects.langgraph import run_id_of
from tests.clients.dialects.langgraph_sdk.recorded import MODES, Recorded, recorded
from tests.js.cutting import Cut, cutting
from tests.rig.deployment import HTTP, Deployment
from tests.rig.long import LONG

pytestmark = pytest.mark.npm

LIMIT_S = 60
LIBRARIES = ["langgraph-sdk-2", "@langchain/langgraph-sdk"][: 2 if LONG else 1]
"""The newest, and in the long form the major before."""
AT_ONCE = "[[ttft_ms=0 rate=0 tokens=3]]"
TWICE = "[[ttft_ms=0 rate=0 tokens=4 cut_at=2 cut_times=1]]"


def name_of(library: str) -> str:
    return library.rpartition("/")[2]


@pytest.fixture(scope="module")
def run(deployment: Deployment) -> Recorded:
    return recorded(deployment, "cut-javascript")


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
    js: Path, deployment: Deployment, run: Recorded, library: str
) -> None:
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
async def test_use_stream_shows_the_last_attempt_joins_what_runs_and_asks_again_for_another_answer(
    js: Path, deployment: Deployment, library: str
) -> None:
    """In a thread that it begins, and in one whose run it finds and of which its connections are cut."""
    talked, joined = (f"{what}-{name_of(library)}" for what in ("talked", "joined"))
    run_id = run_id_of(deployment.create(TWICE, session_id=joined))
    async with cutting(*deployment.ports) as cutter:
        base = f"{cutter.url}/langgraph"
        cutter.only = "/stream"
        cutter.cuts = {joined: [Cut(1500), Cut(900), Cut(10**6), Cut(1500)]}
        scripts = [
            {"threadId": talked, "says": [f"One {AT_ONCE}", TWICE]},
            {"threadId": joined, "joins": run_id, "regenerates": True},
        ]
        first, second = await said(js, "react.mjs", library, base, json.dumps(scripts))
        assert len(cutter.asked[joined]) >= 5
    assert first["lines"] == [f"human: One {AT_ONCE}", "ai: This is a", f"human: {TWICE}", "ai: This is a stand-in"]
    assert (first["errors"], first["metadata"], first["history"]) == ([], 3, 5)
    assert second["lines"] == [f"human: {TWICE}", "ai: This is a stand-in"]
    assert (second["errors"], second["branches"]) == ([], 2)
    state = HTTP.get(f"{deployment.url}/langgraph/threads/{talked}/state").json()
    assert state["values"]["messages"][-1]["id"].endswith("-2")
