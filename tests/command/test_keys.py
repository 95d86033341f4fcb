"""lastevent keys: made, listed, revoked, exported and put back, in the Redis that servers use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from typer.testing import CliRunner, Result

from broker.command import cli
from broker.command.keys import refusal_without_keys
from broker.process.embedded import EmbeddedServer
from broker.settings import load_settings

KEY = re.compile(r"lek_[a-z2-7]{12}_[\w-]{43}")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LASTEVENT_REDIS_URL", "LASTEVENT_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a `lastevent up` that runs."""
    folder = tmp_path_factory.mktemp("keys") / "data"
    server = EmbeddedServer(folder)
    server.start()
    yield folder
    server.stop()


@pytest.fixture
def empty(data_dir: Path) -> Path:
    url = EmbeddedServer(data_dir).url_if_running()
    assert url
    with Redis.from_url(url) as redis:
        redis.flushall()
    return data_dir


def run(*args: str, given: str | None = None) -> Result:
    ended = CliRunner().invoke(cli.app, ["keys", *args], input=given)
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended


def ok(*args: str, given: str | None = None) -> Result:
    ended = run(*args, given=given)
    assert ended.exit_code == 0, ended.output
    return ended


def made(data_dir: Path, *args: str) -> dict[str, object]:
    key: dict[str, object] = json.loads(ok("create", *args, "--json", "--data-dir", str(data_dir)).stdout)
    return key


def test_a_key_is_shown_once_and_its_fields_are_those_that_scripts_rely_on(empty: Path) -> None:
    args = ["--tenant", "acme", "--name", "web", "--scopes", "streams:write, streams:read", "--expires", "90d"]
    key = made(empty, *args)
    assert list(key) == ["id", "key", "tenant", "scopes", "expires_at"]
    assert KEY.fullmatch(str(key["key"]))
    assert (key["tenant"], key["scopes"]) == ("acme", ["streams:read", "streams:write"])
    assert str(key["expires_at"]).endswith(".000Z")
    [listed] = json.loads(ok("list", "--json", "--data-dir", str(empty)).stdout)
    assert listed["id"] == key["id"]
    assert listed["name"] == "web"
    plain = ok("create", "--data-dir", str(empty))
    assert KEY.fullmatch(plain.stdout.strip())
    table, exported = (ok(command, "--data-dir", str(empty)) for command in ("list", "export"))
    for secret in (str(key["key"]), plain.stdout.strip()):
        assert secret.split("_", 2)[2] not in table.output + exported.output + plain.stderr


def test_of_the_first_key_it_is_said_what_it_does_and_of_up_s_redis_nothing_is_in_doubt(empty: Path) -> None:
    first, second = (ok("create", "--data-dir", str(empty)) for _ in range(2))
    assert "asks for a key" in first.stderr
    assert "asks for a key" not in second.stderr
    for ended in (first, second, ok("revoke", first.stdout.strip(), "--data-dir", str(empty))):
        assert "append-only" not in ended.stderr
        assert "on its disk" not in ended.stderr


def test_presets_are_scopes_by_one_name(empty: Path) -> None:
    assert made(empty, "--preset", "masked")["scopes"] == ["audit:masked"]
    assert made(empty)["scopes"] == made(empty, "--preset", "backend")["scopes"]


def test_a_revoked_key_is_listed_as_such_and_revoking_it_again_is_no_error(empty: Path) -> None:
    key = made(empty)
    for form in (str(key["id"]), str(key["key"]), str(key["id"])):
        assert f"{key['id']} is revoked since 2" in ok("revoke", form, "--data-dir", str(empty)).stderr
    assert "revoked" in ok("list", "--data-dir", str(empty)).stdout
    [listed] = json.loads(ok("list", "--json", "--data-dir", str(empty)).stdout)
    assert listed["revoked_at"]


