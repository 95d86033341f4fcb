"""What a person at a terminal sees: whole ids at any width, the usual flags, the nearest name, what happens now."""

import io
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from bench.ports import free_port
from broker.command import screen
from broker.command.screen import Screen
from broker.command.terminal import print_table
from broker.settings import unknown_variables
from tests.command.conftest import COMMAND, Ended, Running, environment
from tests.rig.deployment import HTTP, Deployment, wait_until

Lastevent = Callable[..., Ended]
ID, SESSION = "0f3c" * 8, "s-a session of 会議"
Table = Callable[[int], tuple[list[str], str]]


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Table:
    """table(columns) → the lines of a terminal of that width, and what is said beside them."""
    columns = ("ID", "STATE", "CREATED (UTC)", "SESSION", ">LASTED")
    rows = [
        (ID, "done", "2026-11-21 09:22:52", SESSION, "2.30 s"),
        (ID[::-1], "queued", "2026-11-21 09:22:51", "-", "-"),
    ]

    def shown(width: int) -> tuple[list[str], str]:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        print_table(columns, rows)
        captured = capsys.readouterr()
        return plain(captured.out).splitlines(), captured.err

    return shown


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_every_id_is_whole_and_on_one_line(table: Table, width: int) -> None:
    lines, said = table(width)
    assert len(lines) == 3
    assert all(cell_len(line) <= width for line in lines)
    assert [line[:32] for line in lines[1:]] == [ID, ID[::-1]]
    assert any(SESSION in line for line in lines) == (width >= 100)
    assert ("too narrow for: " in said) == (width < 100)
    assert any("2.30 s" in line for line in lines), "a wide column in the middle does not hide those after it"


def test_a_list_without_rows_says_so(lastevent: Lastevent, deployment: Deployment) -> None:
    for args, said in (
        (["ls", "--user", "nobody at all"], "No streams match."),
        (["sessions", "no such session"], "No streams match."),
    ):
        ended = lastevent(*args, url=deployment.url)
        assert (ended.returncode, ended.stdout, ended.stderr.decode().strip()) == (0, b"", said)


def test_the_usual_flags_are_there(lastevent: Lastevent) -> None:
    version = lastevent("version")
    assert lastevent("--version").stdout == version.stdout
    assert lastevent("ls", "--version").returncode == 2
    whole = lastevent("--help")
    assert lastevent("-h").stdout == lastevent("help").stdout == whole.stdout
    of_one = lastevent("ls", "--help")
    assert lastevent("ls", "-h").stdout == lastevent("help", "ls").stdout == of_one.stdout
    assert b" ls [OPTIONS]" in of_one.stdout


def test_the_version_is_there_at_once() -> None:
    def cpu_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def took(*args: str) -> float:
        before = cpu_s()
        subprocess.run([sys.executable, *args], env=environment(), stdout=subprocess.DEVNULL, check=True)
        return cpu_s() - before

    bare = min(took("-c", "import importlib.metadata") for _ in range(3))
    assert min(took("-m", "broker", "version") for _ in range(3)) < 2 * bare, "the whole command takes five times that"


def test_help_tells_each_command_in_a_whole_sentence_and_its_group(lastevent: Lastevent) -> None:
    shown = lastevent("--help").stdout.decode()
    assert "..." not in shown.partition("Try it:")[2]
    groups = [line.removesuffix(":") for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert groups == ["Options", "Try it", "Look", "Prove", "Run it"]
    assert "which events each was sent" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("args", "meant"), [(["lss"], "'ls'"), (["sesions"], "'sessions'"), (["ls", "--limt", "3"], "--limit")]
)
def test_a_mistyped_command_or_option_names_the_nearest(lastevent: Lastevent, args: list[str], meant: str) -> None:
    ended = lastevent(*args)
    assert ended.returncode == 2
    assert meant in ended.stderr.decode()


def test_a_mistyped_variable_is_named_and_stops_nothing(lastevent: Lastevent) -> None:
    ended = lastevent(
        "doctor", LASTEVENT_CONCURENCY="7", LASTEVENT_HEARTBEAT="planted", LASTEVENT_REDIS_URL="redis://127.0.0.1:1"
    )
    assert ended.stderr.decode().splitlines() == [
        "lastevent: LASTEVENT_CONCURENCY is not a setting, and is ignored. Did you mean LASTEVENT_CONCURRENCY?",
        "lastevent: LASTEVENT_HEARTBEAT is not a setting, and is ignored. Did you mean LASTEVENT_HEARTBEAT_S?",
    ]
    assert ended.stdout


def test_only_what_nobody_reads_is_an_unknown_variable() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "API.md").read_text().split("## Settings")[1]
    settings = [word.strip("`,") for word in documented.split() if re.match("`LASTEVENT_[A-Z]", word)]
    assert len(settings) > 40
    assert list(unknown_variables([*settings, "LASTEVENT_NET", "PATH", "LASTEVENTUAL", "lastevent_redis_url"])) == []
    assert list(unknown_variables(["LASTEVENT_PORT"])) == [
        "LASTEVENT_PORT is for compose.yaml alone: here the port is --port."
    ]
    assert list(unknown_variables(["LASTEVENT_QQQ"])) == ["LASTEVENT_QQQ is not a setting, and is ignored."]


def test_a_stream_that_is_not_there_is_said_once_with_its_id(lastevent: Lastevent, deployment: Deployment) -> None:
    for args in (["follow", "ab c"], ["views", "ab c"], ["erase", "ab c"], ["cancel", "ab c"], ["replay", "ab c"]):
        ended = lastevent(*args, url=deployment.url, given=b"y\n")
        assert (ended.returncode, ended.stderr) == (1, b"lastevent: there is no stream ab c (stream_not_found)\n"), args


