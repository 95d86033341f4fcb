"""lastevent keys: who is let in. It speaks to Redis, not to a server: the first key opens no server, it closes them."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from broker.command.terminal import AsJson, clean, fail, note, print_json, print_table
from broker.command.which_redis import DataDir, Reached, ask, deed, reaching
from broker.errors import LasteventError, StoreUnavailable
from broker.log.deeds import KEY_MADE, KEY_REVOKED, Deeds
from broker.settings import refusal_to_listen
from broker.store.durable import Kept
from broker.tenants.keyring import (
    DEFAULT_TENANT,
    ApiKey,
    checked_name,
    checked_tenant,
    key_id_of,
    new_key,
    parsed,
    rfc3339,
)
from broker.tenants.scopes import OF_KEYS, PRESETS, key_scopes
from broker.tenants.stored_keys import Put, StoredKeys

T = TypeVar("T")
Given = TypeVar("Given")

DEFAULT_PRESET = "backend"
LIVES = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
LONGEST_LIFE_S = 100 * 365 * 86_400
PUT_BACK = {Put.NEW: KEY_MADE, Put.REVOKED: KEY_REVOKED}
"""What of putting keys back is a deed."""

app = typer.Typer(
    help="Make, list and revoke API keys, which say what a back end may do.",
    epilog=f"Scopes: {', '.join(OF_KEYS)}. docs/API.md tells what each of them opens.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


@app.command()
def create(
    tenant: Annotated[str, typer.Option(help="whose streams it opens")] = DEFAULT_TENANT,
    name: Annotated[str, typer.Option(help="what it is for, as lists show it", show_default=False)] = "",
    scopes: Annotated[str | None, typer.Option(metavar="A,B", help="what it may do", show_default=False)] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"scopes by one name: {', '.join(PRESETS)}", show_default=DEFAULT_PRESET)
    ] = None,
    expires: Annotated[str | None, typer.Option(metavar="90d", help="after how long (s m h d w)")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown once: Redis has a hash of it alone."""
    wanted, lasts_s = _scopes(scopes, preset), _lasts_s(expires)
    tenant, name = _checked("--tenant", checked_tenant, tenant), _checked("--name", checked_name, name)
    key, secret = new_key(tenant, wanted, name=name, lasts_s=lasts_s)

    async def add(stored: StoredKeys, deeds: Deeds) -> tuple[bool, Kept]:
        is_first = await stored.are_none()
        deeds.note(deed(tenant, KEY_MADE, key=key.id, scopes=sorted(wanted)))
        await deeds.flush()  # before the key: once that is on disk, so is this
        return is_first, await stored.add(key)

    is_first, kept = _ask(add, data_dir, makes=True)
    if as_json:
        shown = {"id": key.id, "key": secret, "tenant": key.tenant, "scopes": sorted(key.scopes)}
        print_json({**shown, "expires_at": rfc3339(key.expires)})
    else:
        print(secret)
        note(f"Key {key.id} of the tenant {key.tenant}: {', '.join(sorted(key.scopes))}. It is not shown again.")
    if is_first:
        note("It is the first one: from now on every server of this Redis asks for a key (within 10 s).")
    _say_doubt(kept)


