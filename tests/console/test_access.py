"""For everybody: judged by axe in light on a desktop and dark on a phone, walked through by keyboard alone."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.console.conftest import DESKTOP, Seeds, serious, watched_page
from tests.rig.deployment import wait_until
from tests.rig.long import LONG

pytestmark = pytest.mark.browser

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": DESKTOP},
    "dark phone": {"color_scheme": "dark", **PHONE},
}
if LONG:
    LOOKS |= {"dark": {"color_scheme": "dark", "viewport": DESKTOP}, "phone": {"color_scheme": "light", **PHONE}}
COUNT_STOPS = """
() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")]
  .filter((each) => each.checkVisibility() && !each.disabled && each.tabIndex === 0).length
"""
FITS = "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def shown(deployment: Any) -> str:
    """A stream with everything in it that a page can show."""
    seeds = Seeds(deployment)
    return seeds.finished(
        "What is a tide? [[tokens=30 rate=100 ttft_ms=0 thinking=5 cut_at=20]]", session_id="s-axe", user_id="mara"
    )


@pytest.fixture(scope="module", params=LOOKS)
def look(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    with watched_page(browser, **LOOKS[request.param]) as page:
        yield page


def fits(page: Page) -> bool:
    return bool(page.evaluate(FITS))


@pytest.mark.npm
def test_the_playground_is_for_everybody(look: Page, seeds: Seeds, shown: str, axe: str) -> None:
    look.goto(f"{seeds.url}/#/playground")
    expect(look.locator(".notice.empty")).to_be_visible()
    assert serious(look, axe) == []
    assert fits(look)
    look.goto(f"{seeds.url}/#/playground?stream={shown}")
    expect(look.locator(".network")).to_have_text("Complete")
    look.get_by_text("Options").click()
    look.get_by_text("Thinking").click()
    assert serious(look, axe) == []
    assert fits(look)


@pytest.mark.npm
def test_the_sessions_are_for_everybody(look: Page, seeds: Seeds, shown: str, axe: str) -> None:
    seeds.external(("cancelled", {"reason": "x"}), session_id="s-axe")
    seeds.external(("done", {}), session_id="s-axe")
    running = seeds.external(("start", {}), session_id="s-axe", user_id="mara")
    look.goto(f"{seeds.url}/#/sessions?session_id=s-axe&range=custom")
    expect(look.locator("tbody tr .badge.running").first).to_be_visible()
    assert serious(look, axe) == []
    assert fits(look)
    seeds.append(running, ("done", {}))
    look.get_by_label("User", exact=True).fill("nobody at all")
    expect(look.locator(".notice.empty")).to_be_visible()
    assert serious(look, axe) == []


@pytest.mark.npm
def test_the_player_is_for_everybody(look: Page, seeds: Seeds, shown: str, axe: str) -> None:
    seeds.get(f"/v1/streams/{shown}/events", headers={"User-Agent": "curl/8"})
    seen = f"/v1/streams/{shown}/views"
    wait_until(lambda: "curl/8" in seeds.get(seen).text, "the viewer is on record")
    look.goto(f"{seeds.url}/#/stream/{shown}")
    expect(look.locator(".viewer").first).to_be_visible()
    for summary in ("Raw JSON", "Request", "Record"):
        look.get_by_text(re.compile(f"^{summary}")).click()
    look.keyboard.press("Home")
    assert serious(look, axe) == []
    assert fits(look)
    look.unroute_all()


@pytest.mark.npm
def test_dialogs_and_errors_are_for_everybody(look: Page, seeds: Seeds, axe: str) -> None:
    look.goto(f"{seeds.url}/#/stream/{'0' * 32}")
    expect(look.get_by_role("alert")).to_be_visible()
    assert serious(look, axe) == []
    look.get_by_role("button", name="Keyboard shortcuts").click()
    expect(look.get_by_role("dialog")).to_be_visible()
    assert serious(look, axe) == []
    assert fits(look)
    look.get_by_role("button", name="Close").click()


def test_by_keyboard_alone_a_prompt_is_sent_cut_restored_and_replayed(page: Page, seeds: Seeds) -> None:
    page.goto(seeds.url)
    page.keyboard.press("/")
    page.keyboard.insert_text("[[tokens=3000 rate=30 ttft_ms=0]]")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.querySelector('.answer-blocks > .answer-text')?.textContent.length > 20")
    tab_to(page, "Cut the network")
    page.keyboard.press("Enter")
    expect(page.locator(".network")).to_have_text("Network cut")
    page.keyboard.press(" ")
    expect(page.locator(".network")).to_have_text("Connected")
    page.keyboard.press("c")
    expect(page.locator(".network")).to_have_text("Network cut")
    page.keyboard.press("c")
    expect(page.locator(".network")).to_have_text("Connected")
    page.keyboard.press("s")
    expect(page.locator(".network")).to_have_text("Complete")
    tab_to(page, "Open in player")
    page.keyboard.press("Enter")
    expect(page.locator(".stage")).to_be_visible()
    expect(page.locator("h1")).to_be_focused()
    whole = re.fullmatch(r"event (\d+) of \1", page.locator(".place").text_content() or "")
    assert whole
    last = int(whole[1])
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".place")).to_have_text(f"event {last - 1} of {last}")
    page.keyboard.press(" ")
    expect(page.locator(".place")).to_have_text(f"event {last} of {last}")
    page.keyboard.press("e")
    expect(page.get_by_role("listbox")).to_be_focused()
    page.keyboard.press("2")
    expect(page.locator("h1")).to_have_text("Sessions")
    expect(page.locator("tbody tr").first).to_be_visible()
    page.keyboard.press("j")
    expect(page.locator("a.stream-link").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".stage")).to_be_visible()


def tab_to(page: Page, name: str) -> None:
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.textContent") == name:
            return
    pytest.fail(f"Tab does not reach {name}")


@pytest.mark.parametrize("view", ["#/playground?stream={}", "#/sessions?session_id=s-axe", "#/stream/{}"])
def test_tab_goes_round_every_control_is_seen_and_none_is_a_trap(
    page: Page, seeds: Seeds, shown: str, view: str
) -> None:
    page.goto(f"{seeds.url}/{view.format(shown)}")
    expect(page.locator("tbody tr, .answer-ending.error").first).to_be_visible()
    stops = page.evaluate(COUNT_STOPS)
    seen = set()
    for _ in range(stops):
        page.keyboard.press("Tab")
        place, is_marked = page.evaluate(
            """() => {
              const each = document.activeElement;
              const isMarked = [null, "::after"].map((part) => getComputedStyle(each, part)).some((style) =>
                style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2);
              return [[...document.querySelectorAll("*")].indexOf(each), isMarked];
            }"""
        )
        seen.add(place)
        assert is_marked, page.evaluate("() => document.activeElement.outerHTML.slice(0, 200)")
    assert len(seen) == stops


def test_shortcuts_are_listed_and_can_be_switched_off(page: Page, seeds: Seeds) -> None:
    page.goto(f"{seeds.url}/#/sessions")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Go to a stream by its id")
    dialog.get_by_label("Single-key shortcuts").uncheck()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.keyboard.press("1")
    page.keyboard.press("?")
    expect(page.locator("h1")).to_have_text("Sessions")
    page.get_by_role("button", name="Keyboard shortcuts").click()
    dialog.get_by_label("Single-key shortcuts").check()
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    expect(page.locator("h1")).to_have_text("Playground")


def test_typing_is_never_a_shortcut(page: Page, seeds: Seeds) -> None:
    page.goto(seeds.url)
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.focus()
    page.keyboard.type("12?/csr ")
    assert prompt.input_value() == "12?/csr "
    expect(page.locator("h1")).to_have_text("Playground")


def test_nothing_moves_for_who_asks_for_less_motion(browser: Browser, seeds: Seeds) -> None:
    sid = seeds.external(("start", {}), session_id="s-still")
    with watched_page(browser, reduced_motion="reduce") as page:
        page.goto(f"{seeds.url}/#/sessions?session_id=s-still")
        expect(page.locator(".badge.running").first).to_be_visible()
        assert (
            page.evaluate("() => document.getAnimations().filter((each) => each.playState === 'running').length") == 0
        )
    seeds.append(sid, ("done", {}))
