"""What a start needs of Redis, asked by name before anything is written: a POST is accepted, or changes nothing.

A script that is refused at its last command keeps what it wrote before. So each command, key and channel that we and
arq use is asked for beforehand. Redis checks a command when it queues it for a transaction: permission, cluster,
memory, disk, role. A transaction that is never executed is therefore a question that changes nothing.

It is asked at a start, after each new subscription and after each refusal, not with each request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import redis.exceptions
from redis._parsers.helpers import parse_info
from redis.asyncio.connection import AbstractConnection

from broker.errors import REDIS_AWAY, LasteventError, RedisRefuses, RedisUnavailable, StoreUnavailable
from broker.log.keys import Keys
from broker.store.connect import Client
from broker.store.errors import AWAY, translated, translating_redis_errors

logger = logging.getLogger(__name__)

OLDEST = (7, 0)

AGAIN_S = 1.0
"""Between two questions while something is missing: whoever mends it sees so soon."""

_COMMANDS = """
DEL {key} | EXISTS {key} | EXPIRE {key} 1 | GET {key} | PERSIST {key} | PEXPIRE {key} 1 | PEXPIREAT {key} 1 | PTTL {key}
SET {key} x XX | INCRBY {key} 1 | STRLEN {key} | TTL {key} | TYPE {key} | RENAME {key} {key}
SCAN 0 COUNT 1 | TIME | INFO | PING
HDEL {key} f | HEXISTS {key} f | HGET {key} f | HGETALL {key} | HINCRBY {key} f 1 | HLEN {key} | HMGET {key} f
HKEYS {key} | HSET {key} f x | HVALS {key} | HSETNX {key} f x | HSTRLEN {key} f
SADD {key} m | SCARD {key} | SISMEMBER {key} m | SMEMBERS {key} | SMISMEMBER {key} m | SREM {key} m
XADD {key} 1-0 f x | XDEL {key} 1-0 | XLEN {key} | XRANGE {key} - + | XREVRANGE {key} + -
ZADD {key} XX 1 m | ZCARD {key} | ZINCRBY {key} 1 m | ZMSCORE {key} m | ZRANGE {key} 0 0 | ZRANGEBYSCORE {key} 0 0
ZREM {key} m | ZREMRANGEBYRANK {key} 0 0 | ZREMRANGEBYSCORE {key} 0 0 | ZREVRANGE {key} 0 0
ZRANK {key} m | ZREVRANGEBYSCORE {key} 0 0 | ZSCORE {key} m
GET {arq} | MGET {arq} | SET {arq} x XX | PSETEX {arq} 1 x | SETEX {arq} 1 x | INCRBY {arq} 1 | DBSIZE
EVAL return 0 | EVALSHA {sha} 1 {key} | SCRIPT LOAD x
PUBLISH {channel} x | SUBSCRIBE {channel} | UNSUBSCRIBE {channel} | PUBSUB NUMSUB {channel}
"""

_ALONE = "WATCH {key} | UNWATCH | EXEC | ZCARD {leases} | ZCARD {jobs} | ZCARD {servers}"
"""What Redis does not check within a transaction: EXEC without MULTI is an error, but not one of permission; and the
type of a key that something else may have overwritten.
"""

_NOBODY = "0" * 40
_SUBCOMMANDS = ("SCRIPT", "PUBSUB")


class Examined(NamedTuple):
    """`info`: of INFO, as far as Redis gives it. `lacks`: what is missing, and what to do."""

    info: Mapping[str, Any]
    lacks: Sequence[LasteventError]


class Needs:
    """What this process knows of it. `run` keeps that up to date and writes into the log what is missing."""

    def __init__(self, redis: Client, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._met = asyncio.Event()
        self._doubted = asyncio.Event()
        self._asking = asyncio.Lock()
        self._doubts = 0
        self._answered_at_s = -AGAIN_S
        self._lack: LasteventError | None = None
        redis.on_refused = self.doubt

    @property
    def are_met(self) -> bool:
        return self._met.is_set()

    async def require(self) -> None:
        """Raises RedisRefuses or RedisUnavailable, which say what is missing. Asks Redis only where that is unknown."""
        if self._met.is_set():
            return
        async with self._asking:
            if not self._met.is_set() and time.monotonic() - self._answered_at_s >= AGAIN_S:
                await self._ask()
        if self._lack:
            raise type(self._lack)(str(self._lack))

    async def met(self) -> None:
        """Wait until nothing is missing."""
        await self._met.wait()

    def doubt(self) -> None:
        """The answer may have changed: another server, or something was refused."""
        self._met.clear()
        self._doubts += 1
        self._answered_at_s = -AGAIN_S
        self._doubted.set()

    async def run(self) -> None:
        """Ask until nothing is missing, and again at each doubt. Ends only by cancellation."""
        said = ""
        while True:
            self._doubted.clear()
            try:
                await self.require()
            except StoreUnavailable as lack:
                if str(lack) == AWAY:
                    logger.warning("Redis is away; nothing can be started until it is back", extra=REDIS_AWAY)
                elif str(lack) != said:
                    logger.warning("nothing can be started: %s", lack)
                said = str(lack)
                await asyncio.sleep(AGAIN_S)
                continue
            if said and self.are_met:
                said = ""
                logger.warning("Redis has what is needed now")
            await self._doubted.wait()

    async def _ask(self) -> None:
        doubts = self._doubts
        try:
            self._lack = _summed_up((await examine(self._redis, self._keys)).lacks)
        except StoreUnavailable as away:
            self._lack = away
        if doubts != self._doubts:
            return  # `run` asks again: what was asked may be older than the doubt
        self._answered_at_s = time.monotonic()
        if not self._lack:
            self._met.set()


def _summed_up(lacks: Sequence[LasteventError]) -> LasteventError | None:
    if not lacks:
        return None
    kind = RedisRefuses if any(isinstance(lack, RedisRefuses) for lack in lacks) else RedisUnavailable
    return kind(" ".join(str(lack) for lack in lacks))


def needed_commands() -> list[str]:
    """Their names, some with a subcommand. Whoever may do these, and no other, can do all that Lastevent does."""
    return [_name(command) for command in [*_commands(_ALONE, Keys()), "MULTI", *_commands(_COMMANDS, Keys())]]


async def examine(client: Client, keys: Keys) -> Examined:
    """Ask Redis, on a connection of its own. Raises RedisUnavailable or RedisRefuses if it cannot be asked at all."""
    with translating_redis_errors():
        connection: AbstractConnection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            [info, *alone, begun] = await _answers(connection, ["INFO", *_commands(_ALONE, keys), "MULTI"])
            asked = _commands(_COMMANDS, keys)
            queued = [begun] if isinstance(begun, Exception) else await _answers(connection, asked)
        finally:
            with suppress(redis.exceptions.RedisError, OSError):
                await connection.disconnect(nowait=True)  # and with it the transaction
    asked = ["INFO", *_commands(_ALONE, keys), *(["MULTI"] if isinstance(begun, Exception) else asked)]
    known = {} if isinstance(info, Exception) else parse_info(info)  # type: ignore[no-untyped-call]
    return Examined(known, _lacks(keys, known, dict(zip(asked, [info, *alone, *queued], strict=True))))


def _commands(text: str, keys: Keys) -> list[str]:
    """One a line, its arguments between blanks."""
    names = {"key": keys.probe, "arq": "arq:probe", "channel": keys.probe, "sha": _NOBODY}
    names |= {"leases": keys.leases, "jobs": keys.jobs, "servers": keys.servers}
    commands = (command.strip() for command in text.replace("\n", "|").split("|"))
    return [command.format(**names) for command in commands if command]


async def _answers(connection: AbstractConnection, commands: Sequence[str]) -> list[Any]:
    """The answers, errors among them, in one round trip. Raises if there are none."""
    await connection.send_packed_command(connection.pack_commands(command.split(" ") for command in commands))
    answers: list[Any] = []
    for _ in commands:
        try:
            answers.append(await connection.read_response())
        except redis.exceptions.ResponseError as refused:
            answers.append(refused)
    return answers


def _lacks(keys: Keys, info: Mapping[str, Any], answers: Mapping[str, Any]) -> list[LasteventError]:
    found = [lack for lack in (_old(info), _cluster(info), _replica(info)) if lack]
    missing: dict[str, list[str]] = {}
    for command, answer in answers.items():
        meaning = translated(answer, key=command.split(" ")[-1]) if isinstance(answer, Exception) else None
        if isinstance(meaning, RedisRefuses) and (what := _missing(keys, command, str(answer))):
            reason = str(meaning).partition(". ")[2]
            missing.setdefault(reason, []).append(what)
        elif meaning:
            found.append(meaning)
    for reason, names in missing.items():
        found.append(RedisRefuses(f"Redis refuses {', '.join(dict.fromkeys(names))}. {reason}"))
    return list({str(lack): lack for lack in found}.values())


def _missing(keys: Keys, command: str, said: str) -> str | None:
    """What is missing, by name. None: not a permission, but a state of the whole server."""
    if "channel" in said:
        return f"the channels {keys.prefix}*"
    if " key" in said and "to access" in said:
        return "the keys arq:*" if "arq:" in command else f"the keys {keys.prefix}*"
    return f"the command {_name(command)}" if "command" in said else None


def _name(command: str) -> str:
    words = command.split(" ")
    return " ".join(words[:2]) if words[0] in _SUBCOMMANDS else words[0]


def _old(info: Mapping[str, Any]) -> LasteventError | None:
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if len(numbers) < len(OLDEST) or numbers >= OLDEST:
        return None
    return RedisRefuses(f"Redis is {version}; 7.0 or newer is needed, or Valkey.")


def _cluster(info: Mapping[str, Any]) -> LasteventError | None:
    return translated(redis.exceptions.ResponseError("CROSSSLOT")) if info.get("cluster_enabled") == 1 else None


def _replica(info: Mapping[str, Any]) -> LasteventError | None:
    # Also one that takes writes (replica-read-only no): it loses them when it hears of its primary again.
    return translated(redis.exceptions.ReadOnlyError()) if info.get("role", "master") != "master" else None