def test_what_is_exported_is_put_back_where_redis_has_lost_it(empty: Path, tmp_path: Path) -> None:
    kept, gone = made(empty, "--tenant", "acme"), made(empty)
    ok("revoke", str(gone["id"]), "--data-dir", str(empty))
    backup = ok("export", "--data-dir", str(empty)).stdout
    before = ok("list", "--json", "--data-dir", str(empty)).stdout
    file = tmp_path / "keys.jsonl"
    file.write_text(backup)
    assert ok("import", str(file), "--data-dir", str(empty)).stdout == "2 there already\n"
    other = tmp_path / "another"
    assert ok("import", "-", "--data-dir", str(other), given=backup).stdout == "2 put back\n"
    assert ok("list", "--json", "--data-dir", str(other)).stdout == before
    assert ok("export", "--data-dir", str(other)).stdout == backup
    assert str(kept["key"]).rpartition("_")[2] not in backup


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["create", "--scopes", "streams:red"],
            "--scopes: streams:red is no scope of a key. Did you mean streams:read?",
        ),
        (["create", "--scopes", ","], "--scopes: a key without a scope opens nothing"),
        (["create", "--scopes", "audit:masked,admin"], "--scopes: audit:masked stands alone"),
        (["create", "--scopes", "admin", "--preset", "masked"], "--preset: --scopes is given too"),
        (["create", "--preset", "root"], "--preset is one of backend, auditor, masked, scraper"),
        (["create", "--tenant", "Acme"], "--tenant: a tenant is "),
        (["create", "--name", "a\nb"], "--name: a name has "),
        *(
            (["create", "--expires", life], "--expires is a number and ")
            for life in ("90", "0d", "-1d", "x", "9999999w")
        ),
        (["list"], "there is no .lastevent: "),
        (["export", "--data-dir", "nowhere"], "there is no nowhere: "),
        (["import", "nothing.jsonl"], "nothing.jsonl cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said_and_makes_nothing(args: list[str], says: str, tmp_path: Path) -> None:
    ended = run(*args)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"lastevent: {says}")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_line_of_a_back_up_is_named_not_repeated_and_nothing_is_put_back(empty: Path) -> None:
    made(empty)
    backup = ok("export", "--data-dir", str(empty)).stdout
    ended = run("import", "-", "--data-dir", str(empty), given=f'{backup}\n{{"seCret": 1}}\n')
    assert ended.exit_code == 2
    assert ended.stderr == "lastevent: line 3: this is no API key as `lastevent keys` writes it\n"


def test_a_key_that_is_not_there_cannot_be_revoked(empty: Path) -> None:
    ended = run("revoke", "aaaaaaaaaaaa", "--data-dir", str(empty))
    assert ended.exit_code == 1
    assert "There is no API key with this id." in ended.stderr


def test_limits_are_set_in_the_redis_of_up_as_keys_are_made_there(empty: Path) -> None:
    there = ["--data-dir", str(empty)]
    said = CliRunner().invoke(cli.app, ["limits", "set", "acme", "viewers=7", *there])
    assert (said.exit_code, "No key is of the tenant acme" in said.stderr) == (0, True), "its name may be mistyped"
    made(empty, "--tenant", "acme")
    assert "No key" not in CliRunner().invoke(cli.app, ["limits", "set", "acme", "viewers=7", *there]).stderr
    assert json.loads(CliRunner().invoke(cli.app, ["limits", "--json", *there]).stdout) == {"acme": {"viewers": 7}}


def test_what_is_done_at_the_command_line_is_a_deed_of_the_operator_in_the_tenant_it_concerns(empty: Path) -> None:
    there = ["--data-dir", str(empty)]
    key = made(empty, "--tenant", "acme", "--scopes", "streams:read")["id"]
    ok("revoke", str(key), *there)
    CliRunner().invoke(cli.app, ["limits", "set", "globex", "viewers=7", "weight=", *there])
    with Redis.from_url(EmbeddedServer(empty).url_if_running() or "") as redis:
        deeds = [json.loads(fields[b"d"]) for _, fields in redis.xrange("le:deeds")]
        assert redis.ttl("le:deeds") == -1, "whether they expire is for servers to say"
    assert [(deed["who"], deed["tenant"], deed["what"], deed["detail"]) for deed in deeds] == [
        ("operator", "acme", "key_made", {"key": key, "scopes": ["streams:read"]}),
        ("operator", "acme", "key_revoked", {"key": key}),
        ("operator", "globex", "limits_set", {"viewers": 7, "weight": None}),
    ]


