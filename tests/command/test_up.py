"""`lastevent up`: everything on one machine, from nothing to a text, and nothing left behind."""

import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from bench.ports import free_port
from broker.log.servers import RETURN_LEASES
from broker.log.steps import LEASE_S
from broker.settings import NO_ARCHIVE
from tests.command.conftest import Ended, Running, processes_in, run_lastevent, running_in
from tests.rig.deployment import HTTP, wait_until
from tests.rig.long import LONG

Start = Callable[..., Running]
Lastevent = Callable[..., Ended]

pytestmark = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="what is left is looked for in /proc")


WELL_BELOW_A_LEASE_MS = 2000
LOOKS = 100


def is_ready(url: str) -> bool:
    try:
        return HTTP.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def pid_of(folder: Path, what: str) -> int:
    [pid] = [pid for pid, line in processes_in(folder).items() if what in line]
    return pid


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


@dataclass
class Twice:
    """What became of one that was started, stopped, started again and ended with Ctrl-C."""

    url: str
    first: Running
    again: Running
    left: list[dict[int, str]]
    data: list[str]
    generated: Ended
    others: dict[str, Ended]
    followed: Ended
    followed_in_flight: Ended
    text_in_flight: str
    queued_ms: int
    began_ms: int
    restarted_ms: int
    in_use_since_ms: float
    ended: list[int]


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twice]:
    folder, port, data = tmp_path_factory.mktemp("twice"), free_port(), "my däta ? [1]"
    url, options = f"http://127.0.0.1:{port}", ("up", "--port", str(port), "--data-dir", data)
    with running_in(folder) as start:
        first = start(*options)
        first.wait_until_it_says("Lastevent is ready")
        generated = run_lastevent(folder, "generate", "[[tokens=20 rate=0]] hello", "--session", "kept", url=url)
        in_flight = _begun(url, tokens=60)
        ended, left = [first.stop()], [processes_in(folder)]
        kept = os.listdir(folder / data)

        again = start(*options)
        again.wait_until_it_says("Lastevent is ready")
        new = _begun(url)  # nothing keeps this one from beginning as soon as a worker is there
        wait_until(lambda: _time_of("restart", in_flight, url), "it goes on")
        [stream] = HTTP.get(f"{url}/v1/sessions/kept").json()["streams"]
        told = {
            "others": {
                "on its port": run_lastevent(folder, "up", "--port", str(port), "--data-dir", "other"),
                "on its data": run_lastevent(folder, "up", "--port", str(free_port()), "--data-dir", data),
            },
            "followed": run_lastevent(folder, "follow", stream["id"], url=url),
            "followed_in_flight": run_lastevent(folder, "follow", in_flight, url=url),
            "text_in_flight": HTTP.get(f"{url}/v1/streams/{in_flight}/text").text,
            "queued_ms": _time_of("queued", new, url),
            "began_ms": _time_of("text_delta", new, url),
            "restarted_ms": _time_of("restart", in_flight, url),
            "in_use_since_ms": _server_in_use_since_ms(folder / data),
        }
        again.press_ctrl_c()
        ended.append(again.wait())
        left.append(processes_in(folder))
        yield Twice(url=url, first=first, again=again, left=left, data=kept, generated=generated, ended=ended, **told)


def test_it_says_when_it_is_ready_and_ends_everything(twice: Twice) -> None:
    assert twice.first.stdout == f"Lastevent is ready: {twice.url}\n"
    assert "stand-in, which is not a model" in twice.first.stderr
    assert twice.ended == [0, 0], "stopped, and with Ctrl-C"
    assert twice.left == [{}, {}]


def test_it_goes_on_where_it_was(twice: Twice) -> None:
    assert twice.data
    assert twice.generated.returncode == 0
    assert (twice.followed.returncode, twice.followed.stdout) == (0, twice.generated.stdout)
    assert twice.followed_in_flight.returncode == 0
    assert twice.followed_in_flight.stdout.decode().strip().endswith(twice.text_in_flight)


