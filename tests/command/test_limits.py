"""`lastevent limits` lists and sets, in Redis itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from redis import Redis
from typer.testing import CliRunner, Result

from broker.command.cli import app

Limits = Callable[..., Result]


@pytest.fixture
def limits(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Limits]:
    monkeypatch.setattr("broker.command.terminal.set_up_logs", lambda *_, **__: None)  # of this process
    with Redis.from_url(valkey_url) as redis:
        redis.flushall()
        environment = {"LASTEVENT_REDIS_URL": valkey_url, "COLUMNS": "200"}
        yield lambda *arguments: CliRunner().invoke(app, ["limits", *arguments], env=environment)
        redis.flushall()


def test_limits_are_set_by_name_changed_and_listed(limits: Limits) -> None:
    assert "No tenant has limits of its own" in limits().stderr
    said = limits("set", "acme", "creations_per_minute=1200", "models=fast, openai/gpt-6", "weight=2").stdout
    assert "1200" in said
    assert limits("set", "acme", "weight=", "viewers=7").exit_code == 0
    listed = limits()
    for shown in ("TENANT", "CREATIONS PER MINUTE", "acme", "1200", "fast,openai/gpt-6", "7"):
        assert shown in listed.stdout
    assert json.loads(limits("--json").stdout) == {
        "acme": {"creations_per_minute": 1200, "viewers": 7, "models": ["fast", "openai/gpt-6"]}
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["acme", "weight"], "give NAME=VALUE"),
        (["acme", "speed=9"], "there is no such limit; there are creations_per_minute"),
        (["acme", "weight=many"], "weight: a whole number from 1 to 1000"),
        (["acme", "viewers=-1"], "viewers: a whole number"),
        (["acme", "models=,"], "models: one name or more"),
        (["Acme", "weight=1"], "a tenant's name"),
    ],
)
def test_what_is_no_limit_is_said_in_words_and_nothing_is_set(limits: Limits, arguments: list[str], words: str) -> None:
    refused = limits("set", *arguments)
    assert (refused.exit_code, words in refused.stderr) == (2, True), refused.stderr
    assert json.loads(limits("--json").stdout) == {}


def test_an_option_before_set_is_not_passed_over(limits: Limits) -> None:
    refused = limits("--data-dir", "elsewhere", "set", "acme", "viewers=7")
    assert (refused.exit_code, "behind `set`" in refused.stderr) == (2, True)
    assert json.loads(limits("--json").stdout) == {}


def test_without_redis_the_command_says_which_setting_leads_to_it(
    limits: Limits,
) -> None:
    away = CliRunner().invoke(app, ["limits"], env={"LASTEVENT_REDIS_URL": "unix:///nowhere/s"})
    assert (away.exit_code, "LASTEVENT_REDIS_URL" in away.stderr) == (1, True)
