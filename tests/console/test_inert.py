"""What models and users write is text on every page: no script of theirs runs, no markup of theirs is one, and no
character of theirs turns the page round. The `page` fixture fails on a dialog, a request elsewhere or a violation."""

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import Seeds

pytestmark = pytest.mark.browser

SCRIPT = "<script>alert('script')</script>"
IMAGE = "<img src=x onerror=\"alert('img')\"><svg/onload=alert(1)>"
LINK = "javascript:alert('link')"
OVERRIDE = "\u202egnp.exe\u202c \u2066\u200f"
CONTROLS = "a\u0007b\u001b[31mc\u0085d"
MARKS = "<b id=mark>bold</b> &lt; {{7*7}} ${alert(1)}"
HOSTILE = f"{SCRIPT} {IMAGE} {MARKS} {LINK} {OVERRIDE}"
PLAIN_NAME = f"{IMAGE} {OVERRIDE} {LINK}"[:200]
"""Without control characters, which the API refuses in names."""

CALL = {"tool_call_id": HOSTILE, "tool": HOSTILE}
HOSTILE_AGENTS: list[tuple[str, object]] = [
    ("tool_progress", {**CALL, "message": HOSTILE, HOSTILE: [HOSTILE]}),
    ("internal.tool_args", {**CALL, "args": {HOSTILE: HOSTILE}}),
    ("internal.tool_result", {**CALL, "output": HOSTILE, "error": {"code": HOSTILE, "message": HOSTILE}}),
    ("internal.call_trace", {**CALL, "traceback": HOSTILE}),
    ("internal.tool_start", {"tool_call_id": {}, "tool": [HOSTILE], "title": HOSTILE, "agent": {"a": HOSTILE}}),
    ("agent_start", {"agent": HOSTILE, "parent": HOSTILE}),
    ("agent_text_delta", {"agent": HOSTILE, "text": HOSTILE}),
    ("internal.thinking_delta", {"agent": "__proto__", "text": HOSTILE}),
    ("agent_end", {"agent": HOSTILE, "duration_ms": HOSTILE, "code": HOSTILE}),
    ("internal.turn", dict.fromkeys(("agent", "turn", "provider", "model", "usage", "cost_usd", "calls"), HOSTILE)),
    ("internal.turn", {"agent": "", "turn": [HOSTILE], "calls": [None, HOSTILE, {"id": HOSTILE}]}),
    ("approval_request", {**CALL, "approval_id": HOSTILE, "title": HOSTILE}),
    ("internal.approval", {"approval_id": HOSTILE, "approve": HOSTILE, "reason": HOSTILE, "by": HOSTILE}),
    ("input", {"input_id": HOSTILE, "text": HOSTILE, "interrupt": HOSTILE}),
    ("input", {"data": {HOSTILE: HOSTILE}}),
    ("internal.trace", {"type": HOSTILE, "message": HOSTILE, "traceback": HOSTILE}),
    *((kind, {}) for kind in ("tool_start", "agent_start", "agent_text_delta", "approval_request", "input")),
]

NOTHING_CAME_OF_IT = """
() => {
  const made = ["script", "img", "iframe", "style", "#mark", "svg[onload]"].map((each) => `main ${each}`).join();
  const all = [...document.querySelectorAll("main *")];
  const handlers = all.filter((each) => each.getAttributeNames().some((name) => name.startsWith("on")));
  const leading_away = all.filter((each) => each.hasAttribute("href") && !each.getAttribute("href").startsWith("#"));
  return [document.querySelectorAll(made).length, handlers.length, leading_away.length];
}
"""


def expect_nothing_came_of_it(page: Page) -> None:
    assert page.evaluate(NOTHING_CAME_OF_IT) == [0, 0, 0]


def visible(text: str) -> str:
    """What stands for it on one line (format.js)."""
    names = {
        "\u202e": "⟨RLO⟩",
        "\u202c": "⟨PDF⟩",
        "\u2066": "⟨LRI⟩",
        "\u200f": "⟨RLM⟩",
        "\u0007": "␇",
        "\u001b": "␛",
        "\u0085": "␤",
    }
    return "".join(names.get(character, character) for character in text)


