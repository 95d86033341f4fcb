"""While no server is up, nginx says what the servers would: an EventSource lives through it, everybody else is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, sync_playwright

from bench.ports import free_port
from tests.compose.balancer import AUTHORIZED, Balanced, Balancer
from tests.compose.visitor import get
from tests.rig.chromium import ARGS
from tests.rig.deployment import HTTP, wait_until
from tests.viewers.viewer import post

EVENTS = "/v1/streams/0f3c/events"
COME_BACK = re.compile(rb"retry: (1[0-9]{3})\n: no_server\n")


@pytest.fixture(scope="module")
def lonely(
    tmp_path_factory: pytest.TempPathFactory, certificate: Path, require: Callable[[str, str], str]
) -> Iterator[Balancer]:
    """nginx with nobody behind it."""
    require("nginx", "nginx")
    nginx = Balancer(tmp_path_factory.mktemp("lonely"), certificate, [free_port(), free_port()])
    nginx.start()
    yield nginx
    nginx.process.stop()


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
async def test_events_as_sse_are_a_200_with_a_retry_line_and_a_cut(lonely: Balancer, accept: str) -> None:
    answers = [await get(lonely.port, f"{EVENTS}?token=x", Accept=accept) for _ in range(30)]
    retries = {match[1] for answer in answers if (match := COME_BACK.fullmatch(answer.body))}
    assert all(answer.status == 200 and answer.is_cut for answer in answers)
    assert {answer.headers["content-type"] for answer in answers} == {"text/event-stream"}
    assert {answer.headers["cache-control"] for answer in answers} == {"no-store, no-transform"}
    assert len(retries) > 15, "viewers that are sent away together must not come back together"


async def test_an_event_source_of_another_origin_may_read_that_too(lonely: Balancer) -> None:
    answer = await get(lonely.port, EVENTS, Accept="text/event-stream", Origin="https://app.example.com")
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_everything_else_is_a_503_problem_with_retry_after(lonely: Balancer) -> None:
    path = "/v1/streams"
    answers = [
        await get(lonely.port, EVENTS, Accept="application/x-ndjson"),
        await get(lonely.port, f"{path}/0f3c"),
        await get(lonely.port, "/readyz"),
        await post(lonely.port, path, {"prompt": "x"}, {"Accept": "text/event-stream"}),
        await post(lonely.port, EVENTS, {"epoch": 1, "events": []}),
    ]
    for answer in answers:
        assert answer.status == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert answer.json.keys() == {"type", "title", "status", "code", "detail", "request_id"}
        assert answer.json["code"] == "no_server"


@pytest.mark.browser
def test_twenty_event_sources_of_one_page_live_through_the_loss_of_all_servers_and_miss_nothing(
    own_balanced: Balanced, chromium: str
) -> None:
    """Over HTTP/2: with HTTP/1.1 a browser would open six of them."""
    record = own_balanced.create(producer="external")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        try:
            page = browser.new_page(ignore_https_errors=True)
            _open_event_sources(page, own_balanced.nginx.tls_url, record["events_url"], 21)
            page.wait_for_function("ids.every((seen) => seen.length === 1)")
            page.evaluate("sources.pop().close(), ids.pop()")
            wait_until(lambda: sum(own_balanced.viewers()) == 20, "the one that was closed has left its server")
            own_balanced.kill_servers()
            page.wait_for_function("errors >= 2 * sources.length")  # they were cut, and have tried again in vain
            own_balanced.start_servers()
            _finish(own_balanced.ports[0], record)
            page.wait_for_function("ids.every((seen) => seen.includes('3'))")
            assert page.evaluate("ids") == [["1", "2", "3"]] * 20
            assert page.evaluate("performance.getEntriesByType('resource').pop().nextHopProtocol") == "h2"
        finally:
            browser.close()


def _finish(port: int, record: dict[str, Any]) -> None:
    events = [{"event": "text_delta", "data": {"text": "x"}}, {"event": "done", "data": {}}]
    body = {"epoch": record["epoch"], "first": 2, "events": events}
    answer = HTTP.post(f"http://127.0.0.1:{port}/v1/streams/{record['id']}/events", json=body, headers=AUTHORIZED)
    assert answer.status_code == 200, answer.text


def _open_event_sources(page: Page, url: str, events_url: str, number: int) -> None:
    def serve_page(route: Route) -> None:
        route.fulfill(content_type="text/html", body="<!doctype html>")

    page.route(f"{url}/page", serve_page)
    page.goto(f"{url}/page")
    page.evaluate(
        """([path, number]) => {
            window.errors = 0;
            window.ids = Array.from({length: number}, () => []);
            window.sources = ids.map((seen) => {
                const source = new EventSource(path);
                for (const kind of ["queued", "text_delta", "done"])
                    source.addEventListener(kind, (event) => seen.push(event.lastEventId));
                source.addEventListener("error", () => { errors++; });
                return source;
            });
        }""",
        [events_url, number],
    )
