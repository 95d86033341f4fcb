"""`lastevent/socket` through nginx with docs/nginx.conf: a reload and a killed server cost nothing."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compose.balancer import AUTHORIZED, Balanced
from tests.compose.compose_file import KEY
from tests.js.packages import installed
from tests.js.test_socket import followed, over_socket, sid_of
from tests.rig.deployment import HTTP, until

pytestmark = pytest.mark.npm

STREAMS = 3


@pytest.fixture(scope="session")
def js(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    return installed(tmp_path_factory, require)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_its_streams_are_whole_through_a_reload_of_nginx_and_a_killed_server(
    js: Path, own_balanced: Balanced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("NODE_TLS_REJECT_UNAUTHORIZED", "0")  # the certificate is nobody's
    base = {"ws": own_balanced.nginx.url, "wss": own_balanced.nginx.tls_url}[scheme]
    sids = [own_balanced.create(prompt="[[tokens=4000 rate=40 ttft_ms=0]]")["id"] for _ in range(STREAMS)]

    def here() -> int:
        """Which server they are with."""
        [number] = [n for n, viewers in enumerate(own_balanced.viewers()) if viewers]
        return number

    async with asyncio.TaskGroup() as group:
        said = group.create_task(over_socket(js, tmp_path, base, followed(base, *sids, tokens=[KEY]), pace=5))
        await until(lambda: sum(own_balanced.viewers()) == STREAMS, "they follow")
        own_balanced.nginx.process.send(signal.SIGHUP)
        await until(lambda: sum(own_balanced.viewers()) == 0, "the reload has ended their socket")
        await until(lambda: sum(own_balanced.viewers()) == STREAMS, "they are back")
        killed = here()
        own_balanced.servers[killed].kill()
        url = f"http://127.0.0.1:{own_balanced.ports[1 - killed]}"

        def viewers() -> int:
            page = HTTP.get(f"{url}/metrics", headers=AUTHORIZED).text
            return sum(
                int(float(line.split()[1])) for line in page.splitlines() if line.startswith("lastevent_viewers{")
            )

        await until(lambda: viewers() == STREAMS, "they are with the other one")
        for sid in sids:
            assert HTTP.post(f"{url}/v1/streams/{sid}/cancel", headers=AUTHORIZED).status_code == 200
    for outcome in said.result()["outcomes"]:
        of = f"{url}/v1/streams/{sid_of(outcome)}"
        log: list[Any] = [json.loads(line) for line in HTTP.get(f"{of}/export", headers=AUTHORIZED).text.splitlines()]
        assert outcome["events"] == [[event["id"], event["event"]] for event in log if "event" in event]
        assert (outcome["state"], outcome["text"]) == ("cancelled", HTTP.get(f"{of}/text", headers=AUTHORIZED).text)
    assert said.result()["sockets"] >= 3
    assert said.result()["fetched"] == []
