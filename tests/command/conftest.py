"""`lastevent(…)` runs the real command to its end; `Running` is one that a test starts, watches and stops."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.rig.deployment import wait_until
from tests.rig.zygote import run_module

LIMIT_S = 60.0
COMMAND = [sys.executable, "-m", "broker"]

OURS_AND_PROVIDERS = ("LASTEVENT_", "ANTHROPIC_", "OPENAI_", "GEMINI_", "GOOGLE_")

Ended = subprocess.CompletedProcess[bytes]


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS_AND_PROVIDERS)}
    return {**kept, "LASTEVENT_ADMIN_PORT": "0", **settings}


@pytest.fixture
def lastevent(tmp_path: Path) -> Callable[..., Ended]:
    """lastevent("ls", "--json", url=…, input=b"…", LASTEVENT_…="…") → how it ended. None ends with a traceback."""

    return partial(run_lastevent, tmp_path)


def run_lastevent(
    folder: Path, *args: str | bytes, url: str = "http://127.0.0.1:1", given: bytes = b"", **settings: str
) -> Ended:
    ended = run_module("broker", args, environment(LASTEVENT_URL=url, **settings), folder, given)
    assert b"Traceback" not in ended.stderr, ended.stderr.decode()
    return ended


class Running:
    """A command in a process group of its own, as a shell starts it; its output goes to files."""

    def __init__(self, folder: Path, *args: str, **settings: str) -> None:
        self.folder = folder
        self._outputs = [folder / f"output-{len(list(folder.glob('output-*')))}-{name}" for name in ("out", "err")]
        with self._outputs[0].open("wb") as out, self._outputs[1].open("wb") as err:
            self.process = subprocess.Popen(
                [*COMMAND, *args],
                env=environment(**settings),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self._outputs[0].read_text()

    @property
    def stderr(self) -> str:
        return self._outputs[1].read_text()

    def wait_until_it_says(self, text: str) -> None:
        def said() -> bool:
            assert self.process.poll() is None or text in self.stdout + self.stderr, self.stdout + self.stderr
            return text in self.stdout + self.stderr

        wait_until(said, f"the command says {text!r}", LIMIT_S)

    def press_ctrl_c(self) -> None:
        """As a terminal does: every process of the group hears it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> int:
        code = self.process.wait(LIMIT_S)
        assert "Traceback" not in self.stderr, self.stderr
        return code

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill_all(self) -> None:
        """Whatever a test has left."""
        self.process.kill()
        self.process.wait(10)
        for pid in processes_in(self.folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_in(folder: Path) -> dict[int, str]:
    """Processes that work inside a folder, and their command lines: all that a command started is there."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").resolve().is_relative_to(folder.resolve()):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """start("up", "--port", …, LASTEVENT_…="…") → Running."""
    with running_in(tmp_path) as start:
        yield start


@contextmanager
def running_in(folder: Path) -> Iterator[Callable[..., Running]]:
    with ExitStack() as stack:

        def start(*args: str, **settings: str) -> Running:
            running = Running(folder, *args, **settings)
            stack.callback(running.kill_all)
            return running

        yield start
