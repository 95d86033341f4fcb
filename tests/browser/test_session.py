"""The browser's own EventSource follows a session: cut again and again, it has every event of every answer once."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright

from tests.clients.cutter import Cutter, cutting
from tests.rig.chromium import ARGS
from tests.rig.deployment import Deployment
from tests.rig.long import LONG

pytestmark = pytest.mark.browser

CUTS = 50 if LONG else 4
CASE = "session"
PROMPT = "Grüße aus dem Tunnel 🚇 [[tokens=40 rate=20 ttft_ms=0]]"
FOLLOW = """(url) => {
  window.got = [];
  window.named = [];
  const source = new EventSource(url);
  const note = (event) => got.push([event.lastEventId.slice(event.lastEventId.lastIndexOf(".") + 1), event.type]);
  for (const kind of ["queued", "start", "text_delta", "restart", "done"]) source.addEventListener(kind, note);
  source.addEventListener("stream", (event) => named.push(JSON.parse(event.data).stream));
}"""


@pytest.fixture
async def page(chromium: str) -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser: Browser = await playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield await browser.new_page()
        await browser.close()


async def test_a_session_is_whole_in_a_browser_though_its_connection_is_cut_again_and_again(
    page: Page, deployment: Deployment
) -> None:
    numbers = random.Random(1)
    session = "a browser's"
    async with cutting(deployment.ports[0]) as cutter:
        url = cutter.url(CASE, [numbers.randrange(200, 4000) for _ in range(CUTS)])
        await page.route(f"{url}/", lambda route: route.fulfill(content_type="text/html", body="<!doctype html>"))
        await page.goto(f"{url}/")
        await page.evaluate(FOLLOW, f"{url}/v1/sessions/{session}/events")
        streams = await _answers_until_the_last_cut(deployment, session, cutter)
        expected = {
            sid: [
                [f"{sid}-{event['id']}", event["event"]] for event in await asyncio.to_thread(_log_of, deployment, sid)
            ]
            for sid in streams
        }
        total = sum(map(len, expected.values()))
        await page.wait_for_function("(total) => got.length >= total", arg=total, timeout=60_000)
        got = await page.evaluate("got")
        assert {sid: [one for one in got if one[0].startswith(sid)] for sid in streams} == expected
        assert len(got) == total
        assert set(await page.evaluate("named")) == set(streams)
    assert len(cutter.asked[CASE]) >= CUTS + 1


async def _answers_until_the_last_cut(deployment: Deployment, session: str, cutter: Cutter) -> list[str]:
    """One answer after another, two at a time, until no cut is left."""
    streams: list[str] = []

    async def one_after_another() -> None:
        while cutter.cuts[CASE]:
            sid = await asyncio.to_thread(deployment.create, PROMPT, session_id=session)
            streams.append(sid)
            await asyncio.to_thread(deployment.wait_until_ended, sid)

    async with asyncio.TaskGroup() as group:
        group.create_task(one_after_another())
        group.create_task(one_after_another())
    return streams


def _log_of(deployment: Deployment, sid: str) -> list[dict[str, Any]]:
    return [event for event in deployment.log_of(sid) if "id" in event and not event["event"].startswith("internal.")]
