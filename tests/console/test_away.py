"""A server that goes away and comes back on the same port: what the console says meanwhile, and what is left of it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import deployment_in
from tests.console.conftest import Seeds
from tests.console.test_playground import answer, metric, send, until_ended, until_text
from tests.rig.deployment import Deployment

pytestmark = pytest.mark.browser

SLOW = "[[tokens=3000 rate=30 ttft_ms=0]]"
A_LONG_PAUSE = re.compile(r"in (1[5-9]|2\d|30)(\.\d)? s")  # until the next try, as it grows to
SOON_MS = 10_000


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment_in(tmp_path_factory.mktemp("away"), servers=1) as deployment:
        yield deployment


@contextmanager
def away(deployment: Deployment) -> Iterator[None]:
    """No server listens; afterwards one does again."""
    deployment.servers[0].kill()
    try:
        yield
    finally:
        deployment.servers[0].start()
        deployment.wait_until_ready()


def until_the_pause_is_long(page: Page, hint: str) -> None:
    """Each try in vain doubles the pause; the page's clock goes faster than ours."""
    for _ in range(12):
        if A_LONG_PAUSE.search(page.locator(hint).text_content() or ""):
            return
        page.clock.fast_forward(31_000)
        page.clock.run_for(1100)
    pytest.fail("the pause did not grow")


def test_a_generation_survives_what_was_pressed_while_its_server_was_away(
    page: Page, seeds: Seeds, deployment: Deployment
) -> None:
    sid = send(page, seeds, SLOW)
    until_text(page, 40)
    with away(deployment):
        expect(page.locator(".network")).to_have_text("Connection lost")
        expect(page.locator(".network-box .hint")).to_have_text(re.compile("Trying again in"))
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
        expect(page.get_by_role("alert").get_by_role("button")).to_have_text("Stop again")
    expect(page.locator(".network")).to_have_text("Connected")
    expect(page.get_by_role("alert")).to_have_count(0)
    assert seeds.get(f"/v1/streams/{sid}").json()["state"] == "running"

    page.get_by_role("button", name="Stop").click()
    until_ended(page)
    assert answer(page) == seeds.text(sid)
    assert metric(page, "received") == len(seeds.log(sid))


def test_try_now_does_not_wait_for_the_pause(page: Page, seeds: Seeds, deployment: Deployment) -> None:
    page.clock.install()
    sid = seeds.running(SLOW)
    page.goto(f"{seeds.url}/#/playground?stream={sid}")
    until_text(page, 40)
    try_now = page.get_by_role("button", name="Try now")
    expect(try_now).not_to_be_visible()
    with away(deployment):
        expect(try_now).to_be_visible()
        until_the_pause_is_long(page, ".network-box .hint")
    try_now.click()
    expect(page.locator(".network")).to_have_text("Connected", timeout=SOON_MS)
    expect(try_now).not_to_be_visible()
    seeds.post(f"/v1/streams/{sid}/cancel")
    until_ended(page)


def test_the_player_says_that_the_connection_is_lost_and_not_that_the_model_is_silent(
    page: Page, seeds: Seeds, deployment: Deployment
) -> None:
    page.clock.install()
    sid = seeds.running(SLOW)
    page.goto(f"{seeds.url}/#/stream/{sid}")
    until_text(page, 40)
    lost = page.locator(".lost")
    with away(deployment):
        expect(lost).to_contain_text(re.compile(r"Connection lost at \d\d:\d\d:\d\d UTC"))
        until_the_pause_is_long(page, ".lost")
        expect(page.locator(".silence")).to_have_text("")
        expect(page.locator(".viewers")).not_to_contain_text("The server does not answer")
    page.get_by_role("button", name="Try now").click()
    expect(lost).not_to_be_visible(timeout=SOON_MS)
    expect(page.get_by_role("button", name="Live")).to_have_attribute("aria-pressed", "true")
    seeds.post(f"/v1/streams/{sid}/cancel")
    expect(page.locator(".answer-ending")).to_contain_text("Cancelled")
    expect(lost).not_to_be_visible()
    expect(page.locator(".badges .state")).to_have_text("cancelled")
    assert answer(page) == seeds.text(sid)


def test_what_only_reads_is_done_when_the_server_is_back_and_what_starts_something_is_not(
    page: Page, seeds: Seeds, deployment: Deployment
) -> None:
    sid = seeds.external(("start", {}), ("text_delta", {"text": "here"}), ("done", {}), session_id="s-away")
    page.goto(seeds.url)
    page.get_by_label("Prompt", exact=True).fill("[[tokens=3 rate=0 ttft_ms=0]]")
    with away(deployment):
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("alert").get_by_role("button")).to_have_text("Send again")
    expect(page.get_by_role("alert")).to_have_count(0)
    assert len(seeds.get("/v1/sessions/s-away").json()["streams"]) == 1
    assert "stream=" not in page.url
    page.get_by_role("button", name="Send").click()
    until_ended(page)

    with away(deployment):
        page.evaluate(f"location.hash = '#/stream/{sid}'")
        expect(page.get_by_role("alert").get_by_role("button")).to_have_text("Open again")
    expect(page.locator(".place")).to_have_text("event 4 of 4")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_list_of_sessions_comes_back_whole(page: Page, seeds: Seeds, deployment: Deployment) -> None:
    for _ in range(60):
        seeds.external(("done", {}), user_id="many")
    page.goto(seeds.url)
    with away(deployment):
        page.evaluate("location.hash = '#/sessions?user_id=many'")
        expect(page.get_by_role("alert").get_by_role("button")).to_have_text("Load again")
        page.get_by_label("Stream id").fill("abc")
        page.get_by_role("button", name="Open").click()
        expect(page.locator("#goto-problem")).to_have_text("The server does not answer")
    expect(page.locator(".streams tbody tr")).to_have_count(50)
    expect(page.get_by_role("button", name="More")).to_be_visible()
    expect(page.locator("#goto-problem")).to_have_text("")
    expect(page.locator(".notice.error")).to_have_count(0)
