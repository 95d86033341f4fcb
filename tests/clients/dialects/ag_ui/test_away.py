"""Redis is away: TanStack AI gives up for good at any status but 200, and comes back after a cut."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.clients.dialects.ag_ui.recorded import PATH, Told, asked
from tests.rig.deployment import HTTP, Deployment

CURSOR = {"Last-Event-ID": "1-0"}


def test_who_has_a_cursor_gets_200_and_a_cut_and_others_the_error(own_deployment: Callable[..., Deployment]) -> None:
    deployment = own_deployment(servers=1, workers=0)
    url, run = f"{deployment.url}{PATH}", {"runId": Told(deployment).sid}
    deployment.valkey.kill()
    for method, more in (("GET", {"params": run}), ("POST", {"json": asked("x", run["runId"])})):
        refused = HTTP.request(method, url, **more)
        assert (refused.status_code, refused.json()["code"]) == (503, "redis_unavailable")
        assert "retry-after" in refused.headers
        with HTTP.stream(method, url, headers=CURSOR, **more) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                answer.read()
