"""What an update of `lastevent/markdown` costs: `python -m tests.js.markdown_cost`, alone on a quiet machine.

Needs Node and Chromium. It prints milliseconds of an update, without the layout that it causes, at lengths up to 60 kB:
for an answer that says the same over and over, and for one block of each kind. It fails if an update of the answer
takes longer than a millisecond at its end, or twice as long as at its beginning.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.conftest import require
from tests.js.bundles import bundled
from tests.js.packages import make_ready
from tests.rig.chromium import ARGS

TIMES = [2, 10, 21, 42]
"""How often the answer was said: 3, 15, 30 and 60 kB."""
SAME = "an answer, over and over"
LIMIT_MS = 1
GROWTH = 2


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.js.markdown_cost", description=__doc__)
    parser.add_argument("--size", type=int, default=5, help="characters an update")
    parser.add_argument("--rounds", type=int, default=7, help="of which the fastest counts")
    parser.add_argument("--answer", action="store_true", help="the answer alone")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="le-markdown-") as there, sync_playwright() as playwright:
        js = Path(there)
        make_ready(js, require("npm", "npm"))
        program = bundled(js, "markdown.mjs", "--minify").decode()
        browser = playwright.chromium.launch(executable_path=require("chromium", "chromium"), args=ARGS)
        page = browser.new_page()
        page.add_script_tag(content=program, type="module")
        page.wait_for_function("'markdown' in window")
        stretch = page.evaluate("texts.ANSWER.length")
        lengths = [times * stretch for times in TIMES]
        page.evaluate(
            f"pace(texts.ANSWER.repeat(20), 5, [{20 * stretch}], {19 * stretch})"
        )  # compiled, as after a while
        print(f"{'ms an update at':>40}", *(f"{length / 1000:>6.1f} kB" for length in lengths))
        kinds = [] if options.answer else page.evaluate("Object.keys(texts.long(1))")
        figures = {kind: measure(page, kind, lengths, stretch, options) for kind in [SAME, *kinds]}
        browser.close()
    return judge(figures[SAME])


def measure(page: Page, kind: str, lengths: list[int], stretch: int, options: argparse.Namespace) -> list[float]:
    text = f"texts.ANSWER.repeat({TIMES[-1]})" if kind == SAME else f"texts.long({lengths[-1]})[{json.dumps(kind)}]"
    pace = f"pace({text}, {options.size}, {lengths}, {stretch})"
    fastest = [min(figures) for figures in zip(*(page.evaluate(pace) for _ in range(options.rounds)), strict=True)]
    print(f"{kind.encode('unicode_escape').decode():>40}", *(f"{ms:9.3f}" for ms in fastest), flush=True)
    return fastest


def judge(answer: list[float]) -> int:
    slow = answer[-1] > LIMIT_MS
    grown = answer[-1] > GROWTH * answer[0]
    if slow:
        print(f"An update of the answer takes longer than {LIMIT_MS} ms.")
    if grown:
        print(f"An update of the answer takes more than {GROWTH} times what it does at the beginning.")
    return int(slow or grown)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
