"""Servers, workers and commands of tests are forked from a process that has imported them already.

Importing costs up to a second of CPU each time, and the suite starts some three hundred of them; everything else about
them is as it is with `python -m`: processes of their own, with their own environment, folder, files and signals.
What runs until it is stopped in tests/command, and all of tests/docs, is started as users do.

Protocol, a JSON line each way: {"module", "argv", "environment", "folder", "files"} → its pid; {"wait": pid} → its
exit code. A child that has ended stays a zombie until it is waited for, so its pid is nobody else's.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import broker
import worker
from worker.providers import prices

CAN_FORK = hasattr(os, "pidfd_open")  # Linux
RUN_LIMIT_S = 180.0
"""One that ends took 64 s on a machine with seven times the work that it can do."""

FORK = "lastevent.tests.fork"
"""The audit event of a process that is forked; its module is the argument."""


class Forked:
    """As much of subprocess.Popen as tests need."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote
        self._end = os.pidfd_open(pid)

    def send_signal(self, signum: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def _wait(self, timeout_s: float | None) -> int | None:
        if self.returncode is None and select.select([self._end], [], [], timeout_s)[0]:
            self.returncode = self._zygote.ask({"wait": self.pid})
            os.close(self._end)
        return self.returncode


class Zygote:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rig.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        self._lock = threading.Lock()
        atexit.register(self._process.communicate)  # it ends when its standard input does

    def fork(
        self, module: str, argv: list[str], environment: dict[str, str], folder: Path, files: tuple[Path, Path, Path]
    ) -> Forked:
        """`files`: its standard input, output and error, which are there already."""
        sys.audit(FORK, module)
        where = {"folder": str(folder), "files": [str(file) for file in files]}
        return Forked(self, self.ask({"module": module, "argv": argv, "environment": environment, **where}))

    def ask(self, request: dict[str, Any]) -> int:
        with self._lock:
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())


_starting = threading.Lock()


def zygote() -> Zygote:
    with _starting:  # threads that fork together would start one each
        return _zygote()


@lru_cache(1)
def _zygote() -> Zygote:
    return Zygote()


def run_module(
    module: str, args: Sequence[str | bytes], environment: dict[str, str], folder: Path, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """`python -m module args` to its end."""
    if not CAN_FORK or "PYTHONUTF8" in environment:  # it says how Python starts
        command = [sys.executable, "-m", module, *args]
        return subprocess.run(
            command, env=environment, cwd=folder, input=given, capture_output=True, timeout=RUN_LIMIT_S, check=False
        )
    with TemporaryDirectory() as beside:
        files = stdin, stdout, stderr = (Path(beside, "in"), Path(beside, "out"), Path(beside, "err"))
        stdin.write_bytes(given)
        stdout.touch()
        stderr.touch()
        forked = zygote().fork(module, [module, *map(os.fsdecode, args)], environment, folder, files)
        try:
            code = forked.wait(RUN_LIMIT_S)
        except subprocess.TimeoutExpired as late:
            late.add_note(f"{stdout.read_text(errors='replace')}\n{stderr.read_text(errors='replace')}")
            raise
        return subprocess.CompletedProcess(args, code, stdout.read_bytes(), stderr.read_bytes())


def _serve() -> dict[str, Any]:
    """Until the tests have ended. Returns in a child, with what it is to be."""
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            _answer(os.waitstatus_to_exitcode(status))
        elif pid := os.fork():
            _answer(pid)
        else:
            become: dict[str, Any] = request
            return become
    sys.exit()


def _answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _import_everything() -> None:
    """So that children need not, and run the code as it was then."""
    importlib.import_module("httpcore2")  # which httpx2 imports for its first client
    for package in (broker, worker):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    prices.warm_up()


def _become(request: dict[str, Any]) -> None:
    for its, file in enumerate(request["files"]):
        os.dup2(os.open(file, os.O_RDONLY if its == 0 else os.O_WRONLY | os.O_APPEND), its)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["argv"]
    code = None
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        code = end.code
    _leave(code or 0)


def _leave(code: int) -> NoReturn:
    """As the interpreter does, but for taking down what was inherited, module by module: 70 ms of CPU a child."""
    threading._shutdown()  # type: ignore[attr-defined]  # what multiprocessing does in its forked children
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a reader that has gone, a full disk: as the interpreter says it
            code = 120
    os._exit(code)


if __name__ == "__main__":
    _import_everything()
    gc.collect()
    gc.freeze()  # a child that collects what it has inherited copies it all, page by page: 0.3 s at its exit alone
    _become(_serve())
