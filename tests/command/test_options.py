"""Hostile values of options: exit code 2, no traceback, and one line that names the option as it was typed."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.command import cli
from broker.process.app_options import AppOptions
from broker.settings import Settings, SettingsError, with_options
from worker import __main__ as worker

HUGE = "9" * 30


def rejected(*options: str) -> list[tuple[str, str]]:
    """Values that no count may have, each with its option."""
    return [(option, value) for option in options for value in ("-1", "0", "x", "1.5", "", HUGE + "x")]


HOSTILE = [
    *(("up", *case) for case in [*rejected("--port", "--web", "--workers"), ("--port", "99999"), ("--web", HUGE)]),
    *(("serve", *case) for case in [*rejected("--web"), ("--port", "-1"), ("--port", "x"), ("--port", "99999")]),
    *(("work", *case) for case in rejected("--concurrency")),
    *(
        (command, "--app", value)
        for command in ("up", "work")
        for value in ("", "a b", "shop.py/", "../shop", "1:2", "a:")
    ),
    *((command, "--app", "shop", *case) for command in ("up", "work") for case in rejected("--agent-processes")),
    *(("up", "--app", "shop", "--app-name", value) for value in ("", "a b", "a:b", "x" * 65)),
    *(("work", "--app", "shop", "--python", value) for value in ("", "nowhere", "/nowhere/python", "shop.py")),
    *(("up", *alone) for alone in (("--app-name", "shop"), ("--agent-processes", "2"), ("--python", sys.executable))),
    *(("generate", "a prompt", *case) for case in rejected("--max-tokens") if case[1] != "0"),
    *(("replay", "a", *case) for case in [*rejected("--from"), ("--speed", "-1"), ("--speed", "x")]),
    *((command, *case) for command in ("ls", "sessions") for case in [*rejected("--limit"), ("--limit", HUGE)]),
    *(("ls", option, value) for option in ("--since", "--until") for value in ("", "-1", "0", "x", HUGE)),
    *(("ls", "--state", value) for value in ("", "0", "DONE", "archived")),
    *(("follow", "a", "--last-event-id", value) for value in ("-1", "x", "1.5", HUGE)),
    *(("ls", "--url", value) for value in ("", "x", "http://", "http://[::1", "http://host:99999", "http://host:-1")),
    *(("ls", "--key", value) for value in ("a key", "a\nkey", "schlüssel")),
    *(("verify", "--all", "--data-dir", value) for value in ("no-such-folder", "", "\0")),
    *(("verify", "a", "--api-key", value) for value in ("a key", "schlüssel")),
]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LASTEVENT_URL", "LASTEVENT_API_KEY", "LASTEVENT_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("args", HOSTILE, ids=lambda args: repr(" ".join(args))[:60])
def test_a_hostile_value_ends_with_2_and_its_option_is_named(args: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(cli.app, args)
    assert isinstance(ended.exception, SystemExit)
    assert (ended.exit_code, ended.stdout) == (2, "")
    [line] = [line for line in ended.stderr.splitlines() if not line.startswith(("Usage: ", "Try ")) and line]
    assert args[-2] in line


@pytest.mark.parametrize(("option", "path"), [("--export", "none"), ("--export", "."), ("--key", "none")])
def test_a_file_to_verify_that_cannot_be_read_is_named(option: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    files = {"--export": "empty", "--key": "empty", option: path}
    ended = CliRunner().invoke(cli.app, ["verify", *(part for pair in files.items() for part in pair)])
    assert (ended.exit_code, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert f"{path} " in line


@pytest.mark.parametrize("value", ["-5", "0", "x", "1.5", ""])
def test_a_worker_names_its_option(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["worker", "--concurrency", value])
    try:
        code = worker.main()
    except SystemExit as left:
        code = int(str(left.code))
    assert code == 2
    assert "--concurrency: " in capsys.readouterr().err.splitlines()[-1]


# -- settings with options ---------------------------------------------------------------------------------


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.concurrency = -5  # type: ignore[misc]


def test_an_option_replaces_a_setting_in_a_copy_and_all_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASTEVENT_API_KEYS", "a-key-of-thirty-two-and-more-of-it,another-of-thirty-two-and-more-of-it")
    settings = Settings(heartbeat_s=3)
    copy = with_options(settings, concurrency=("--concurrency", 7), seal_heads=("--heads", None))
    assert (settings.concurrency, copy.concurrency) == (500, 7)
    assert copy.model_dump() == {**settings.model_dump(), "concurrency": 7}


def test_an_origin_is_a_scheme_and_a_host_apps_schemes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    apps = ("capacitor://localhost", "ionic://localhost", "tauri://localhost", "chrome-extension://abcdefgh", "app://-")
    monkeypatch.setenv("LASTEVENT_CORS_ORIGINS", ", ".join((*apps, "https://app.example.com:8443/")))
    assert Settings().cors_origins == (*apps, "https://app.example.com:8443")
    for wrong in ("app.example.com", "https://", "https://a/b", "null", "*", "https://a b", "//a"):
        monkeypatch.setenv("LASTEVENT_CORS_ORIGINS", wrong)
        with pytest.raises(ValueError, match="each origin is a scheme and a host"):
            Settings()


def test_each_option_that_cannot_be_used_has_a_line() -> None:
    with pytest.raises(SettingsError) as raised:
        with_options(Settings(), concurrency=("--concurrency", 0), archive_url=("--data-dir", "x://y"))
    assert str(raised.value).splitlines() == [
        "--data-dir: an archive is sqlite:///path/to/archive.db or postgresql://user:password@host/name",
        "--concurrency: Input should be greater than or equal to 1",
    ]


def test_who_names_a_file_for_an_app_is_told_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shop.py").touch()
    with pytest.raises(SettingsError, match=r"'shop\.py' is a file: give the module's name, shop"):
        AppOptions.checked("shop.py", None, None, None)
