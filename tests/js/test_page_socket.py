"""Streams over one WebSocket in a real page: whatever happens to the page or its network, nothing is missing."""

from __future__ import annotations

import asyncio

import pytest

from tests.js.site import Site
from tests.js.story import Story
from tests.js.tabs import BACK_MS, Browser
from tests.rig.deployment import until
from tests.viewers.producer import Producer

pytestmark = pytest.mark.browser

OTHERS = 7
HURRY = 60


async def test_eight_streams_of_a_page_have_one_connection_and_one_again_after_a_cut(
    browser: Browser, site: Site, story: Story
) -> None:
    """Over HTTP/1.1 the browser itself has six."""
    others = [await Producer.create(site.upstream_port) for _ in range(OTHERS)]
    urls = [f"{site.url}/v1/streams/{other.sid}/events" for other in others]
    tab = await browser.open(site.page(url=story.url, key="chat", socket="/v1/socket", iterate=True, beside=urls))
    for words in ("one ", "two "):
        cursor = await story.say()
        for other in others:
            await other.write(words)
        await tab.reached(cursor)
        reached = "Promise.all(beside.map(({ subscribe }) => new Promise((is) => subscribe((now) => {WHAT && is();}))))"
        await tab.ask(reached.replace("WHAT", f"now.answer.text.endsWith('{words}')"))
        assert site.following == 1
        site.cut()
        await until(lambda: site.following == 1, "they are back")
    for other in others:
        await other.finish()
    texts = await tab.ask("Promise.all(beside.map(async ({ finished }) => (await finished).text))")
    assert texts == ["one two "] * OTHERS
    await story.expect_whole(tab)
    assert {request.path for request in site.asked} == {"/v1/socket"}
    assert len(site.asked) == 3


async def test_offline_and_hidden_a_page_lets_go_of_its_socket_and_comes_back_within_a_second(
    browser: Browser, site: Site, story: Story
) -> None:
    options = {"hurry": HURRY, "silence": HURRY * 40_000}
    tab = await browser.open(site.page(url=story.url, key="chat", socket=f"{site.url}/v1/socket", **options))
    async with story.going_on():
        await tab.reached(story.cursor)
        await browser.context.set_offline(True)
        site.cut()
        await until(lambda: not site.following, "its connection is gone")
        await story.say()
        await browser.context.set_offline(False)
        online_ms = await tab.ms_after("online", story.cursor)
        await tab.hide()
        await until(lambda: not site.following, "it has let go")
        await asyncio.sleep(10 / HURRY)
        await tab.show()
        shown_ms = await tab.ms_after("visibilitychange", story.cursor)
        assert site.following == 1
    await story.expect_whole(tab)
    print(f"everything is there {online_ms:.0f} ms after it is online, {shown_ms:.0f} ms after it is in front")
    assert max(online_ms, shown_ms) < BACK_MS


async def test_a_page_that_is_left_closes_its_socket_and_has_everything_when_it_comes_back(
    browser: Browser, site: Site, story: Story
) -> None:
    tab = await browser.open(site.page(url=story.url, key="chat", socket="/v1/socket"))
    await tab.reached(await story.say())
    await tab.page.goto(f"{site.url}/empty.html")
    await until(lambda: not site.following, "it is closed")
    await story.say()
    await tab.page.go_back()
    await tab.reached(story.cursor)
    await story.expect_whole(tab)
