"""What a person or a script gets wrong, or cannot help: a message and an exit code, never a traceback."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from broker.command.doctor import _settings_of
from tests.command.conftest import COMMAND, Ended, environment
from tests.rig.deployment import Deployment

Lastevent = Callable[..., Ended]
COMMANDS = (
    *("up", "serve", "work", "doctor", "generate", "follow", "cancel", "replay", "version"),
    *("ls", "sessions", "views", "export", "verify", "deeds", "erase"),
    *("ls", "sessions", "views", "export", "verify", "erase", "keys"),
    *("ls", "sessions", "views", "export", "verify", "deeds", "erase", "keys"),
)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_there_and_is_no_error(lastevent: Lastevent, command: str | None) -> None:
    ended = lastevent(*filter(None, [command]), "--help")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.startswith(b"Usage: ")
    if command is None:
        assert all(f"  {name} " in ended.stdout.decode() for name in COMMANDS)


def test_version_is_the_packages(lastevent: Lastevent) -> None:
    assert lastevent("version").stdout.decode().count(".") == 2


@pytest.mark.parametrize(
    "args",
    [
        *([], ["nope"], ["--nope"], ["follow"], ["follow", "a", "b"], ["ls", "--limit", "0"]),
        *(["replay", "a", "--speed", "-1"], ["generate", "x", "--max-tokens", "x"], ["serve", "--port", "65536"]),
        *(["up", "--web", "0"], ["work", "--concurrency", "0"]),
        *(["follow", "a", "--last-event-id", cursor] for cursor in ("1_0", "１", "1\n")),
        *(["ls", "--url", url] for url in ("foo", "", "ftp://x", "http://", "http://[::1")),
        *(["ls", "--key", key] for key in ("ü", "a\nb")),
        *(["generate", b"\xff\xfe"], ["ls", "--session", b"\xff"], ["cancel", "a", "--reason", b"\xff"]),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(lastevent: Lastevent, args: list[str | bytes]) -> None:
    ended = lastevent(*args)
    assert ended.returncode == 2
    assert (ended.stdout + ended.stderr).strip()


def test_standard_input_that_is_no_text_is_said(lastevent: Lastevent) -> None:
    ended = lastevent("generate", "-", given=b"\xff\xfe")
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert b"UTF-8" in ended.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("LASTEVENT_HEARTBEAT_S", "x"), ("LASTEVENT_MAX_VIEWERS", "0"), ("LASTEVENT_REDIS_URL", "nonsense")),
        *(("LASTEVENT_KEY_PREFIX", "{x}"), ("LASTEVENT_CORS_ORIGINS", "*"), ("LASTEVENT_DEFAULT_MODEL", "a b")),
        *(("LASTEVENT_API_KEYS", "schlüssel-mit-umlaut"), ("LASTEVENT_LOG_LEVEL", "loud")),
        ("LASTEVENT_RETENTION_S", "inf"),
    ],
)
def test_a_setting_that_is_none_is_named(lastevent: Lastevent, name: str, value: str) -> None:
    ended = lastevent("serve", **{name: value})
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"lastevent: {name}: ".encode())
    assert len(ended.stderr.splitlines()) == 1


def test_a_worker_names_them_too(lastevent: Lastevent) -> None:
    ended = lastevent("work", LASTEVENT_CONCURRENCY="5", LASTEVENT_REDIS_URL="nonsense")
    assert ended.returncode == 2
    assert b"LASTEVENT_REDIS_URL: " in ended.stderr


def test_a_server_that_is_not_there_is_said(lastevent: Lastevent) -> None:
    for args in (["ls"], ["generate", "x"], ["cancel", "x"], ["replay", "x"], ["export", "x"]):
        ended = lastevent(*args)
        assert (ended.returncode, ended.stdout) == (1, b"")
        assert ended.stderr.decode().startswith("lastevent: no server answers at http://127.0.0.1:1;")


class _WebPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(length)
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>something else</title>\n")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def something_else() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _WebPage) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_what_answers_and_is_no_lastevent_server_is_said(lastevent: Lastevent) -> None:
    with something_else() as url:
        for args in (["ls"], ["generate", "x"], ["follow", "x"], ["cancel", "x"], ["replay", "x"], ["export", "x"]):
            ended = lastevent(*args, url=url)
            assert (ended.returncode, ended.stdout) == (1, b"")
            assert ended.stderr.decode() == f"lastevent: what answers at {url} is not a Lastevent server\n"


@pytest.mark.parametrize("args", [["ls"], ["export"], ["follow"], ["follow", "--json"], ["doctor"]])
def test_a_reader_that_has_gone_is_no_reason_to_complain(
    deployment: Deployment, tmp_path: Path, args: list[str]
) -> None:
    sid = deployment.create("[[tokens=3000 rate=0 ttft_ms=0]]")
    deployment.wait_until_ended(sid)
    given = [*args[:1], sid, *args[1:]] if args[0] in ("export", "follow") else args
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [*COMMAND, *given],
            env=environment(LASTEVENT_URL=deployment.url),
            cwd=tmp_path,
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert ended.stderr == b""
    assert ended.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("args", [["ls"], ["export"], ["follow"], ["--help"]])
def test_a_full_disk_is_said(deployment: Deployment, tmp_path: Path, args: list[str]) -> None:
    sid = deployment.create("[[tokens=3 rate=0 ttft_ms=0]]")
    deployment.wait_until_ended(sid)
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [*COMMAND, *args, *([sid] if args[0] in ("export", "follow") else [])],
            env=environment(LASTEVENT_URL=deployment.url),
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (1, b"lastevent: No space left on device\n")


# -- doctor ----------------------------------------------------------------------------------------------


def test_doctor_finds_a_machine_fit_or_says_what_to_do(lastevent: Lastevent, deployment: Deployment) -> None:
    well = lastevent("doctor", url=deployment.url)
    assert well.returncode == 0
    assert all(line.startswith("ok ") for line in well.stdout.decode().splitlines())
    ill = lastevent("doctor", LASTEVENT_REDIS_URL="redis://:hidden-password@127.0.0.1:1")
    assert ill.returncode == 1
    said = ill.stdout.decode()
    assert "Redis does not answer" in said
    assert "lastevent up" in said
    assert "hidden-password" not in said
    findings = json.loads(lastevent("doctor", "--json", url=deployment.url).stdout)
    assert all(finding.keys() == {"ok", "what", "advice"} for finding in findings)


def test_doctor_looks_at_the_archive(lastevent: Lastevent, deployment: Deployment, tmp_path: Path) -> None:
    well = lastevent("doctor", url=deployment.url, LASTEVENT_ARCHIVE_URL=f"sqlite:///{tmp_path}/archive.db")
    said = well.stdout.decode()
    assert "ok   the archive holds 0 seals" in said
    assert "BAD  0 public keys of seals" in said
    ill = lastevent("doctor", url=deployment.url, LASTEVENT_ARCHIVE_URL=f"postgresql:///x?host={tmp_path}&user=hidden")
    assert (ill.returncode, "BAD  the archive does not answer" in ill.stdout.decode()) == (1, True)
    assert "hidden" not in ill.stdout.decode()


def test_doctor_warns_of_a_redis_that_forgets(lastevent: Lastevent, deployment: Deployment) -> None:
    ended = lastevent("doctor", url=deployment.url, LASTEVENT_REDIS_URL=deployment.redis_url)
    assert ended.returncode == 1  # the tests' own server keeps nothing
    assert "BAD  appendonly no" in ended.stdout.decode()
    assert "ok   maxmemory is not set" in ended.stdout.decode()


def test_doctor_says_what_a_managed_redis_does_not_tell_and_looks_at_the_rest() -> None:
    findings = {finding.what: finding for finding in _settings_of({"maxmemory_policy": "allkeys-lru"})}
    unseen = [what for what in findings if "cannot be seen" in what]
    assert [what.split(" ")[0] for what in unseen] == ["the", "appendonly"]
    assert all(findings[what].ok for what in unseen)
    assert not findings["maxmemory-policy allkeys-lru"].ok


def test_doctor_does_not_show_keys(lastevent: Lastevent, deployment: Deployment) -> None:
    secrets = {"ANTHROPIC_API_KEY": "sk-hidden-1", "LASTEVENT_API_KEYS": "hidden-key-of-thirty-two-and-more"}
    ended = lastevent("doctor", url=deployment.url, **secrets)
    assert b"ANTHROPIC_API_KEY is set" in ended.stdout
    assert b"hidden" not in ended.stdout + ended.stderr
