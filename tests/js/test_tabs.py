"""Tabs with `share: true` in a real Chromium, over HTTP/1.1, of which a browser opens six connections to a host."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest

from tests.js.site import Site
from tests.js.story import Story
from tests.js.tabs import Browser, Tab
from tests.rig.deployment import HTTP, until

pytestmark = pytest.mark.browser

TABS = 7
FEW = 2
REPLACED_MS = 1000
HURRY = 60
"""Times as fast as timers run, where a test waits for a hidden tab to let go."""


async def opened(browser: Browser, site: Site, story: Story, many: int = FEW, **options: object) -> list[Tab]:
    """The last one is in front, and leads. No other lets go, however slowly they open."""
    page = site.page(**{"url": story.url, "key": "chat", "share": True, "hidden": "follow", **options})
    tabs = []
    for _ in range(many):
        asked = len(site.asked) + 1
        tabs.append(await browser.open(page))
        await until(partial(has_asked, site, asked), "it leads")  # who is robbed before has not asked
    await follow(site, many if "lockless" in options else 1)
    await all_reached(tabs, story.cursor)
    return tabs


async def follow(site: Site, many: int) -> None:
    """So many tabs, and those before have let go."""
    await until(lambda: site.following == many, f"{many} follow")


async def all_reached(tabs: list[Tab], cursor: int) -> None:
    await asyncio.gather(*(tab.reached(cursor) for tab in tabs))


async def states(tabs: list[Tab]) -> list[str]:
    return [await tab.ask("stream.connection.state") for tab in tabs]


async def are(tabs: list[Tab], wanted: list[str]) -> bool:
    return await states(tabs) == wanted


async def hold(tab: Tab, site: Site) -> None:
    """Its thread, until the site lets it go on."""
    await tab.ask("hold()")
    await until(lambda: site.held, "it is held")


def has_asked(site: Site, times: int) -> bool:
    return len(site.asked) >= times


async def test_seven_tabs_follow_over_one_connection(browser: Browser, site: Site, story: Story) -> None:
    async with story.going_on():
        tabs = await opened(browser, site, story, TABS)
        for _ in range(3):
            await all_reached(tabs, await story.say())
            assert site.following == 1
        assert await states(tabs) == ["listening"] * (TABS - 1) + ["open"]
        assert len(site.asked) == TABS  # each of them came to the front once
    await story.expect_whole(*tabs)
    assert len(site.asked) < 2 * TABS  # who has the lock before it hears of the ending asks for it


async def test_a_tab_that_opens_in_the_middle_and_one_that_is_loaded_again_have_all_of_it(
    browser: Browser, site: Site, story: Story
) -> None:
    async with story.going_on():
        tabs = await opened(browser, site, story)
        behind = await browser.open(site.page(url=story.url, key="chat", share=True, storage=None), in_front=False)
        await behind.reached(await story.say())
        await tabs[0].page.reload()
        await all_reached([behind, *tabs], await story.say())
        assert await states([behind, *tabs]) == ["listening"] * FEW + ["open"]
        assert len(site.asked) == FEW
    await story.expect_whole(behind, *tabs)


async def test_a_leader_that_is_closed_is_replaced_within_a_second(browser: Browser, site: Site, story: Story) -> None:
    async with story.going_on():
        *others, leader = await opened(browser, site, story)
        await browser.close(leader)
        await all_reached(others, await story.say())
        await follow(site, 1)
        took_ms = 1000 * (site.asked[-1].at - site.left_at[-1])
    await story.expect_whole(*others)
    print(f"a closed leader is replaced after {took_ms:.0f} ms")
    assert took_ms < REPLACED_MS


async def test_a_leader_whose_thread_is_held_is_replaced_once_another_tab_comes_to_the_front(
    browser: Browser, site: Site, story: Story
) -> None:
    async with story.going_on():
        *others, leader = await opened(browser, site, story, 3)
        await hold(leader, site)
        await story.say()
        await browser.front(others[0])
        took_ms = await others[0].ms_after("visibilitychange", await story.say())
        await all_reached(others, story.cursor)
        site.free.set()
        await leader.reached(await story.say())
        await follow(site, 1)
        assert await states([*others, leader]) == ["open", "listening", "listening"]
    await story.expect_whole(*others, leader)
    print(f"a held leader is replaced {took_ms:.0f} ms after another tab came to the front")
    assert took_ms < REPLACED_MS


async def test_a_leader_that_was_held_until_the_end_leaves_the_end_in_the_storage(
    browser: Browser, site: Site, story: Story
) -> None:
    other, leader = await opened(browser, site, story)
    await all_reached([other, leader], await story.say())
    await hold(leader, site)
    await story.say()
    await browser.front(other)
    text = await story.end()
    await other.expect(text)
    site.free.set()
    await leader.expect(text)
    kept = json.loads(await other.ask("localStorage.getItem('lastevent:chat')"))
    assert (kept["answer"]["state"], kept["answer"]["text"]) == ("done", text)


async def test_tabs_that_take_the_lead_from_each_other_on_a_slow_network_show_each_word_once(
    browser: Browser, site: Site, story: Story
) -> None:
    """Every other one loses it while it connects. What it is told meanwhile will be on its connection too: in other
    pieces, since the server joins those that lie there."""
    async with story.going_on():
        tabs = await opened(browser, site, story, 3)
        site.latency_s = 0.2
        for n, tab in enumerate(tabs * 2):
            asked = len(site.asked) + 1
            await browser.front(tab)
            await until(partial(has_asked, site, asked), "it connects")
            if n % 2:
                await tab.reached(await story.say())
    await story.expect_whole(*tabs)


async def test_what_an_old_leader_says_late_is_not_taken_by_the_new_one(
    browser: Browser, site: Site, story: Story
) -> None:
    listener, leader = await opened(browser, site, story)
    site.latency_s = 0.5
    site.cut()
    await story.say()
    await until(lambda: has_asked(site, 3), "the leader asks once more, from cursor 1")
    old = await browser.open(f"{site.url}/empty.html", in_front=False)
    event = {"id": 2, "event": "text_delta", "data": {"text": "1 "}}
    await old.ask(
        "([url, event]) => new BroadcastChannel(`lastevent:chat::${url}`).postMessage({from: 1, event})",
        [story.url, event],
    )
    await listener.reached(2)
    await all_reached([listener, leader], story.cursor)
    await story.expect_whole(listener, leader)


async def test_two_tabs_in_front_do_not_rob_each_other(browser: Browser, site: Site, story: Story) -> None:
    async with story.going_on():
        tabs = await opened(browser, site, story)
        await tabs[0].show()
        await all_reached(tabs, await story.say())
        assert [await tab.ask("document.visibilityState") for tab in tabs] == ["visible", "visible"]
        asked = len(site.asked)
        for _ in range(5):
            await all_reached(tabs, await story.say())
        assert len(site.asked) == asked
        await browser.context.set_offline(True)
        site.cut()
        await browser.context.set_offline(False)
        await all_reached(tabs, await story.say())
        await follow(site, 1)
    await story.expect_whole(*tabs)


async def test_a_hidden_tab_that_let_go_still_hears_and_leads_when_it_is_in_front(
    browser: Browser, site: Site, story: Story
) -> None:
    async with story.going_on():
        tabs = await opened(browser, site, story, hidden="let-go", hurry=HURRY, silence=HURRY * 40_000)
        for tab in tabs:
            await tab.hide()
        await until(partial(are, tabs, ["away", "away"]), "all have let go")
        await until(lambda: not site.following, "and their connections are gone")
        await tabs[1].show()
        await all_reached(tabs, await story.say())
        assert await states(tabs) == ["away", "open"]
        await browser.front(tabs[0])
        await all_reached(tabs, await story.say())
        await follow(site, 1)
    await story.expect_whole(*tabs)


async def test_a_leader_that_fails_leaves_the_others_to_follow(browser: Browser, site: Site, story: Story) -> None:
    site.refused = "an old token"
    page = {"url": story.url, "key": "chat", "share": True}
    async with story.going_on():
        tabs = [await browser.open(site.page(**page)) for _ in range(2)]
        failed = await browser.open(site.page(**page, token=site.refused))
        with pytest.raises(Exception, match="401"):
            await failed.ask("stream.finished")
        await all_reached(tabs, await story.say())
        assert await states(tabs) == ["open", "listening"]
    await story.expect_whole(*tabs)


@pytest.mark.parametrize("who", ["leader", "listener"])
async def test_one_that_is_stopped_leaves_the_others_to_follow(
    browser: Browser, site: Site, story: Story, who: str
) -> None:
    async with story.going_on():
        tabs = await opened(browser, site, story)
        stopped = tabs.pop(-1 if who == "leader" else 0)
        await stopped.ask("stream.stop()")
        text = await stopped.ask("stream.answer.text")
        await all_reached(tabs, await story.say())
        await follow(site, 1)
        assert len(site.asked) == FEW + (who == "leader")
    await story.expect_whole(*tabs)
    assert await stopped.ask("[stream.answer.text, stream.connection.state]") == [text, "stopped"]


async def test_what_one_tab_has_started_the_others_follow_by_the_storage_alone(browser: Browser, site: Site) -> None:
    page = {"key": "chat", "share": True}
    body = {"prompt": "[[tokens=10000 rate=30 ttft_ms=0]]"}
    starts = await browser.open(site.page(**page, url=f"{site.url}/v1/streams", body=body))
    await starts.reached(3)
    others = []
    for asked in (2, 3):
        others.append(await browser.open(site.page(**page)))
        await until(partial(has_asked, site, asked), "it leads")
    await all_reached([starts, *others], 40)
    await follow(site, 1)
    await starts.ask("stream.cancel()")
    ended = [await tab.ask("stream.finished.then(({text, state}) => [text, state])") for tab in (starts, *others)]
    path = (await starts.ask("stream.url")).removeprefix(site.url).replace("/events", "/text")
    text = HTTP.get(f"http://127.0.0.1:{site.upstream_port}{path}").text
    assert ended == [[text, "cancelled"]] * 3
    assert len(text.split()) > 30
    methods = [asked.method for asked in site.asked]
    assert methods[:4] == ["POST", "GET", "GET", "POST"]
    assert methods[4:] in ([], ["GET"], ["GET", "GET"])  # who has the lock before it hears of the ending asks for it


async def test_a_page_that_is_left_keeps_no_lock_no_channel_and_no_connection_and_follows_when_it_is_back(
    browser: Browser, site: Site, story: Story
) -> None:
    """What would keep it out of the back/forward cache, which the browser without windows has not."""
    other, left = await opened(browser, site, story)
    await other.ask("stream.stop()")
    await left.ask("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    await until(lambda: not site.following, "it has let go")
    assert await other.ask("navigator.locks.query().then(({ held, pending }) => [...held, ...pending])") == []
    event = {"id": story.cursor + 1, "event": "text_delta", "data": {"text": "not said"}}
    await other.ask(
        "([url, from, event]) => new BroadcastChannel(`lastevent:chat::${url}`).postMessage({from, event})",
        [story.url, story.cursor, event],
    )
    await story.say()
    await left.ask("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    assert await left.ms_after("pageshow", story.cursor) < REPLACED_MS
    await story.expect_whole(left)


async def test_where_locks_are_refused_each_tab_follows_by_itself(browser: Browser, site: Site, story: Story) -> None:
    """As in a sandboxed frame."""
    async with story.going_on():
        tabs = await opened(browser, site, story, lockless=True)
        await all_reached(tabs, await story.say())
        assert site.following == 2
        assert await states(tabs) == ["open", "open"]
    await story.expect_whole(*tabs)
