"""The dialog "Connect": its lines run as they stand, and can be read whole on a screen of any width."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.console.conftest import Seeds, watched_page

pytestmark = pytest.mark.browser

LIMIT_S = 60


def lines_of(page: Page, seeds: Seeds) -> dict[str, str]:
    page.goto(seeds.url)
    page.get_by_role("button", name="Connect").click()
    choice = page.get_by_label("Client", exact=True)
    lines = page.get_by_label("Code", exact=True)
    found = {}
    for name in choice.locator("option").all_text_contents():
        choice.select_option(name)
        assert lines.evaluate("lines => lines.scrollWidth <= lines.clientWidth"), name
        found[name] = lines.inner_text()
    return found


def test_the_lines_for_python_run_as_they_stand(page: Page, seeds: Seeds, tmp_path: Path) -> None:
    python = {name: lines for name, lines in lines_of(page, seeds).items() if name.endswith("(Python)")}
    assert len(python) == 4
    for name, lines in python.items():
        program = tmp_path / "lines.py"
        program.write_text(lines)
        environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, str(program)]
        ran = subprocess.run(command, env=environment, timeout=LIMIT_S, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, ""), name
        assert "stand-in" in ran.stdout, name


def test_a_phone_shows_them_whole(browser: Browser, seeds: Seeds) -> None:
    with watched_page(browser, viewport={"width": 390, "height": 780}) as page:
        assert len(lines_of(page, seeds)) == 8
