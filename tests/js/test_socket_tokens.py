"""Tokens of streams that share one WebSocket: renewed, revoked, refused, and such that cover only one of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import deployment_in
from tests.js.test_socket import over_socket
from tests.js.test_tokens import KEY, WORDS, Stream
from tests.rig.deployment import HTTP, Deployment, until
from tests.tenants.forge import SECRET

pytestmark = pytest.mark.npm

LIMIT_S = 30
"""Less than the client's patience with a silent server: it must not need that."""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    settings = {"LASTEVENT_API_KEYS": KEY, "LASTEVENT_TOKEN_SECRET": SECRET.decode(), "LASTEVENT_HEARTBEAT_S": "0.3"}
    with deployment_in(tmp_path_factory.mktemp("tokens"), servers=1, workers=0, **settings) as deployment:
        yield deployment


@pytest.fixture
def two(deployment: Deployment) -> list[Stream]:
    return [Stream(deployment), Stream(deployment)]


def viewers(deployment: Deployment) -> int:
    page = HTTP.get(f"{deployment.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    return sum(int(float(number)) for number in re.findall(r"^lastevent_viewers\{.*\} (\S+)$", page, re.MULTILINE))


def times_followed(deployment: Deployment, stream: Stream) -> int:
    url, headers = f"{deployment.url}/v1/streams/{stream.sid}/views", {"Authorization": f"Bearer {KEY}"}
    return len(HTTP.get(url, headers=headers).json()["views"])


async def run(
    js: Path,
    folder: Path,
    deployment: Deployment,
    streams: list[Stream],
    tokens: list[list[str]],
    meanwhile: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """Each stream with its own tokens, which it is given one after the other. They end after `meanwhile`."""
    asked = [
        {"url": f"{deployment.url}{stream.path}?compact=0", "tokens": own}
        for stream, own in zip(streams, tokens, strict=True)
    ]
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        said = group.create_task(over_socket(js, folder, deployment.url, asked, pace=20))
        await until(lambda: viewers(deployment) == len(streams), "they follow")
        if done := meanwhile():
            await done
        for stream in streams:
            stream.finish()
    return said.result()


def require_all_of_it(outcome: dict[str, Any]) -> None:
    assert outcome.get("error") is None
    assert (outcome["text"], outcome["state"]) == ("".join(WORDS), "done")
    assert [event_id for event_id, _ in outcome["events"]] == [1, 2, 3, 4, 5]


async def test_tokens_that_are_about_to_expire_are_renewed_in_the_socket(
    js: Path, tmp_path: Path, deployment: Deployment, two: list[Stream]
) -> None:
    """Each stream has another one, before and after."""
    both = [stream.sid for stream in two]
    tokens = [[stream.token(ends=(31, 31.5), streams=both), stream.token(streams=both)] for stream in two]

    async def renewed() -> None:
        await until(lambda: all(times_followed(deployment, stream) == 2 for stream in two), "both have come back")

    said = await run(js, tmp_path, deployment, two, tokens, renewed)
    for outcome in said["outcomes"]:
        require_all_of_it(outcome)
    assert (said["sockets"], said["fetched"]) == (1, [])
    assert said["whys"] == [[None, "expiring"]] * 2


async def test_a_revoked_token_ends_the_socket_and_the_next_one_is_of_another(
    js: Path, tmp_path: Path, deployment: Deployment, two: list[Stream]
) -> None:
    both = [stream.sid for stream in two]
    old = two[0].token(streams=both, jti=f"of {both[0]}")
    new = two[0].token(streams=both)

    async def revoke() -> None:
        two[0].post("/v1/tokens/revoke", {"jti": f"of {both[0]}"})
        await until(lambda: viewers(deployment) == 0, "they are cut")
        await until(lambda: viewers(deployment) == 2, "they are back")

    said = await run(js, tmp_path, deployment, two, [[old, new]] * 2, revoke)
    for outcome in said["outcomes"]:
        require_all_of_it(outcome)
    assert said["fetched"] == []
    assert said["most"] == 1
    assert said["whys"] == [[None, "refused"]] * 2


async def test_who_is_refused_with_two_tokens_in_a_row_fails_and_its_neighbour_does_not(
    js: Path, tmp_path: Path, deployment: Deployment, two: list[Stream]
) -> None:
    refused, good = two
    old, older = refused.token(ends=(-20, -10)), refused.token(ends=(-40, -30))
    asked = [
        {"url": f"{deployment.url}{refused.path}", "tokens": [old, older]},
        {"url": f"{deployment.url}{good.path}?compact=0", "tokens": [good.token()]},
    ]
    refused.finish()
    good.finish()
    for streams in (asked, asked[::-1]):
        said = await over_socket(js, tmp_path, deployment.url, streams, pace=20)
        outcomes = {bool(outcome.get("error")): outcome for outcome in said["outcomes"]}
        require_all_of_it(outcomes[False])
        assert outcomes[True]["error"] == {"name": "StreamError", "code": "token_expired", "status": 401}
        assert sorted(map(len, said["whys"])) == [1, 2]


async def test_tokens_that_cover_one_stream_each_do_not_displace_each_other_for_ever(
    js: Path, tmp_path: Path, deployment: Deployment, two: list[Stream]
) -> None:
    async def settled() -> None:
        await until(lambda: viewers(deployment) == 2, "both follow again")

    said = await run(js, tmp_path, deployment, two, [[stream.token()] for stream in two], settled)
    for outcome in said["outcomes"]:
        require_all_of_it(outcome)
    assert (said["sockets"], said["said"]["auth"], said["fetched"]) == (1, 2, ["GET /v1/streams/*/events"])


async def test_a_token_of_another_stream_fails_at_once_and_one_in_the_address_goes_by_fetch(
    js: Path, tmp_path: Path, deployment: Deployment, two: list[Stream]
) -> None:
    other, given = two
    given.finish()
    asked = [
        {"url": f"{deployment.url}{other.path}", "tokens": [other.token(streams=["0" * 32])]},
        {"url": f"{deployment.url}{given.record['events_url']}&compact=0"},
    ]
    said = await over_socket(js, tmp_path, deployment.url, asked, pace=20)
    other.finish()
    assert said["outcomes"][0]["error"] == {"name": "StreamError", "code": "stream_not_found", "status": 404}
    require_all_of_it(said["outcomes"][1])
    assert said["fetched"] == ["GET /v1/streams/*/events"]
