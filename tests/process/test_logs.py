"""At `debug`, with a library's own variables set too: no log, error or process list holds what people said or keep."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.auth import Grant
from broker.errors import InsufficientScope, InvalidRequest, TokenExpired, TooManyViewers, Unauthorized
from broker.process.logs import set_up_logs
from broker.web import problems
from broker.web.door import Door
from broker.web.tally import Tally
from tests.rig.deployment import Process, wait_until

# -- tracebacks ----------------------------------------------------------------------------------------------


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What was written."""
    logging.getLogger().handlers[:] = []
    out = StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    set_up_logs("test", "debug")
    return out.getvalue


def _fail() -> None:
    try:
        {}["a planted key"]
    except KeyError as missing:
        try:
            raise ValueError("a planted value") from missing
        except ValueError:
            group = ExceptionGroup("a planted group", [OSError(28, "a planted file"), RuntimeError("planted")])
            group.add_note("a planted note")
            raise group  # noqa: B904 - its context is what is told


def test_a_traceback_names_every_exception_and_its_code_and_says_none_of_their_words(
    logged: Callable[[], str],
) -> None:
    try:
        _fail()
    except ExceptionGroup:
        logging.getLogger("broker.somewhere").exception("it failed")
    [line] = map(json.loads, logged().splitlines())
    assert line["event"] == "it failed"
    said = line["exception"]
    told = [line for line in said.splitlines() if line and not line.startswith(" ")]
    assert [line for line in told if not line.startswith("Traceback")] == [
        *("KeyError", "ValueError", "ExceptionGroup", "OSError (errno 28)", "RuntimeError")
    ]
    assert "in _fail" in said
    assert "planted" not in "".join(line for line in said.splitlines() if not line.startswith("    "))


def test_what_an_interpreter_says_of_code_is_told(logged: Callable[[], str]) -> None:
    try:
        logging.getLogger().no_such_thing  # type: ignore[attr-defined]  # noqa: B018
    except AttributeError:
        logging.getLogger("worker").exception("it failed")
    assert "has no attribute 'no_such_thing'" in logged()


@pytest.mark.parametrize("library", ["anthropic._base_client", "httpx2", "aiosqlite", "arq.worker", "uvicorn.error"])
def test_a_library_writes_warnings_whatever_level_it_has_set(logged: Callable[[], str], library: str) -> None:
    library_logger = logging.getLogger(library)
    before = library_logger.level
    library_logger.setLevel(logging.DEBUG)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        library_logger.log(level, "at %d", level)
        logging.getLogger("broker.ours").log(level, "ours at %d", level)
    library_logger.setLevel(before)
    said = logged()
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["event"] for line in lines if line.get("logger") == library] == ["at 30"]
    assert [line["event"] for line in lines if "logger" not in line] == ["ours at 10", "ours at 20", "ours at 30"]


def test_an_end_by_a_bug_is_told_without_its_words_too() -> None:
    program = (
        "import sys, threading; from broker.process.logs import set_up_logs; set_up_logs('test')\n"
        "def fail(): raise ValueError(sys.argv[1])\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join(); fail()"
    )
    ended = subprocess.run([sys.executable, "-c", program, "planted"], capture_output=True, text=True, env=os.environ)
    assert ended.returncode == 1
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [line["exception"].endswith("\nValueError") for line in lines] == [True, True]
    assert "planted" not in ended.stderr


