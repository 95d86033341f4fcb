"""The environment of each child of `up` and `serve --web N`: its own secrets and nobody else's.

What a process does not hold it cannot lose: a server that is broken into has no provider's key and no seal, a worker
no key of the API, and the embedded server nothing at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.process.providers import MODELS_FILE, key_variables
from broker.settings import PREFIX, PROVIDER_VARIABLES

SERVERS = frozenset(
    PREFIX + name + end for name in ("API_KEYS", "MASKED_KEYS", "TOKEN_SECRET") for end in ("", "_FILE")
)
WORKERS = frozenset({PREFIX + "SEAL_KEY"})
WORKERS_PREFIXES = tuple({f"{name.partition('_')[0]}_" for name in PROVIDER_VARIABLES})
"""Of the providers' SDKs, which read more than PROVIDERS names."""

CLIENTS = frozenset({PREFIX + "API_KEY", PREFIX + "URL"})
"""Of the command as a client: no process that serves has a use for them."""

EMBEDDED = frozenset({"PATH", "HOME", "TMPDIR", "TZ", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"})
"""All that the embedded server has."""

Environment = Mapping[str, str]


def for_a_server(environment: Environment) -> dict[str, str]:
    kept_back = CLIENTS | key_variables(environment.get(MODELS_FILE))
    return {name: value for name, value in environment.items() if name not in kept_back and not _is_a_workers(name)}


def for_a_worker(environment: Environment) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in CLIENTS | SERVERS}


def for_the_embedded_server(environment: Environment) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name in EMBEDDED or name.startswith("LC_")}


def _is_a_workers(name: str) -> bool:
    return name in WORKERS or name.startswith(WORKERS_PREFIXES)
