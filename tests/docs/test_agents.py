"""The code that docs/AGENTS.md shows is one app. (Its commands run against the `lastevent up` of test_readme.py.)"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from lastevent.host.app import announced, load
from tests.docs.up import AGENTS, PARTS, ROOT, blocks_of


def test_each_part_of_the_app_can_be_run_with_those_before_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for count in range(1, len(PARTS) + 1):
        (tmp_path / f"shop{count}.py").write_text("\n\n".join(PARTS[:count]))
        try:
            assert announced(load(f"shop{count}"))
        finally:
            sys.modules.pop(f"shop{count}", None)


def test_the_readme_s_agent_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    [shown] = blocks_of((ROOT / "README.md").read_text(), "python")
    (tmp_path / "readme_shop.py").write_text(shown)
    try:
        assert [agent["name"] for agent in announced(load("readme_shop"))] == ["support"]
    finally:
        sys.modules.pop("readme_shop", None)


def test_the_tests_that_it_shows_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shop.py").write_text("\n\n".join(PARTS))
    [shown] = [block for block in blocks_of(AGENTS, "python") if block.startswith("# test_shop.py")]
    (tmp_path / "shown_tests.py").write_text(shown)
    try:
        tests = [test for name, test in vars(importlib.import_module("shown_tests")).items() if name.startswith("test")]
        assert len(tests) == 2
        for test in tests:
            test()
    finally:
        for name in ("shop", "shown_tests"):
            sys.modules.pop(name, None)
