"""`lastevent up --app`: a team's agents answer, in processes of their own, and a change of their code is taken up."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.ports import free_port
from tests.command.conftest import LIMIT_S, Running, processes_in
from tests.rig.deployment import HTTP, wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="what is left is looked for in /proc")

AGENTS = """
from lastevent import Context, agent
import words

@agent("greeter")
async def greeter(ctx: Context, name: str):
    yield f"{words.HELLO}, {name}!"
"""


def test_agents_answer_when_it_is_ready_and_as_their_code_is_now(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(AGENTS)
    words = tmp_path / "words.py"
    words.write_text("HELLO = 'Good morning'")
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1/streams"
    up = start("up", "--port", str(port), "--data-dir", "data", "--app", "shop", "--app-name", "books", "--reload")
    up.wait_until_it_says("Lastevent is ready")

    def ask() -> str:
        sid: str = HTTP.post(url, json={"agent": "greeter", "input": "Ada"}).raise_for_status().json()["id"]
        return sid

    def record(sid: str) -> dict[str, Any]:
        found: dict[str, Any] = HTTP.get(f"{url}/{sid}").json()
        return found

    def answer(sid: str) -> str:
        wait_until(lambda: record(sid)["state"] == "done", "it has answered")
        return HTTP.get(f"{url}/{sid}/text").text

    assert answer(ask()) == "Good morning, Ada!"

    words.write_text("HELLO = 1 / 0  # broken")
    up.wait_until_it_says("ZeroDivisionError")
    assert "the app shop cannot be imported; its streams wait" in up.stderr
    waiting = ask()
    assert record(waiting)["state"] == "queued"
    words.write_text("HELLO = 'Good evening'")
    assert answer(waiting) == "Good evening, Ada!"

    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(LIMIT_S) == 0
    assert processes_in(tmp_path) == {}