def test_after_a_clean_stop_a_generation_in_flight_goes_on_as_soon_as_there_is_a_worker(twice: Twice) -> None:
    assert twice.queued_ms - twice.in_use_since_ms >= RETURN_LEASES * LEASE_S * 1000
    assert twice.restarted_ms - twice.began_ms < WELL_BELOW_A_LEASE_MS


def test_a_second_one_on_the_same_port_or_data_is_refused_and_the_first_unharmed(twice: Twice) -> None:
    on_port, on_data = twice.others["on its port"], twice.others["on its data"]
    assert (on_port.returncode, on_data.returncode) == (1, 1)
    assert b"in use" in on_port.stderr
    assert b"--port" in on_port.stderr
    assert b"in use by another Lastevent" in on_data.stderr
    assert twice.followed.returncode == 0, "which was asked afterwards"


AT_ONCE = "[[tokens=3 rate=0 ttft_ms=0]]"
PARTS = {
    "broker serve": "web process 1 died (signal SIGKILL); starting it again",
    "-m worker": "worker 1 died (signal SIGKILL); starting it again",
    "valkey-server": "the embedded server died; starting it again",
}
"""Of a child's command line, and what its parent says when it is killed."""


@dataclass
class Killed:
    """What became of one whose workers came late and whose parent was killed; of the next start, whose children were
    killed one by one, and then everything at once; and of the last. Times in ms.
    """

    ready_without_workers: set[bool]
    said_without_workers: str
    shown: list[tuple[list[int], bool]]
    parts: list[str]
    generated: Ended
    followed: list[Ended]
    said_of_children: str
    generated_afterwards: Ended
    begun_ms: int
    in_use_since_ms: float
    restarted_ms: int
    ended: int
    left: dict[int, str]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder, port, admin_port = tmp_path_factory.mktemp("killed"), free_port(), free_port()
    url, admin_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
    data, told = ("--data-dir", "data"), dict[str, Any]()
    with running_in(folder) as start:
        first = start(
            "up", "--port", str(port), *data, "--web", "2", "--workers", "2", LASTEVENT_ADMIN_PORT=str(admin_port)
        )
        stopped = _stop_workers(folder, 2)
        wait_until(lambda: is_ready(url), "a server is ready")
        wait_until(lambda: _are_up(admin_url) == [1, 1, 0, 0], "both are")
        told["ready_without_workers"] = {is_ready(url) for _ in range(LOOKS)}  # many looks of the supervisor
        told["said_without_workers"] = first.stdout
        told["shown"] = [(_are_up(admin_url), is_ready(admin_url))]
        os.kill(stopped.pop(), signal.SIGCONT)
        first.wait_until_it_says("Lastevent is ready")
        told["shown"].append((_are_up(admin_url), is_ready(admin_url)))
        told["generated"] = run_lastevent(folder, "generate", f"{AT_ONCE} before", "--session", "s", url=url)
        os.kill(stopped.pop(), signal.SIGCONT)
        told["parts"] = [part for line in processes_in(folder).values() for part in PARTS if part in line]
        first.process.kill()
        first.process.wait(10)
        wait_until(lambda: all("valkey" in line for line in processes_in(folder).values()), "the children have ended")

        second = start("up", "--port", str(port), *data)
        second.wait_until_it_says("Lastevent is ready")
        told["followed"] = [_followed(folder, url)]
        for what, said in PARTS.items():
            _kill_child(second, folder, url, what, said)
        told["said_of_children"] = second.stderr
        told["followed"].append(_followed(folder, url))
        told["generated_afterwards"] = run_lastevent(folder, "generate", f"{AT_ONCE} after", url=url)
        in_flight = _begun(url)
        second.kill_all()
        wait_until(lambda: not processes_in(folder), "all are gone")

        third = start("up", "--port", str(port), *data)
        third.wait_until_it_says("Lastevent is ready")
        wait_until(lambda: _time_of("restart", in_flight, url), "it goes on")
        told["begun_ms"] = _time_of("text_delta", in_flight, url)
        told["restarted_ms"] = _time_of("restart", in_flight, url)
        told["in_use_since_ms"] = _server_in_use_since_ms(folder / "data")
        return Killed(**told, ended=third.stop(), left=processes_in(folder))


