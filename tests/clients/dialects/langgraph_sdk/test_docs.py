"""What docs/DIALECTS.md shows of LangGraph's SDKs, as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from broker.dialects.langgraph import MODES
from broker.dialects.langgraph_request import ABANDON_AFTER_S, CONFIGURED
from tests.clients.dialects.langgraph_sdk.test_javascript import LIMIT_S, said
from tests.rig.deployment import Deployment

DOCUMENT = Path(__file__).parents[4] / "docs" / "DIALECTS.md"


@pytest.fixture(scope="module")
def section() -> str:
    return DOCUMENT.read_text().partition("\n## LangGraph SDK\n")[2].partition("\n## ")[0]


def block(section: str, begins: str) -> str:
    [code] = [code for code in re.findall(r"```\w+\n(.*?)```", section, re.DOTALL) if code.startswith(begins)]
    return code


def test_the_first_lines_print_an_answer(section: str, deployment: Deployment, tmp_path: Path) -> None:
    program = tmp_path / "first.py"
    program.write_text(block(section, "import os").replace("http://127.0.0.1:8000", deployment.url))
    ran = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("This is a stand-in")


@pytest.mark.npm
async def test_a_thread_lives_behind_the_endpoint(
    js: Path, section: str, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (js / "endpoint.mjs").write_text(block(section, "// app/api/langgraph"))
    monkeypatch.setenv("LASTEVENT_URL", deployment.url)
    monkeypatch.setenv("LASTEVENT_API_KEY", "any")
    story = await said(js, "behind.mjs", "@langchain/langgraph-sdk", "")
    assert (story["chunks"], story["status"], story["isState"]) == (["This", " is", " a", ""], "interrupted", True)


def test_modes_and_fields_are_those_that_there_are(section: str) -> None:
    rows = {row.split(" | ")[0].strip("| "): row for row in section.splitlines() if row.startswith("| `")}
    named = {name: set(re.findall(r"`([a-z_-]+)`", row)) for name, row in rows.items()}
    assert named["`stream_mode`"] == {*MODES, "stream_mode"}
    assert named["`config.configurable`, `context`"] == {*CONFIGURED, "context"}
    assert f"for {ABANDON_AFTER_S} s" in section
