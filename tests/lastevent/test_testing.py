"""lastevent.testing: what a user's own tests stand on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lastevent import AsyncClient, Client, StreamError
from lastevent.client import outbox
from lastevent.testing import Server, lastevent_server

__all__ = ["lastevent_server"]

SHOWN = """
from lastevent import Client


def test_my_app(lastevent_server):
    lastevent_server.answer("Hello, ", "Ann.")
    with Client(lastevent_server.url) as client:
        assert client.start("Hello").wait().text == "Hello, Ann."
    assert lastevent_server.asked[0]["prompt"] == "Hello"
"""


def test_an_answer_is_what_the_test_says(lastevent_server: Server) -> None:
    lastevent_server.answer("a", ("tool_start", {"tool_call_id": "1", "tool": "find"}), "b")
    with Client(lastevent_server.url) as client:
        stream = client.start("Hello", session_id="s")
        kinds = [event.kind for event in stream]
        assert kinds == ["queued", "start", "text_delta", "tool_start", "text_delta", "done"]
        assert client.start("Again").wait().text == "Hello"
    assert [one["prompt"] for one in lastevent_server.asked] == ["Hello", "Again"]


async def test_cuts_and_refusals_are_gone_through_and_nothing_comes_twice(lastevent_server: Server) -> None:
    lastevent_server.answer(*"abcdefgh")
    lastevent_server.refuse(503, "redis_unavailable")
    lastevent_server.cut(4, 7)
    async with AsyncClient(lastevent_server.url) as client:
        stream = await client.start("Hello")
        assert [event.id async for event in stream] == [*range(1, 12)]
        assert stream.answer.text == "abcdefgh"
        kept = stream.answer.to_json()
        assert await client.follow(stream.id, answer=kept) == stream.answer
    assert len(lastevent_server.asked) == 1


def test_an_answer_that_goes_on_is_cancelled(lastevent_server: Server) -> None:
    lastevent_server.answer("a", goes_on=True)
    with Client(lastevent_server.url) as client:
        stream = client.start("Hello")
        for event in stream:
            if event.kind == "text_delta":
                lastevent_server.say(stream.id, ("status", {"message": "…"}))
                stream.cancel()
        assert (stream.answer.state, stream.answer.text) == ("cancelled", "a")


async def test_a_producer_is_tested_by_what_it_has_written(
    lastevent_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "AGAIN_S", (0.0,))
    async with AsyncClient(lastevent_server.url) as client:
        async with client.producer(session_id="s") as out:
            await out.text("a")
            await out.text("b")
        assert lastevent_server.text(out.id) == "ab"
        assert [kind for kind, _ in lastevent_server.events(out.id)] == ["queued", "text_delta", "text_delta", "done"]
        with pytest.raises(StreamError, match="has ended"):
            async with client.producer(id=out.id):
                pass


@pytest.mark.processes
def test_it_is_a_plugin_as_it_is_shown(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["lastevent.testing"]\n')
    (tmp_path / "test_shown.py").write_text(SHOWN)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", str(tmp_path)]
    ran = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