def _stop_workers(folder: Path, count: int) -> list[int]:
    """Long before they have imported what they need."""
    stopped: list[int] = []

    def are_stopped() -> bool:
        for pid, line in processes_in(folder).items():
            if "-m worker" in line and pid not in stopped:
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        return len(stopped) == count

    wait_until(are_stopped, "the workers stand still")
    return stopped


def _kill_child(up: Running, folder: Path, url: str, what: str, said: str) -> None:
    """Until there is another, and all is ready."""
    pid = pid_of(folder, what)
    os.kill(pid, signal.SIGKILL)
    up.wait_until_it_says(said)
    wait_until(lambda: _is_another(folder, what, pid), f"there is another {what}")
    wait_until(lambda: is_ready(url), "it is ready again")


def _followed(folder: Path, url: str) -> Ended:
    [stream] = HTTP.get(f"{url}/v1/sessions/s").json()["streams"]
    return run_lastevent(folder, "follow", stream["id"], url=url)


def test_it_is_ready_only_when_a_worker_takes_generations(killed: Killed) -> None:
    assert killed.ready_without_workers == {True}, "its servers"
    assert "ready" not in killed.said_without_workers
    assert killed.shown == [([1, 1, 0, 0], False), ([1, 1, 1, 0], True)], "at the admin port"
    assert killed.generated.returncode == 0, "by the only worker that can"


def test_children_do_not_outlive_a_killed_parent_and_the_next_start_has_the_data(killed: Killed) -> None:
    assert sorted(killed.parts) == ["-m worker", "-m worker", "broker serve", "broker serve", "valkey-server"]
    assert killed.followed[0].stdout == killed.generated.stdout != b""


def test_a_child_that_dies_is_started_again_and_that_is_said(killed: Killed) -> None:
    assert [said for said in PARTS.values() if said in killed.said_of_children] == list(PARTS.values())
    assert killed.followed[1].stdout == killed.generated.stdout
    assert killed.generated_afterwards.returncode == 0


def test_after_everything_was_killed_a_generation_in_flight_waits_for_a_lease(killed: Killed) -> None:
    """The embedded server may have lost its last second."""
    assert killed.in_use_since_ms > killed.begun_ms
    assert killed.restarted_ms - killed.in_use_since_ms >= LEASE_S * 1000
    assert (killed.ended, killed.left) == (0, {})


def _are_up(admin_url: str) -> list[int]:
    """Of each process whether its supervisor's port says so: those that are, first."""
    scraped = HTTP.get(f"{admin_url}/metrics").text
    shown = re.findall(r"^lastevent_process_up\{process=.+\} ([01])", scraped, re.MULTILINE)
    return sorted(map(int, shown), reverse=True)


def _begun(url: str, tokens: int = 200) -> str:
    asked = {"prompt": f"[[tokens={tokens} rate=20 ttft_ms=0]] long"}
    sid: str = HTTP.post(f"{url}/v1/streams", json=asked).json()["id"]
    wait_until(lambda: HTTP.get(f"{url}/v1/streams/{sid}/text").text, "it has begun")
    return sid


def _server_in_use_since_ms(data: Path) -> float:
    [path] = re.findall(r'^unixsocket "(.+)"$', (data / "valkey.conf").read_text(), re.MULTILINE)
    with Redis(unix_socket_path=path) as redis:
        [(_, since_ms)] = redis.zrange("le:servers", -1, -1, withscores=True)
    return float(since_ms)


