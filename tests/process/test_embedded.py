"""The embedded server: one to a data directory, found again whatever became of its owner. Real processes throughout."""

import contextlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from arq.connections import RedisSettings
from redis import Redis
from redis.exceptions import ConnectionError

from broker.log.servers import server_of
from broker.process import embedded
from broker.process.clean_stop import MARK, Ended
from broker.process.embedded import EmbeddedServer, EmbeddedServerError

LIMIT_S = 20.0

# An owner as `lastevent up` is one: says where its server is, then does what it is told, a line at a time.
OWNER = """
import json, sys
from pathlib import Path
from broker.process.embedded import EmbeddedServer, EmbeddedServerError
server = EmbeddedServer(Path(sys.argv[1]))
try:
    print(json.dumps({"url": server.start(), "pid": server.pid}), flush=True)
    sys.stdin.read()
except EmbeddedServerError as error:
    print(json.dumps({"error": str(error)}))
except KeyboardInterrupt:
    print(json.dumps({"interrupted": True, "server_alive": server.is_alive()}))
server.stop()
"""


class Owner:
    def __init__(self, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, data_dir],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # so that a test can press Ctrl-C on it alone
        )
        self.said = self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def leave(self) -> None:
        self.process.communicate(timeout=LIMIT_S)  # closes its standard input

    def kill(self) -> None:
        self.process.kill()
        self.leave()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def embed() -> Iterator[Callable[[Path], EmbeddedServer]]:
    """Makes servers that the end of the test stops, in whatever state it leaves them."""
    made: list[EmbeddedServer] = []

    def make(data_dir: Path) -> EmbeddedServer:
        made.append(EmbeddedServer(data_dir))
        return made[-1]

    yield make
    for server in made:
        if server.pid is not None:
            _ignore_gone(server.pid, signal.SIGCONT)
        server.stop()


Embed = Callable[[Path], EmbeddedServer]


def test_it_answers_at_a_unix_socket_that_only_this_user_can_reach(data_dir: Path, embed: Embed) -> None:
    server = embed(data_dir)
    url = server.start()
    with Redis.from_url(url) as client:
        assert client.ping()
        assert client.info("server")["process_id"] == server.pid
        assert client.config_get("port") == {"port": "0"}
    socket_path = Path(url.removeprefix("unix://"))
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert len(os.fsencode(socket_path)) <= 103
    assert RedisSettings.from_dsn(url).unix_socket_path == str(socket_path)


def test_it_keeps_every_write_and_drops_no_key(data_dir: Path, embed: Embed) -> None:
    with Redis.from_url(embed(data_dir).start(), decode_responses=True) as client:
        settings = client.config_get("append*", "save", "maxmemory-policy", "client-output-buffer-limit")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["save"] == ""
    assert settings["maxmemory-policy"] == "noeviction"
    assert f"pubsub {128 << 20} {64 << 20} 10" in settings["client-output-buffer-limit"]


@pytest.mark.parametrize(
    "name", ["plain", "a b", 'it\'s "quoted"', "größe-日本", "back\\slash\nline #%", "[what]? *", "x" * 200]
)
def test_it_finds_its_data_again_in_a_directory_of_any_name(tmp_path: Path, embed: Embed, name: str) -> None:
    data_dir = tmp_path / name / name
    server = embed(data_dir)
    with Redis.from_url(server.start()) as client:
        client.set("le:kept", "yes")
    server.stop()
    assert not server.is_alive()
    assert server.pid is None
    with Redis.from_url(server.start()) as client:
        assert client.get("le:kept") == b"yes"
    assert (data_dir / "appendonlydir").is_dir()
    assert (data_dir / "valkey.log").stat().st_size > 0


def test_a_stopped_server_leaves_no_process_and_no_runtime_directory(data_dir: Path, embed: Embed) -> None:
    server = embed(data_dir)
    runtime_dir = Path(server.start().removeprefix("unix://")).parent
    pid = server.pid
    assert pid is not None
    server.stop()
    server.stop()
    assert not _exists(pid)
    assert not runtime_dir.exists()
    assert not (data_dir / "valkey.pid").exists()


def test_starting_it_twice_is_starting_it_once(data_dir: Path, embed: Embed) -> None:
    server = embed(data_dir)
    url, pid = server.start(), server.pid
    assert (server.start(), server.pid) == (url, pid)


