"""The command looks back: sessions, views, export, verify, erase; over a server, a database, or a file alone."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from tests.command.conftest import Ended
from tests.conftest import deployment_in
from tests.rig.deployment import HTTP, Deployment, wait_until

Lastevent = Callable[..., Ended]


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One server and a worker over an archive, as `up` has it."""
    folder = tmp_path_factory.mktemp("archived")
    settings = {"LASTEVENT_ARCHIVE_URL": f"sqlite:///{folder}/archive.db", "LASTEVENT_ARCHIVE_AFTER_S": "0"}
    (folder / "masks.toml").write_text("[[mask]]\nname = 'names'\npattern = 'Ann'\n")
    with deployment_in(folder, servers=1, **settings, LASTEVENT_REDACT_FILE=str(folder / "masks.toml")) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def stream(archived: Deployment) -> str:
    """An archived stream that somebody has seen."""
    sid = archived.create("[[tokens=5 rate=0 ttft_ms=0]] Ann", user_id="ann", session_id="her session")
    HTTP.get(f"{archived.url}/v1/streams/{sid}/events", headers={b"User-Agent": b"a \x9b31m phone"})
    wait_until(lambda: HTTP.get(f"{archived.url}/v1/streams/{sid}").json()["archived_at"], "it is archived")
    seen = f"{archived.url}/v1/streams/{sid}/views"
    wait_until(lambda: "a 31m phone" in HTTP.get(seen).text, "its viewer is on record")
    return sid


def test_streams_are_listed_by_every_filter(lastevent: Lastevent, archived: Deployment, stream: str) -> None:
    for which in (
        *(["--session", "her session"], ["--user", "ann"], ["--state", "done"], ["--since", "2020-01-01"]),
        *(["--model", "anthropic/claude-sonnet-5-5"], ["--until", "2999-01-01T00:00Z"], []),
    ):
        assert stream in lastevent("ls", *which, url=archived.url).stdout.decode(), which
    for which in (["--user", "bob"], ["--since", "2999-01-01"], ["--until", "2020-01-01"], ["--model", "anthropic/x"]):
        assert stream not in lastevent("ls", *which, url=archived.url).stdout.decode(), which
    today = HTTP.get(f"{archived.url}/v1/streams/{stream}").json()["created_at"][:10]
    assert stream in lastevent("ls", "--since", today, "--until", today, url=archived.url, TZ="UTC").stdout.decode()
    assert lastevent("ls", "--state", "finished", url=archived.url).returncode == 2
    wrong = lastevent("ls", "--since", "yesterday", url=archived.url)
    assert (wrong.returncode, b"is not a date or time" in wrong.stderr) == (2, True)


def test_sessions_are_listed_and_shown(lastevent: Lastevent, archived: Deployment, stream: str) -> None:
    assert "her session" in lastevent("sessions", url=archived.url).stdout.decode()
    assert stream in lastevent("sessions", "her session", url=archived.url).stdout.decode()
    [found] = json.loads(lastevent("sessions", "her session", "--json", url=archived.url).stdout)["streams"]
    assert found["id"] == stream
    assert json.loads(lastevent("sessions", "--json", url=archived.url).stdout)["sessions"][0]["id"] == "her session"


def test_pages_go_on_where_they_say(lastevent: Lastevent, archived: Deployment, stream: str) -> None:
    archived.create("[[tokens=1 rate=0]]")
    first = lastevent("ls", "--limit", "1", url=archived.url)
    cursor = first.stderr.decode().split()[-1]
    assert stream in lastevent("ls", "--cursor", cursor, url=archived.url).stdout.decode()
    assert stream not in first.stdout.decode()


def test_views_say_who_saw_what(lastevent: Lastevent, archived: Deployment, stream: str) -> None:
    shown = lastevent("views", stream, url=archived.url).stdout.decode()
    assert "finished" in shown
    assert "a 31m phone" in shown, "and no control characters"
    views = json.loads(lastevent("views", stream, "--json", url=archived.url).stdout)["views"]
    [view] = [view for view in views if view["format"] == "sse"]
    assert (view["first_id"], view["how"]) == (1, "finished")
    assert {view["format"] for view in views} >= {"sse", "record"}