@pytest.fixture(scope="module")
def hostile(deployment: Any) -> str:
    """A stream all of whose strings are an attack."""
    events: list[tuple[str, object]] = [
        ("start", {"model": HOSTILE, "provider": HOSTILE, "attempt": HOSTILE}),
        ("status", {"message": HOSTILE}),
        ("thinking_delta", {"text": HOSTILE}),
        ("tool_start", {"tool_call_id": HOSTILE, "tool": HOSTILE}),
        ("tool_end", {"tool_call_id": HOSTILE, "tool": HOSTILE, "duration_ms": HOSTILE}),
        ("tool_error", {"tool_call_id": "t2", "tool": {"text": HOSTILE}, "duration_ms": 1}),
        *HOSTILE_AGENTS,
        ("text_delta", {"text": HOSTILE}),
        ("text_delta", {"text": {"text": HOSTILE}}),
        ("text_delta", {}),
        ("text_delta", {"text": CONTROLS}),
        ("custom.kind", {HOSTILE: [HOSTILE, {"deep": HOSTILE}]}),
        ("constructor", {"__proto__": HOSTILE}),
        ("error", {"code": HOSTILE, "message": HOSTILE, "recoverable": HOSTILE}),
    ]
    metadata = {HOSTILE: HOSTILE, "__proto__": {"polluted": HOSTILE}}
    return Seeds(deployment).external(*events, session_id=PLAIN_NAME, user_id=PLAIN_NAME, metadata=metadata)


def test_the_policy_is_in_force(page: Page, seeds: Seeds) -> None:
    page.goto(seeds.url)
    thrown = page.evaluate(
        """async () => {
          const attempts = [
            () => { document.querySelector("main").innerHTML = "<b>markup</b>"; },
            () => { document.createElement("script").text = "alert(1)"; },
            () => fetch("http://127.0.0.2:1/"),
          ];
          const thrown = [];
          for (const attempt of attempts) {
            try { await attempt(); } catch (error) { thrown.push(error.name); }
          }
          const inline = document.createElement("div");
          inline.setAttribute("style", "color: red");
          document.body.append(inline);
          thrown.push(inline.style.color);
          return thrown;
        }"""
    )
    assert thrown == ["TypeError", "TypeError", "TypeError", ""]
    stopped = page.evaluate("() => window.violations.splice(0).map((violation) => violation.split(':')[0])")
    assert {"require-trusted-types-for", "connect-src", "style-src-attr"} <= set(stopped)


def test_the_player_shows_every_string_as_it_is(page: Page, seeds: Seeds, hostile: str) -> None:
    said = dict.fromkeys(("id", "who", "address", "forwarded_for", "user_agent", "format", "server", "how"), HOSTILE)
    times = {"opened_at": "2026-11-21T00:00:00Z", "closed_at": "2026-11-21T00:00:01Z"}
    views = [{**said, **times, "requested": 0, "first_id": 1, "last_id": 2}]
    seal = dict.fromkeys(("number", "sealed_at", "tenant", "key", "log", "record", "previous", "hash"), HOSTILE)
    finding = {"what": HOSTILE, "detail": HOSTILE}
    verified = {"id": HOSTILE, "verdict": "broken", "seal": seal, "findings": [finding]}
    # Worse than any server of ours would say it: every field is hostile.
    page.route("**/views", lambda route: route.fulfill(json={"views": views, "next": None}))
    page.route("**/verify", lambda route: route.fulfill(json=verified))
    page.goto(f"{seeds.url}/#/stream/{hostile}")
    expect(page.locator(".stage")).to_be_visible()
    assert "".join(page.locator(".answer-blocks > .answer-text").all_text_contents()) == HOSTILE + CONTROLS
    assert page.locator(".answer-thinking .answer-text").all_text_contents() == [HOSTILE] * 2
    expect(page.locator(".answer-ending")).to_have_text(f"Error {visible(HOSTILE)}: {visible(HOSTILE)}")
    assert page.locator(".answer-tool bdi").first.text_content() == visible(HOSTILE)
    assert page.locator(".facts bdi").all_text_contents() == [visible(PLAIN_NAME)] * 2
    assert page.locator(".viewer bdi").first.text_content() == visible(HOSTILE)
    assert page.locator(".findings").text_content() == f"{visible(HOSTILE)} {visible(HOSTILE)}"
    for name in ("Metadata", "Record"):
        page.get_by_text(name, exact=True).click()
    expect(page.locator(".json.metadata pre")).to_contain_text("\\u202egnp.exe")
    expect(page.locator(".json.metadata pre")).to_contain_text("<script>alert('script')</script>")
    page.locator(".inspector summary").click()
    expect(page.locator(".spans").first).to_be_visible()
    for folded in page.locator(".answer-folded summary").all():
        folded.dispatch_event("click")
    for _ in range(16 + len(HOSTILE_AGENTS)):
        page.keyboard.press("[")
        page.locator("h1").focus()
        page.keyboard.press("ArrowLeft")
        expect_nothing_came_of_it(page)
    assert page.evaluate("() => ({}).polluted ?? null") is None


