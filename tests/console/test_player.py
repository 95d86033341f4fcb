"""The player: a stream's whole log at any instant of it. What the archive adds to it is in test_audit.py."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import Seeds

pytestmark = pytest.mark.browser

DONE = ("done", {"stop_reason": "end_turn", "usage": {"input_tokens": 7, "output_tokens": 9}, "cost_usd": 0.00025})
MANY = 9_990  # a stream holds 10,000 events


def words(count: int) -> list[tuple[str, object]]:
    return [("text_delta", {"text": f"word{number} "}) for number in range(count)]


def open_player(page: Page, seeds: Seeds, sid: str) -> None:
    page.goto(f"{seeds.url}/#/stream/{sid}")
    expect(page.locator(".stage")).to_be_visible()


def answer(page: Page) -> str:
    return "".join(page.locator(".answer-blocks > .answer-text").all_text_contents())


def place(page: Page) -> str:
    return page.locator(".place").text_content() or ""


def until_at(page: Page, event: int, of: int) -> None:
    expect(page.locator(".place")).to_have_text(f"event {event:,} of {of:,}")


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def text_after(log: Iterable[dict[str, Any]]) -> str:
    text = ""
    for event in log:
        if event["event"] == "restart":
            text = ""
        elif event["event"] == "text_delta":
            text += event["data"]["text"]
    return text


@pytest.fixture(scope="module")
def restarted(deployment: Any) -> str:
    """A stream that began again, twice, and then failed."""
    return Seeds(deployment).finished("Sag es noch einmal 🌊 [[tokens=30 rate=0 ttft_ms=0 thinking=4 cut_at=8]]")


def test_a_finished_stream_opens_with_its_whole_answer_and_its_facts(page: Page, seeds: Seeds) -> None:
    sid = seeds.finished("[[tokens=40 rate=200 ttft_ms=0]]", session_id="s-facts", user_id="mara", metadata={"a": "b"})
    open_player(page, seeds, sid)
    until_at(page, 43, 43)
    assert answer(page) == seeds.text(sid)
    expect(page.locator("h1")).to_have_text(sid)
    expect(page.locator(".badges .state")).to_have_text("done")
    expect(page.locator(".facts")).to_contain_text("s-facts")
    expect(page.locator(".facts")).to_contain_text("mara")
    expect(page.locator(".details")).to_contain_text("output tokens40")
    page.get_by_text("Metadata", exact=True).click()
    expect(page.locator(".json.metadata pre")).to_have_text('{\n  "a": "b"\n}')


def test_each_step_shows_the_text_as_it_was_then(page: Page, seeds: Seeds, restarted: str) -> None:
    log = seeds.log(restarted)
    open_player(page, seeds, restarted)
    for count in range(len(log), 0, -1):
        until_at(page, count, len(log))
        assert answer(page) == text_after(log[:count])
        press(page, "ArrowLeft")
    press(page, "Home")
    until_at(page, 1, len(log))
    for count in range(2, len(log) + 1):
        press(page, "ArrowRight")
        until_at(page, count, len(log))
        assert answer(page) == text_after(log[:count])


def test_restarts_are_marked_and_a_mark_leads_to_its_event(page: Page, seeds: Seeds, restarted: str) -> None:
    log = seeds.log(restarted)
    open_player(page, seeds, restarted)
    expect(page.locator(".mark.restart")).to_have_count(2)
    page.get_by_role("button", name=re.compile("Restart, attempt 2: provider_cut")).click()
    first_restart = next(number for number, event in enumerate(log, 1) if event["event"] == "restart")
    until_at(page, first_restart, len(log))
    assert answer(page) == ""


def test_a_jump_of_the_ids_is_marked(page: Page, seeds: Seeds) -> None:
    sid = seeds.running("[[tokens=3000 rate=30 ttft_ms=0]]")
    seeds.post(f"/v1/streams/{sid}/cancel")
    open_player(page, seeds, sid)
    expect(page.locator(".mark.jump")).to_have_count(1)
    expect(page.locator(".mark-list")).to_contain_text(re.compile(r"Another writer: ids jump from \d+ to \d+000001"))


def test_silences_holes_and_the_pace_are_told_from_the_log(page: Page, seeds: Seeds) -> None:
    page.goto(seeds.url)
    told = page.evaluate(
        """async () => {
          const { Log } = await import("/console/log.js");
          const log = new Log();
          const add = (id, t, event = "text_delta", data = {}) => log.add({ id, t, event, data });
          for (let id = 1; id <= 20; id += 1) add(id, 1000 + id * 100);
          add(21, 6000);
          add(25, 6100);
          add(26, 6050);
          add(3_000_001, 6200, "restart", { attempt: 2, reason: "worker_lost" });
          return [log.marks(), log.end, log.countAt(0), log.countAt(4900), log.rates(2), log.firstTextAt()];
        }"""
    )
    marks, end, at_first, before_the_silence_ends, rates, first_text = told
    assert [(mark["kind"], mark["at"], mark["index"]) for mark in marks] == [
        ("stall", 1900, 20),
        ("hole", 5000, 21),
        ("jump", 5100, 23),
        ("restart", 5100, 23),
    ]
    assert marks[0]["until"] == 4900
    assert (end, at_first, before_the_silence_ends, first_text) == (5100, 1, 21, 0)
    assert sum(rates) * 2.55 == pytest.approx(24)


def test_a_silence_of_a_real_stream_is_marked(page: Page, seeds: Seeds) -> None:
    sid = seeds.finished("[[tokens=20 rate=100 ttft_ms=2050]]")
    open_player(page, seeds, sid)
    expect(page.locator(".mark.stall")).to_have_count(1)
    expect(page.locator(".mark-list")).to_contain_text(re.compile(r"Silence of 2\.\d+ s"))
    expect(page.locator(".chart-label")).to_have_text(re.compile(r"first token 2\.\d+ s"))


def test_it_plays_from_the_start_to_the_end_and_pauses(page: Page, seeds: Seeds) -> None:
    sid = seeds.finished("[[tokens=40 rate=20 ttft_ms=0]]")
    open_player(page, seeds, sid)
    press(page, " ")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.wait_for_function("() => document.querySelector('.answer-blocks > .answer-text')?.textContent.length > 10")
    press(page, " ")
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
    paused = answer(page)
    assert seeds.text(sid).startswith(paused)
    assert len(paused) < len(seeds.text(sid))
    press(page, "]", "]", "]", "]")
    expect(page.get_by_label("Speed")).to_have_value("16")
    press(page, " ")
    until_at(page, 43, 43)
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
    assert answer(page) == seeds.text(sid)


def test_the_slider_goes_anywhere_by_keyboard_and_says_where_it_is(page: Page, seeds: Seeds) -> None:
    sid = seeds.finished("[[tokens=30 rate=60 ttft_ms=0]]")
    open_player(page, seeds, sid)
    slider = page.get_by_role("slider", name="Time")
    slider.focus()
    press(page, "Home")
    expect(slider).to_have_attribute("aria-valuetext", re.compile(r"^0:00\.000 of 0:0\d\.\d{3}, event 1 of 33$"))
    press(page, "ArrowRight", "ArrowRight")
    until_at(page, 3, 33)
    at_ms, whole_ms = int(slider.input_value()), int(slider.get_attribute("max") or 0)
    press(page, "PageUp", "PageUp")
    a_tenth_on = [str(round(at_ms + whole_ms / 10) + off) for off in (-1, 0, 1)]  # each of the two is rounded
    expect(slider).to_have_value(re.compile(f"^({'|'.join(a_tenth_on)})$"))
    press(page, "End")
    until_at(page, 33, 33)


def test_an_instant_is_in_the_address(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(*words(20), DONE)
    open_player(page, seeds, sid)
    press(page, "ArrowLeft", "ArrowLeft", "ArrowLeft")
    page.wait_for_url(re.compile(r"\?event=19$"))
    page.reload()
    until_at(page, 19, 22)


def test_an_instant_is_not_kept_once_the_reader_has_left(page: Page, seeds: Seeds) -> None:
    sid, other = seeds.external(*words(20), DONE), seeds.external(*words(1), DONE)
    open_player(page, seeds, sid)
    page.evaluate("setTimeout = (keepIt, ms) => { if (ms === 250) window.keepIt = keepIt; }")
    press(page, "ArrowLeft")
    page.evaluate("(address) => { location.hash = address; keepIt(); }", f"#/stream/{other}")
    until_at(page, 3, 3)
    assert page.url.endswith(other)


def test_events_are_filtered_by_kind_and_shown_raw(page: Page, seeds: Seeds, restarted: str) -> None:
    open_player(page, seeds, restarted)
    page.get_by_role("button", name="restart 2").click()
    rows = page.locator(".event-row")
    expect(rows).to_have_count(2)
    rows.first.click()
    page.get_by_text(re.compile("Raw JSON of event")).click()
    expect(page.locator(".inspector pre")).not_to_be_empty()
    raw = json.loads(page.locator(".inspector pre").text_content() or "")
    assert raw in seeds.log(restarted)
    assert raw["event"] == "restart"
    page.get_by_role("listbox").focus()
    press(page, "ArrowDown")
    expect(rows.last).to_have_attribute("aria-selected", "true")
    page.get_by_role("button", name="restart 2").click()
    expect(page.get_by_role("button", name="restart 2")).to_have_attribute("aria-pressed", "false")
    assert rows.count() > 10


SLIDE = """async (part) => {
  const slider = document.querySelector("input[type=range]");
  slider.value = slider.max * part;
  slider.dispatchEvent(new Event("input"));
  await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
}"""


class MainThread:
    """The CPU time of a page's main thread, which other processes do not lengthen."""

    def __init__(self, page: Page) -> None:
        self._chromium = page.context.new_cdp_session(page)
        self._chromium.send("Performance.enable", {"timeDomain": "threadTicks"})
        self._before_s = self._busy_s()

    def spent_s(self) -> float:
        """Since it was last asked."""
        before_s, self._before_s = self._before_s, self._busy_s()
        return self._before_s - before_s

    def _busy_s(self) -> float:
        metrics = self._chromium.send("Performance.getMetrics")["metrics"]
        return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))