def _time_of(kind: str, sid: str, url: str) -> int:
    """When the first event of that kind was written (ms, by Redis' clock); 0: not yet."""
    lines = HTTP.get(f"{url}/v1/streams/{sid}/events?follow=0", headers={"Accept": "application/x-ndjson"}).text
    events = [json.loads(line) for line in lines.splitlines()]
    return next((event["t"] for event in events if event["event"] == kind), 0)


def _is_another(folder: Path, what: str, than: int) -> bool:
    return any(what in line and pid != than for pid, line in processes_in(folder).items())


STOPS = [("valkey", signal.SIGINT), ("-m worker", signal.SIGTERM)]
OTHER_STOPS = [("valkey", signal.SIGTERM), ("-m worker", signal.SIGINT)]


@pytest.mark.parametrize(("when", "how"), STOPS + OTHER_STOPS if LONG else STOPS)
def test_stopped_before_it_is_ready_it_leaves_nothing(
    start: Start, tmp_path: Path, port: int, when: str, how: signal.Signals
) -> None:
    up = start("up", "--port", str(port))
    wait_until(lambda: _is_another(tmp_path, when, 0), f"{when} has been started")
    os.killpg(up.process.pid, how)  # as a terminal does
    assert up.wait() == 0
    assert processes_in(tmp_path) == {}


@pytest.mark.parametrize("what", [["up"], ["serve", "--web", "2"]], ids=" ".join)
def test_a_port_that_another_program_has_is_said(lastevent: Lastevent, tmp_path: Path, what: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = lastevent(*what, "--port", str(port), LASTEVENT_REDIS_URL="redis://127.0.0.1:1")
    assert ended.returncode == 1
    assert str(port).encode() in ended.stderr
    assert b"in use" in ended.stderr
    assert processes_in(tmp_path) == {}


def test_a_data_directory_that_cannot_be_one_is_said(lastevent: Lastevent, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for data_dir in ("file", "file/inside", "/proc/nope"):
        ended = lastevent("up", "--port", str(free_port()), "--data-dir", data_dir)
        assert ended.returncode == 1
        assert data_dir.encode() in ended.stderr


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("LASTEVENT_REDACT_FILE", ["up"]),
        ("LASTEVENT_REDACT_FILE", ["serve", "--web", "2"]),
        ("LASTEVENT_REDACT_FILE", ["serve"]),
        ("LASTEVENT_SEAL_KEY", ["up"]),
    ],
)
def test_a_file_that_a_setting_names_and_no_child_can_use_ends_it(
    lastevent: Lastevent, tmp_path: Path, port: int, name: str, command: list[str]
) -> None:
    ended = lastevent(*command, "--port", str(port), **{name: "no-such-file"})
    assert ended.returncode == 2
    assert b"no-such-file" in ended.stderr
    assert b"starting it again" not in ended.stderr
    assert processes_in(tmp_path) == {}


def test_serve_and_work_are_the_parts_apart(
    start: Start, lastevent: Lastevent, own_deployment: Callable[..., object], port: int, url: str
) -> None:
    redis_url: str = own_deployment(servers=0, workers=0).redis_url  # type: ignore[attr-defined]
    settings = {"LASTEVENT_REDIS_URL": redis_url}
    parts = [
        start("serve", "--port", str(port), "--web", "2", **settings),
        start("work", "--concurrency", "3", LASTEVENT_STANDIN="1", **settings),
    ]
    wait_until(lambda: is_ready(url), "the servers are ready")
    generated = lastevent("generate", "[[tokens=5 rate=0]] apart", url=url)
    assert generated.returncode == 0
    assert generated.stdout
    assert [part.stop() for part in parts] == [0, 0]
    assert [part.stdout for part in parts] == ["", ""]
    said = [f"Listening on {url} with {redis_url}", f"Waiting for work from {redis_url}"]
    assert [part.stderr.splitlines() for part in parts] == [[NO_ARCHIVE, line] for line in said], "each once"
