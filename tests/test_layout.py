"""The shape: who may import whom. The arrows do not turn round."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEB = {"fastapi", "starlette", "uvicorn", "sse_starlette"}

PURE = {
    "log/event": {"orjson"},
    "dialects/sse": {"orjson", "broker"},
    "dialects/format": {"broker"},
    "dialects/cursor": {"broker"},
    "log/keys": set(),
    "errors": {"redis"},
}
"""What these few may import besides the standard library. errors.py names Redis' own errors, to translate them."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add((node.module or "").partition(".")[0])
    return found


def loaded_by(statement: str) -> set[str]:
    """Which packages a fresh interpreter has loaded after the statement."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.partition(".")[0] for name in ran.stdout.split()}


@pytest.mark.parametrize("path", modules("broker"), ids=lambda path: path.name)
def test_the_broker_knows_nothing_of_workers(path: Path) -> None:
    assert "worker" not in imports(path)


@pytest.mark.parametrize("path", [*modules("broker"), *modules("worker")], ids=lambda path: path.name)
def test_the_product_knows_nothing_of_its_tests(path: Path) -> None:
    assert not imports(path) & {"tests", "bench", "pytest", "hypothesis", "fakeredis"}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_stand_on_no_framework(name: str) -> None:
    outside = imports(ROOT / "broker" / f"{name}.py") - set(sys.stdlib_module_names)
    assert outside <= PURE[name]


@pytest.mark.parametrize("name", ["log.stream_log", "log.writer", "live.tail", "live.hub", "live.topic", "live.lane"])
def test_the_log_files_stand_on_no_web_framework(name: str) -> None:
    assert not loaded_by(f"import broker.{name}") & WEB


def test_a_worker_does_not_load_the_web_tier() -> None:
    loaded = loaded_by("import worker.main")
    assert not loaded & {"fastapi", "starlette", "sse_starlette"}
    assert "worker" in loaded


def test_what_supervises_web_processes_loads_none() -> None:
    assert not loaded_by("import broker.process.supervisor, broker.command.cli") & WEB


def test_the_broker_loads_no_worker() -> None:
    assert "worker" not in loaded_by("import broker.web.app, broker.command.cli, broker.process.supervisor")


def test_every_script_is_a_step_of_the_log() -> None:
    scripts = {path.stem for path in (ROOT / "broker" / "log" / "scripts").glob("*.lua")} - {"prelude"}
    source = (ROOT / "broker" / "log" / "script.py").read_text()
    assert scripts == {name for name in scripts if f'Script("{name}")' in source}
