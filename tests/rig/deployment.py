"""A real deployment for tests: a Valkey of its own, SSE servers and workers as processes, all on loopback.

`Deployment` gives the parts a hand: start, kill, drain and restart each of them. The worker's provider is the
stand-in, over the real SDK. Fixtures in conftest.py: `deployment` (one for a pytest-xdist worker, for tests that
leave every part running) and `own_deployment` (a fresh one, for tests that break parts).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from bench.ports import free_port
from tests.rig.zygote import CAN_FORK, Forked, zygote

START_LIMIT_S = 30.0
ASYNC_LIMIT_S = 60.0
POLL_S = 0.02
LONGEST_POLL_S = 0.2

HTTP = httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
"""Requests on connections of their own. httpx.get makes a client each time, with 18 ms of TLS settings: tests that
ask until something is there would do little else."""


def wait_until(condition: Callable[[], object], what: str, limit_s: float = START_LIMIT_S) -> None:
    began = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began
        assert waited_s < limit_s, f"waited {limit_s} s in vain until {what}"
        time.sleep(_next_poll_s(waited_s))


def _next_poll_s(waited_s: float) -> float:
    """Asking takes CPU that others wait for: who has waited long waits a twentieth more."""
    return min(max(POLL_S, waited_s / 20), LONGEST_POLL_S)


async def until(
    condition: Callable[[], object], what: str, limit_s: float = ASYNC_LIMIT_S, *, every_s: float = POLL_S
) -> None:
    """wait_until for tests that go on meanwhile; the condition may be a coroutine function. Raises TimeoutError."""
    deadline = time.monotonic() + limit_s
    while True:
        result = condition()
        if await result if inspect.isawaitable(result) else result:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {limit_s} s in vain until {what}")
        await asyncio.sleep(every_s)


class Process:
    """One process of the deployment; its output is kept in a file beside it."""

    def __init__(self, name: str, argv: list[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.output = folder / f"{name}.log"
        self._argv = argv
        self._environment = environment
        self._folder = folder
        self._process: subprocess.Popen[bytes] | Forked | None = None

    def start(self) -> None:
        self.output.touch()
        if CAN_FORK and self._argv[:2] == [sys.executable, "-m"]:
            _, _, module, *arguments = self._argv
            files = (Path(os.devnull), self.output, self.output)
            self._process = zygote().fork(
                module, [f"python -m {module}", *arguments], self._environment, self._folder, files
            )
            return
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                self._argv,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def send(self, signum: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(signum)

    def wait(self, limit_s: float = 30.0) -> int:
        """Its exit code."""
        assert self._process
        return self._process.wait(limit_s)

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """kill -9, and gone when this returns."""
        if self.is_alive():
            self.send(signal.SIGKILL)
        if self._process:
            self._process.wait(10)

    def stop(self) -> None:
        """SIGTERM, and gone when this returns."""
        if self.is_alive():
            self.send(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.kill()


class Deployment:
    """`servers` SSE servers (each on its own port) and `workers` workers over one Valkey. `app`: the workers'."""

    def __init__(
        self,
        folder: Path,
        valkey: Process,
        redis_url: str,
        *,
        servers: int = 2,
        workers: int = 1,
        app: str = "",
        **settings: str,
    ) -> None:
        work = [sys.executable, "-m", "worker", *(("--app", app) if app else ())]
        self.folder = folder
        self.valkey = valkey
        self.redis_url = redis_url
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("LASTEVENT_", "ANTHROPIC_", "OPENAI_", "GEMINI_", "GOOGLE_"))
            },
            "LASTEVENT_REDIS_URL": redis_url,
            "LASTEVENT_STANDIN": "1",
            **settings,
        }
        self.ports = [free_port() for _ in range(servers)]
        self.admin_ports: dict[str, int] = {}
        self.servers = [self._process(f"server-{n}", self.serve_argv(port)) for n, port in enumerate(self.ports)]
        self.workers = [self._process(f"worker-{n}", work) for n in range(workers)]

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    @property
    def url(self) -> str:
        return self.urls[0]

    def start(self) -> None:
        for process in (*self.servers, *self.workers):
            process.start()
        self.wait_until_ready()

    def stop(self) -> None:
        for process in (*self.servers, *self.workers):
            process.kill()

    def wait_until_ready(self, *numbers: int) -> None:
        for number in numbers or range(len(self.servers)):
            wait_until(lambda number=number: self.is_ready(number), f"server {number} is ready")

    def is_ready(self, number: int = 0) -> bool:
        try:
            return HTTP.get(f"{self.urls[number]}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def create(self, prompt: str, **body: Any) -> str:
        """Start a generation; its id."""
        answer = HTTP.post(f"{self.url}/v1/streams", json={"prompt": prompt, **body})
        assert answer.status_code == 201, answer.text
        sid: str = answer.json()["id"]
        return sid

    def ask(self, agent: str, **body: Any) -> str:
        """Start an agent of the app; its stream's id."""

        def is_taken() -> bool:
            answers.append(HTTP.post(f"{self.url}/v1/streams", json={"agent": agent, **body}))
            return answers[-1].json().get("code") != "unknown_agent"  # no worker has announced it yet

        answers: list[httpx.Response] = []
        wait_until(is_taken, f"the agent {agent} is known")
        assert answers[-1].status_code == 201, answers[-1].text
        sid: str = answers[-1].json()["id"]
        return sid

    def log_of(self, sid: str) -> list[dict[str, Any]]:
        lines = HTTP.get(f"{self.url}/v1/streams/{sid}/export").text.splitlines()
        return [json.loads(line) for line in lines]

    def wait_until_ended(self, sid: str, limit_s: float = 60.0) -> dict[str, Any]:
        """The stream's record, once it has its terminal event."""
        record: dict[str, Any] = {}

        def ended() -> bool:
            record.update(HTTP.get(f"{self.url}/v1/streams/{sid}").json())
            return record["state"] in ("done", "error", "cancelled")

        wait_until(ended, f"stream {sid} has ended", limit_s)
        return record

    def scrape(self, name: str) -> str:
        """What a process (server-0, worker-0) shows at its admin port."""
        return HTTP.get(f"http://127.0.0.1:{self.admin_ports[name]}/metrics").text

    def _process(self, name: str, argv: list[str]) -> Process:
        port = self.admin_ports[name] = free_port()
        return Process(name, argv, {"LASTEVENT_ADMIN_PORT": str(port), **self.environment}, self.folder)

    @staticmethod
    def serve_argv(port: int) -> list[str]:
        return [sys.executable, "-m", "broker", "serve", "--port", str(port)]
