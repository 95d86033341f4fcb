"""`lastevent doctor`: is this machine fit to run Lastevent, and is what it needs there? One line a finding."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import redis

from broker.archive.database import Database
from broker.archive.heads import HeadsUnavailable
from broker.archive.setup import find_heads, find_public_keys
from broker.archive.signing import BadKey
from broker.command import machine
from broker.command.client import shown
from broker.command.findings import Finding
from broker.errors import ArchiveUnavailable, RedisUnavailable
from broker.log.keys import Keys
from broker.settings import Settings
from broker.store.connect import connect

OLDEST_REDIS = (7, 0)


def examine(settings: Settings, url: str) -> Iterator[Finding]:
    yield Finding(sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}", "Lastevent needs 3.11 or newer.")
    yield machine.descriptors()
    yield from _redis(settings)
    yield from _archive(settings)
    yield _provider()
    yield _server(url)


def _redis(settings: Settings) -> Iterator[Finding]:
    if "LASTEVENT_REDIS_URL" not in os.environ:
        yield Finding(True, "LASTEVENT_REDIS_URL is not set: `lastevent up` brings its own server")
        yield from machine.data_directory()
        return
    try:
        info, waiting, now_s = asyncio.run(_ask_redis(settings))
    except (RedisUnavailable, redis.RedisError, ValueError) as error:
        cause = type(error.__cause__ or error).__name__
        yield Finding(
            False, f"Redis does not answer ({cause})", machine.certificate(error) or "Check LASTEVENT_REDIS_URL."
        )
        return
    version = info.get("valkey_version") or info["redis_version"]
    is_supported = tuple(int(part) for part in info["redis_version"].split(".")[:2]) >= OLDEST_REDIS
    yield Finding(is_supported, f"Redis or Valkey {version}", "7.0 or newer is needed.")
    # INFO and not CONFIG, which a user that may only do what Lastevent needs may not ask (compose.yaml).
    on = info["aof_enabled"] == 1
    yield Finding(on, f"appendonly {'yes' if on else 'no'}", "Without it a restart of Redis loses every stream.")
    policy = info["maxmemory_policy"]
    yield Finding(policy == "noeviction", f"maxmemory-policy {policy}", "Any other one drops streams unasked.")
    if info["maxmemory"] == 0:
        yield Finding(True, "maxmemory is not set: Redis takes what memory there is, and no stream is refused for it")
    yield machine.clock(now_s)
    yield Finding(True, f"{waiting} streams wait for a worker")


async def _ask_redis(settings: Settings) -> tuple[dict[str, Any], int, float]:
    client = connect(settings.redis_url, connections=1)
    try:
        info = await client.info()
        seconds, microseconds = await client.time()
        return info, await client.zcard(Keys(settings.key_prefix).jobs), int(seconds) + int(microseconds) / 1e6
    finally:
        await client.aclose()


def _archive(settings: Settings) -> Iterator[Finding]:
    if not settings.archive_url:
        yield Finding(True, "LASTEVENT_ARCHIVE_URL is not set: only `lastevent up` has an archive")
        return
    try:
        yield from asyncio.run(_ask_archive(settings))
    except ArchiveUnavailable as away:
        cause = type(away.__cause__).__name__
        advice = machine.driver_says(away.__cause__) or "Check LASTEVENT_ARCHIVE_URL."
        yield Finding(False, f"the archive does not answer ({cause})", advice)
        return
    yield from machine.archive_files(settings)
    try:
        keys = find_public_keys(settings)
        advice = "Set LASTEVENT_SEAL_PUBLIC_KEYS: without it nothing can be verified."
        yield Finding(bool(keys), f"{len(keys)} public keys of seals", advice)
        find_heads(settings).read()
    except (BadKey, HeadsUnavailable) as bad:
        yield Finding(False, "a part of the seals is missing", str(bad))


async def _ask_archive(settings: Settings) -> list[Finding]:
    """Raises ArchiveUnavailable."""
    database = Database(settings.archive_url)
    try:
        async with database.reading() as connection:
            return await machine.ask_archive(connection)
    finally:
        await database.aclose()


def _provider() -> Finding:
    if os.environ.get("ANTHROPIC_API_KEY"):
        return Finding(True, "ANTHROPIC_API_KEY is set")
    if os.environ.get("ANTHROPIC_BASE_URL"):
        return Finding(True, "ANTHROPIC_BASE_URL is set")
    return Finding(True, "no ANTHROPIC_API_KEY: workers use the stand-in, which is not a model")


def _server(url: str) -> Finding:
    try:
        answer = httpx2.get(f"{url}/readyz", timeout=3.0, trust_env=False)
    except (httpx2.ReadError, httpx2.RemoteProtocolError):
        advice = "Start Lastevent on another port: lastevent up --port 9000"
        return Finding(False, f"something else than a server of ours answers at {shown(url)}", advice)
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
        advice = machine.certificate(error) or "Start one with: lastevent up"
        return Finding(False, f"no server answers at {shown(url)}", advice)
    return Finding(answer.status_code == 200, f"{shown(url)}/readyz says {answer.status_code}", "See its log.")
