"""The client in a real page: whatever happens to the page or its network, what it shows in the end is the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import count
from statistics import median

import pytest
from playwright.async_api import Error

from tests.js.site import Site, site_of
from tests.js.story import Story
from tests.js.tabs import BACK_MS, Browser
from tests.rig.deployment import HTTP, Deployment, until
from tests.rig.long import LONG
from tests.viewers.producer import Producer
from tests.viewers.viewer import viewers_connected

pytestmark = pytest.mark.browser

PAINTED_MS = 50 if LONG else 1000  # five tests at once, on two cores
TIMES_OFFLINE = 10
RELOADS = 20
CORE = ("calls", "env", "error", "fold", "frames", "index", "kept", "loop", "partial", "stream", "tabs")
FLOOD, FLOOD_BYTES = 80, 95_000  # in all twice what was found to lie between a server and a stalled page
STALL_S = 60 if LONG else 1


async def test_offline_and_online_ten_times_the_page_is_back_within_a_second_and_the_text_is_whole(
    browser: Browser, site: Site, story: Story
) -> None:
    tab = await browser.open(site.page(url=story.url, key="chat", iterate=True))
    took_ms = []
    async with story.going_on():
        for _ in range(TIMES_OFFLINE):
            await tab.reached(story.cursor)
            await browser.context.set_offline(True)
            site.cut()
            await until(lambda: not site.following, "its connection is gone")
            await story.say()
            await browser.context.set_offline(False)
            took_ms.append(await tab.ms_after("online", story.cursor))
    await story.expect_whole(tab)
    ids = (await tab.noted())["ids"]
    assert ids == sorted(set(ids))
    print(f"online again, and everything is there after {max(took_ms):.0f} ms at most")
    assert median(took_ms) < 1000, "however busy this machine is"
    assert max(took_ms) < BACK_MS


async def test_hidden_for_two_minutes_the_page_lets_go_and_in_front_again_it_is_complete_within_a_second(
    browser: Browser, site: Site, story: Story
) -> None:
    hurry = 1 if LONG else 60
    tab = await browser.open(site.page(url=story.url, key="chat", hurry=hurry, silence=hurry * 40_000))
    async with story.going_on(every_s=0.1):
        await tab.reached(story.cursor)
        await tab.hide()
        await asyncio.sleep(120 / hurry)
        assert not site.following
        await tab.show()
        took_ms = await tab.ms_after("visibilitychange", story.cursor)
    await story.expect_whole(tab)
    print(f"in front again, and everything is there after {took_ms:.0f} ms")
    assert took_ms < BACK_MS
    assert len(site.asked) == 2


async def test_a_frozen_page_has_let_go_and_in_front_again_it_is_complete_within_a_second(
    browser: Browser, site: Site, story: Story
) -> None:
    tab = await browser.open(site.page(url=story.url, key="chat"))
    await tab.reached(await story.say())
    await tab.hide()
    await tab.freeze()
    await until(lambda: not site.following, "it has let go")
    kept = json.loads(await tab.ask("localStorage.getItem('lastevent:chat')"))
    assert kept["answer"]["cursor"] == story.cursor
    await story.say()
    await tab.resume()
    await tab.show()
    took_ms = await tab.ms_after("visibilitychange", story.cursor)
    await story.expect_whole(tab)
    assert took_ms < BACK_MS
    assert len(site.asked) == 2


async def test_reloaded_in_the_middle_twenty_times_the_page_shows_what_it_had_before_it_asks_for_more(
    browser: Browser, site: Site, story: Story
) -> None:
    tab = await browser.open(site.page(url=story.url, key="chat"))
    took_ms = []
    async with story.going_on():
        for _ in range(RELOADS):
            await tab.reached(await story.say())
            shown = await tab.page.text_content("#text")
            await tab.page.reload()
            await tab.reached(story.cursor)
            noted = await tab.noted()
            first, *others = noted["requests"]
            assert shown
            assert first["text"].startswith(shown)
            assert not others
            took_ms.append(noted["paintedAt"] - noted["openedAt"])
    await story.expect_whole(tab)
    print(f"painted after {max(took_ms):.1f} ms at most")
    assert max(took_ms) < PAINTED_MS
    assert len(site.asked) == 1 + RELOADS


async def test_stalled_tabs_that_the_server_has_cut_are_complete_once_they_go_on(
    browser: Browser, own_deployment: Callable[..., Deployment]
) -> None:
    """Of one an iterator takes nothing, of the other the thread is held."""
    settings = {} if LONG else {"LASTEVENT_VIEWER_STALL_S": f"{STALL_S}", "LASTEVENT_HEARTBEAT_S": "1"}
    deployment = own_deployment(servers=1, workers=0, **settings)
    producer = await Producer.create(deployment.ports[0])
    numbers = count()

    async def say() -> None:
        await producer.write(f"{next(numbers)} " + "x" * FLOOD_BYTES)

    async def are_cut() -> bool:
        """However much room the network has today, there is more to say than it takes."""
        await say()
        return viewers_connected(deployment.url) == 0

    for _ in range(FLOOD):
        await say()
    stream = f"/v1/streams/{producer.sid}"
    async with site_of(deployment.ports[0]) as site:
        site.pace_s = 0.005
        page = {"url": f"{site.url}{stream}/events", "unseen": True, "hidden": "follow"}
        takes_one = await browser.open(site.page(**page, key="one", iterate=1))
        held = await browser.open(site.page(**page, key="other", held=True))
        await until(lambda: viewers_connected(deployment.url) == 2, "they follow")
        await until(are_cut, "the server has cut them", limit_s=240, every_s=STALL_S / 20)
        await producer.finish()
        assert len(site.asked) == 2
        await takes_one.ask("go()")
        site.free.set()
        text = HTTP.get(f"{deployment.url}{stream}/text").text
        await takes_one.expect(text)
        await held.expect(text)
        await browser.leave_all()
    assert len(text) > FLOOD * FLOOD_BYTES
    assert len(site.asked) == 4


async def test_the_sources_are_plain_modules_and_break_no_rule_of_a_strict_policy(
    browser: Browser, site: Site, story: Story
) -> None:
    tab = await browser.open(site.page(url=story.url, key="chat", share=True))
    await story.say()
    await story.expect_whole(tab)  # and no violation
    loaded = await tab.ask("performance.getEntriesByType('resource').map(({ name }) => new URL(name).pathname)")
    sources = {path for path in loaded if path.startswith("/lastevent/")}
    assert sources == {f"/lastevent/{name}.js" for name in CORE}

    with pytest.raises(Error, match="Failed to fetch"):
        await tab.ask(f"fetch('http://localhost:{site.port}/page.html')")
    assert (await tab.noted())["errors"] == [f"connect-src: http://localhost:{site.port}/page.html"]