def test_a_redis_that_is_named_is_asked_and_one_that_is_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASTEVENT_REDIS_URL", "redis://:seCret1@127.0.0.1:1/0")
    ended = run("list")
    assert ended.exit_code == 1
    assert "cannot be reached" in ended.stderr
    assert "seCret1" not in ended.output
    both = run("list", "--data-dir", "x")
    assert both.exit_code == 2
    assert "LASTEVENT_REDIS_URL is set" in both.stderr


def test_a_server_on_another_address_needs_a_key_in_redis(empty: Path) -> None:
    url = EmbeddedServer(empty).url_if_running()
    assert url
    assert "lastevent keys create" in str(refusal_without_keys("le:", "0.0.0.0", url))
    key = made(empty)
    assert refusal_without_keys("le:", "0.0.0.0", url) is None
    ok("revoke", str(key["id"]), "--data-dir", str(empty))
    assert refusal_without_keys("le:", "0.0.0.0", url) is None
    assert refusal_without_keys("le:", "0.0.0.0", "redis://127.0.0.1:1/0") is None  # it answers 503 until it knows


def test_up_looks_for_a_key_in_its_own_redis_before_others_reach_it(tmp_path: Path) -> None:
    made(tmp_path / "data")
    folder = tmp_path / "data"
    server = EmbeddedServer(folder)
    with Redis.from_url(server.start()) as redis:
        redis.flushall()
    server.stop()
    ended = CliRunner().invoke(cli.app, ["up", "--host", "0.0.0.0", "--data-dir", str(folder)])
    assert ended.exit_code == 2
    assert f"lastevent keys create --data-dir {folder}\n" in ended.stderr
    assert EmbeddedServer(folder).url_if_running() is None


# -- secrets in files --------------------------------------------------------------------------------------

LONG = "a-key-of-thirty-two-and-more-of-it"


@pytest.mark.parametrize(
    ("variable", "content", "field", "value"),
    [
        ("API_KEYS", f"{LONG}\n", "keys", (LONG,)),
        ("API_KEYS", f"{LONG}\n{LONG}2\n", "keys", (LONG, f"{LONG}2")),
        ("API_KEYS", f"{LONG},{LONG}2", "keys", (LONG, f"{LONG}2")),
        ("TOKEN_SECRET", LONG, "token_secrets", (LONG.encode(),)),
        ("REDIS_URL", "redis://:pass@h/0\n", "redis_url", "redis://:pass@h/0"),
        ("ARCHIVE_URL", "postgresql://u:p@h/d\n", "archive_url", "postgresql://u:p@h/d"),
    ],
)
def test_a_secret_may_be_in_a_file(
    variable: str, content: str, field: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(content)
    monkeypatch.setenv(f"LASTEVENT_{variable}_FILE", str(tmp_path / "secret"))
    assert getattr(load_settings(), field) == value


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"seCret1", "LASTEVENT_API_KEYS_FILE: each needs at least 32 characters"),
        (b"\xff" * 40, "LASTEVENT_API_KEYS_FILE: the file is not text in UTF-8"),
        (b" \n", "LASTEVENT_API_KEYS_FILE: the file is empty"),
        (b"seCret1" * 10_000, "LASTEVENT_API_KEYS_FILE: the file is too large for a secret"),
        (None, "LASTEVENT_API_KEYS_FILE: the file cannot be read (No such file or directory)"),
    ],
)
def test_a_secret_s_file_that_cannot_be_used_is_named_and_not_repeated(
    content: bytes | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seCret2"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("LASTEVENT_API_KEYS_FILE", str(path))
    ended = CliRunner().invoke(cli.app, ["serve"])
    assert ended.exit_code == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"lastevent: {says}")
    assert not {"seCret1", "seCret2"} & set(re.findall(r"seCret\d", line))


def test_a_secret_that_is_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(LONG)
    monkeypatch.setenv("LASTEVENT_API_KEYS_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("LASTEVENT_API_KEYS", LONG)
    ended = CliRunner().invoke(cli.app, ["serve"])
    assert ended.exit_code == 2
    assert ended.stderr.startswith("lastevent: LASTEVENT_API_KEYS_FILE: LASTEVENT_API_KEYS is set too")
    assert LONG not in ended.stderr