def test_views_are_shown_to_the_last_page(lastevent: Lastevent, archived: Deployment) -> None:
    sid = archived.create("[[tokens=1 rate=0]]")
    record = {"tenant": "default", "who": "token", "server": "x", "format": "sse", "requested": 0, "how": "left"}
    records = {f"view-{n}": json.dumps({**record, "opened": 1_800_000_000_000 + n}) for n in range(450)}
    with closing(redis.Redis.from_url(archived.redis_url)) as client:
        client.hset(f"le:{{{sid}}}:views", mapping=records)
    views = json.loads(lastevent("views", sid, "--json", url=archived.url).stdout)["views"]
    assert [view["id"] for view in views if view["format"] == "sse"] == list(records)


def test_a_stream_is_verified_by_its_server(lastevent: Lastevent, archived: Deployment, stream: str) -> None:
    good = lastevent("verify", stream, url=archived.url)
    said, seal = good.stdout.decode().splitlines()
    assert (good.returncode, said) == (0, "verified: it is as it was sealed")
    assert seal.startswith(f"  stream {stream}, seal ")
    assert json.loads(lastevent("verify", stream, "--json", url=archived.url).stdout)["verdict"] == "verified"
    fresh = archived.create("[[tokens=900 rate=10]]")
    unsealed = lastevent("verify", fresh, url=archived.url)
    assert (unsealed.returncode, b"not sealed" in unsealed.stdout) == (2, True)
    HTTP.post(f"{archived.url}/v1/streams/{fresh}/cancel").raise_for_status()


def test_an_exported_file_is_verified_with_nothing_but_the_public_key(
    lastevent: Lastevent, archived: Deployment, stream: str, tmp_path: Path
) -> None:
    key = str(archived.folder / "seal-public.pem")
    whole, redacted = tmp_path / "whole.ndjson", tmp_path / "redacted.ndjson"
    whole.write_bytes(lastevent("export", stream, url=archived.url).stdout)
    redacted.write_bytes(lastevent("export", stream, "--redacted", url=archived.url).stdout)

    def verdict(content: bytes) -> tuple[int, str]:
        (tmp_path / "file").write_bytes(content)
        ended = lastevent("verify", "--export", str(tmp_path / "file"), "--key", key)
        assert ended.stderr == b""
        return ended.returncode, ended.stdout.decode().partition(":")[0].strip()

    lines = whole.read_bytes().splitlines(keepends=True)
    assert verdict(whole.read_bytes()) == (0, "verified")
    masked = redacted.read_bytes().splitlines(keepends=True)
    assert verdict(redacted.read_bytes()) == (2, "redacted")
    assert verdict(b"".join(lines[:-1])) == (2, "not sealed")
    for changed in (
        b"".join([*lines[:3], *lines[4:]]),
        b"".join([lines[0], lines[2], lines[1], *lines[3:]]),
        whole.read_bytes().replace(b'"text":"', b'"text":"!', 1),
        whole.read_bytes().replace(b'\\"user\\"', b'\\"User\\"', 1),
        whole.read_bytes().replace(b'"t":1', b'"t":2', 1),
        whole.read_bytes().replace(b'"signature":"', b'"signature":"00', 1),
        lines[-1],
        b"what is this",
        whole.read_bytes() + b'{"event":"text_delta","data":{"text":"evil"}}\n',
        whole.read_bytes() + b"\n",
        whole.read_bytes() + lines[-1],
        whole.read_bytes()[:-1],
        b"".join([*lines[:2], b'{"event":"text_delta","data":{"text":"evil"}}\n', *lines[2:]]),
        b"".join([*lines[:2], b'{"event":"status","data":{}}\r' + lines[2], *lines[3:]]),
        b"".join([*lines[:-1], b'{"redacted":["names"]}\n', lines[-1]]),
        b"".join([*masked[:2], *masked[3:]]),
        b"".join([*masked[:-3], *masked[-2:]]),
    ):
        assert verdict(changed) == (1, "CHANGED"), changed
    other = tmp_path / "other.pem"
    other.write_bytes(
        b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
        b"-----END PUBLIC KEY-----\n"
    )
    assert lastevent("verify", "--export", str(whole), "--key", str(other)).returncode == 1


