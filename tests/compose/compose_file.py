"""compose.yaml, as Compose reads it where no variable is set but those that it requires."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "compose.yaml"
KEY = "a-key-that-only-the-tests-here-know"
WRITER_PASSWORD, READER_PASSWORD = "a writer's p@ss/word: 'quoted'", "a reader's"
VALKEY_SERVER_PASSWORD, VALKEY_WORKER_PASSWORD = "5e44e4" * 8, "30444e4" * 7
GIVEN = {
    "LASTEVENT_API_KEYS": KEY,
    "LASTEVENT_POSTGRES_PASSWORD": WRITER_PASSWORD,
    "LASTEVENT_POSTGRES_READER_PASSWORD": READER_PASSWORD,
    "LASTEVENT_VALKEY_SERVER_PASSWORD": VALKEY_SERVER_PASSWORD,
    "LASTEVENT_VALKEY_WORKER_PASSWORD": VALKEY_WORKER_PASSWORD,
}

_VARIABLE = re.compile(r"\$\{(?P<name>\w+):?(?P<otherwise>[-?])(?P<word>[^}]*)\}")


def _value(variable: re.Match[str]) -> str:
    """What stands behind `-`; behind `?` stands only why it must be given."""
    return GIVEN[variable["name"]] if variable["otherwise"] == "?" else variable["word"]


def _interpolated(node: Any) -> Any:
    """Compose reads the YAML first: what a variable holds cannot break it."""
    match node:
        case str():
            return _VARIABLE.sub(_value, node).replace("$$", "$")
        case list():
            return [_interpolated(item) for item in node]
        case dict():
            return {name: _interpolated(value) for name, value in node.items()}
        case _:
            return node


COMPOSITION: dict[str, Any] = _interpolated(yaml.safe_load(FILE.read_text()))
SERVICES: dict[str, dict[str, Any]] = COMPOSITION["services"]
OURS = ["server-1", "server-2", "worker"]


def settings(service: str) -> dict[str, str]:
    """What it has in its environment: a name without a value is left out."""
    return {name: value for name, value in SERVICES[service]["environment"].items() if value is not None}


def health_check(service: str) -> list[str]:
    kind, *command = SERVICES[service]["healthcheck"]["test"]
    assert kind == "CMD"
    return command


def on_this_machine(command: list[str], places: dict[str, str]) -> list[str]:
    """The command with other addresses and paths. Each must occur, or the test would run something else."""
    words = "\0".join(command)
    for theirs in places:
        assert theirs in words, f"{theirs} is not in {command}"
    theirs = "|".join(map(re.escape, places))
    return re.sub(theirs, lambda found: places[found[0]], words).split("\0")
