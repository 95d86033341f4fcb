"""`lastevent doctor`: is this machine fit to run Lastevent, and is what it needs there? One line a finding."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx2
import orjson
import redis

from broker.archive.database import Database
from broker.archive.heads import HeadsUnavailable
from broker.archive.setup import find_heads, find_public_keys
from broker.archive.signing import BadKey
from broker.command import machine
from broker.command.findings import Finding
from broker.errors import ArchiveUnavailable, LasteventError, RedisRefuses, RedisUnavailable
from broker.log.keys import Keys
from broker.log.needs import Examined
from broker.log.needs import examine as examine_needs
from broker.process.providers import MODELS_FILE, set_up
from broker.settings import PROVIDERS, Settings, SettingsError
from broker.store.connect import connect
from broker.store.errors import AWAY
from lastevent.client.following import shown

READY_S = 15.0
"""A server whose Redis hangs answers after as long as it waits for Redis."""

ASKING_S = 300.0
"""For all providers together: each may be silent for as long as LASTEVENT_PROVIDER_SILENCE_S."""


def examine(settings: Settings, url: str, *, asks_providers: bool = False) -> Iterator[Finding]:
    """`asks_providers`: each that is set up is called."""
    yield Finding(sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}", "Lastevent needs 3.11 or newer.")
    yield machine.descriptors()
    yield from _redis(settings)
    yield from _archive(settings)
    yield from _providers(settings)
    if asks_providers:
        yield from ask_providers([sys.executable, "-m", "worker.checking"])
    yield _server(url)


def _redis(settings: Settings) -> Iterator[Finding]:
    if "redis_url" not in settings.model_fields_set:
        yield Finding(True, "LASTEVENT_REDIS_URL is not set: `lastevent up` brings its own server")
        yield from machine.data_directory()
        return
    try:
        (info, lacks), waiting, now_s = asyncio.run(_ask_redis(settings))
    except RedisRefuses as refused:
        yield _lack(refused)
        return
    except (RedisUnavailable, redis.RedisError, ValueError) as error:
        cause = type(error.__cause__ or error).__name__
        advice = "Check LASTEVENT_REDIS_URL." if str(error) in ("", AWAY) else str(error)
        yield Finding(False, f"Redis does not answer ({cause})", advice)
        return
    yield from _settings_of(info)
    yield from map(_lack, lacks)
    if not lacks:
        yield Finding(True, "Redis has the permissions, commands, keys and channels that are needed, and takes writes")
    if now_s is not None:
        yield machine.clock(now_s)
    if waiting is not None:
        yield Finding(True, f"{waiting} streams wait for a worker")


def _lack(lack: LasteventError) -> Finding:
    what, _, advice = str(lack).partition(". ")
    return Finding(False, what, advice)


def _settings_of(info: Mapping[str, Any]) -> Iterator[Finding]:
    """By INFO and not CONFIG, which a managed Redis has not, nor a user that may only do what Lastevent needs.

    A proxy may leave a field out.
    """
    if version := info.get("valkey_version") or info.get("redis_version"):
        yield Finding(True, f"Redis or Valkey {version}")
    else:
        yield Finding(True, "the release of Redis cannot be seen: see that it is 7.0 or newer, or Valkey")
    on = info.get("aof_enabled")
    if on is None:
        yield Finding(True, "appendonly cannot be seen here: without it a restart of Redis loses every stream")
    else:
        advice = "Without it a restart of Redis loses every stream."
        yield Finding(on == 1, f"appendonly {'yes' if on else 'no'}", advice)
    policy = info.get("maxmemory_policy")
    if policy is None:
        yield Finding(True, "maxmemory-policy cannot be seen here: any other than noeviction drops streams unasked")
    else:
        yield Finding(policy == "noeviction", f"maxmemory-policy {policy}", "Any other one drops streams unasked.")
    if info.get("maxmemory") == 0:
        yield Finding(True, "maxmemory is not set: Redis takes what memory there is, and no stream is refused for it")


async def _ask_redis(settings: Settings) -> tuple[Examined, int | None, float | None]:
    """What there is and is missing; how many streams wait, and its time, if one may ask. Raises RedisUnavailable."""
    client, keys = connect(settings.redis_url, connections=1), Keys(settings.key_prefix)
    try:
        examined = await examine_needs(client, keys)
        try:
            seconds, microseconds = await client.time()
            return examined, await client.zcard(keys.jobs), int(seconds) + int(microseconds) / 1e6
        except LasteventError:  # what is missing says why
            return examined, None, None
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


def _providers(settings: Settings) -> Iterator[Finding]:
    try:
        found = set_up(settings.models_file)
    except SettingsError as error:
        yield Finding(False, str(error), "Workers refuse to start with it.")
        return
    for name, by in found.items():
        how = "has it" if by == MODELS_FILE else "is set" if by in os.environ else "is there"
        yield Finding(True, f"{name}: {by} {how}")
    if settings.standin:
        others = ", ".join(name for name in PROVIDERS if name not in found)
        yield Finding(True, f"LASTEVENT_STANDIN: the stand-in, which is not a model, answers in the place of {others}")
    elif not found:
        yield Finding(True, "no model provider is set up: `lastevent up` answers by the stand-in, which is not a model")
        yield Finding(True, "so `lastevent work` refuses to start; LASTEVENT_STANDIN=1 lets the stand-in answer there")
    else:
        yield from _default_model(settings.default_model, list(found))


def _default_model(model: str, found: list[str]) -> Iterator[Finding]:
    """Whoever has set up another provider than the default model's gets errors from starts that name no model."""
    provider, slash, _ = model.partition("/")
    if slash and provider not in found:
        advice = f"Set LASTEVENT_DEFAULT_MODEL to a model of {', '.join(found)}."
        yield Finding(False, f"the default model is {model}, but {provider} is not set up", advice)


def ask_providers(command: Sequence[str]) -> Iterator[Finding]:
    """Run what asks them, in a process of its own: a command loads no SDK."""
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ASKING_S, check=False)
    except subprocess.TimeoutExpired:
        yield Finding(False, f"the providers did not answer within {ASKING_S:.0f} s", "Is there a proxy to go through?")
        return
    findings = [found for line in asked.stdout.splitlines() if (found := _answer(line))]
    yield from findings
    if asked.returncode:
        advice = (asked.stderr.strip().splitlines() or ["It died without a word."])[-1]
        yield Finding(False, "the providers could not be asked", advice)
    elif not findings:
        yield Finding(True, "no model provider was asked: none is set up")


def _answer(line: str) -> Finding | None:
    """None: the line is somebody else's, a library's warning, say."""
    try:
        found = orjson.loads(line)
        provider, ok, detail = str(found["provider"]), found["ok"] is True, str(found["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return Finding(ok, f"{provider}: {detail}" if ok else f"{provider} cannot be used", detail)


def _server(url: str) -> Finding:
    try:
        answer = httpx2.get(f"{url}/readyz", timeout=READY_S, trust_env=False)
    except (httpx2.ReadError, httpx2.RemoteProtocolError):
        advice = "Start Lastevent on another port: lastevent up --port 9000"
        return Finding(False, f"something else than a server of ours answers at {shown(url)}", advice)
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
        advice = machine.certificate(error) or "Start one with: lastevent up"
        return Finding(False, f"no server answers at {shown(url)}", advice)
    return Finding(answer.status_code == 200, f"{shown(url)}/readyz says {answer.status_code}", _why(answer))


def _why(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):  # of something else than a server of ours
        return "See its log."
