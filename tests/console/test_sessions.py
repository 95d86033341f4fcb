"""The sessions: what there is, filtered, and up to date by itself."""

import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect
from redis import Redis

from tests.console.conftest import PATIENCE_MS, Seeds, watched_page
from tests.rig.deployment import Deployment

pytestmark = pytest.mark.browser

DONE = ("done", {"stop_reason": "end_turn"})
PAGE = 50
LARGE = 300_000
TELLS_WHEN_IT_HAS_READ = """(id) => {
  const json = Response.prototype.json;
  Response.prototype.json = async function () {
    const read = await json.call(this);
    if (this.url.endsWith(id)) setTimeout(() => (window.hasRead = true)); // after whoever waits for it
    return read;
  };
}"""


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


def prompt(page: Page, sid: str) -> Locator:
    return page.locator(f'tbody tr[data-id="{sid}"] .prompt')


def until_shown(page: Page, *sids: str) -> None:
    page.wait_for_function(
        "(ids) => JSON.stringify([...document.querySelectorAll('tbody tr')].map((row) => row.dataset.id)) === ids",
        arg="[" + ",".join(f'"{sid}"' for sid in sids) + "]",
    )


def test_a_row_tells_state_times_and_who(page: Page, seeds: Seeds, session: str) -> None:
    sid = seeds.finished("What is a tide? [[tokens=4 rate=50 ttft_ms=0]]", session_id=session, user_id="mara")
    open_sessions(page, seeds, session_id=session)
    expect(page.locator(f'tr[data-id="{sid}"] .badge')).to_have_text("done")
    expect(prompt(page, sid)).to_contain_text("What is a tide?")
    told = row(page, sid)
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


def test_listings_and_polls_carry_no_request_and_each_prompt_is_read_once(
    page: Page, seeds: Seeds, session: str
) -> None:
    """With photos in them, requests would fill a page with one stream, and be read again by every poll."""
    photo = "x" * LARGE
    running = seeds.external(("start", {}), prompt=f"Photo 0\n{photo}", session_id=session)
    sids = [seeds.external(DONE, prompt=f"Photo {n}\n{photo}", session_id=session) for n in range(1, 6)]
    asked: list[Request] = []

    def note(request: Request) -> None:
        asked.append(request)

    page.on("requestfinished", note)
    open_sessions(page, seeds, session_id=session)
    until_shown(page, *reversed(sids), running)
    for n, sid in enumerate([running, *sids]):
        expect(prompt(page, sid)).to_have_text(f"Photo {n}")

    seeds.append(running, DONE)
    look_again(page)
    expect(page.locator(".count")).to_have_text("6 streams, 0 running")
    page.goto(f"{seeds.url}/#/playground")
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    open_sessions(page, seeds, session_id=session)
    expect(prompt(page, running)).to_have_text("Photo 0")
    page.remove_listener("requestfinished", note)

    paths = [(urlsplit(each.url).path, each) for each in asked]
    listings = [each.response() for path, each in paths if path == "/v1/streams"]
    assert len(listings) >= 3
    assert all(answer and len(answer.body()) < LARGE // 10 for answer in listings)
    read = Counter(path for path, _ in paths if path.startswith("/v1/streams/"))
    assert read == {f"/v1/streams/{sid}": 1 for sid in [running, *sids]}


def test_a_prompt_that_cannot_be_read_leaves_its_row_as_it_is(page: Page, seeds: Seeds, session: str) -> None:
    sids = [seeds.external(DONE, prompt=f"Prompt {n}", session_id=session) for n in range(3)]
    refused: list[str] = []

    def refuse(route: Route) -> None:
        refused.append(route.request.url)
        route.fulfill(status=403, json={"title": "Forbidden", "code": "forbidden"})

    page.route(f"**/v1/streams/{sids[1]}", refuse)
    open_sessions(page, seeds, session_id=session)
    expect(prompt(page, sids[2])).to_have_text("Prompt 2")
    expect(prompt(page, sids[0])).to_have_text("Prompt 0")
    for _ in range(2):
        with page.expect_response(re.compile(r"/v1/streams\?.*created_after=")):
            look_again(page)
    assert len(refused) == 1
    expect(prompt(page, sids[1])).to_have_text("")
    expect(page.get_by_role("alert").filter(has_text="Forbidden")).to_have_count(0)
    boxes = [prompt(page, sid).bounding_box() for sid in sids]
    assert len({box["height"] for box in boxes if box}) == 1, "a row has its height before its prompt is there"


def test_prompts_are_read_near_the_viewport_two_at_a_time_newest_first(page: Page, seeds: Seeds, session: str) -> None:
    sids = [seeds.external(DONE, prompt=f"Prompt {n}", session_id=session) for n in range(PAGE)]
    said = {sid: f"Prompt {n}" for n, sid in enumerate(sids)}
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(re.compile(r"/v1/streams/\w+$"), hold)
    open_sessions(page, seeds, session_id=session)
    expect(page.locator("tbody tr")).to_have_count(PAGE)
    newest_first = shown(page)
    wait_until_held(page, held, 2)
    look_again(page)
    assert [route.request.url.rpartition("/")[2] for route in held] == newest_first[:2]
    held[0].continue_()
    expect(prompt(page, newest_first[0])).to_have_text(said[newest_first[0]])
    wait_until_held(page, held, 3)

    with page.expect_event("requestfailed", lambda request: request.url == held[2].request.url):
        page.get_by_role("link", name="Playground").click()  # who leaves the view waits for nothing more
    page.unroute_all()
    page.go_back()
    expect(prompt(page, newest_first[2])).to_have_text(said[newest_first[2]])
    expect(prompt(page, newest_first[-1])).to_have_text("")
    page.locator("tbody tr").last.scroll_into_view_if_needed()
    expect(prompt(page, newest_first[-1])).to_have_text(said[newest_first[-1]])


def wait_until_held(page: Page, held: list[Route], count: int) -> None:
    ends_at_s = time.monotonic() + PATIENCE_MS / 1000
    while len(held) < count:
        assert time.monotonic() < ends_at_s
        page.evaluate("new Promise(requestAnimationFrame)")


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


def test_who_has_gone_elsewhere_is_not_taken_to_the_stream_that_they_had_asked_for(page: Page, seeds: Seeds) -> None:
    sid = seeds.external(DONE)
    open_sessions(page, seeds)
    held: list[Route] = []
    page.route(f"**/v1/streams/{sid}", lambda route: held.append(route))
    page.get_by_label("Stream id").fill(sid)
    with page.expect_request(f"**/v1/streams/{sid}"):
        page.get_by_label("Stream id").press("Enter")
    wait_until_held(page, held, 1)
    page.evaluate("location.hash = '#/playground'")
    expect(page.locator("h1")).to_have_text("Playground")
    page.evaluate(TELLS_WHEN_IT_HAS_READ, sid)
    page.unroute_all()  # its row in the list may have asked for it too: both go on
    page.wait_for_function("() => window.hasRead")
    assert page.url.endswith("#/playground")


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
