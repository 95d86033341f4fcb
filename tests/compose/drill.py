"""An operator, who types what docs/OPERATIONS.md shows: `docker compose` is about processes of this machine here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.compose.compose_file import ROOT
from tests.compose.services import BIN, Services
from tests.rig.deployment import Process

OPERATIONS = (ROOT / "docs" / "OPERATIONS.md").read_text()
PATH = os.environ["PATH"]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", OPERATIONS, re.DOTALL | re.MULTILINE)

_NOTES = re.compile(r"(?:sending REPLCONF|SYNC sent|SYNC with|Transfer finished|In redis:).*\n")
"""What redis-cli says of a copy that it makes, and `lastevent keys` of where they are."""
_PLACE = re.compile(r"(?:/seal|/data|/run|\bvalkey-cli)(?![\w-])")


def block(beginning: str) -> str:
    """The one block that has this in it."""
    [found] = [block for block in BLOCKS if beginning in block]
    return found


class Operator:
    """`processes`: those that `docker compose up`, `start`, `stop` and `restart` are about, by their service's name."""

    def __init__(self, services: Services, folder: Path, programs: Path, processes: dict[str, Process]) -> None:
        self._services = services
        self._folder = folder
        self._programs = programs
        self._processes = processes
        self.brings_up: dict[str, Callable[[], object]] = {name: each.start for name, each in processes.items()}
        """How each gets up; what is up stays."""
        self.postgres_socket = ""
        self._places = {
            "/seal": str(services.seals),
            "/data": str(folder),
            "/run": str(folder),
            "valkey-cli": f"redis-cli -p {services.valkey_port}",
        }

    def types(self, block: str) -> str:
        """A whole block, a command after the other; what they print."""
        return "".join(map(self._type, re.split(r"\n(?=\S)", block.strip())))

    def _type(self, command: str) -> str:
        if found := re.fullmatch(r"docker compose (start|stop|restart|up --detach --wait) ?(.*)", command):
            self._do(found[1], found[2].split())
            return ""
        if not command.startswith("docker"):
            return self._run(command, {"PATH": PATH})
        found = re.match(r"docker compose (?:exec -T|run --rm(?: -T)?) (\S+) ", command)
        assert found, command
        there = _PLACE.sub(lambda place: self._places[place[0]], command.removeprefix(found[0]))
        return self._run(there, self._environment(found[1]))

    def _do(self, what: str, names: list[str]) -> None:
        for name in names or list(self.brings_up):
            if what in ("stop", "restart"):
                self._processes[name].stop()
            if what != "stop" and not self._is_up(name):
                self.brings_up[name]()

    def _is_up(self, name: str) -> bool:
        return bool(self.postgres_socket) if name == "postgres" else self._processes[name].is_alive()

    def _environment(self, service: str) -> dict[str, str]:
        match service:
            case "postgres":
                port = str(self._services.postgres_port)
                return {"PGHOST": self.postgres_socket, "PGPORT": port, "PATH": f"{self._programs}:{PATH}"}
            case "server-1":
                return {**self._services.environment("server-1"), "PATH": f"{BIN}:{PATH}"}
            case _:
                return {"PATH": PATH}

    def _run(self, command: str, environment: dict[str, str]) -> str:
        bash = shutil.which("bash")
        assert bash
        run = [bash, "-c", command]
        done = subprocess.run(run, env=environment, cwd=self._folder, capture_output=True, text=True, timeout=60)
        complaints = _NOTES.sub("", done.stderr)
        assert not complaints, complaints
        return done.stdout