def test_the_sessions_show_every_string_as_it_is(page: Page, seeds: Seeds, hostile: str) -> None:
    prompted = seeds.finished(f"{HOSTILE}\n[[tokens=1 rate=0 ttft_ms=0]]", session_id=PLAIN_NAME, user_id=PLAIN_NAME)
    page.goto(f"{seeds.url}/#/sessions")
    row = page.locator(f'tr[data-id="{prompted}"]')
    expect(row.locator(".prompt")).not_to_be_empty()
    assert row.locator(".prompt").text_content() == visible(HOSTILE)
    row.get_by_role("button").first.click()
    assert page.get_by_label("Session", exact=True).input_value() == PLAIN_NAME
    expect(page.locator(f'tr[data-id="{hostile}"]')).to_be_visible()
    expect_nothing_came_of_it(page)
    page.reload()
    expect(page.locator(f'tr[data-id="{hostile}"]')).to_be_visible()
    expect_nothing_came_of_it(page)


def test_the_playground_shows_every_string_as_it_is(page: Page, seeds: Seeds, hostile: str) -> None:
    page.goto(f"{seeds.url}/#/playground?stream={hostile}")
    expect(page.locator(".network")).to_have_text("Complete")
    text = "".join(page.locator(".answer-blocks > .answer-text").all_text_contents())
    assert text == seeds.text(hostile) == HOSTILE + CONTROLS
    assert page.locator(".answer-told").first.text_content() == HOSTILE
    assert visible(HOSTILE) in page.locator(".answer-agent > summary bdi").all_text_contents()
    for folded in page.locator(".answer-folded summary").all():
        folded.dispatch_event("click")
    expect(page.locator(".answer-folded pre", has_text=SCRIPT).first).to_be_attached()
    expect_nothing_came_of_it(page)


@pytest.mark.parametrize(
    "address",
    [
        f"#/stream/{SCRIPT}",
        f"#/{IMAGE}",
        "#/stream/%E0%A4%A",
        "#/stream/..%2f..%2fhealthz",
        f"#/sessions?state={SCRIPT}",
        f"#/playground?stream={IMAGE}",
    ],
)
def test_an_address_is_only_text_too(page: Page, seeds: Seeds, address: str) -> None:
    page.goto(f"{seeds.url}/{address}")
    expect(page.locator("h1")).to_be_attached()
    expect(page.locator(".notice.loading")).to_have_count(0)
    expect_nothing_came_of_it(page)


def test_no_text_widens_the_page_or_leaves_its_line(page: Page, seeds: Seeds) -> None:
    long = "W" * 190
    sid = seeds.external(
        ("start", {}),
        ("text_delta", {"text": long * 5}),
        ("tool_start", {"tool_call_id": "t", "tool": long, "title": long}),
        ("internal.tool_args", {"tool_call_id": "t", "args": {long: long}}),
        ("tool_progress", {"tool_call_id": "t", "message": long}),
        ("agent_text_delta", {"agent": long, "text": long}),
        ("approval_request", {"approval_id": "a", "tool": long, "title": long}),
        ("input", {"text": long}),
        ("internal.turn", {"agent": "", "turn": 1, "model": long}),
        ("internal.trace", {"traceback": long}),
        ("x" * 64, {"text": "Z̸̡̧͓̫" * 40}),
        ("error", {"code": long, "message": long}),
        session_id=long,
        user_id=long,
    )
    page.set_viewport_size({"width": 390, "height": 844})
    for address in (f"#/stream/{sid}", f"#/playground?stream={sid}", "#/sessions"):
        page.goto(f"{seeds.url}/{address}")
        expect(page.get_by_text(re.compile("W{20}")).first).to_be_attached()
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
