"""The Python of docs/CLIENTS.md that produces, passes on and tests runs as it stands, on lastevent.testing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lastevent.testing import Server, lastevent_server

__all__ = ["lastevent_server"]

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "CLIENTS.md").read_text()
OURS = DOCUMENT.partition("\n## Producing from Python\n")[2].partition("\n## Being told when")[0]
PRODUCING, RESUMED, FASTAPI, DJANGO, FLASK, PLUGIN, TEST = re.findall(
    r"^```python\n(.*?)^```$", OURS, re.DOTALL | re.MULTILINE
)
PAGE = """
from starlette.testclient import TestClient
import app
with TestClient(app.app) as page:
    started = page.post("/api/chat", json={"prompt": "Hi"})
    print(page.get(started.headers["location"] + "/text").text, page.get("/api/chat/of-others/text").status_code)
"""


def run(folder: Path, url: str, *argv: str) -> str:
    environment = {**os.environ, "LASTEVENT_URL": url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *argv]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
    return ran.stdout


def test_what_produces_is_in_the_log(lastevent_server: Server, tmp_path: Path) -> None:
    (tmp_path / "producing.py").write_text(PRODUCING)
    sid = run(tmp_path, lastevent_server.url, "producing.py").split("/")[-2]
    assert lastevent_server.text(sid) == "It is on its way."
    assert lastevent_server.events(sid)[-1][1]["usage"] == {"output_tokens": 5}


def test_what_is_run_again_after_its_end_says_so(lastevent_server: Server, tmp_path: Path) -> None:
    (tmp_path / "resumed.py").write_text(RESUMED.replace("asyncio.run(job(17))", "asyncio.run(job(17)); " * 2))
    assert "stream_closed" in run(tmp_path, lastevent_server.url, "resumed.py")


def test_an_endpoint_of_fastapis_passes_on(lastevent_server: Server, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FASTAPI)
    (tmp_path / "page.py").write_text(PAGE)
    assert run(tmp_path, lastevent_server.url, "page.py").split() == ["Hello", "404"]


@pytest.mark.parametrize("view", [DJANGO, FLASK], ids=["django", "flask"])
def test_views_can_be_imported(lastevent_server: Server, tmp_path: Path, view: str) -> None:
    (tmp_path / "view.py").write_text(view)
    assert run(tmp_path, lastevent_server.url, "view.py") == ""


def test_the_test_that_it_shows_passes(lastevent_server: Server, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(PLUGIN)
    (tmp_path / "test_app.py").write_text(TEST)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
    assert "1 passed" in run(tmp_path, lastevent_server.url, "-m", "pytest", *options)
