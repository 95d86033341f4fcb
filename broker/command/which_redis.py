"""Which Redis a command speaks to that asks no server: that of LASTEVENT_REDIS_URL; if that is not set, the one that
`lastevent up` brings along, whether it runs or not (--data-dir).

What such a command does is a deed like a caller's. Who has Redis' address needs no key, so its `who` is `operator`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from broker.command.terminal import clean, fail, note, read_settings
from broker.errors import LasteventError
from broker.log.deeds import Deed, Deeds
from broker.log.keys import Keys
from broker.settings import Settings
from broker.store.connect import connect
from broker.store.redis_url import shown_redis_url

T = TypeVar("T")

DEFAULT_DATA_DIR = Path(".lastevent")
OPERATOR = "operator"

DataDir = Annotated[
    Path | None, typer.Option(help="of `lastevent up`, if LASTEVENT_REDIS_URL is not set", show_default=".lastevent")
]


class Reached(NamedTuple):
    redis: Any
    keys: Keys
    deeds: Deeds


def deed(tenant: str, what: str, **detail: Any) -> Deed:
    return Deed(tenant, OPERATOR, what, detail=detail)


def ask(work: Callable[[Reached], Awaitable[T]], data_dir: Path | None, *, makes: bool = False) -> T:
    """Whatever goes wrong ends the command with a message. `makes`: a data directory that is not there yet."""
    from broker.process.embedded import EmbeddedServerError
    from broker.process.supervisor import SettingsRefused

    settings = read_settings()
    try:
        with _redis_of(settings, data_dir, makes=makes) as redis_url:
            return asyncio.run(reaching(redis_url, settings.key_prefix, work))
    except SettingsRefused as error:
        fail(str(error), code=2)
    except (EmbeddedServerError, LasteventError) as error:
        where = " (LASTEVENT_REDIS_URL)" if "redis_url" in settings.model_fields_set else ""
        fail(f"{error}{where}", code=1)


async def reaching(redis_url: str, key_prefix: str, work: Callable[[Reached], Awaitable[T]]) -> T:
    keys = Keys(key_prefix)
    async with connect(redis_url, connections=2) as redis:
        # Whether there is an archive is for servers to say: they let deeds expire where there is none.
        return await work(Reached(redis, keys, Deeds(redis, keys, retention_s=0, is_archived=True)))


@contextmanager
def _redis_of(settings: Settings, data_dir: Path | None, *, makes: bool) -> Iterator[str]:
    if "redis_url" in settings.model_fields_set:
        if data_dir is not None:
            fail("--data-dir: LASTEVENT_REDIS_URL is set, and names another Redis; give one of them", code=2)
        note(f"In {shown_redis_url(settings.redis_url)}", style="dim")
        yield settings.redis_url
        return
    with _embedded(data_dir or DEFAULT_DATA_DIR, settings.key_prefix, makes=makes) as redis_url:
        yield redis_url


@contextmanager
def _embedded(data_dir: Path, key_prefix: str, *, makes: bool) -> Iterator[str]:
    """The server of `lastevent up`: the one that runs, or one of our own for a moment."""
    from broker.process.embedded import EmbeddedServer
    from broker.process.supervisor import require_own, start_embedded

    if not makes and not data_dir.is_dir():
        fail(f"there is no {clean(str(data_dir))}: set LASTEVENT_REDIS_URL, or give --data-dir", code=2)
    require_own(data_dir)
    server = EmbeddedServer(data_dir)
    note(f"In {clean(str(data_dir.resolve()))}, of lastevent up", style="dim")
    if running := server.url_if_running():
        yield running
        return
    try:
        yield start_embedded(server, key_prefix)
    finally:
        server.stop()
