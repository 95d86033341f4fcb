"""More tabs than a browser makes connections to one server: over HTTP/1.1 it makes six, for all of them together."""

import pytest
from playwright.sync_api import Browser, Page, expect
from redis import Redis

from tests.console.conftest import DESKTOP, NOTES_VIOLATIONS, PATIENCE_MS, Seeds
from tests.console.test_playground import MORE_THAN_A_RING, answer, until_ended, until_text, words

pytestmark = pytest.mark.browser

TABS = 8
CAN_BE_HIDDEN = """
let hidden = false;
Object.defineProperty(document, "hidden", { get: () => hidden });
window.hide = (is) => {
  if (hidden === is) return;
  hidden = is;
  document.dispatchEvent(new Event("visibilitychange"));
};
"""
"""Chromium without windows shows all its tabs at once, so here the test is the window.

As a window, it says nothing to a tab that stays in front: that one would take a silent connection for a dead one.
"""


def test_eight_tabs_share_six_connections_and_each_continues_where_it_was(browser: Browser, seeds: Seeds) -> None:
    context = browser.new_context(viewport=DESKTOP)
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script(NOTES_VIOLATIONS + CAN_BE_HIDDEN)
    sid = seeds.external(("start", {}), ("text_delta", {"text": "first "}))
    tabs: list[Page] = []
    for number in range(TABS):
        tab = context.new_page()
        view = "stream/" if number % 2 else "playground?stream="
        tab.goto(f"{seeds.url}/#/{view}{sid}")
        until_text(tab, len("first "))
        tab.evaluate("hide(true)")
        tabs.append(tab)
    seeds.append(sid, ("text_delta", {"text": "second "}))
    assert {answer(tab) for tab in tabs} == {"first "}

    for tab in tabs[:3]:
        tab.evaluate("hide(false)")
        until_text(tab, len("first second "))
    tabs[1].get_by_role("button", name="Cancel").click()
    for tab in tabs:
        tab.evaluate("hide(false)")
        expect(tab.locator(".answer-ending")).to_contain_text("Cancelled: stopped in the console")
        assert answer(tab) == seeds.text(sid)
        assert tab.evaluate("violations") == []
    until_ended(tabs[0])
    assert tabs[0].locator(".connections li").all_text_contents() == [
        "from the start3 replayed · 0 live · hidden",
        "after 31 replayed · 1 live · ended",
    ]
    context.close()


def test_of_a_log_with_a_gap_the_player_shows_what_is_left(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(("start", {}), *words(1, 20))
    page.goto(seeds.url)
    page.evaluate(CAN_BE_HIDDEN)
    page.evaluate(f"location.hash = '#/stream/{sid}'")
    expect(page.locator(".place")).to_have_text("event 22 of 22")
    page.evaluate("hide(true)")
    with Redis.from_url(seeds.deployment.redis_url) as redis:
        (key,) = redis.keys(f"*{{{sid}}}:log")
        redis.xdel(key, "22-0")
    seeds.append(sid, *[("text_delta", {"text": "."})] * MORE_THAN_A_RING)
    page.evaluate("hide(false)")
    seeds.append(sid, ("done", {}))
    whole = f"{22 + MORE_THAN_A_RING + 1:,}"
    expect(page.locator(".place")).to_have_text(f"event {whole} of {whole}")


def test_a_tab_that_opens_hidden_waits_until_it_is_seen(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(("start", {}), ("text_delta", {"text": "here"}))
    page.goto(seeds.url)
    page.evaluate(CAN_BE_HIDDEN)
    page.evaluate("hide(true)")
    page.evaluate(f"location.hash = '#/playground?stream={sid}'")
    expect(page.locator(".network")).to_have_text("Paused")
    assert answer(page) == ""
    page.evaluate("hide(false)")
    until_text(page, len("here"))
    seeds.append(sid, ("done", {}))
    until_ended(page)