def test_erase_does_not_ask_about_what_still_runs(lastevent: Lastevent, deployment: Deployment) -> None:
    made = HTTP.post(f"{deployment.url}/v1/streams", json={"producer": "external"}).json()["id"]
    ended = lastevent("erase", made, url=deployment.url, given=b"y\n")
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert ended.stderr.decode() == f"lastevent: {made} is still running: end it first with lastevent cancel {made}\n"


def test_times_are_utc_wherever_somebody_sits(lastevent: Lastevent, deployment: Deployment) -> None:
    made = HTTP.post(f"{deployment.url}/v1/streams", json={"producer": "external", "user_id": "tz"}).json()
    shown = made["created_at"][:19].replace("T", " ")
    here = lastevent("ls", "--user", "tz", url=deployment.url, TZ="Asia/Tokyo").stdout.decode()
    assert "CREATED (UTC)" in here
    assert shown in here
    for option, is_there in (("--since", True), ("--until", False)):
        ended = lastevent("ls", "--user", "tz", option, shown, url=deployment.url, TZ="Asia/Tokyo")
        assert (made["id"] in ended.stdout.decode()) == is_there


# -- what runs ---------------------------------------------------------------------------------------------


def test_a_server_says_where_it_listens_and_a_worker_that_it_waits(start: Callable[..., Running]) -> None:
    port = free_port()
    redis = "redis://someone:planted-secret@127.0.0.1:1/3?socket_timeout=2"
    server = start("serve", "--port", str(port), LASTEVENT_REDIS_URL=redis)
    worker = start("work", LASTEVENT_REDIS_URL=redis, LASTEVENT_STANDIN="1")
    server.wait_until_it_says(f"Listening on http://127.0.0.1:{port} with redis://127.0.0.1:1/3\n")
    worker.wait_until_it_says("Waiting for work from redis://127.0.0.1:1/3\n")
    assert [server.stop(), worker.stop()] == [0, 0]
    assert "planted" not in server.stderr + worker.stderr


# -- what happens while no text comes --------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error as a terminal."""
    console = Console(file=io.StringIO(), force_terminal=True, highlight=False, markup=False, width=80)
    monkeypatch.setattr(screen, "quiet", console)
    assert isinstance(console.file, io.StringIO)
    return console.file


def test_thinking_and_tools_are_told_on_a_terminal(terminal: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    def event(kind: str, **data: Any) -> dict[str, Any]:
        return {"id": 1, "event": kind, "data": data}

    with Screen(as_json=False, sid="s1") as shown:
        for one, said in (
            (event("thinking_delta", text="secret"), "thinking"),
            (event("tool_start", tool="web_search"), "web_search is called"),
            (event("internal.thinking_delta", text="secret"), "thinking"),
            (event("internal.tool_start", tool="a_step"), "a_step is called"),
            (event("tool_progress", tool="web_search", message="page 3"), "page 3"),
            (event("tool_error", tool="web_search", code="timeout"), "[web_search: timeout]"),
            (event("tool_start", tool="refund", title="Refunding", tool_call_id="c1"), "Refunding is called"),
            (event("tool_end", tool="refund", tool_call_id="c1", duration_ms=1234), "[Refunding: done (1.2 s)]"),
        ):
            shown.show(one)
            wait_until(lambda said=said: said in terminal.getvalue(), f"it says {said}")
        shown.show(event("internal.text_delta", text="secret"))
        shown.show(event("text_delta", text="half a "))
        shown.show(event("thinking_delta", text="between two words"))
        shown.show(event("tool_end", tool="refund", tool_call_id="c1", duration_ms=9999))
        shown.show(event("text_delta", text="line"))
    assert capsys.readouterr().out == "half a line\n"
    assert "secret" not in terminal.getvalue()
    assert "10.0 s" not in terminal.getvalue(), "in the middle of a line"


def test_that_an_approval_is_waited_for_is_said_also_where_nobody_sees_a_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Screen(as_json=False, sid="s1") as shown:
        shown.show({"id": 5, "event": "text_delta", "data": {"text": "I ask."}})
        shown.show({"id": 6, "event": "approval_request", "data": {"approval_id": "a1", "tool": "refund\x1b[2J"}})
        shown.show({"id": 7, "event": "tool_end", "data": {"tool": "refund"}})
    said = capsys.readouterr()
    assert said.out == "I ask.\n"
    assert said.err.startswith("[refund[2J: waits for an approval. POST /v1/streams/s1/approvals/a1 ")
    assert said.err.count("\n") == 1


def test_on_a_terminal_ls_leaves_out_what_does_not_fit(deployment: Deployment, tmp_path: Path) -> None:
    made = HTTP.post(f"{deployment.url}/v1/streams", json={"producer": "external", "user_id": "pty"}).json()["id"]
    ours, theirs = os.openpty()
    settings = environment(LASTEVENT_URL=deployment.url, COLUMNS="70", TERM="xterm")
    with subprocess.Popen(
        [*COMMAND, "ls", "--user", "pty"], env=settings, cwd=tmp_path, stdout=theirs, stderr=subprocess.PIPE
    ) as ls:
        assert ls.stderr
        said = ls.stderr.read().decode()
    os.close(theirs)
    lines = plain(os.read(ours, 10_000).decode()).splitlines()
    os.close(ours)
    assert [line.split()[0] for line in lines] == ["ID", made]
    assert "too narrow for: " in said
    assert "SESSION" in said
