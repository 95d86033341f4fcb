"""compose.yaml, as Compose reads it where no variable is set but the one it requires."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "compose.yaml"
KEY = "a-key-that-only-tests-know"
GIVEN = {"LASTEVENT_API_KEYS": KEY}

_VARIABLE = re.compile(r"\$\{(?P<name>\w+):(?P<otherwise>[-?])(?P<word>[^}]*)\}")


def _value(variable: re.Match[str]) -> str:
    """What stands behind `:-`; behind `:?` stands only why it must be given."""
    return GIVEN[variable["name"]] if variable["otherwise"] == "?" else variable["word"]


COMPOSITION: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(_value, FILE.read_text()))
SERVICES: dict[str, dict[str, Any]] = COMPOSITION["services"]


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
