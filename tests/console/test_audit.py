"""The player over a real archive: who was connected, the seal, what masks hide, what erasing leaves."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.console.conftest import Seeds, serious, watched_page
from tests.console.test_player import DONE, answer, open_player, until_at, words
from tests.rig.deployment import HTTP, Deployment, wait_until

pytestmark = pytest.mark.browser

SAFARI = "Mozilla/5.0 (iPhone) AppleWebKit/605 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1"
KEY, MASKED_KEY = "of-at-least-thirty-two-characters", "one-that-sees-no-numbers-anywhere"
MASKS = "[[mask]]\nname = 'numbers'\npattern = '[0-9]+'\n"


@pytest.fixture
def seeds(archived: Deployment) -> Seeds:
    return Seeds(archived)


def until_archived(seeds: Seeds, sid: str) -> str:
    wait_until(lambda: seeds.get(f"/v1/streams/{sid}").json()["archived_at"], f"{sid} is archived")
    return sid


def test_who_was_connected_when_stands_on_the_time_axis(page: Page, seeds: Seeds) -> None:
    """A phone that loses its network after the fifth event, and comes back."""
    sid = seeds.external(("start", {}), *words(3))
    cursor = 0
    with HTTP.stream("GET", f"{seeds.url}/v1/streams/{sid}/events", headers={"User-Agent": SAFARI}) as viewer:
        for line in viewer.iter_lines():
            cursor = int(line[4:]) if line.startswith("id: ") else cursor
            if cursor == 5 and not line:
                break

    def on_record() -> list[str | None]:
        views = seeds.get(f"/v1/streams/{sid}/views").json()["views"]
        return [view["how"] for view in views if view["format"] == "sse"]

    wait_until(lambda: on_record() == ["left"], "its leaving is on record")
    seeds.append(sid, *words(27))
    headers = {"User-Agent": SAFARI, "Last-Event-ID": "5"}
    with HTTP.stream("GET", f"{seeds.url}/v1/streams/{sid}/events", headers=headers) as viewer:
        lines = viewer.iter_lines()
        wait_until(lambda: on_record() == ["left", None], "its coming back is, too")
        seeds.append(sid, DONE)
        assert "event: done" in list(lines)
    wait_until(lambda: on_record() == ["left", "finished"], "both are on record")
    until_archived(seeds, sid)
    wait_until(lambda: '"record"' in seeds.get(f"/v1/streams/{sid}/views").text, "that the test read it is on record")
    open_player(page, seeds, sid)
    labels = page.locator(".viewer")
    expect(labels).to_have_count(2)
    expect(labels.nth(0)).to_have_text(re.compile(r"^anyone Safari 18, iPhone1–\d+ · left$"))
    expect(labels.nth(1)).to_have_text("anyone Safari 18, iPhoneafter 5 · 6–33 · finished")
    expect(page.locator(".readings")).to_have_text(re.compile(r"^Read without following: .*its record \([1-9]\)"))
    places = (".chart", ".viewer-bar >> nth=0", ".viewer-bar >> nth=1")
    chart, *bars = (page.locator(name).bounding_box() for name in places)
    assert chart
    ends = [bar["x"] + bar["width"] for bar in bars if bar]
    assert chart["x"] - 4 <= ends[0] < ends[1] <= chart["x"] + chart["width"] + 4


@pytest.mark.npm
def test_the_seal_is_a_badge_and_its_findings_are_told(
    page: Page, seeds: Seeds, archived: Deployment, axe: str
) -> None:
    live = seeds.external(*words(3))
    open_player(page, seeds, live)
    expect(page.locator(".badges .seal")).to_have_text("Sealed after it ends")
    seeds.append(live, DONE)
    sid = until_archived(seeds, live)
    open_player(page, seeds, sid)
    page.reload()
    expect(page.locator(".badges .seal")).to_have_text("Seal verified")
    expect(page.locator(".findings li")).to_have_count(0)
    with closing(sqlite3.connect(archived.folder / "archive.db", timeout=10)) as database, database:
        database.execute("UPDATE streams SET model = 'another' WHERE sid = ?", [sid])
    page.reload()
    expect(page.locator(".badges .seal")).to_have_text("Seal broken")
    expect(page.locator(".findings li")).to_contain_text("model")
    assert serious(page, axe) == []


def test_a_stream_that_has_left_redis_plays_as_before(page: Page, seeds: Seeds, archived: Deployment) -> None:
    sid = until_archived(seeds, seeds.finished("[[tokens=30 rate=0 ttft_ms=0 thinking=4 cut_at=8]]"))
    open_player(page, seeds, sid)
    before = answer(page), page.locator(".place").text_content(), page.locator(".mark").count()
    forget(archived, sid)
    page.reload()
    expect(page.locator(".stage")).to_be_visible()
    assert before == (answer(page), page.locator(".place").text_content(), page.locator(".mark").count())
    assert before[0] == seeds.text(sid)


def forget(archived: Deployment, sid: str) -> None:
    """Its retention in Redis is over."""
    import redis

    with closing(redis.Redis.from_url(archived.redis_url)) as client:
        client.delete(f"le:{{{sid}}}:log", f"le:{{{sid}}}:meta")


def test_erasing_asks_first_and_leaves_a_tombstone(page: Page, seeds: Seeds) -> None:
    sid = until_archived(seeds, seeds.external(*words(3), DONE, user_id="mara"))
    open_player(page, seeds, sid)
    page.get_by_role("button", name="Erase…").click()
    page.get_by_role("button", name="Keep it").click()
    assert seeds.text(sid) == "word0 word1 word2 "
    page.get_by_role("button", name="Erase…").click()
    page.get_by_role("button", name="Erase", exact=True).click()
    expect(page.locator(".notice.tombstone")).to_be_visible()
    expect(page.locator(".stage")).not_to_be_visible()
    expect(page.locator(".badges .state")).to_have_text("erased")
    page.reload()
    expect(page.locator(".badges .seal")).to_have_text("Sealed, erased")
    expect(page.get_by_role("button", name="Export")).to_have_count(0)
    assert "mara" not in page.content()
    page.goto(f"{seeds.url}/#/sessions")
    row = page.locator(f'tr[data-id="{sid}"]')
    expect(row.locator(".badge")).to_have_text("erased")
    expect(row.locator(".prompt")).to_have_text("Erased")
    assert HTTP.get(f"{seeds.url}/v1/streams/{sid}/text").status_code == 410


def test_a_masked_key_sees_masks_and_is_told_so(
    browser: Browser, own_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    (tmp_path / "masks.toml").write_text(MASKS)
    keys = {"LASTEVENT_API_KEYS": KEY, "LASTEVENT_MASKED_KEYS": MASKED_KEY}
    deployment = own_deployment(servers=1, LASTEVENT_REDACT_FILE=str(tmp_path / "masks.toml"), **keys)
    with httpx.Client(base_url=deployment.url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as http:
        sid = http.post("/v1/streams", json={"producer": "external", "user_id": "call 5551234"}).json()["id"]
        events = [{"event": kind, "data": data} for kind, data in (*words(0), ("text_delta", {"text": "555"}))]
        events += [{"event": "text_delta", "data": {"text": "1234!"}}, {"event": "done", "data": {}}]
        http.post(f"/v1/streams/{sid}/events", json={"epoch": 1, "events": events}).raise_for_status()
    with watched_page(browser) as page:
        page.goto(f"{deployment.url}/#/stream/{sid}")
        page.get_by_label("API key").fill(MASKED_KEY)
        page.keyboard.press("Enter")
        until_at(page, 4, 4)
        assert answer(page) == "███████!"
        expect(page.get_by_text("Masked for this key: numbers")).to_be_visible()
        assert not re.search(r"(?<!\.)555", page.content().replace(sid, ""))  # a time may end in .555
        assert "1234" not in (page.locator(".facts").text_content() or "").replace(sid, "")


def test_every_time_on_a_page_is_utc_and_says_so_wherever_its_reader_is(browser: Browser, seeds: Seeds) -> None:
    sid = until_archived(seeds, seeds.external(("start", {}), *words(3), DONE, session_id="s-tokyo"))
    created = seeds.get(f"/v1/streams/{sid}").json()["created_at"]
    with watched_page(browser, timezone_id="Asia/Tokyo") as page:
        open_player(page, seeds, sid)
        expect(page.locator(".details")).to_contain_text("sealed at")
        said = page.locator("main").inner_text()
        times = re.findall(r"\d\d:\d\d:\d\d.*", said)
        assert len(times) >= 6, "created twice, started, first text, finished, archived, sealed"
        assert [time for time in times if not re.fullmatch(r"[\d:]{8}(\.\d{3})? UTC", time)] == []
        assert created[11:19] in said

        page.goto(f"{seeds.url}/#/sessions?session_id=s-tokyo")
        expect(page.locator(".cell-created")).to_have_text(re.compile(f"{created[11:19]} UTC$"))
        page.get_by_label("Created", exact=True).select_option("custom")
        soon = datetime.now(UTC) + timedelta(minutes=5)
        page.get_by_label("Created before (UTC)", exact=True).fill(f"{soon:%Y-%m-%dT%H:%M}")
        page.get_by_label("Created after (UTC)", exact=True).fill(f"{soon - timedelta(minutes=30):%Y-%m-%dT%H:%M}")
        page.wait_for_url(re.compile("after="))
        expect(page.locator(".cell-created")).to_have_text(re.compile(f"{created[11:19]} UTC$"))
