"""The sessions: what there is, filtered, and up to date by itself."""

import re
import secrets
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect
from redis import Redis

from tests.console.conftest import Seeds, watched_page
from tests.rig.deployment import Deployment

pytestmark = pytest.mark.browser

DONE = ("done", {"stop_reason": "end_turn"})
PAGE = 50


@pytest.fixture
def session() -> str:
    """A session of this test's own: other tests' streams are on the same deployment."""
    return f"s-{secrets.token_hex(6)}"


def open_sessions(page: Page, seeds: Seeds, **filters: str) -> None:
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    page.goto(f"{seeds.url}/#/sessions?{query}")
    expect(page.locator("main .notice.loading")).to_have_count(0)


def shown(page: Page) -> list[str]:
    return [row.get_attribute("data-id") or "" for row in page.locator("tbody tr").all()]


def look_again(page: Page) -> None:
    """What a tab does that comes back to the front, and otherwise every two seconds."""
    page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")


def row(page: Page, sid: str) -> str:
    return page.locator(f'tbody tr[data-id="{sid}"]').text_content() or ""


def until_shown(page: Page, *sids: str) -> None:
    page.wait_for_function(
        "(ids) => JSON.stringify([...document.querySelectorAll('tbody tr')].map((row) => row.dataset.id)) === ids",
        arg="[" + ",".join(f'"{sid}"' for sid in sids) + "]",
    )


def test_a_row_tells_state_times_and_who(page: Page, seeds: Seeds, session: str) -> None:
    sid = seeds.finished("What is a tide? [[tokens=4 rate=50 ttft_ms=0]]", session_id=session, user_id="mara")
    open_sessions(page, seeds, session_id=session)
    expect(page.locator(f'tr[data-id="{sid}"] .badge')).to_have_text("done")
    told = row(page, sid)
    assert "What is a tide?" in told
    assert sid in told
    assert session in told
    assert "mara" in told
    assert "anthropic/" in told
    assert re.search(r"\d{2}:\d{2}:\d{2} UTC(\d+ ms|\d.* s)(\d+ ms|\d.* s)7$", told)


def test_filters_narrow_the_list_and_stay_in_the_address(page: Page, seeds: Seeds, session: str) -> None:
    done = seeds.external(DONE, session_id=session, user_id="anna")
    failed = seeds.external(("error", {"code": "x"}), session_id=session, user_id="bela")
    running = seeds.external(session_id=session, user_id="anna")
    open_sessions(page, seeds)
    page.get_by_label("Session", exact=True).fill(session)
    until_shown(page, running, failed, done)
    page.get_by_label("User", exact=True).fill("anna")
    until_shown(page, running, done)
    page.get_by_label("State", exact=True).select_option("done")
    until_shown(page, done)
    assert parse_qs(urlsplit(page.url).fragment.partition("?")[2]) == {
        "session_id": [session],
        "user_id": ["anna"],
        "state": ["done"],
    }
    page.reload()
    until_shown(page, done)
    assert page.get_by_label("User", exact=True).input_value() == "anna"

    page.get_by_label("User", exact=True).fill("nobody")
    expect(page.locator("main .notice.empty")).to_contain_text("No streams match")
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("tbody tr").first).to_be_visible()
    assert page.url.endswith("#/sessions")
    seeds.append(running, DONE)


def test_a_session_and_a_user_in_the_list_are_filters(page: Page, seeds: Seeds, session: str) -> None:
    sid = seeds.external(DONE, session_id=session, user_id="anna")
    open_sessions(page, seeds)
    page.get_by_role("button", name=session).click()
    until_shown(page, sid)
    assert page.get_by_label("Session", exact=True).input_value() == session


def test_a_time_range_is_asked_of_the_server(page: Page, seeds: Seeds, session: str) -> None:
    sid = seeds.external(DONE, session_id=session)
    open_sessions(page, seeds, session_id=session)
    until_shown(page, sid)
    with page.expect_request(re.compile("created_after=")) as asked:
        page.get_by_label("Created", exact=True).select_option("900")
    assert session in asked.value.url
    until_shown(page, sid)
    page.get_by_label("Created", exact=True).select_option("custom")
    page.get_by_label("Created before (UTC)", exact=True).fill("2020-01-01T00:00")
    expect(page.locator("main .notice.empty")).to_contain_text("No streams match")


def test_the_model_is_asked_of_the_server(page: Page, seeds: Seeds, session: str) -> None:
    one, _ = (
        seeds.running("[[tokens=1 rate=0]]", session_id=session, model=f"anthropic/{name}") for name in ("one", "two")
    )
    open_sessions(page, seeds, session_id=session)
    page.get_by_label("Model", exact=True).fill("anthropic/one")
    until_shown(page, one)


