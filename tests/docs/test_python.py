"""The Python of docs/CLIENTS.md runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.deployment import Deployment

DOCUMENT = (Path(__file__).parents[2] / "docs" / "CLIENTS.md").read_text()
OURS = DOCUMENT.partition("\n## Python back end\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", OURS, re.DOTALL | re.MULTILINE)
SAYS = ["done This is a stand-in", "done This is a stand-in", "", "stream_not_found 404"]
LIMIT_S = 60


@pytest.mark.parametrize(("block", "says"), list(zip(BLOCKS, SAYS, strict=True)), ids=range(len(SAYS)))
def test_an_example_runs_as_it_stands(deployment: Deployment, tmp_path: Path, block: str, says: str) -> None:
    program = tmp_path / "example.py"
    program.write_text(block.replace("http://127.0.0.1:8000", deployment.url))
    environment = {**os.environ, "LASTEVENT_API_KEY": "a-key-that-this-server-does-not-ask-for"}
    command = [sys.executable, "-W", "error", str(program)]
    ran = subprocess.run(command, env=environment, timeout=LIMIT_S, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert says in ran.stdout
