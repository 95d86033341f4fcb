"""The recipe for a browser, in a real one."""

import asyncio
import json
from typing import Any

import pytest

from tests.clients.cutter import cutting
from tests.clients.programs import Event, Shown, outcome
from tests.clients.recipes import recipe
from tests.clients.trial import produce
from tests.rig.chromium import ARGS
from tests.rig.deployment import Deployment

PAGE = """<!doctype html><script type=module>
%s
window.run = (url, cursor) => {
  const shown = [];
  return follow(url, cursor, (...event) => shown.push(event)).then((how) => ({ how, shown }));
};
</script>"""


@pytest.mark.browser
async def test_the_recipe_for_a_browser_shows_each_event_once_however_it_is_cut(
    deployment: Deployment, chromium: str
) -> None:
    from playwright.async_api import async_playwright

    stream = await produce(deployment, events=14)
    frame = stream.frame("10")
    html = PAGE % recipe("In a browser: EventSource").replace("export function", "function")
    async with cutting(deployment.ports[0]) as cutter, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGS)
        try:
            page = await browser.new_page()
            await page.route("**/page.html", lambda route: route.fulfill(body=html, content_type="text/html"))
            await page.goto(f"{cutter.url('page')}/page.html")
            await page.wait_for_function("typeof window.run === 'function'")

            async def follow(case: str, cuts: list[int], cursor: str = "earliest") -> tuple[str, Shown]:
                url = cutter.url(case, cuts) + stream.path
                said: dict[str, Any] = await page.evaluate(f"run({json.dumps(url)}, {json.dumps(cursor)})")
                return said["how"], Shown([Event(*event) for event in said["shown"]])

            # Four at a time: over HTTP/1.1 a browser opens six connections to a host.
            cut = await asyncio.gather(
                follow("in-a-character", [stream.body.index("🚲".encode(), frame.start) + 2, 3]),
                follow("before-the-blank-line", [frame.stop - 1, 20]),
                follow("at-the-first-byte", [frame.start + 9, 0]),
                follow("closed", [3, 60], cursor="5"),
            )
            had_all, nothing = await follow("had-all", [], cursor="14")
        finally:
            await browser.close()

    for (how, shown), expected in zip(cut, [stream.events] * 3 + [stream.events[5:]], strict=True):
        assert how == "ended"
        assert not any(outcome(shown, expected))
    assert (had_all, nothing.events) == ("closed", [])
