"""An app that stops a stream: nothing is sent from then on, and the server knows that nobody follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.js.cutting import cutting
from tests.js.following import run
from tests.rig.deployment import Deployment
from tests.viewers.producer import Producer

pytestmark = pytest.mark.npm


async def test_whatever_is_awaited_when_a_stream_is_stopped_nothing_is_sent_any_more(
    js: Path, deployment: Deployment
) -> None:
    """The program ends by itself: what it would have sent later it has sent. (A start waits a second at most for a
    storage; the timer of that goes on.)
    """
    producer = await Producer.create(deployment.ports[0])
    await producer.write("more ", "than ", "one")
    async with cutting(*deployment.ports) as cutter:
        stopped = await run(js, "stopping.mjs", cutter.url, producer.sid)
        asked = {case: len(requests) for case, requests in cutter.asked.items()}
    await producer.finish()
    assert len(stopped) == 13
    assert not any(one["timers"] for one in stopped)
    assert not any(one["changes"] for one in stopped)
    assert asked == {"next bytes": 1, "held": 1}, "where that was what it waited for"


async def test_who_leaves_in_any_way_is_no_follower_any_more(js: Path, deployment: Deployment) -> None:
    """The app goes on, and its streams end as those do that nobody follows; but not the one that it stays with."""
    left = await run(js, "leaving.mjs", deployment.url)
    assert {one["way"]: (one["connection"], one["stream"]) for one in left} == {
        "stop": ("stopped", "cancelled"),
        "signal": ("stopped", "cancelled"),
        "break": ("stopped", "cancelled"),
        "hidden": ("away", "cancelled"),
        "staying": ("ended", "done"),
    }
