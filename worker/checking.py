"""`python -m worker.checking`: does each provider that is set up take its key? A line of JSON for each.

A process of its own: `lastevent doctor` loads no SDK.
"""

from __future__ import annotations

import asyncio
import sys

import orjson

from broker.settings import Settings, SettingsError, load_settings
from worker.providers.choose import Providers


async def check(settings: Settings) -> None:
    """Raises SettingsError."""
    models = Providers(settings, None)
    try:
        async for provider, ok, detail in models.check_all():
            line = orjson.dumps({"provider": provider, "ok": ok, "detail": detail}).decode()
            print(line, flush=True)
    finally:
        await models.aclose()


if __name__ == "__main__":
    try:
        asyncio.run(check(load_settings()))
    except SettingsError as error:
        sys.exit(str(error))