def test_running_streams_update_and_new_ones_appear_by_themselves(page: Page, seeds: Seeds, session: str) -> None:
    first = seeds.external(("start", {}), session_id=session)
    open_sessions(page, seeds, session_id=session)
    until_shown(page, first)
    expect(page.locator(".count")).to_have_text("1 stream, 1 running")
    page.evaluate("(id) => { document.querySelector(`[data-id='${id}']`).dataset.kept = 'yes'; }", first)
    second = seeds.external(DONE, session_id=session)
    seeds.append(first, ("text_delta", {"text": "x"}), DONE)
    until_shown(page, second, first)
    expect(page.locator(f'tr[data-id="{first}"] .badge')).to_have_text("done")
    expect(page.locator(".count")).to_have_text("2 streams, 0 running")
    assert page.locator(f'tr[data-id="{first}"]').get_attribute("data-kept") == "yes", (
        "the row was changed, not made anew"
    )


def test_a_stream_that_has_ended_leaves_the_running_ones(page: Page, seeds: Seeds, session: str) -> None:
    sid = seeds.external(("start", {}), session_id=session)
    open_sessions(page, seeds, session_id=session, state="running")
    until_shown(page, sid)
    seeds.append(sid, DONE)
    look_again(page)
    expect(page.locator("main .notice.empty")).to_contain_text("No streams match")


def test_a_stream_that_comes_to_the_filtered_state_stands_where_it_was_created(
    page: Page, seeds: Seeds, session: str
) -> None:
    oldest = seeds.external(DONE, session_id=session)
    older = seeds.external(("start", {}), session_id=session)
    newest = seeds.external(DONE, session_id=session)
    open_sessions(page, seeds, session_id=session, state="done")
    until_shown(page, newest, oldest)
    seeds.append(older, DONE)
    look_again(page)
    until_shown(page, newest, older, oldest)


def test_more_goes_on_where_the_page_ended(page: Page, seeds: Seeds, session: str) -> None:
    sids = [seeds.external(DONE, session_id=session) for _ in range(PAGE + 3)]
    open_sessions(page, seeds, session_id=session)
    expect(page.locator("tbody tr")).to_have_count(PAGE)
    expect(page.locator(".count")).to_contain_text("so far")
    page.get_by_role("button", name="More").click()
    expect(page.locator("tbody tr")).to_have_count(PAGE + 3)
    assert shown(page) == [stream["id"] for stream in listed(seeds, session)]
    assert set(shown(page)) == set(sids)
    expect(page.get_by_role("button", name="More")).not_to_be_visible()


def listed(seeds: Seeds, session: str) -> list[dict[str, str]]:
    streams: list[dict[str, str]] = seeds.get(f"/v1/streams?session_id={session}&limit=200").json()["streams"]
    return streams


def test_a_pasted_id_opens_its_stream(page: Page, seeds: Seeds, session: str) -> None:
    sid = seeds.external(DONE, session_id=session)
    open_sessions(page, seeds)
    box = page.get_by_label("Stream id")
    box.fill("0" * 32)
    box.press("Enter")
    expect(page.locator(".goto .field-error")).to_have_text("There is no stream with this id.")
    box.fill(f"  {seeds.url}/v1/streams/{sid}/events?follow=0 ")
    box.press("Enter")
    page.wait_for_url(re.compile(f"#/stream/{sid}$"))
    expect(page.locator("h1")).to_have_text(sid)


def test_a_stream_that_is_no_longer_kept_says_so(page: Page, seeds: Seeds, session: str) -> None:
    sid = seeds.external(DONE, session_id=session)
    with Redis.from_url(seeds.deployment.redis_url) as redis:
        redis.delete(*redis.keys(f"*{{{sid}}}*"))
    page.goto(f"{seeds.url}/#/stream/{sid}")
    expect(page.locator(".notice.tombstone")).to_contain_text("No longer available")


def test_a_server_without_streams_says_how_to_start_one_and_one_that_went_away_is_said(
    browser: Browser, own_deployment: Callable[..., Deployment]
) -> None:
    deployment = own_deployment(servers=1, workers=0)
    with watched_page(browser) as page:
        page.goto(f"{deployment.url}/#/sessions")
        expect(page.locator("main .notice.empty")).to_contain_text("No streams yet")
        deployment.servers[0].kill()
        expect(page.get_by_role("alert").locator(".notice-title")).to_have_text("The server does not answer")
        deployment.servers[0].start()
        expect(page.locator("main .notice.empty")).to_contain_text("No streams yet")
