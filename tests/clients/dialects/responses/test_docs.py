"""The Python of docs/DIALECTS.md on Responses runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.deployment import Deployment

pytestmark = pytest.mark.processes

DOCUMENT = Path(__file__).parents[4] / "docs" / "DIALECTS.md"
LIMIT_S = 60


def test_the_example_runs_as_it_stands(deployment: Deployment, tmp_path: Path) -> None:
    ours = DOCUMENT.read_text().partition("## OpenAI Responses\n")[2].partition("\n## ")[0]
    [block] = re.findall(r"^```python\n(.*?)^```$", ours, re.DOTALL | re.MULTILINE)
    assert "http://localhost:8000" in block
    program = tmp_path / "example.py"
    program.write_text(block.replace("http://localhost:8000", deployment.url))
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-W", "error", str(program)]
    ran = subprocess.run(command, env=environment, timeout=LIMIT_S, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("This is a stand-in")
