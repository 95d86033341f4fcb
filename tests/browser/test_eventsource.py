"""A web page with the browser's own EventSource, in headless Chromium: it shows the whole answer, whatever happens.

An EventSource gives up for good at any status but 200, and at 204 too, which is what ends it. So each test looks at
every status that the browser saw.
"""

import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from playwright.async_api import Browser, Page, Response, async_playwright

from tests.rig.chromium import ARGS
from tests.rig.deployment import Deployment, until
from tests.viewers.durable import durable_deployment
from tests.viewers.viewer import Answer, Viewer

pytestmark = pytest.mark.browser

PROMPT = "Grüße aus dem Tunnel 🚇 [[tokens=160 rate=50 ttft_ms=0]]"
LONGEST_RETRY_MS = 2000
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>A page that follows a stream</title>
<style>body { font: 16px/1.5 sans-serif; max-width: 45em; margin: 2em auto } #text { white-space: pre-wrap }</style>
<h1 id="state"></h1>
<p id="text"></p>
<script>
  const source = new EventSource(new URLSearchParams(location.search).get("events"));
  const ids = [];
  const text = document.getElementById("text");
  const on = (kind, then) => source.addEventListener(kind, (event) => {
    ids.push(Number(event.lastEventId));
    then(JSON.parse(event.data));
  });
  for (const kind of ["queued", "start"]) on(kind, () => {});
  on("text_delta", (data) => { text.textContent += data.text; });
  on("restart", () => { text.textContent = ""; });
  on("done", (data) => { document.getElementById("state").textContent = "done: " + data.stop_reason; });
</script>
"""
EVERYTHING = list(range(1, 164))  # queued, start, the deltas, done


@pytest.fixture
def origin() -> Iterator[str]:
    """Where the page comes from: another origin than the server it reads from."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _PageHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _PageHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = PAGE.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield browser
        await browser.close()


@dataclass
class Follower:
    """A page that follows a stream, and what its EventSource met on the way."""

    page: Page
    statuses: list[int] = field(default_factory=list)
    requests: int = 0
    events_url: str = ""

    async def open(self, origin: str, events_url: str) -> None:
        def note_response(response: Response) -> None:
            if response.request.resource_type == "eventsource":
                self.statuses.append(response.status)

        def note_request(request: object) -> None:
            self.requests += getattr(request, "resource_type", "") == "eventsource"

        self.page.on("response", note_response)
        self.page.on("request", note_request)
        self.events_url = events_url
        await self.page.goto(f"{origin}/?events={quote(events_url, safe='')}")

    async def until_midway(self) -> None:
        await self.page.wait_for_function("ids.length >= 50")

    async def expect_the_whole_answer(self) -> None:
        await self.page.wait_for_function("document.getElementById('state').textContent", timeout=60_000)
        assert await self.page.evaluate("ids") == EVERYTHING
        assert await self.page.text_content("#text") == await _text(self.events_url)
        assert await self.page.text_content("#state") == "done: end_turn"
        assert set(self.statuses) == {200}
        await self._expect_an_end_for_who_comes_back()

    async def _expect_an_end_for_who_comes_back(self) -> None:
        """As this page's own EventSource will, after the minute that the last event told it to wait."""
        mark = "&" if "?" in self.events_url else "?"
        events = f"{self.events_url}{mark}last_event_id={EVERYTHING[-1]}"
        await self.page.evaluate("(events) => { window.again = new EventSource(events); }", events)
        await self.page.wait_for_function("again.readyState === EventSource.CLOSED")
        assert self.statuses[-1] == 204


@pytest.fixture
async def follower(browser: Browser) -> Follower:
    return Follower(await browser.new_page())


async def test_the_text_is_whole_though_the_server_was_killed_and_nothing_is_asked_after_the_end(
    origin: str, follower: Follower, own_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    deployment = own_deployment(servers=1, LASTEVENT_CORS_ORIGINS=origin)
    sid = deployment.create(PROMPT)
    await follower.open(origin, _events_url(deployment, sid))
    await follower.until_midway()
    deployment.servers[0].kill()
    deployment.servers[0].start()

    await follower.expect_the_whole_answer()
    asked = follower.requests
    await follower.page.wait_for_timeout(LONGEST_RETRY_MS + 500)
    await follower.page.screenshot(path=tmp_path / "whole.png", full_page=True)
    assert follower.requests == asked
    assert follower.statuses == [200, 200, 204]


async def test_the_text_is_whole_though_redis_went_away(origin: str, follower: Follower, tmp_path: Path) -> None:
    with durable_deployment(tmp_path, servers=1, LASTEVENT_CORS_ORIGINS=origin) as deployment:
        sid = deployment.create(PROMPT)
        await follower.open(origin, _events_url(deployment, sid))
        await follower.until_midway()
        deployment.valkey.kill()
        deployment.servers[0].kill()  # so that the page comes back while there is no Redis
        deployment.servers[0].start()
        await until(lambda: len(follower.statuses) >= 3, "the page has come twice while Redis was away")
        deployment.valkey.start()

        await follower.expect_the_whole_answer()


async def test_the_text_is_whole_though_the_page_stayed_connected_while_redis_was_away(
    origin: str, follower: Follower, tmp_path: Path
) -> None:
    with durable_deployment(tmp_path, servers=1, LASTEVENT_CORS_ORIGINS=origin) as deployment:
        sid = deployment.create(PROMPT)
        await follower.open(origin, _events_url(deployment, sid))
        await follower.until_midway()
        deployment.valkey.kill()
        deployment.valkey.start()

        await follower.expect_the_whole_answer()
        assert follower.statuses == [200, 204]


async def test_the_text_is_whole_though_the_server_drained(
    origin: str, follower: Follower, own_deployment: Callable[..., Deployment]
) -> None:
    deployment = own_deployment(servers=1, LASTEVENT_CORS_ORIGINS=origin)
    sid = deployment.create(PROMPT)
    await follower.open(origin, _events_url(deployment, sid))
    await follower.until_midway()
    deployment.servers[0].send(signal.SIGTERM)
    deployment.servers[0].wait()
    deployment.servers[0].start()

    await follower.expect_the_whole_answer()
    assert follower.statuses == [200, 200, 204]


async def test_a_page_follows_with_the_token_in_events_url_where_keys_are_on(
    origin: str, follower: Follower, own_deployment: Callable[..., Deployment]
) -> None:
    key = "of-at-least-thirty-two-characters"
    deployment = own_deployment(servers=1, LASTEVENT_CORS_ORIGINS=origin, LASTEVENT_API_KEYS=key)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=deployment.url, trust_env=False) as client:
        created = await client.post("/v1/streams", json={"prompt": PROMPT}, headers=headers)
        events_path = created.json()["events_url"]
        without_token = await client.get(events_path.partition("?")[0])
    events_url = f"{deployment.url}{events_path}"
    await follower.open(origin, events_url)

    await follower.expect_the_whole_answer()
    assert without_token.status_code == 401
    assert follower.statuses == [200, 204]


async def _text(events_url: str) -> str:
    """The text of a finished stream, as another client reads it."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(events_url)
    viewer = Viewer("the same one")
    viewer.take(Answer(answer.status_code, {}, bytearray(answer.content), has_final_chunk=True))
    return viewer.text()


def _events_url(deployment: Deployment, sid: str) -> str:
    return f"{deployment.url}/v1/streams/{sid}/events"