def test_after_a_crash_it_comes_back_with_its_data_at_the_same_url(data_dir: Path, embed: Embed) -> None:
    server = embed(data_dir)
    url, pid = server.start(), server.pid
    assert pid is not None
    with Redis.from_url(url) as client:
        client.set("le:kept", "yes")
    os.kill(pid, signal.SIGKILL)
    _until(lambda: not server.is_alive())
    assert server.start() == url
    assert server.pid != pid
    with Redis.from_url(url) as client:
        assert client.get("le:kept") == b"yes"


def test_after_a_clean_stop_the_next_server_knows_which_one_it_continues_once(data_dir: Path, embed: Embed) -> None:
    server = embed(data_dir)
    with Redis.from_url(server.start()) as client:
        first = server_of(client.info())
        assert server.continues is None
    before_ms = time.time() * 1000
    server.stop()
    assert (data_dir / MARK).exists()
    server.start()
    assert not (data_dir / MARK).exists()
    assert server.continues is not None
    assert server.continues.server == first
    assert before_ms - 1000 <= server.continues.at_ms <= time.time() * 1000
    _kill(server)
    server.start()
    assert server.continues is None, "a mark serves once"


def test_a_killed_server_leaves_no_mark(data_dir: Path, embed: Embed) -> None:
    server = embed(data_dir)
    server.start()
    _kill(server)
    server.stop()
    assert not (data_dir / MARK).exists()
    server.start()
    assert server.continues is None


def test_a_stop_that_had_to_kill_leaves_no_mark(data_dir: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    server = embed(data_dir)
    server.start()
    monkeypatch.setattr(embedded, "STOP_LIMIT_S", 0.1)
    prepare = server._prepare_clean_end

    def then_hang() -> Ended | None:
        ended = prepare()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        return ended

    monkeypatch.setattr(server, "_prepare_clean_end", then_hang)
    server.stop()
    assert not (data_dir / MARK).exists()


def test_a_server_left_over_leaves_no_mark_and_runs_as_it_was_configured(data_dir: Path, embed: Embed) -> None:
    """Nobody but its parent learns how it ended. Its owner may have been killed in the midst of its stop."""
    owner = Owner(data_dir)
    with Redis.from_url(owner.said["url"]) as client:
        client.config_set("appendfsync", "always")
        owner.kill()
        server = embed(data_dir)
        server.start()
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
    assert server.continues is None
    server.stop()
    assert not (data_dir / MARK).exists()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="a limit for another process is Linux'")
@pytest.mark.parametrize("when", ["before the stop", "in the midst of it"])
def test_a_server_that_could_not_write_everything_leaves_no_mark(
    data_dir: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(embedded.subprocess, "Popen", partial(subprocess.Popen, restore_signals=False))  # no SIGXFSZ
    server = embed(data_dir)
    url = server.start()
    prepare = server._prepare_clean_end

    def fill_the_disk() -> None:
        assert server.pid is not None
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (1, 1))
        with Redis.from_url(url) as client, contextlib.suppress(ConnectionError):
            client.set("le:kept", "no")

    def then_the_disk_is_full() -> Ended | None:
        ended = prepare()
        assert ended is not None
        fill_the_disk()
        return ended

    if when == "before the stop":
        fill_the_disk()
    else:
        monkeypatch.setattr(server, "_prepare_clean_end", then_the_disk_is_full)
    server.stop()
    assert not (data_dir / MARK).exists()


def _touched(data_dir: Path) -> Path:
    [log] = (data_dir / "appendonlydir").glob("*.incr.aof")
    os.utime(
        log, ns=(log.stat().st_atime_ns, log.stat().st_mtime_ns)
    )  # as a server would that takes back what it wrote
    return data_dir


def _put_back(data_dir: Path) -> Path:
    """From a backup, with all times as they were."""
    shutil.copytree(data_dir, data_dir.with_name("backup"))
    shutil.rmtree(data_dir)
    return data_dir.with_name("backup").rename(data_dir)


def _damaged(data_dir: Path) -> Path:
    (data_dir / MARK).write_text('{"server": ')
    return data_dir


@pytest.mark.parametrize("what", [_touched, _put_back, _damaged])
def test_a_mark_is_void_when_something_has_happened_to_the_data_since(
    data_dir: Path, embed: Embed, what: Callable[[Path], Path]
) -> None:
    server = embed(data_dir)
    server.start()
    server.stop()
    again = embed(what(data_dir))
    again.start()
    assert again.continues is None
    assert not (data_dir / MARK).exists()


