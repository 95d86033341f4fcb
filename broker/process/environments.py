"""The environment of each child of `up` and `serve --web N`: its own secrets and nobody else's.

What a process does not hold it cannot lose: a server that is broken into has no provider's key and no seal, a worker
no key of the API and nothing that signs tokens, and the embedded server nothing at all. What reports to others
(`OTEL_…`) is everybody's; the port for operators is the parent's, which asks its children.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from broker.process.providers import MODELS_FILE, key_variables
from broker.settings import PREFIX, PROVIDER_VARIABLES

ISSUERS = PREFIX + "ISSUERS"
SERVERS = frozenset(
    {ISSUERS, *(PREFIX + name + form for name in ("API_KEYS", "MASKED_KEYS", "TOKEN_SECRET") for form in ("", "_FILE"))}
)
"""A secret stands in a variable, or in a file that a variable names."""
WORKERS = frozenset({PREFIX + "SEAL_KEY"})
WORKERS_PREFIXES = tuple({f"{name.partition('_')[0]}_" for name in PROVIDER_VARIABLES})
"""Of the providers' SDKs, which read more than PROVIDERS names."""

CLIENTS = frozenset({PREFIX + "API_KEY", PREFIX + "URL"})
"""Of the command as a client: no process that serves has a use for them."""

EMBEDDED = frozenset({"PATH", "HOME", "TMPDIR", "TZ", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"})
"""All that the embedded server has."""

NO_ADMIN_PORT = {PREFIX + "ADMIN_PORT": "0"}

Environment = Mapping[str, str]


def for_a_server(environment: Environment) -> dict[str, str]:
    kept_back = CLIENTS | key_variables(environment.get(MODELS_FILE))
    kept = {name: value for name, value in environment.items() if name not in kept_back and not _is_a_workers(name)}
    return kept | NO_ADMIN_PORT


def for_a_worker(environment: Environment) -> dict[str, str]:
    kept_back = CLIENTS | SERVERS | _of_issuers(environment.get(ISSUERS))
    return {name: value for name, value in environment.items() if name not in kept_back} | NO_ADMIN_PORT


def for_the_embedded_server(environment: Environment) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name in EMBEDDED or name.startswith("LC_")}


def _is_a_workers(name: str) -> bool:
    return name in WORKERS or name.startswith(WORKERS_PREFIXES)


def _of_issuers(file: str | None) -> frozenset[str]:
    """The variables that hold the secrets of those whose tokens are accepted. Empty if the file cannot be read, which a
    server says, and does not start."""
    try:
        issuers = tomllib.loads(Path(file).read_text()) if file else {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return frozenset()
    return frozenset(_named(issuers))


def _named(part: object) -> Iterator[str]:
    """Each `secret_env` in it, however deep."""
    if isinstance(part, list):
        for item in part:
            yield from _named(item)
    elif isinstance(part, dict):
        for name, value in part.items():
            if name == "secret_env" and isinstance(value, str):
                yield value
            else:
                yield from _named(value)
