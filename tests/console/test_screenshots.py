"""The pictures in docs/: LASTEVENT_SCREENSHOTS=1 .venv/bin/python -m pytest tests/console/test_screenshots.py

/views and /verify are new in the API: they are answered here until the server does.
"""

import os
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.console.conftest import Seeds, watched_page
from tests.deployment import Deployment, wait_until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif("LASTEVENT_SCREENSHOTS" not in os.environ, reason="draws the pictures in docs/ anew"),
]

DOCS = Path(__file__).parents[2] / "docs"
MAX_BYTES = 200_000
TIDES = "How do tides work, and why are there two a day?"
SAFARI = "Mozilla/5.0 (iPhone) AppleWebKit/605 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1"


def test_the_pictures(browser: Browser, own_deployment: Callable[..., Deployment]) -> None:
    deployment = own_deployment(servers=1)
    seeds = Seeds(deployment)
    restarted = restarted_stream(seeds)
    others(seeds)
    with watched_page(browser) as page:
        playground(page, seeds)
        sessions(page, seeds)
        player(page, seeds, restarted)


def restarted_stream(seeds: Seeds) -> str:
    """Its worker is killed in the middle of it, and another one begins again."""
    prompt = f"{TIDES} [[tokens=130 rate=40 thinking=20 ttft_ms=400]]"
    sid = seeds.running(prompt, session_id="s-sailing-school", user_id="mara@example.org")
    wait_until(lambda: seeds.get(f"/v1/streams/{sid}").json()["last_event_id"] > 70, "it is in the middle")
    (worker,) = seeds.deployment.workers
    worker.kill()
    worker.start()
    seeds.deployment.wait_until_ended(sid)
    return sid


def others(seeds: Seeds) -> None:
    seeds.finished(
        "And at the equator? [[tokens=90 rate=90]]", session_id="s-sailing-school", user_id="mara@example.org"
    )
    seeds.finished(
        "Summarise the incident of 14 November. [[tokens=40 rate=60]]", session_id="s-ops", user_id="oncall-2"
    )
    seeds.finished(
        "A letter to the harbour master. [[tokens=60 rate=90 error_at=20]]", session_id="s-letters", user_id="jo"
    )
    done = ("done", {"stop_reason": "end_turn"})
    tools = [
        (kind, {"tool_call_id": "t", "tool": "invoices.search", "duration_ms": 9})
        for kind in ("tool_start", "tool_end")
    ]
    seeds.external(("start", {}), *tools, ("text_delta", {"text": "Three are open."}), done, session_id="s-agents")
    cancelled = seeds.running("Translate the whole manual. [[tokens=900 rate=30]]", session_id="s-manual", user_id="jo")
    wait_until(lambda: seeds.get(f"/v1/streams/{cancelled}").json()["first_text_at"], "it has begun")
    seeds.post(f"/v1/streams/{cancelled}/cancel", {"reason": "user left"})
    seeds.running("Plan a week on the water for six people. [[tokens=900 rate=30]]", session_id="s-crew", user_id="ada")


def playground(page: Page, seeds: Seeds) -> None:
    page.goto(seeds.url)
    page.get_by_label("Prompt", exact=True).fill(f"{TIDES} [[tokens=400 rate=70 thinking=25]]")
    page.get_by_role("button", name="Send").click()
    for events in (130, 290):
        until_cursor(page, events)
        page.get_by_role("button", name="Cut the network").click()
        sid = page.url.partition("stream=")[2]
        last = seeds.get(f"/v1/streams/{sid}").json()["last_event_id"]
        wait_until(
            lambda sid=sid, last=last: seeds.get(f"/v1/streams/{sid}").json()["last_event_id"] > last + 60, "it runs"
        )
        if events == 130:
            page.get_by_role("button", name="Restore the network").click()
    take(page, "playground")
    page.get_by_role("button", name="Stop").click()


def until_cursor(page: Page, events: int) -> None:
    at_least = "(events) => Number(document.querySelector('[data-metric=cursor]').textContent) >= events"
    page.wait_for_function(at_least, arg=events)


def sessions(page: Page, seeds: Seeds) -> None:
    page.goto(f"{seeds.url}/#/sessions")
    expect(page.locator("tbody tr .badge.running").first).to_be_visible()
    take(page, "sessions")


def player(page: Page, seeds: Seeds, sid: str) -> None:
    record = seeds.get(f"/v1/streams/{sid}").json()
    tail = record["last_event_id"]
    phone = {"who": "key:1a2b3c4d", "user_agent": SAFARI}
    views = [
        view(record, 0.01, 0.12, "vanished", requested=0, first_id=1, last_id=58, **phone),
        view(record, 0.3, 1, "finished", requested=58, first_id=59, last_id=tail, **phone),
        view(
            record,
            0.05,
            0.6,
            "left",
            requested=0,
            first_id=1,
            last_id=91,
            who="token",
            user_agent="python-httpx/0.28.1",
        ),
    ]
    seal = {"number": 1841, "sealed_at": record["finished_at"], "hash": "c0ffee51de04c9a1b2c3d4e5f6071829"}
    verified = {"id": sid, "verdict": "verified", "seal": seal, "findings": []}
    page.route("**/views", lambda route: route.fulfill(json={"views": views, "next": None}))
    page.route("**/verify", lambda route: route.fulfill(json=verified))
    page.goto(f"{seeds.url}/#/stream/{sid}")
    expect(page.locator(".viewer")).to_have_count(3)
    page.get_by_role("button", name=re.compile("Restart")).click()
    for _ in range(75):
        page.keyboard.press("ArrowRight")
    page.locator("h1").focus()
    take(page, "player")


def view(record: dict[str, Any], opened: float, closed: float, how: str, **more: Any) -> dict[str, Any]:
    start, end = (datetime.fromisoformat(record[name]) for name in ("created_at", "finished_at"))

    def at(part: float) -> str:
        return (start + timedelta(seconds=(end - start).total_seconds() * part)).isoformat()

    return {"id": str(opened), "opened_at": at(opened), "closed_at": at(closed), "how": how, **more}


def take(page: Page, name: str) -> None:
    picture = page.screenshot(path=DOCS / f"{name}.png")
    assert len(picture) < MAX_BYTES