@app.command("list")
def list_(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the keys of all tenants, those that are revoked too."""
    keys = _all(data_dir)
    if as_json:
        print_json([key.shown() for key in keys])
        return
    print_table(
        ("ID", "STATE", "TENANT", "NAME", "SCOPES", "CREATED (UTC)", "EXPIRES (UTC)"),
        [_row(key) for key in keys],
        none="No keys. Make one: lastevent keys create",
    )


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="the key's id, or the key")],
    data_dir: DataDir = None,
) -> None:
    """Revoke a key, for good. Servers refuse it, and cut its viewers, within 10 s."""

    async def revoke_it(stored: StoredKeys, deeds: Deeds) -> tuple[ApiKey, Kept]:
        revoked, kept = await stored.revoke(key_id_of(key))
        await deeds.record(deed(revoked.tenant, KEY_REVOKED, key=revoked.id))
        return revoked, kept

    revoked, kept = _ask(revoke_it, data_dir)
    note(f"Key {revoked.id} is revoked since {_minute(revoked.revoked)} (UTC): no server takes it after 10 s.")
    _say_doubt(kept)


@app.command()
def export(data_dir: DataDir = None) -> None:
    """Write all keys as JSON lines, for a back-up. They are hashes: nobody is let in by them."""
    for key in _all(data_dir):
        print(key.to_line())


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="what `keys export` wrote; -: standard input")],
    data_dir: DataDir = None,
) -> None:
    """Put exported keys back. What is there stays; a key that was revoked on either side is revoked."""
    keys = list(_read_lines(file))

    async def put_back(stored: StoredKeys, deeds: Deeds) -> tuple[Mapping[str, Put], Kept]:
        did, kept = await stored.put_back(keys)
        for key in keys:
            if what := PUT_BACK.get(did[key.id]):
                deeds.note(deed(key.tenant, what, key=key.id, imported=True))
        await deeds.flush()
        return did, kept

    did, kept = _ask(put_back, data_dir, makes=True)
    counts = Counter(did.values())
    print("; ".join(f"{counts[what]} {what.value}" for what in counts) or "no keys in it")
    _say_doubt(kept)


def refusal_without_keys(key_prefix: str, host: str, redis_url: str, data_dir: str = "") -> str | None:
    """Why a server may not listen there: Redis has no key. One that cannot be asked is none: the server asks it."""
    try:
        is_without = asyncio.run(reaching(redis_url, key_prefix, lambda reached: _stored(reached).are_none()))
    except StoreUnavailable:
        note("Redis cannot be asked for keys yet: until it can, every call is answered with 503.")
        return None
    except LasteventError as error:
        return str(error)
    return refusal_to_listen(host, data_dir) if is_without else None


# -- what was typed ----------------------------------------------------------------------------------------


def _scopes(scopes: str | None, preset: str | None) -> frozenset[str]:
    if scopes is not None and preset is not None:
        fail("--preset: --scopes is given too; give one of them", code=2)
    if scopes is None:
        chosen = DEFAULT_PRESET if preset is None else preset
        if chosen not in PRESETS:
            fail(f"--preset is one of {', '.join(PRESETS)}", code=2)
        return PRESETS[chosen]
    return _checked("--scopes", key_scopes, [name for part in scopes.split(",") if (name := part.strip())])


def _lasts_s(expires: str | None) -> int | None:
    if expires is None:
        return None
    found = re.fullmatch(r"([0-9]{1,10})([smhdw])", expires, re.ASCII)
    lasts_s = int(found[1]) * LIVES[found[2]] if found else 0
    if not 0 < lasts_s <= LONGEST_LIFE_S:
        fail("--expires is a number and one of s m h d w, such as 90d; 100 years at most", code=2)
    return lasts_s


def _checked(option: str, check: Callable[[Given], T], given: Given) -> T:
    try:
        return check(given)
    except ValueError as error:
        fail(f"{option}: {error}", code=2)


def _read_lines(file: Path) -> Iterator[ApiKey]:
    try:
        text = (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode(errors="replace")
    except OSError as error:
        fail(f"{clean(str(file))} cannot be read ({error.strerror})", code=2)
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _checked(f"line {number}", ApiKey.from_line, line)


# -- Redis -------------------------------------------------------------------------------------------------


def _all(data_dir: Path | None) -> list[ApiKey]:
    stored = _ask(lambda stored, _: stored.read(), data_dir)
    return sorted(parsed(stored), key=lambda key: (key.created, key.id))


def _ask(work: Callable[[StoredKeys, Deeds], Awaitable[T]], data_dir: Path | None, *, makes: bool = False) -> T:
    return ask(lambda reached: work(_stored(reached), reached.deeds), data_dir, makes=makes)


def _stored(reached: Reached) -> StoredKeys:
    return StoredKeys(reached.redis, reached.keys.api_keys, reached.keys.api_keys_changed)


# -- what is shown -----------------------------------------------------------------------------------------


def _row(key: ApiKey) -> list[str]:
    state = "revoked" if key.revoked is not None else "good" if key.is_good else "expired"
    scopes = " ".join(sorted(key.scopes))
    return [key.id, state, key.tenant, key.name, scopes, _minute(key.created), _minute(key.expires)]


def _minute(at: int | None) -> str:
    return (rfc3339(at) or "-")[:16].replace("T", " ")


def _say_doubt(kept: Kept) -> None:
    if kept is not Kept.ON_DISK:
        note(kept.value)
