"""The lines of docs/DIALECTS.md on Durable Streams, as they stand there."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.deployment import Deployment

pytestmark = pytest.mark.npm

DOCUMENT = Path(__file__).parents[4] / "docs" / "DIALECTS.md"


def test_the_first_lines_write_a_stream_and_read_it(
    deployment: Deployment, packages: Path, require: Callable[[str, str], str]
) -> None:
    section = DOCUMENT.read_text().partition("## Durable Streams\n")[2]
    lines = re.search(r"```js\n(.*?)```", section, re.DOTALL)
    assert lines
    program = packages / "docs.mjs"
    program.write_text(lines[1].replace("http://127.0.0.1:8000", deployment.url))
    command = [require("node", "nodejs"), str(program)]
    ran = subprocess.run(command, cwd=packages, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (0, "{ said: 'hello' }\n"), ran.stderr
