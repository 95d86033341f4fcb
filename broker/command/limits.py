"""`lastevent limits`: how much each tenant may have. It talks to Redis, as the servers do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from broker.command.terminal import AsJson, clean, fail, note, print_json, print_table
from broker.command.which_redis import DataDir, Reached, ask, deed
from broker.log.deeds import LIMITS_SET
from broker.tenants.keyring import DEFAULT_TENANT, parsed
from broker.tenants.limits import LISTS, NAMES, Limits, TenantLimits

app = typer.Typer(help="List tenants' limits, or set some. What is not set is as the servers' settings say.")


@app.callback(invoke_without_command=True)
def list_(context: typer.Context, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    if context.invoked_subcommand is not None:
        if data_dir is not None or as_json:
            fail("options stand behind `set`: lastevent limits set TENANT NAME=VALUE --data-dir …", code=2)
    else:
        _show(ask(lambda reached: _limits(reached).all_set(), data_dir), as_json=as_json)


@app.command("set")
def set_(
    tenant: Annotated[str, typer.Argument(help="default: whoever has one of LASTEVENT_API_KEYS")],
    values: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE…", help=f"{', '.join(NAMES)}; NAME= alone: no longer set")
    ],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Set limits of a tenant. Servers and workers know within 5 s."""

    async def set_them(reached: Reached) -> tuple[Limits, bool]:
        limits = await _limits(reached).set(tenant, changes)
        await reached.deeds.record(deed(tenant, LIMITS_SET, **changes))
        keys = parsed(await reached.redis.hgetall(reached.keys.api_keys))
        return limits, tenant == DEFAULT_TENANT or any(key.tenant == tenant for key in keys)

    try:
        changes = dict(_parsed(value) for value in values)
        Limits().changed(changes)  # before there is a Redis to ask
        limits, is_known = ask(set_them, data_dir, makes=True)
    except ValueError as error:
        fail(str(error), code=2)
    _show({tenant: limits}, as_json=as_json)
    if not is_known:
        note(f"No key is of the tenant {tenant}. Is its name right? (lastevent keys list)")


def _parsed(given: str) -> tuple[str, Any]:
    name, equals, value = given.partition("=")
    if not equals:
        raise ValueError(f"give NAME=VALUE; the names are {', '.join(NAMES)}")
    if not value:
        return name, None
    if name in LISTS:
        return name, [one.strip() for one in value.split(",")]
    return name, int(value) if value.isascii() and value.isdigit() and len(value) < 20 else value


def _limits(reached: Reached) -> TenantLimits:
    return TenantLimits(reached.redis, reached.keys.limits)


def _show(tenants: dict[str, Limits], *, as_json: bool) -> None:
    if as_json:
        print_json({tenant: limits.as_json() for tenant, limits in tenants.items()})
        return
    print_table(
        ("TENANT", *(name.upper().replace("_", " ") for name in NAMES)),
        [[tenant, *(_cell(getattr(limits, name)) for name in NAMES)] for tenant, limits in tenants.items()],
        none="No tenant has limits of its own. Set one: lastevent limits set TENANT creations_per_minute=1200",
    )


def _cell(value: int | Sequence[str] | None) -> str:
    return "" if value is None else clean(",".join(value)) if isinstance(value, tuple) else str(value)
