"""With keys on: the page is everybody's, what it shows is not."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.console.conftest import watched_page
from tests.rig.deployment import HTTP, Deployment

pytestmark = pytest.mark.browser

KEY = "of-at-least-thirty-two-characters"


@pytest.fixture
def keyed(own_deployment: Callable[..., Deployment]) -> Deployment:
    return own_deployment(servers=1, LASTEVENT_API_KEYS=KEY)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with watched_page(browser) as page:
        yield page


def give(page: Page, key: str) -> None:
    expect(page.get_by_role("dialog")).to_contain_text("This server requires a key")
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")


def test_it_asks_for_the_key_and_works_with_it(page: Page, keyed: Deployment) -> None:
    requests: list[tuple[str, str | None]] = []
    page.on("request", lambda request: requests.append((request.url, request.headers.get("authorization"))))
    page.goto(keyed.url)
    page.get_by_label("Prompt", exact=True).fill("[[tokens=20 rate=50 ttft_ms=0]]")
    page.get_by_role("button", name="Send").click()
    give(page, "wrong-but-long-enough-for-a-key")
    expect(page.get_by_role("dialog")).to_contain_text("The server does not accept this key.")
    give(page, KEY)
    expect(page.locator(".network")).to_have_text("Complete")

    sid = page.url.partition("stream=")[2]
    authorization = {"Authorization": f"Bearer {KEY}"}
    text = HTTP.get(f"{keyed.url}/v1/streams/{sid}/text", headers=authorization).text
    assert "".join(page.locator(".answer-blocks > .answer-text").all_text_contents()) == text
    page.get_by_role("link", name="Open in player").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert download.value.path().read_bytes().startswith(b'{"id":1,')

    page.reload()
    expect(page.locator(".stage")).to_be_visible()
    assert page.evaluate("() => [sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    assert not any(KEY in url or "token=" in url for url, _ in requests)
    files = [sent for url, sent in requests if "/v1/" not in url]
    assert files
    assert set(files) == {None}, "the key is sent to the API only"
    assert KEY not in page.content()

    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_role("dialog")).to_contain_text("This server requires a key")
    assert page.evaluate("() => sessionStorage.length") == 0


def test_who_gives_no_key_is_asked_once_and_can_still_give_it(page: Page, keyed: Deployment) -> None:
    page.goto(f"{keyed.url}/#/sessions")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_be_visible()
    with page.expect_response(lambda response: response.status == 401):
        pass  # it goes on asking the server, and not the user
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Enter a key").click()
    give(page, KEY)
    expect(page.locator("main .notice.empty")).to_contain_text("No streams yet")


def test_the_page_itself_needs_no_key(keyed: Deployment) -> None:
    for path in ("/", "/console/main.js"):
        answer = HTTP.get(f"{keyed.url}{path}")
        assert answer.status_code == httpx.codes.OK
        assert KEY not in answer.text
