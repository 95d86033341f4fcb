"""HTTP/2 from nginx to a browser: tabs that share nothing all follow, where HTTP/1.1 has connections for six."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.compose.balancer import Balanced
from tests.compose.visitor import KeyedProducer, get
from tests.js.site import Site, site_of
from tests.js.tabs import Browser, Tab, browsing
from tests.rig.deployment import Deployment

pytestmark = pytest.mark.browser

TABS = 7


@asynccontextmanager
async def balanced_for(site: Site, deployment: Deployment, folder: Path, certificate: Path) -> AsyncIterator[Balanced]:
    """Pages of the site may read from it, and from nowhere else."""
    balanced = Balanced(deployment, folder, certificate, LASTEVENT_CORS_ORIGINS=site.url)
    site.policy = f"default-src 'none'; script-src 'self'; connect-src {balanced.nginx.tls_url}"
    try:
        balanced.start()
        yield balanced
    finally:
        balanced.stop()


async def test_seven_tabs_of_another_origin_each_follow_by_themselves_over_one_connection(
    deployment: Deployment,
    certificate: Path,
    tmp_path: Path,
    chromium: str,
    require: Callable[[str, str], str],
) -> None:
    require("nginx", "nginx")
    async with (
        site_of(deployment.ports[0]) as site,
        balanced_for(site, deployment, tmp_path, certificate) as balanced,
        browsing(chromium, tmp_path, "--ignore-certificate-errors") as browser,
    ):
        record = balanced.create(producer="external")
        path, _, token = record["events_url"].partition("?token=")
        page = site.page(url=balanced.nginx.tls_url + path, token=token, key="chat")
        answers: list[dict[str, Any]] = []
        tabs = [await opened(browser, page, answers) for _ in range(TABS)]
        producer = KeyedProducer(record, balanced.nginx.port)
        for n in range(20):
            await producer.write(f"{n} ")
        await asyncio.gather(*(tab.reached(producer.last_event_id) for tab in tabs))
        assert sum(balanced.viewers()) == TABS
        await producer.finish()
        text = (await get(balanced.nginx.port, f"/v1/streams/{record['id']}/text")).body.decode()
        for tab in tabs:
            await tab.expect(text)
    assert len(text.split()) == 20
    assert [answer["protocol"] for answer in answers] == ["h2"] * TABS
    assert len({answer["connectionId"] for answer in answers}) == 1


async def opened(browser: Browser, page: str, answers: list[dict[str, Any]]) -> Tab:
    """Adds what the browser says of each answer of the server."""
    tab = await browser.open("about:blank")
    session = await browser.context.new_cdp_session(tab.page)
    await session.send("Network.enable")

    def note(received: dict[str, Any]) -> None:
        if "/events" in received["response"]["url"] and received["type"] == "Fetch":
            answers.append(received["response"])

    session.on("Network.responseReceived", note)
    await tab.page.goto(page)
    return tab
