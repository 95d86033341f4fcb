"""A reader that follows: signs of life as often as they may come, a server that drains, and the one after it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.clients.dialects.node import clients_of
from tests.js.cutting import cutting
from tests.rig.deployment import HTTP, Deployment, until, wait_until

JSON = {"Content-Type": "application/json"}
FIRST, SECOND = [{"n": n} for n in range(3)], [{"n": n} for n in range(3, 6)]


def _append(url: str, messages: list[dict[str, int]], **headers: str) -> None:
    for message in messages:
        answer = HTTP.post(url, json=[message], headers={**JSON, **headers})
        assert answer.status_code == 204, answer.text


def _is_ready(url: str) -> bool:
    try:
        return HTTP.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


async def test_a_reader_outlives_the_server_that_it_follows(
    own_deployment: Callable[..., Deployment], packages: Path
) -> None:
    deployment = own_deployment(servers=1, workers=0, LASTEVENT_HEARTBEAT_S="0.02")
    path = f"/v1/ds/{secrets.token_hex(4)}"
    url = f"{deployment.url}{path}"
    assert HTTP.put(url, headers=JSON).status_code == 201
    async with cutting(*deployment.ports) as cutter, clients_of(packages, cutter) as clients:
        reading = clients.begin("read", path, key="", live="sse")
        await until(lambda: clients.requests(reading), "it reads")
        _append(url, FIRST)
        [server] = deployment.servers
        server.stop()
        server.start()
        wait_until(lambda: _is_ready(deployment.url), "the server is back")
        _append(url, SECOND)
        assert HTTP.post(url, headers={"Stream-Closed": "true"}).status_code == 204
        assert (await clients.result(reading))["items"] == [*FIRST, *SECOND]
