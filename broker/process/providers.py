"""Which providers the workers of this environment have, without an SDK: the built-in ones that are set up, and those of
the models file. A worker reads that file whole, and says all that is wrong with it (worker/providers/models_file.py).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from broker.settings import PREFIX, PROVIDERS, SettingsError, configured_by

MODELS_FILE = PREFIX + "MODELS_FILE"


def set_up(models_file: Path | None) -> dict[str, str]:
    """Name → what sets it up. Raises SettingsError: the models file cannot be read."""
    built_in = {name: by for name in PROVIDERS if (by := configured_by(name))}
    return built_in | dict.fromkeys(_own(models_file), MODELS_FILE)


def key_variables(models_file: str | None) -> frozenset[str]:
    """The variables that hold the keys of the models file's providers. Empty if it cannot be read."""
    try:
        tables = _own(Path(models_file) if models_file else None).values()
    except SettingsError:
        return frozenset()
    named = (table.get("api_key_env") for table in tables if isinstance(table, dict))
    return frozenset(name for name in named if isinstance(name, str))


def _own(models_file: Path | None) -> Mapping[str, Any]:
    if models_file is None:
        return {}
    try:
        own = tomllib.loads(models_file.read_text()).get("provider", {})
    except OSError as error:
        raise SettingsError(f"{MODELS_FILE}: {models_file} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise SettingsError(f"{MODELS_FILE}: {models_file} is no TOML") from None
    return own if isinstance(own, dict) else {}
