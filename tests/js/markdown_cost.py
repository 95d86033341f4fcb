"""What an update of `lastevent/markdown` costs: `python -m tests.js.markdown_cost`, alone on a quiet machine.

Needs Node and Chromium. It prints milliseconds of an update, without the layout that it causes,
for an answer and for one block of each kind, at lengths up to 60 kB. It fails if an update of the answer takes longer
than a millisecond at its end, or twice as long as at its beginning.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.conftest import require
from tests.js.bundles import bundled
from tests.js.packages import make_ready
from tests.rig.chromium import ARGS

KB = 1000
LENGTHS = [3 * KB, 15 * KB, 30 * KB, 60 * KB]
LIMIT_MS = 1
GROWTH = 2


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.js.markdown_cost", description=__doc__)
    parser.add_argument("--size", type=int, default=5, help="characters an update")
    parser.add_argument("--stretch", type=int, default=2500, help="characters before each length that are measured")
    parser.add_argument("--rounds", type=int, default=5, help="of which the fastest counts")
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
        page.evaluate("pace(texts.ANSWER.repeat(20), 5, [20000], 15000)")  # compiled as it is after a while
        print(f"{'ms an update at':>40}", *(f"{length // KB:>6} kB" for length in LENGTHS))
        kinds: list[str] = page.evaluate("Object.keys(texts.long(1))")
        figures = {kind: measure(page, kind, options) for kind in (kinds[:1] if options.answer else kinds)}
        browser.close()
    return judge(figures["an answer"])


def measure(page: Page, kind: str, options: argparse.Namespace) -> list[float]:
    pace = "([kind, size, lengths, stretch]) => pace(texts.long(lengths.at(-1))[kind], size, lengths, stretch)"
    rounds = [page.evaluate(pace, [kind, options.size, LENGTHS, options.stretch]) for _ in range(options.rounds)]
    fastest = [min(figures) for figures in zip(*rounds, strict=True)]
    print(f"{kind:>40}", *(f"{ms:9.3f}" for ms in fastest), flush=True)
    return fastest


def judge(answer: list[float]) -> int:
    """By the beginning a later stretch may be cheap or dear, so the dearest stretch of the first half is it."""
    if answer[-1] > LIMIT_MS:
        print(f"An update of the answer takes longer than {LIMIT_MS} ms.")
    if answer[-1] > GROWTH * max(answer[:2]):
        print(f"An update of the answer takes more than {GROWTH} times what it does at the beginning.")
    return int(answer[-1] > LIMIT_MS or answer[-1] > GROWTH * max(answer[:2]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
