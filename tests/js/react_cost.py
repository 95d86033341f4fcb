"""What 300 events a second cost a page of React: `python -m tests.js.react_cost`, alone on a quiet machine.

Needs Node and Chromium. It prints what the page did. It fails if a task was longer than 50 ms, if there were more
renders than frames, or if the server was slower than it was asked to be.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.conftest import deployment_in, require
from tests.js.bundles import bundled
from tests.js.packages import make_ready
from tests.js.react_site import Site, serving
from tests.rig.chromium import ARGS
from tests.rig.deployment import Deployment

HTML = '<!doctype html><meta charset="utf-8"><div id="root"></div><script type="module" src="page.js"></script>'
LONG_TASK_MS = 50
SLOWER = 0.95
"""What a second of the server's may lack of its events."""

WATCH = """
window.tasks = [];
new PerformanceObserver((list) => tasks.push(...list.getEntries().map(({ duration }) => duration)))
  .observe({ type: "longtask" });
"""
FIGURES = """() => {
  const rendered = commits.filter(({ name, live }) => name === "a" && live.text);
  const [first, last] = [rendered[0], rendered.at(-1)];
  return { ms: last.at - first.at, events: last.live.cursor - first.live.cursor, renders: rendered.length,
           frames: last.frame - first.frame + 1, bytes: last.text.length, tasks };
}"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.js.react_cost", description=__doc__)
    parser.add_argument("--rate", type=int, default=300, help="events a second")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--components", type=int, default=2, help="how many show the answer")
    parser.add_argument("--mode", choices=["production", "development"], default="production", help="of React")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="le-react-") as there:
        js = Path(there) / "js"
        js.mkdir()
        make_ready(js, require("npm", "npm"))
        with deployment_in(Path(there), servers=1) as deployment, serving(deployment.ports[0]) as site:
            site.files = {"index.html": HTML.encode(), "page.js": bundled(js, "react-page.jsx", mode=options.mode)}
            figures = measure(deployment, site, options)
    return report(figures, options)


def measure(deployment: Deployment, site: Site, options: argparse.Namespace) -> dict[str, Any]:
    chromium = require("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        page = browser.new_page()
        page.add_init_script(WATCH)
        page.goto(site.url)
        page.wait_for_function("'show' in window")
        tokens = options.rate * options.seconds
        sid = deployment.create(f"[[tokens={tokens} rate={options.rate} ttft_ms=1000]]", max_tokens=2 * tokens)
        source = {"url": f"/v1/streams/{sid}/events"}
        page.evaluate("show", [{"name": name, "source": source} for name in "abcdefgh"[: options.components]])
        page.wait_for_function("commits.some(({ live }) => live.ending)", timeout=10_000 + 3000 * options.seconds)
        figures: dict[str, Any] = page.evaluate(FIGURES)
        figures["requests"] = len(site.asked_for(sid))
        browser.close()
    return figures


def report(figures: dict[str, Any], options: argparse.Namespace) -> int:
    seconds = figures["ms"] / 1000
    rate = figures["events"] / seconds
    longest_ms = max(figures["tasks"], default=0)
    print(f"{options.mode}, {options.components} components, {figures['bytes'] / 1000:.1f} kB of text")
    print(f"  events       {figures['events']} in {seconds:.1f} s: {rate:.0f} a second of {options.rate}")
    print(f"  renders      {figures['renders']}: {figures['renders'] / seconds:.1f} a second")
    print(f"  frames       {figures['frames']}: {figures['frames'] / seconds:.1f} a second")
    print(f"  long tasks   {len(figures['tasks'])}, the longest of {longest_ms:.0f} ms")
    print(f"  requests     {figures['requests']}")
    wrong = [
        *(["a task was too long"] if longest_ms > LONG_TASK_MS else []),
        *(["more renders than frames"] if figures["renders"] > figures["frames"] else []),
        *(["more than one request"] if figures["requests"] > 1 else []),
        *([f"the server was too slow: {rate:.0f} events a second"] if rate < SLOWER * options.rate else []),
    ]
    print("  " + (json.dumps(wrong) if wrong else "all as it should be"))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
