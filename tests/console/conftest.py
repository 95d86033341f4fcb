"""The console in headless Chromium, on the shared deployment.

A page that breaks a rule fails its test, whichever it is: no script error, nothing that the policy had to stop, no
request to another host.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Dialog, Page, Request, ViewportSize, expect, sync_playwright

from tests.rig.chromium import ARGS
from tests.rig.deployment import HTTP, Deployment
from tests.rig.npm import install

PATIENCE_MS = 15_000
expect.set_options(timeout=PATIENCE_MS)
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
NOTES_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(event.effectiveDirective + ": " + event.blockedURI + " " + event.sample);
});
"""


@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield browser
        browser.close()


class Watch:
    """What a page did that it must not."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", self._dialog)
        page.on("request", self._request)

    def check(self) -> None:
        assert self.page.evaluate("window.violations ?? []") == []
        assert self.errors == []
        assert self.hosts <= {"127.0.0.1"}

    def _dialog(self, dialog: Dialog) -> None:
        self.errors.append(f"a script said {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("blob", "data", "about"):
            self.hosts.add(address.hostname or request.url)


@contextmanager
def watched_page(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page in a context of its own."""
    with _watch(browser, **options) as watch:
        yield watch.page
        watch.check()


@contextmanager
def _watch(browser: Browser, **options: Any) -> Iterator[Watch]:
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script(NOTES_VIOLATIONS)
    yield Watch(context.new_page())
    context.close()


@pytest.fixture(scope="module")
def watch(browser: Browser) -> Iterator[Watch]:
    with _watch(browser) as watch:
        yield watch


@pytest.fixture
def page(watch: Watch) -> Iterator[Page]:
    """A module's page, left as it was found: to make a new one takes longer than most tests."""
    page = watch.page
    yield page
    try:
        watch.check()
    finally:
        page.unroute_all()
        page.set_viewport_size(DESKTOP)
        if page.url.startswith("http"):
            page.evaluate("() => { sessionStorage.clear(); localStorage.clear(); }")
        page.goto("about:blank")
        watch.errors.clear()
        watch.hosts.clear()


class Seeds:
    """Streams to look at, by the API."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.url = deployment.url

    def get(self, path: str, **more: Any) -> httpx.Response:
        answer = HTTP.get(f"{self.url}{path}", **more)
        assert answer.status_code == 200, answer.text
        return answer

    def post(self, path: str, body: object = None) -> Any:
        answer = HTTP.post(f"{self.url}{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def text(self, sid: str) -> str:
        return self.get(f"/v1/streams/{sid}/text").text

    def log(self, sid: str) -> list[dict[str, Any]]:
        lines = self.get(f"/v1/streams/{sid}/events?follow=0", headers={"Accept": "application/x-ndjson"}).text
        return [json.loads(line) for line in lines.splitlines()]

    def running(self, prompt: str, **body: Any) -> str:
        return self.deployment.create(prompt, **body)

    def finished(self, prompt: str, **body: Any) -> str:
        sid = self.deployment.create(prompt, **body)
        self.deployment.wait_until_ended(sid)
        return sid

    def external(self, *events: tuple[str, object], **body: Any) -> str:
        """A stream of exactly these events after `queued`; it still runs unless the last one is terminal."""
        stream = self.post("/v1/streams", {"producer": "external", **body})
        self.append(stream["id"], *events)
        sid: str = stream["id"]
        return sid

    def append(self, sid: str, *events: tuple[str, object]) -> None:
        for at in range(0, len(events), 1000):
            batch = [{"event": kind, "data": data} for kind, data in events[at : at + 1000]]
            self.post(f"/v1/streams/{sid}/events", {"epoch": 1, "events": batch})


@pytest.fixture
def seeds(deployment: Deployment) -> Seeds:
    return Seeds(deployment)


@pytest.fixture(scope="package")
def axe(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> str:
    folder = install(Path(__file__).parent / "npm", tmp_path_factory.mktemp("npm"), require("npm", "npm"))
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


def serious(page: Page, axe: str) -> list[str]:
    """What axe finds to be serious or critical, with the elements."""
    page.evaluate(axe)
    judged = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    assert "color-contrast" in [rule["id"] for rule in judged["passes"] + judged["violations"]], "axe has seen the page"
    return [
        f"{violation['id']}: {node['target']} {node.get('failureSummary', '')}"
        for violation in judged["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