def test_ten_thousand_events_are_a_few_rows(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(*words(MANY - 2), DONE)
    open_player(page, seeds, sid)
    until_at(page, MANY, MANY)
    rows = page.locator(".event-row")
    assert rows.count() < 60
    expect(rows.filter(has_text="done")).to_have_attribute("aria-posinset", str(MANY))
    assert answer(page) == seeds.text(sid)
    page.get_by_role("listbox").focus()
    press(page, "Home")
    until_at(page, 1, MANY)
    expect(rows.first).to_have_attribute("aria-posinset", "1")
    steps_s, main_thread = [], MainThread(page)
    for part in range(20, -1, -1):
        page.evaluate(SLIDE, part / 20)
        assert 0 < rows.count() < 60
        steps_s.append(main_thread.spent_s())
    assert max(steps_s) < 0.5, "of CPU; the slowest takes some 100 ms"


def test_a_running_stream_is_watched_live_until_its_end(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(("start", {}), *words(5))
    open_player(page, seeds, sid)
    until_at(page, 7, 7)
    live = page.get_by_role("button", name="Live")
    expect(live).to_have_attribute("aria-pressed", "true")
    seeds.append(sid, ("text_delta", {"text": "live"}))
    until_at(page, 8, 8)

    press(page, "ArrowLeft")
    expect(live).to_have_attribute("aria-pressed", "false")
    seeds.append(sid, ("text_delta", {"text": "behind"}))
    until_at(page, 7, 9)
    press(page, "End")
    until_at(page, 9, 9)
    expect(page.locator(".silence")).to_have_text(re.compile(r"No event for \d s"))
    seeds.append(sid, DONE)
    until_at(page, 10, 10)
    expect(page.locator(".silence")).to_have_text("")
    expect(page.locator(".badges .state")).to_have_text("done")
    expect(live).not_to_be_visible()
    assert answer(page) == seeds.text(sid)


def test_export_saves_the_log_as_the_server_gives_it(page: Page, seeds: Seeds, restarted: str, tmp_path: Path) -> None:
    open_player(page, seeds, restarted)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert download.value.suggested_filename == f"{restarted}.ndjson"
    download.value.save_as(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == seeds.get(f"/v1/streams/{restarted}/export").content


def test_the_facts_of_a_running_stream_keep_up_and_leave_the_focus_where_it_is(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(("start", {}))
    open_player(page, seeds, sid)
    expect(page.locator(".facts")).to_contain_text("First token–")
    page.get_by_text("Record", exact=True).click()
    page.get_by_text("Record", exact=True).focus()
    seeds.append(sid, ("text_delta", {"text": "x"}))
    expect(page.locator(".facts")).to_contain_text(re.compile(r"First token\d"))
    expect(page.locator(".json.record pre")).to_be_visible()
    expect(page.get_by_text("Record", exact=True)).to_be_focused()
    seeds.append(sid, DONE)
    expect(page.locator(".facts")).to_contain_text("Cost$0.00025")


def test_a_running_stream_can_be_cancelled(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(("start", {}))
    open_player(page, seeds, sid)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".badges .state")).to_have_text("cancelled")
    expect(page.locator(".answer-ending")).to_have_text("Cancelled: stopped in the console")


def test_a_stream_that_does_not_exist_is_said(page: Page, seeds: Seeds) -> None:
    page.goto(f"{seeds.url}/#/stream/{'0' * 32}")
    expect(page.get_by_role("alert")).to_contain_text("Stream not found")
    expect(page.locator(".stage")).not_to_be_visible()