def test_the_whole_archive_is_verified_in_its_database(
    lastevent: Lastevent, archived: Deployment, stream: str, tmp_path: Path
) -> None:
    where = ("--data-dir", str(archived.folder))
    good = lastevent("verify", "--all", *where)
    assert (good.returncode, good.stdout.decode().splitlines()[-1]) == (0, "nothing has changed")
    headless = lastevent("verify", "--all", "--data-dir", str(archived.folder), "--heads", str(tmp_path / "none"))
    assert (headless.returncode, b"No head is known for default" in headless.stderr) == (2, True)
    with closing(sqlite3.connect(archived.folder / "archive.db", timeout=10)) as database, database:
        database.execute("UPDATE streams SET state = 'error' WHERE sid = ?", [stream])
    bad = lastevent("verify", "--all", LASTEVENT_ARCHIVE_URL=f"sqlite:///{archived.folder}/archive.db")
    as_json = lastevent("verify", "--all", "--json", "--data-dir", str(archived.folder))
    one = lastevent("verify", stream, url=archived.url)
    with closing(sqlite3.connect(archived.folder / "archive.db", timeout=10)) as database, database:
        database.execute("UPDATE streams SET state = 'done' WHERE sid = ?", [stream])
    assert bad.returncode == as_json.returncode == one.returncode == 1
    assert "CHANGED: 1 findings" in bad.stdout.decode()
    assert json.loads(as_json.stdout)["findings"][0]["stream"] == stream
    with closing(redis.Redis.from_url(archived.redis_url)) as client:
        name = f"le:{{{stream}}}:meta"
        honest = lastevent("verify", "--all", *where, LASTEVENT_REDIS_URL=archived.redis_url)
        client.hset(name, "user", "eve")
        forged = lastevent("verify", "--all", *where, LASTEVENT_REDIS_URL=archived.redis_url)
        one = lastevent("verify", stream, url=archived.url)
        client.hset(name, "user", "ann")
    assert (honest.returncode, b" of these streams are still in Redis" in honest.stdout) == (0, True)
    assert (forged.returncode, b"copy_record_differs: Redis' copy of the record differs: user." in forged.stdout) == (
        1,
        True,
    )
    assert (one.returncode, one.stdout.decode().splitlines()[0][:7]) == (1, "DIFFERS")
    away = lastevent("verify", "--all", *where, LASTEVENT_REDIS_URL="redis://127.0.0.1:1/0")
    assert (away.returncode, b"was not compared" in away.stderr) == (2, True)
    nowhere = lastevent("verify", "--all", "--data-dir", str(tmp_path))
    assert (nowhere.returncode, b"there is no archive" in nowhere.stderr) == (2, True)


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["a", "--all"],
        ["--export", "missing"],
        ["--export", "/dev/null", "--key", "/dev/null"],
        ["--export", "missing", "--key", "missing"],
        ["--all", "--key", "missing"],
        ["a", "--key", "missing"],
    ],
)
def test_what_cannot_be_verified_is_said(lastevent: Lastevent, args: list[str]) -> None:
    ended = lastevent("verify", *args)
    assert ended.returncode == 2
    assert ended.stderr


def test_erasing_asks_first(lastevent: Lastevent, archived: Deployment) -> None:
    sid = archived.create("[[tokens=1 rate=0]]")
    archived.wait_until_ended(sid)
    assert lastevent("erase", sid, url=archived.url, given=b"n\n").returncode == 1
    assert HTTP.get(f"{archived.url}/v1/streams/{sid}/text").status_code == 200
    erased = lastevent("erase", sid, "--yes", url=archived.url)
    assert (erased.returncode, erased.stdout) == (0, b"erased\n")
    assert HTTP.get(f"{archived.url}/v1/streams/{sid}/text").status_code == 410
    checked = lastevent("verify", sid, url=archived.url)
    assert checked.returncode == 0
    assert "  erased by anyone (requested), seal " in checked.stdout.decode()


def test_a_person_is_erased_by_name_and_the_deed_is_shown(lastevent: Lastevent, archived: Deployment) -> None:
    sid = archived.create("[[tokens=1 rate=0]]", user_id="ann of arendelle")
    told = ["--user", "ann of arendelle", "--reason", "she asked"]
    assert lastevent("erase", *told, url=archived.url, given=b"n\n").returncode == 1
    erased = lastevent("erase", *told, "--yes", url=archived.url)
    assert erased.returncode == 0, erased.stderr
    assert erased.stdout.startswith(b"erased: 1 stream (erasure ")
    assert HTTP.get(f"{archived.url}/v1/streams/{sid}/text").status_code == 410
    shown = lastevent("deeds", "--what", "erasure_ordered", url=archived.url)
    assert shown.stdout.decode().splitlines()[1].split()[2:4] == ["anyone", "erasure_ordered"]
    assert b"arendelle" not in shown.stdout


@pytest.mark.parametrize("args", [[], ["a", "--user", "b"], ["--user", "a", "--session", "b"], ["a", "--reason", "b"]])
def test_what_cannot_be_erased_is_said(lastevent: Lastevent, args: list[str]) -> None:
    assert lastevent("erase", *args).returncode == 2
