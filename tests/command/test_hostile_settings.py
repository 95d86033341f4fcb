"""Addresses that are none: exit code 2, one line that names the variable or the option, no traceback, and no secret."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.command import cli
from broker.command.client import shown
from tests.rig.long import LONG
from worker import __main__ as worker

SECRETS = ("seCret1", "seCret2")
PASSWORDS = [f"seCret1{between}seCret2" for between in ("/", "#", "?", "/?#", "?x=", "#@", "/@", "[", "]")]
VERY_LONG = "a" * 300

REDIS = [
    *(f"redis://user:{password}@host/0" for password in PASSWORDS),
    *(f"rediss://:{password}@host:6380" for password in PASSWORDS),
    *(f"redis://:12{between}seCret1@host/0" for between in "/?#"),
    *(f"redis+sentinel://:{password}@a,b/main" for password in PASSWORDS),
    *(f"unix://user:{password}@/tmp/s" for password in PASSWORDS),
    *("redis://user:seCret1@", "redis://h?x=seCret1", "redis://u:seCret1@h:port", "redis://u:seCret1@h:99999"),
    *("redis://u:seCret1@h:0", "redis://u:seCret1@h?db=x", "redis://u:seCret1@h?socket_timeout=x", "redis://u@h/x"),
    *("redis://u:seCret1@[::1", f"redis://u:seCret1@{VERY_LONG}", "rediss://u:seCret1@h?ssl_cert_reqs=seCret2"),
    *("redis://u:seCret1@h?ssl_ca_certs=x", "redis://u:seCret1@h?protocol=x", "redis://u:seCret1@h?retry=x"),
    *("seCret1", "://seCret1", "redis+sentinel://:seCret1@a", "redis://:seCret1@a..b", "redis://u:seCret1@a b"),
    "redis+sentinel://a/main?sentinel_password=seCret1&x=y",
]
ARCHIVES = [
    *(f"postgresql://user:{password}@host:port/db" for password in PASSWORDS),
    *(f"postgresql://user:{password}@host:99999/db" for password in PASSWORDS),
    *(
        "postgresql://u:seCret1@h/db?x=seCret2",
        f"postgresql://u:seCret1@{VERY_LONG}/db",
        "postgresql://u:seCret1@[::1/db",
    ),
    *("postgresql://u:seCret1@a,b:1,2/db", "postgresql://u:seCret1@h/", "mysql://u:seCret1@h/db", "seCret1"),
    *("postgresql://u:seCret1@h/db?port=x", "sqlite://u:seCret1@h/x.db", "sqlite:///x.db?key=seCret1"),
]
URLS = [
    *("http://[", "http://", "http://u:seCret1@", "https://u:seCret1@[::1/x", "http://u:seCret1@h:port/"),
    *(f"http://u:seCret1@{VERY_LONG}/", "http://u:seCret1@h:99999/", "http://u:seCret1/@h/"),
]
HOSTILE = [
    *(("LASTEVENT_REDIS_URL", url) for url in REDIS),
    *(("LASTEVENT_ARCHIVE_URL", url) for url in ARCHIVES),
    *((variable, url) for variable in ("LASTEVENT_SEAL_HEADS", "ANTHROPIC_BASE_URL") for url in URLS),
    *((variable, "http://u:seCret1@") for variable in ("OPENAI_BASE_URL", "GOOGLE_GEMINI_BASE_URL")),
    ("LASTEVENT_DEFAULT_MODEL", "anthropic/../seCret1"),
    ("LASTEVENT_API_KEYS", "seCret1"),
    ("LASTEVENT_MASKED_KEYS", "seCret1seCret1\u00fc"),
    ("LASTEVENT_CORS_ORIGINS", "https://u:seCret1@h/x"),
    ("LASTEVENT_ARCHIVE_RETENTION_S", "seCret1=seCret2"),
    ("LASTEVENT_CONCURRENCY", "seCret1"),
]
"""(its variable, its value)"""


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LASTEVENT_URL", "LASTEVENT_API_KEY", "LASTEVENT_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


COMMANDS = (["doctor"], ["serve"], ["up"], ["verify", "--all"])


@pytest.mark.parametrize(("variable", "value"), HOSTILE, ids=lambda word: repr(word)[:60])
def test_a_variable_that_cannot_be_used_is_named_and_not_repeated(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    turn = HOSTILE.index((variable, value)) % len(COMMANDS)
    for args in COMMANDS if LONG else COMMANDS[turn : turn + 1]:
        ended = CliRunner().invoke(cli.app, args)
        assert isinstance(ended.exception, SystemExit), ended.exception
        assert (ended.exit_code, ended.stdout) == (2, "")
        [line] = ended.stderr.splitlines()
        assert line.startswith(f"lastevent: {variable}: ")
        assert not any(secret in line for secret in SECRETS)
    monkeypatch.setattr(sys, "argv", ["worker"])
    assert worker.main() == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{variable}: ")
    assert not any(secret in line for secret in SECRETS)


@pytest.mark.parametrize("host", [VERY_LONG, "a..b", "a b", "\u0130" * 80], ids=lambda host: repr(host)[:20])
@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_host_that_is_none_is_said(command: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASTEVENT_API_KEYS", "a-key-of-thirty-two-and-more-of-it")
    ended = CliRunner().invoke(cli.app, [command, "--host", host])
    assert isinstance(ended.exception, SystemExit), ended.exception
    assert (ended.exit_code, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith("lastevent: --host: ")


@pytest.mark.parametrize("url", [*URLS, "seCret1"], ids=lambda url: repr(url)[:40])
def test_a_server_s_address_that_is_none_is_not_repeated(url: str) -> None:
    ended = CliRunner().invoke(cli.app, ["ls"], env={"LASTEVENT_URL": url})
    assert isinstance(ended.exception, SystemExit), ended.exception
    assert (ended.exit_code, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith("lastevent: --url: ")
    assert not any(secret in line for secret in SECRETS)


@pytest.mark.parametrize("args", [["ls"], ["doctor"], ["generate", "x"]], ids=" ".join)
def test_the_password_of_a_server_s_address_is_not_shown_when_nobody_answers(args: list[str]) -> None:
    ended = CliRunner().invoke(cli.app, args, env={"LASTEVENT_URL": "http://user:seCret1@127.0.0.1:1"})
    assert "http://127.0.0.1:1" in ended.output
    assert "seCret1" not in ended.output
    assert shown("https://h:1/x") == "https://h:1/x"
