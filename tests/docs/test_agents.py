"""docs/AGENTS.md is what happens: its code is one app, and its commands, run in their order, print what it shows."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lastevent.host.app import announced, load
from tests.docs.up import ROOT, blocks_of, running_up

DOCUMENT = (ROOT / "docs" / "AGENTS.md").read_text()
PARTS = [block for block in blocks_of(DOCUMENT, "python") if not block.startswith("# test_")]
COMMANDS = re.findall(r"^```sh\n(.*?)^```\n(?:```text\n(.*?)^```$)?", DOCUMENT, re.DOTALL | re.MULTILINE)
NOT_HERE = re.compile(r"make|lastevent (up|serve|work)")


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
    [shown] = [block for block in blocks_of(DOCUMENT, "python") if block.startswith("# test_shop.py")]
    (tmp_path / "shown_tests.py").write_text(shown)
    try:
        tests = [test for name, test in vars(importlib.import_module("shown_tests")).items() if name.startswith("test")]
        assert len(tests) == 2
        for test in tests:
            test()
    finally:
        for name in ("shop", "shown_tests"):
            sys.modules.pop(name, None)


def worker_of(up: int) -> str:
    children = Path(f"/proc/{up}/task/{up}/children").read_text().split()
    return next(pid for pid in children if b"worker\0--parent-pipe" in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the worker is found in /proc")
def test_its_commands_print_what_it_shows(tmp_path: Path, require: Callable[[str, str], str]) -> None:
    require("curl", "curl")
    (tmp_path / "shop.py").write_text("\n\n".join(PARTS))
    commands = [(command, shown) for command, shown in COMMANDS if not NOT_HERE.match(command)]
    with running_up(tmp_path, "--app", "shop") as up:
        script = "".join(f"{command}\necho; echo ==\n" for command, _ in commands)
        # This one's worker: others may be at work on this machine.
        script = script.replace('$(pgrep -f "worker --parent-pipe")', worker_of(up.process.pid))
        printed = up.sh(script, with_stderr=True).split("==\n")
    assert len(printed) == len(commands) + 1
    for (command, shown), output in zip(commands, printed, strict=False):
        lines = iter(output.splitlines())
        for line in shown.splitlines():
            pattern = ".*".join(map(re.escape, line.split("…")))
            assert any(re.fullmatch(pattern, said.rstrip()) for said in lines), f"{command}\n{line}\n---\n{output}"
