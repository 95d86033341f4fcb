"""`serve` and `up` speak plain HTTP: whoever lets others reach them is told, once."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import broker.process.supervisor
import broker.web.server
from broker.command import cli
from broker.settings import PLAIN_HTTP


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASTEVENT_API_KEYS", "a-key-of-thirty-two-and-more-of-it")
    monkeypatch.setattr(broker.web.server, "run_server", lambda *_, **__: None)
    monkeypatch.setattr(broker.process.supervisor, "run_web", lambda *_: None)
    monkeypatch.setattr(broker.process.supervisor, "run_everything", lambda *_, **__: None)


@pytest.mark.parametrize("command", [["serve"], ["serve", "--web", "2"], ["up"]], ids=" ".join)
@pytest.mark.parametrize(
    ("host", "times"), [("0.0.0.0", 1), ("::", 1), ("10.0.0.1", 1), ("127.0.0.1", 0), ("::1", 0), ("localhost", 0)]
)
def test_listening_for_others_is_said_once_on_standard_error(command: list[str], host: str, times: int) -> None:
    ended = CliRunner().invoke(cli.app, [*command, "--host", host])
    assert ended.exit_code == 0, ended.output
    assert ended.stderr.count(PLAIN_HTTP) == times
    assert PLAIN_HTTP not in ended.stdout


def test_a_child_of_up_or_serve_does_not_say_it_again() -> None:
    ended = CliRunner().invoke(cli.app, ["serve", "--host", "0.0.0.0", "--parent-pipe"])
    assert PLAIN_HTTP not in ended.stderr
