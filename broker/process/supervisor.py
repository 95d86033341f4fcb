"""`lastevent up` and `serve --web N`: processes started, watched, restarted, and ended in the right order.

Children hold the other end of a socket on their standard input: they end when this process does, however it dies.
Each has a process group of its own: Ctrl-C reaches this process alone, which ends them in order. (A child that is
still starting would die of it with a traceback.) The embedded server has a session of its own, and is stopped last.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

import httpx2

from broker.errors import RedisUnavailable
from broker.log.keys import Keys
from broker.log.servers import Servers
from broker.log.steps import LEASE_S
from broker.process.admin import Panel, open_admin_port
from broker.process.app_options import AppOptions
from broker.process.clean_stop import Ended
from broker.process.embedded import EmbeddedServer
from broker.process.environments import for_a_server, for_a_worker
from broker.process.listener import bind
from broker.process.parent import has_started
from broker.process.scrapers import Scrapers
from broker.settings import Settings
from broker.store.archive_url import archive_url
from broker.store.connect import connect

POLL_S = 0.1
READY_S = 60.0
RESTART_S = (0.2, 1.0, 2.0, 5.0)
STABLE_S = 30.0
"""A child that ran so long has not failed at starting: its next failure is restarted at once again."""

KILL_AFTER_S = 45.0

BAD_SETTINGS = 2
"""The exit code of a process that cannot use its settings, which it names on standard error."""

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StartFailed(Exception):
    """What was to be started did not come up; the message says why."""


class SettingsRefused(StartFailed):
    """A child ended at its first start since it cannot use its settings: it would do so again and again."""


@dataclass
class Child:
    name: str
    argv: Sequence[str]
    environment: dict[str, str]
    panel: Panel
    process: subprocess.Popen[bytes] | None = None
    end: socket.socket | None = None
    """Ours, of the socket pair whose other end is the child's standard input."""
    started: float = 0.0
    failures: int = 0
    start_at: float = field(default=0.0)

    def start(self) -> None:
        self.started = time.monotonic()
        self.end, theirs = socket.socketpair()
        with theirs, self.panel.add(self.name) as asked:
            self.process = subprocess.Popen(
                [*self.argv, "--admin-fd", str(asked.fileno())],
                stdin=theirs.fileno(),
                pass_fds=[asked.fileno()],
                env=self.environment,
                process_group=0,
            )

    def does_its_work(self) -> bool:
        return self.end is not None and has_started(self.end)

    def let_go(self) -> None:
        self.panel.drop(self.name)
        if self.end:
            self.end.close()
            self.end = None

    def has_died(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def has_refused_settings(self) -> bool:
        """Only at its first start: files that settings name may change later, and a restart may then find them."""
        is_first_start = self.failures == 0 and not self.does_its_work()
        return is_first_start and self.process is not None and self.process.returncode == BAD_SETTINGS


class Supervisor:
    """Runs children until stopped; one that dies is restarted, with a message.

    Raises SettingsRefused if a child cannot use its settings when it is started for the first time.
    """

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children
        self.is_stopping = False
        self._forced = False

    def stop(self, signum: int, _: FrameType | None) -> None:
        """As a signal's handler, which may come amid anything that the main thread does: it takes no lock. (That of a
        threading.Event may be held by the very thread that it interrupts, which then waits for itself for ever.)
        """
        self._forced = self.is_stopping and signum == signal.SIGINT
        self.is_stopping = True

    def start(self) -> None:
        for signum in STOP_SIGNALS:
            signal.signal(signum, self.stop)
        for child in self._children:
            child.start()

    def watch(self, embedded: EmbeddedServer | None = None) -> None:
        """Until a signal: look after every child, and after the embedded server."""
        while not self.is_stopping:
            if embedded and not embedded.is_alive():
                say("the embedded server died; starting it again")
                embedded.start()
            self.look_after_children()
            time.sleep(POLL_S)

    def look_after_children(self) -> None:
        for child in self._children:
            self._look_after(child)

    def _look_after(self, child: Child) -> None:
        now = time.monotonic()
        if child.has_died():
            assert child.process
            if child.has_refused_settings():
                raise SettingsRefused(f"{child.name} cannot use its settings; see its message above.")
            child.failures = 0 if now - child.started > STABLE_S else child.failures
            wait_s = RESTART_S[min(child.failures, len(RESTART_S) - 1)]
            child.failures += 1
            say(f"{child.name} died ({_how(child.process.returncode)}); starting it again in {wait_s} s")
            child.let_go()
            child.process, child.start_at = None, now + wait_s
        elif child.process is None and now >= child.start_at:
            child.start()

    def end(self) -> None:
        """End the children, gently first. A second Ctrl-C, or too long a wait, ends them at once."""
        running = [child for child in self._children if child.process]
        for child in running:
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + KILL_AFTER_S
        while any(not child.has_died() for child in running):
            if self._forced or time.monotonic() > deadline:
                for child in running:
                    _signal(child, signal.SIGKILL)
            time.sleep(POLL_S)
        for child in running:
            child.let_go()


def web_child(host: str, port: int, number: int, environment: Mapping[str, str], panel: Panel) -> Child:
    argv = [sys.executable, "-m", "broker", "serve", "--host", host, "--port", str(port), "--parent-pipe"]
    return Child(f"web process {number}", argv, for_a_server(environment), panel)


def worker_child(number: int, environment: Mapping[str, str], app: AppOptions | None, panel: Panel) -> Child:
    argv = [sys.executable, "-m", "worker", "--parent-pipe", *(app.arguments() if app else ())]
    return Child(f"worker {number}", argv, for_a_worker(environment), panel)


def run_web(settings: Settings, host: str, port: int, web: int, on_start: Callable[[], object]) -> None:
    """Several web processes on one port, until a signal. `on_start` is called when they have been started.

    Raises OSError if the port cannot be used at all, SettingsRefused if the processes cannot use their settings,
    SettingsError if the admin port cannot be used.
    """
    bind(host, port).close()  # here, and not in every child for ever
    panel = Panel()
    open_panel(settings, None, panel)
    supervisor = Supervisor([web_child(host, port, n + 1, os.environ, panel) for n in range(web)])
    supervisor.start()
    on_start()
    try:
        supervisor.watch()
    finally:
        supervisor.end()


def open_panel(settings: Settings, redis_url: str | None, panel: Panel) -> None:
    """Raises SettingsError."""
    open_admin_port(settings, panel.answers, Scrapers(settings, redis_url).have, say)


def run_everything(
    settings: Settings,
    host: str,
    port: int,
    data_dir: Path,
    web: int,
    workers: int,
    redis_url: str | None,
    *,
    standin: bool = False,
    app: AppOptions | None = None,
    refusal: Callable[[str], str | None] | None = None,
) -> None:
    """Everything on one machine, until a signal. `standin`: workers let the stand-in answer. `app`: what else they run.
    `refusal`: given Redis' URL, why nothing may be served.

    Raises StartFailed (SettingsRefused), EmbeddedServerError or SettingsError.
    """
    require_free_port(host, port)
    require_own(data_dir)
    for signum in STOP_SIGNALS:
        signal.signal(signum, _leave)  # until the supervisor takes over: what has been started is ended on the way out
    embedded = None if redis_url else EmbeddedServer(data_dir)
    environment = dict(os.environ)
    # A Ctrl-C should not wait for answers: the next start takes unfinished generations over.
    environment.setdefault("LASTEVENT_WORKER_DRAIN_S", "1")
    try:
        if "LASTEVENT_ARCHIVE_URL_FILE" not in environment:
            environment.setdefault("LASTEVENT_ARCHIVE_URL", archive_url(data_dir))
        if embedded:
            redis_url = environment["LASTEVENT_REDIS_URL"] = start_embedded(embedded, settings.key_prefix)
        if refusal and redis_url and (words := refusal(redis_url)):
            raise SettingsRefused(words)
        of_workers = {**environment, "LASTEVENT_STANDIN": "1"} if standin else environment
        panel = Panel()
        open_panel(settings, redis_url, panel)
        working = [worker_child(n + 1, of_workers, app, panel) for n in range(workers)]
        serving = [web_child(host, port, n + 1, environment, panel) for n in range(web)]
        supervisor = Supervisor([*working, *serving])
        supervisor.start()
        try:
            if _wait_until_ready(supervisor, working, host, port):
                print(f"Lastevent is ready: http://{_bracketed(host)}:{port}", flush=True)
                supervisor.watch(embedded)
        finally:
            supervisor.end()
    finally:
        if embedded:
            embedded.stop()


def require_own(data_dir: Path) -> None:
    """Who may write there decides what our processes read: the archive, its key, the server's configuration.

    Raises SettingsRefused. One that is not there yet is made, for this user alone.
    """
    try:
        found = data_dir.stat()
    except OSError:
        return  # what is wrong with it is said when it is made
    name = shlex.quote(str(data_dir))
    if found.st_uid != os.geteuid():
        raise SettingsRefused(f"--data-dir: {name} is another user's. Run as that user, or choose another directory.")
    if found.st_mode & OTHERS_MAY_WRITE:
        raise SettingsRefused(f"--data-dir: others may write to {name}. Make it yours alone: chmod go-w {name}")


def start_embedded(embedded: EmbeddedServer, key_prefix: str) -> str:
    """Its URL. Raises EmbeddedServerError."""
    url = embedded.start()
    if embedded.continues:  # before any process of ours can meet the new server
        with suppress(RedisUnavailable):  # then those wait, as after a crash
            asyncio.run(_continue(url, key_prefix, embedded.continues))
    return url


async def _continue(url: str, key_prefix: str, ended: Ended) -> None:
    async with connect(url) as redis:
        await Servers(redis, Keys(key_prefix), lease_s=LEASE_S).succeed(*ended)


def _leave(_signum: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def require_free_port(host: str, port: int) -> None:
    """With SO_REUSEPORT two servers can share a port, each with half of the requests. Raises StartFailed."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        bind(host, port).close()
    except OSError as error:
        raise StartFailed(
            f"Port {port} on {host} cannot be used ({error.strerror}). Choose another with --port."
        ) from None


def _wait_until_ready(supervisor: Supervisor, workers: Sequence[Child], host: str, port: int) -> bool:
    """Until a generation would start at once: a worker takes them, and a server answers. False if a signal came first.

    Raises StartFailed.
    """
    deadline = time.monotonic() + READY_S
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '') else _bracketed(host)}:{port}/readyz"
    with httpx2.Client(trust_env=False, timeout=2.0) as http:
        while not supervisor.is_stopping:
            is_working, is_serving = any(worker.does_its_work() for worker in workers), _is_ready(http, url)
            if is_working and is_serving:
                return True
            if time.monotonic() > deadline:
                late = "The server" if not is_serving else "The worker"
                raise StartFailed(f"{late} did not become ready within {READY_S:.0f} s; see its messages above.")
            supervisor.look_after_children()
            time.sleep(POLL_S)
    return False


def _is_ready(http: httpx2.Client, url: str) -> bool:
    try:
        return http.get(url).status_code == 200
    except httpx2.HTTPError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _signal(child: Child, signum: signal.Signals) -> None:
    if child.process and child.process.poll() is None:
        child.process.send_signal(signum)


def say(message: str) -> None:
    print(f"lastevent: {message}", file=sys.stderr, flush=True)