@contextmanager
def no_redis() -> Iterator[tuple[str, list[int]]]:
    """An address where every connection is closed at once, and how many there were."""
    met = [0]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close_each() -> None:
            with suppress(OSError):
                while True:
                    listener.accept()[0].close()
                    met[0] += 1

        threading.Thread(target=close_each, daemon=True).start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}", met
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("argv", [("broker", "serve", "--port", "0"), ("worker",)], ids=lambda argv: argv[0])
@pytest.mark.processes
def test_that_redis_is_away_is_said_once_and_not_with_each_try(argv: tuple[str, ...], tmp_path: Path) -> None:
    with no_redis() as (url, met):
        environment = {**os.environ, "LASTEVENT_REDIS_URL": url, "LASTEVENT_STANDIN": "1"}
        process = Process("part", [sys.executable, "-m", *argv], environment, tmp_path)
        process.start()
        try:
            wait_until(lambda: met[0] > 30, "it has tried thirty times")
        finally:
            process.stop()
    lines = [line for line in process.output.read_text().splitlines() if '"level": "warning"' in line]
    assert [line for line in lines if "Redis is away" not in line] == []
    assert len(lines) == 1


# -- a line ------------------------------------------------------------------------------------------------------


def test_a_line_is_json_of_a_time_a_level_an_event_and_what_it_is_about(logged: Callable[[], str]) -> None:
    # Ours alone handles it: pytest keeps what it captures, and cannot pass half a surrogate on between its processes.
    [handler] = [ours for ours in logging.getLogger().handlers if type(ours) is logging.StreamHandler]
    told = ("stream %s: it is gone; putting it back", ("0f\ud800",), None)
    handler.handle(logging.LogRecord("broker.log.writer", logging.WARNING, __file__, 1, *told))
    line = json.loads(logged())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("t"))
    assert line == {
        "level": "warning",
        "event": "stream 0f\ud800: it is gone; putting it back",
        "process": "test",
        "stream": "0f\ud800",
    }


def test_what_somebody_sends_cannot_write_a_line_of_its_own(logged: Callable[[], str]) -> None:
    logging.getLogger("broker").warning("it is called %s", 'x"}\n{"level": "critical"}\u2028')
    [line] = logged().split("\n")[:-1]
    assert json.loads(line)["level"] == "warning"


class _Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_line_is_for_people(logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    set_up_logs("test")
    logging.getLogger("broker").warning("stream %s: it is gone", "0f")
    assert terminal.getvalue().endswith(" test WARNING stream 0f: it is gone\n")


def test_log_libraries_lets_them_write_at_the_level_and_warns_of_what_they_print(
    logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    set_up_logs("test", "debug", libraries=True)
    logging.getLogger("httpx2").debug("a header")
    warning, header = map(json.loads, out.getvalue().splitlines())
    assert all(word in warning["event"] for word in ("LASTEVENT_LOG_LIBRARIES", "prompts", "keys", "tokens"))
    assert (header["logger"], header["event"], header["level"]) == ("httpx2", "a header", "debug")


async def test_what_a_request_logs_has_its_id_and_the_id_of_its_key(logged: Callable[[], str]) -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["grant"] = Grant("acme", scope["path"].removeprefix("/"))
        raise RuntimeError

    door = httpx.ASGITransport(Door(fail, is_keyless=lambda: False))
    async with httpx.AsyncClient(transport=door, base_url="http://here") as http:
        answers = [await http.get(f"/{who}") for who in ("key:0a1b", "user:planted")]
    answered = [answer.headers["x-request-id"] for answer in answers]
    lines = [json.loads(line) for line in logged().splitlines()]
    assert [line["request"] for line in lines] == answered
    assert [line.get("key") for line in lines] == ["0a1b", None]
    assert "planted" not in logged()


async def test_refused_requests_are_one_line_of_codes(
    logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: Tally[str] = Tally("requests refused", str)
    monkeypatch.setattr(problems, "REFUSED", refused)
    words = "planted words"
    errors = [Unauthorized(words), InsufficientScope(["admin"]), TooManyViewers(words, "token"), Unauthorized(words)]
    for error in (*errors, TokenExpired(words), InvalidRequest(words)):
        problems.from_error("request", error)
    assert logged() == ""
    refused.log()
    refused.log()
    [line] = map(json.loads, logged().splitlines())
    said = "requests refused within a minute: 2 × unauthorized, 1 × insufficient_scope, 1 × too_many_viewers"
    assert line["event"] == said