def test_a_mark_that_cannot_be_removed_keeps_the_server_from_starting(data_dir: Path, embed: Embed) -> None:
    (data_dir / MARK).mkdir(parents=True)
    with pytest.raises(EmbeddedServerError, match=r"stopped\.json"):
        embed(data_dir).start()


def test_a_server_left_over_by_a_killed_owner_is_used_again(data_dir: Path, embed: Embed) -> None:
    owner = Owner(data_dir)
    owner.kill()
    server = embed(data_dir)
    assert server.start() == owner.said["url"]
    assert server.pid == owner.said["pid"]
    assert server.is_alive()
    server.stop()
    _until(lambda: not _exists(owner.said["pid"]))


def test_a_server_left_over_that_does_not_answer_is_replaced(
    data_dir: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner(data_dir)
    owner.kill()
    os.kill(owner.said["pid"], signal.SIGSTOP)
    for limit in ("ANSWER_LIMIT_S", "STOP_LIMIT_S"):
        monkeypatch.setattr(embedded, limit, 0.1)
    monkeypatch.setattr(embedded, "SILENCE_LIMIT_S", 1.0)
    server = embed(data_dir)
    with Redis.from_url(server.start()) as client:
        assert client.ping()
    assert server.pid != owner.said["pid"]
    _until(lambda: not _exists(owner.said["pid"]))


def test_a_server_left_over_by_another_release_is_replaced_and_its_data_kept(data_dir: Path, embed: Embed) -> None:
    owner = Owner(data_dir)
    with Redis.from_url(owner.said["url"]) as client:
        client.set("le:kept", "yes")
    owner.kill()
    config = data_dir / "valkey.conf"
    config.write_text(config.read_text() + "# as another release would write it\n")
    server = embed(data_dir)
    with Redis.from_url(server.start()) as client:
        assert client.get("le:kept") == b"yes"
    assert server.pid != owner.said["pid"]
    assert not Path(owner.said["url"].removeprefix("unix://")).exists()


def test_a_crash_of_a_server_that_was_left_over_is_noticed(data_dir: Path, embed: Embed) -> None:
    Owner(data_dir).kill()
    server = embed(data_dir)
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    _until(lambda: not server.is_alive())


def test_a_recycled_pid_in_a_stale_pid_file_is_left_alone(data_dir: Path, embed: Embed) -> None:
    owner = Owner(data_dir)
    owner.kill()
    os.kill(owner.said["pid"], signal.SIGKILL)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
        (data_dir / "valkey.pid").write_text(f"{stranger.pid}\n")
        server = embed(data_dir)
        server.start()
        assert server.pid not in {stranger.pid, owner.said["pid"]}
        server.stop()
        assert stranger.poll() is None


def test_a_pid_file_that_names_a_stranger_while_a_server_is_left_over_harms_neither(
    data_dir: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner(data_dir)
    owner.kill()
    monkeypatch.setattr(embedded, "SETTLE_LIMIT_S", 0.1)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
        (data_dir / "valkey.pid").write_text(f"{stranger.pid}\n")
        with pytest.raises(EmbeddedServerError, match="not known which process"):
            embed(data_dir).start()
        assert stranger.poll() is None
    assert _exists(owner.said["pid"])
    (data_dir / "valkey.pid").write_text(f"{owner.said['pid']}\n")
    assert embed(data_dir).start() == owner.said["url"]


def test_without_proc_a_server_left_over_is_found_all_the_same(
    data_dir: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: not str(path).startswith("/proc") and exists(path))
    owner = Owner(data_dir)
    owner.kill()
    os.kill(owner.said["pid"], signal.SIGSTOP)  # so that its socket cannot say who it is: only `ps` can
    for limit in ("ANSWER_LIMIT_S", "STOP_LIMIT_S"):
        monkeypatch.setattr(embedded, limit, 0.1)
    monkeypatch.setattr(embedded, "SILENCE_LIMIT_S", 1.0)
    server = embed(data_dir)
    server.start()
    assert server.pid != owner.said["pid"]
    _until(lambda: not _exists(owner.said["pid"]))


def test_a_second_owner_is_told_who_uses_the_directory_and_changes_nothing(data_dir: Path, embed: Embed) -> None:
    server = embed(data_dir)
    url, pid = server.start(), server.pid
    second = Owner(data_dir)
    second.leave()
    assert f"is in use by another Lastevent (process {os.getpid()})" in second.said["error"]
    assert "--data-dir" in second.said["error"]
    with pytest.raises(EmbeddedServerError, match="in use"):
        embed(data_dir).start()
    assert server.is_alive()
    assert (server.start(), server.pid) == (url, pid)


def test_the_directory_is_free_again_when_its_owner_has_stopped(data_dir: Path, embed: Embed) -> None:
    owner = Owner(data_dir)
    owner.leave()
    assert embed(data_dir).start() != owner.said["url"]


def test_ctrl_c_reaches_the_owner_and_not_the_server(data_dir: Path) -> None:
    owner = Owner(data_dir)
    os.killpg(owner.process.pid, signal.SIGINT)
    assert owner.read() == {"interrupted": True, "server_alive": True}
    owner.leave()
    assert owner.process.returncode == 0
    _until(lambda: not _exists(owner.said["pid"]))


def test_a_file_cut_short_by_a_crash_is_read_up_to_the_cut(data_dir: Path, embed: Embed) -> None:
    log = _append_only_log(data_dir, embed)
    log.write_bytes(log.read_bytes() + b"*3\r\n$3\r\nSET\r\n$4\r\nhal")
    with Redis.from_url(embed(data_dir).start()) as client:
        assert client.get("le:kept") == b"yes"


@pytest.mark.parametrize(
    "damaged", ["appendonly.aof.1.incr.aof", "appendonly.aof.1.base.rdb", "appendonly.aof.manifest"]
)
def test_damaged_data_is_reported_with_the_servers_words_and_what_to_do(
    data_dir: Path, embed: Embed, damaged: str
) -> None:
    (_append_only_log(data_dir, embed).parent / damaged).write_bytes(b"this is not what was here\n" * 5)
    with pytest.raises(EmbeddedServerError) as raised:
        embed(data_dir).start()
    message = str(raised.value)
    assert "ended while it started. It said:" in message
    assert " # " in message  # a warning of the server's log
    assert "Its data is damaged." in message
    assert f"{data_dir}/appendonlydir" in message
    # The server advises to repair whatever it is; its checker can do that with this file only.
    assert ("ln -s" in message) == damaged.endswith(".incr.aof")


def test_the_advice_on_damaged_data_repairs_it(tmp_path: Path, embed: Embed) -> None:
    data_dir = tmp_path / "it's here"
    log = _append_only_log(data_dir, embed)
    log.write_bytes(log.read_bytes() + b"damage" * 10)
    with pytest.raises(EmbeddedServerError) as raised:
        embed(data_dir).start()
    commands = [line for line in str(raised.value).splitlines() if line.startswith(("    ln -s", "    ./valkey-"))]
    subprocess.run(["sh", "-ec", "\n".join(commands)], cwd=tmp_path, input=b"y\n", check=True, capture_output=True)
    with Redis.from_url(embed(data_dir).start()) as client:
        assert client.get("le:kept") == b"yes"


def test_a_failed_start_leaves_no_process_and_no_lock(data_dir: Path, embed: Embed) -> None:
    log = _append_only_log(data_dir, embed)
    whole = log.read_bytes()
    log.write_bytes(b"damage" * 10)
    server = embed(data_dir)
    with pytest.raises(EmbeddedServerError):
        server.start()
    assert not server.is_alive()
    log.write_bytes(whole)
    with Redis.from_url(embed(data_dir).start()) as client:
        assert client.get("le:kept") == b"yes"


def test_a_data_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path, embed: Embed) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedServerError, match=r"cannot run in .*/file/data"):
        embed(tmp_path / "file" / "data").start()


def test_a_temporary_directory_with_a_long_or_odd_name_is_not_used_for_the_socket(
    tmp_path: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("x" * 100, "a b%20"):
        monkeypatch.setattr(embedded.tempfile, "tempdir", str(tmp_path / name))
        server = embed(tmp_path / "data")
        assert server.start().startswith("unix:///tmp/lastevent-")
        server.stop()


def _append_only_log(data_dir: Path, embed: Embed) -> Path:
    server = embed(data_dir)
    with Redis.from_url(server.start()) as client:
        client.set("le:kept", "yes")
    server.stop()
    return data_dir / "appendonlydir" / "appendonly.aof.1.incr.aof"


def _kill(server: EmbeddedServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    _until(lambda: not server.is_alive())


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)


def _exists(pid: int) -> bool:
    # One that nobody waited for (its owner was killed, and not every container's first process reaps) counts as gone.
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(listed.stdout.strip()) and not listed.stdout.startswith("Z")


def _ignore_gone(pid: int, sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)
