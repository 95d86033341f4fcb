"""Draws the pictures in docs/ anew, over a real archive: .venv/bin/python -m pytest tests/console/pictures.py"""

import re
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.console.conftest import Seeds, watched_page
from tests.rig.deployment import Deployment, wait_until

pytestmark = pytest.mark.browser

DOCS = Path(__file__).parents[2] / "docs"
MAX_BYTES = 200_000
TIDES = "How do tides work, and why are there two a day?"
SCRIPT = "python-httpx/0.28.1"
SAFARI = "Mozilla/5.0 (iPhone) AppleWebKit/605 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1"


def test_the_pictures(browser: Browser, own_deployment: Callable[..., Deployment], tmp_path: Path) -> None:
    archive = {"LASTEVENT_ARCHIVE_URL": f"sqlite:///{tmp_path}/archive.db", "LASTEVENT_ARCHIVE_AFTER_S": "0"}
    deployment = own_deployment(servers=1, **archive)
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
    watching = [Thread(target=phone, args=(seeds, sid)), Thread(target=follow, args=(seeds, sid, SCRIPT, 0, 91))]
    for viewer in watching:
        viewer.start()
    wait_until(lambda: seeds.get(f"/v1/streams/{sid}").json()["last_event_id"] > 70, "it is in the middle")
    (worker,) = seeds.deployment.workers
    worker.kill()
    worker.start()
    seeds.deployment.wait_until_ended(sid)
    for viewer in watching:
        viewer.join()
    return sid


def phone(seeds: Seeds, sid: str) -> None:
    """It loses its network after event 58, and comes back when the generation has begun again."""
    follow(seeds, sid, SAFARI, 0, 58)
    wait_until(lambda: seeds.get(f"/v1/streams/{sid}").json()["attempt"] == 2, "it has begun again")
    follow(seeds, sid, SAFARI, 58, None)


def follow(seeds: Seeds, sid: str, user_agent: str, cursor: int, last: int | None) -> None:
    headers = {"User-Agent": user_agent, "Last-Event-ID": str(cursor)}
    with httpx.stream("GET", f"{seeds.url}/v1/streams/{sid}/events", headers=headers, timeout=60) as answer:
        for line in answer.iter_lines():
            if line == f"id: {last}":
                return


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
    expect(page.locator("tbody tr .prompt:empty")).to_have_count(0)
    take(page, "sessions")


def player(page: Page, seeds: Seeds, sid: str) -> None:
    wait_until(lambda: seeds.get(f"/v1/streams/{sid}/verify").json()["verdict"] == "verified", "it is sealed")
    wait_until(lambda: all(view["how"] for view in seeds.get(f"/v1/streams/{sid}/views").json()["views"]), "all left")
    page.goto(f"{seeds.url}/#/stream/{sid}")
    expect(page.locator(".viewer")).to_have_count(3)
    page.get_by_role("button", name=re.compile("Restart")).click()
    for _ in range(75):
        page.keyboard.press("ArrowRight")
    page.locator("h1").focus()
    take(page, "player")


def take(page: Page, name: str) -> None:
    picture = page.screenshot(path=DOCS / f"{name}.png")
    assert len(picture) < MAX_BYTES
