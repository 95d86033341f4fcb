"""Clients in programs of their own: openai for JavaScript, the AI SDK's provider, OpenAI's agents, LiteLLM; and the
suite of tests that llm-comply has for servers.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from openai import AsyncOpenAI

from broker.dialects.responses import NUMBERS
from tests.clients.dialects.responses.recorded import Ended
from tests.clients.dialects.responses.test_python import follow, said, text_of
from tests.conftest import deployment_in
from tests.js.cutting import Cut, How, cutting
from tests.rig.deployment import HTTP, Deployment, wait_until
from tests.rig.long import LONG

pytestmark = [pytest.mark.processes, pytest.mark.npm]

LIMIT_S = 120.0
CALLING = '[[call=weather:{"city":"Oslo"} rate=0 ttft_ms=0 thinking=2]] Go.'
RESTARTED = "[[tokens=8 rate=0 ttft_ms=0 cut_at=5 cut_times=1]]"
FAILING = "[[tokens=8 rate=0 ttft_ms=0 error_at=3 error=api_error]]"
HOWS: tuple[How, ...] = ("reset", "close")
REQUEST_BYTES = 20_000
KEY = "correct-horse-battery-staple-and-more"
SECRET = "planted-5c0e"
HEARTBEAT_S = "0.02"
"""Clients must bear a sign of life between any two frames."""

Told = dict[str, dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def complying(deployment: Deployment, python: Path) -> Iterator[subprocess.Popen[str]]:
    """It asks for one answer after the other, which takes the stand-in 2 s each: meanwhile the other tests run.

    `gpt-5…`: only of a name that it knows to reason it asks for a reasoning too.
    """
    command = [
        str(python),
        "-m",
        "llm_comply.cli",
        "-u",
        f"{deployment.url}/v1",
        "-k",
        "any",
        "-m",
        "gpt-5-mini",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


async def drive(packages: Path, *jobs: dict[str, Any]) -> Told:
    """What the JavaScript clients made of each job, by its case."""
    given = "\n".join(map(json.dumps, jobs)).encode()
    process = await asyncio.create_subprocess_exec(
        *("node", "drive.mjs"), cwd=packages, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            output, _ = await process.communicate(given)
    finally:
        if process.returncode is None:
            process.kill()
    told = [json.loads(line) for line in output.splitlines()]
    assert len(told) == len(jobs)
    return {one["case"]: one for one in told}


async def test_javascript_has_each_event_once_wherever_it_is_cut(
    deployment: Deployment, packages: Path, ended: dict[str, Ended]
) -> None:
    jobs, whole = [], {}
    async with cutting(*deployment.ports) as cutter:
        for name, one in ended.items():
            numbers = random.Random(name)
            places = {*one.ends[:-1], *numbers.sample(range(1, len(one.body)), 400 if LONG else 10)}
            for place in (None, *places):
                case = f"{name}-{place}"
                whole[case] = f"{name}-None"
                cutter.cuts[case] = [Cut(place, numbers.choice(HOWS))] if place else []
                jobs.append({"client": "follow", "case": case, "url": cutter.url, "id": one.id})
        told = await drive(packages, *jobs)
    for name, one in ended.items():
        assert told[f"{name}-None"]["events"] == one.events
    wrong = [case for case, one in told.items() if one.get("events") != told[whole[case]]["events"]]
    assert wrong == []
    assert all(one["cuts"] == (case != whole[case]) for case, one in told.items())


async def test_javascripts_helpers_and_the_ai_sdk(
    deployment: Deployment, packages: Path, ended: dict[str, Ended]
) -> None:
    at = {"url": deployment.url}
    kinds, restart = ended["kinds"], ended["restart"]
    told = await drive(
        packages,
        {"client": "helper", "case": "kinds", "id": kinds.id, "after": 5, **at},
        {"client": "helper", "case": "restart", "id": restart.id, "after": restart.numbers[0], **at},
        {"client": "steps", "case": "called", "prompt": CALLING, **at},
        {"client": "steps", "case": "streamed", "prompt": CALLING, "streams": True, **at,
         "options": {"reasoningSummary": "auto"}},
        {"client": "steps", "case": "restarted", "prompt": f"{RESTARTED} JavaScript", **at},
        {"client": "steps", "case": "failed", "prompt": FAILING, **at},
        {"client": "steps", "case": "streams and fails", "prompt": FAILING, "streams": True, **at},
    )  # fmt: skip
    assert told["kinds"]["numbers"] == kinds.numbers[6:]
    assert told["restart"]["numbers"] == restart.numbers[1:]
    assert told["kinds"]["text"] == text_of(kinds.response)
    assert told["restart"]["text"] == text_of(restart.response) == said(7)
    for name in ("called", "streamed"):
        assert told[name]["ran"] == ["Oslo"]
        assert told[name]["text"].startswith("The tools said “sunny in Oslo”.")
        assert told[name]["finishReason"] == "stop"
    assert told["streamed"]["errors"] == []
    assert told["restarted"]["text"] == said(8)
    assert "provider_error: " in told["failed"]["failed"]
    assert told["streams and fails"]["finishReason"] == "error"
    assert told["streams and fails"]["errors"] == ["provider_error: The model provider had an internal error."]


if LONG:  # to import them takes 3 and 4 s of CPU

    def test_openais_agents_run_their_tools_and_show_the_last_attempt_and_so_does_litellm(
        deployment: Deployment, python: Path
    ) -> None:
        told = _driven(python, deployment.url, "agents", "litellm")
        agents = told["agents"]
        assert agents["ran"] == ["Oslo", "Oslo"]
        assert agents["whole"] == agents["streamed"]
        assert agents["whole"].startswith("The tools said “sunny in Oslo”.")
        assert agents["restarted"] == said(8)
        assert told["litellm"] == {"whole": said(8), "restarted": said(8), "last": "response.completed"}


def _driven(python: Path, *arguments: str) -> Told:
    """`LITELLM_…`: its prices come with it; else it asks the internet for newer ones."""
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [str(python), str(Path(__file__).parent / "drive.py"), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    told: Told = json.loads(ran.stdout.splitlines()[-1])
    return told


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """With keys, an archive, and as many signs of life as there can be."""
    folder = tmp_path_factory.mktemp("keyed")
    archive = {"LASTEVENT_ARCHIVE_URL": f"sqlite:///{folder}/archive.db", "LASTEVENT_ARCHIVE_AFTER_S": "0"}
    settings = {"LASTEVENT_API_KEYS": KEY, "LASTEVENT_HEARTBEAT_S": HEARTBEAT_S, **archive}
    settings["LASTEVENT_MAX_REQUEST_BYTES"] = str(REQUEST_BYTES)
    with deployment_in(folder, **settings) as keyed:
        yield keyed


async def test_after_a_workers_death_clients_have_the_new_attempt_alone(keyed: Deployment, packages: Path) -> None:
    async with AsyncOpenAI(base_url=f"{keyed.url}/v1", api_key=KEY, max_retries=0) as client:
        asked = "[[tokens=40 rate=20 ttft_ms=0]]"
        begun = await client.responses.create(model="gpt-5-mini", input=asked, background=True)
        job = {"client": "follow", "case": "js", "url": keyed.urls[1], "key": KEY, "id": begun.id}
        following = asyncio.create_task(follow(client, begun.id))
        driving = asyncio.create_task(drive(packages, job))
        async for event in await client.responses.retrieve(begun.id, stream=True):
            if event.type == "response.output_text.delta":
                break
        keyed.workers[0].kill()
        keyed.workers[0].start()
        events, requests = await following
        told = (await driving)["js"]
    assert told["events"] == events
    assert (requests, told["cuts"]) == (1, 0)
    url = f"{keyed.url}/v1/streams/{begun.id.removeprefix('resp_')}/text"
    assert text_of(events[-1]["response"]) == HTTP.get(url, headers=_bearer(KEY)).text
    statuses = [event["item"]["status"] for event in events if event["type"] == "response.output_item.done"]
    assert statuses == ["incomplete", "completed"]
    numbers = [event["sequence_number"] for event in events]
    [jump] = [after for before, after in pairwise(numbers) if after != before + 1]
    assert jump % NUMBERS == 0


def _bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def test_a_token_shows_what_was_answered_and_nothing_of_what_was_asked(keyed: Deployment) -> None:
    url = f"{keyed.url}/v1/responses"
    asked = {"model": "gpt-5-mini", "input": "[[tokens=3 rate=0 ttft_ms=0]]", "instructions": SECRET}
    response = HTTP.post(url, json={**asked, "metadata": {"note": SECRET}}, headers=_bearer(KEY)).json()
    assert (response["instructions"], response["metadata"]) == (SECRET, {"note": SECRET})
    sid = response["id"].removeprefix("resp_")
    minted = HTTP.post(f"{keyed.url}/v1/tokens", json={"sub": "ann", "streams": [sid]}, headers=_bearer(KEY)).json()
    for query in ("", "?stream=true", "?stream=true&starting_after=3"):
        shown = HTTP.get(f"{url}/{response['id']}{query}", headers={"x-api-key": KEY})
        hidden = HTTP.get(f"{url}/{response['id']}{query}", headers=_bearer(minted["token"]))
        assert SECRET in shown.text
        assert hidden.status_code == 200
        assert SECRET not in hidden.text
        assert said(3) in hidden.text
    in_address = HTTP.get(f"{url}/{response['id']}?access_token={minted['token']}")
    assert in_address.json()["output"] == response["output"]
    assert HTTP.get(f"{url}/{response['id']}/input_items", headers=_bearer(minted["token"])).status_code == 403


def test_from_the_archive_it_says_the_same_bytes_and_is_gone_on_from(keyed: Deployment) -> None:
    def get(server: int, query: str) -> str:
        answer = HTTP.get(f"{keyed.urls[server]}/v1/responses/{response['id']}{query}", headers=_bearer(KEY))
        return answer.raise_for_status().text

    def is_archived() -> bool:
        record = HTTP.get(f"{keyed.url}/v1/streams/{sid}", headers=_bearer(KEY)).json()
        return record["archived_at"] is not None

    asked = {"model": "gpt-5-mini", "input": RESTARTED, "instructions": SECRET}
    response = HTTP.post(f"{keyed.url}/v1/responses", json=asked, headers=_bearer(KEY)).json()
    sid = response["id"].removeprefix("resp_")
    queries = ("", "?stream=true", "?stream=true&starting_after=4", "?stream=true&starting_after=900", "/input_items")
    before = [get(0, query) for query in queries]
    wait_until(is_archived, "it is archived")
    with redis.Redis(unix_socket_path=keyed.redis_url.removeprefix("unix://")) as client:
        client.delete(f"le:{{{sid}}}:log", f"le:{{{sid}}}:meta")
    assert [get(1, query) for query in queries] == before
    next_one = {"model": "gpt-5-mini", "input": "[[tokens=3 rate=0 ttft_ms=0]]", "previous_response_id": response["id"]}
    answer = HTTP.post(f"{keyed.url}/v1/responses", json=next_one, headers=_bearer(KEY)).json()
    assert (answer["previous_response_id"], answer["instructions"]) == (response["id"], None)
    items = HTTP.get(f"{keyed.url}/v1/responses/{answer['id']}/input_items?order=asc", headers=_bearer(KEY)).json()
    assert [item["role"] for item in items["data"]] == ["user", "assistant", "user"]


def test_what_goes_on_is_no_longer_than_any_request(keyed: Deployment) -> None:
    asked = {"model": "gpt-5-mini", "input": "[[tokens=3 rate=0 ttft_ms=0]]" + "x" * (REQUEST_BYTES // 2)}
    url, headers = f"{keyed.url}/v1/responses", _bearer(KEY)
    first = HTTP.post(url, json=asked, headers=headers).json()
    second = HTTP.post(url, json={**asked, "previous_response_id": first["id"]}, headers=headers)
    assert (second.status_code, second.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("headers", [{}, {"api-key": "none"}, {"x-api-key": "one", "api-key": "another"}])
def test_who_has_no_key_is_told_so_as_openai_does(keyed: Deployment, headers: dict[str, str]) -> None:
    answer = HTTP.post(f"{keyed.url}/v1/responses", json={"model": "m", "input": "Hi"}, headers=headers)
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("authentication_error", "unauthorized", None)


def test_all_that_llm_comply_asks_of_a_server(complying: subprocess.Popen[str]) -> None:
    output, errors = complying.communicate(timeout=LIMIT_S)
    told = json.loads(output)
    assert told["summary"] == {"total": 13, "passed": 13, "failed": 0, "skipped": 0}, (output, errors)
