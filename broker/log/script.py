"""The steps that change a stream, one Lua script each (scripts/): how each is called, and what its answer means.

A step is atomic on one stream's keys and may be repeated: each script says why that is harmless. Each step has a
function here whose parameters are the script's arguments, in the script's order. The function returns a `Call`, which
`Scripts` runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

import redis.exceptions
from redis.asyncio import Redis

from broker.errors import (
    AppendGap,
    ApprovalNotFound,
    LasteventError,
    LeaseHeld,
    LogHealing,
    OutOfOrder,
    ProducerFenced,
    ProducerGap,
    RateLimited,
    RedisRefuses,
    SessionGap,
    StreamClosed,
    StreamLimit,
    StreamNotFound,
    StreamRunning,
    WriterSuperseded,
)
from broker.log.event import Event
from broker.log.keys import Keys
from broker.log.steps import Append, Extend, Pen, Produce, Producer, Renew, Seizure
from broker.store.connect import Client
from broker.store.errors import translated
from broker.store.line import Command

FUNCTIONS = "  -- functions.lua\n"


class Script:
    """A Lua step with what all share in front, called by its SHA-1 digest (EVALSHA) with so many of a stream's keys.

    A step that says where the functions go (FUNCTIONS) has them there, so that not every call makes them.
    `is_bare`: it has nothing in front.
    """

    def __init__(self, name: str, keys: int = 4, *, is_bare: bool = False) -> None:
        self.keys = keys
        prelude, functions, step = (_lua(part) for part in ("prelude", "functions", name))
        whole = prelude + (step.replace(FUNCTIONS, functions) if FUNCTIONS in step else functions + step)
        self.text = step if is_bare else whole
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def _lua(name: str) -> str:
    return resources.files("broker.log.scripts").joinpath(f"{name}.lua").read_text()


WITH_REQUEST, WITH_PRODUCERS = 6, 8

WAYS = 2
"""What a writer sends again may go another way than before, and so by another script."""

STREAMS_KEPT = 1024
"""Writers append again and again: for so many streams, what does not change from call to call is encoded once."""

CREATE, CLAIM, APPEND = Script("create", WITH_REQUEST), Script("claim", WITH_REQUEST), Script("append")
EXTEND, RENEW = Script("extend", 3, is_bare=True), Script("renew", 2, is_bare=True)
TAIL = Script("tail", 2, is_bare=True)
RESTORE, RELEASE, SEIZE = Script("restore", WITH_REQUEST), Script("release"), Script("seize", WITH_PRODUCERS)
ARCHIVED, ERASE = Script("archived", WITH_PRODUCERS), Script("erase", WITH_PRODUCERS)
HOLD, LET_GO = Script("hold", WITH_REQUEST), Script("let_go", WITH_REQUEST)
INPUTS = Script("inputs")
PRODUCE, COPY, PROLONG = Script("produce", WITH_PRODUCERS), Script("copy"), Script("prolong")


class Seen(NamedTuple):
    """A Redis server, and since when it has been in use (ms by its clock). '' and 0: this process has met none yet."""

    server: str = ""
    since_ms: int = 0


class Call(NamedTuple):
    """A step that is ready to run on one stream."""

    script: Script
    sid: str
    args: Sequence[Any]


def create(
    sid: str,
    lease_ms: int | None,
    reserved_ms: int | None,
    counted_from_ms: int | None,
    held_ms: int | None,
    request: bytes,
    fields: Mapping[str, str | bytes],
) -> Call:
    """`lease_ms`: of an external producer, which holds the pen from the start. → 1 if new, created (ms)"""
    numbers = (_or_empty(lease_ms), _or_empty(reserved_ms), _or_empty(counted_from_ms), _or_empty(held_ms))
    return Call(CREATE, sid, (*numbers, request, *_flat(fields)))


def claim(sid: str, claim_id: str, worker: str, lease_ms: int, seen: Seen) -> Call:
    """→ epoch, base, tail, attempt, events, bytes, server, all of meta, its own request, or None if that is large"""
    return Call(CLAIM, sid, (claim_id, worker, lease_ms, *seen))


def append(
    append: Append, retention_ms: int, max_events: int, max_bytes: int, seen_server: str, endings_from_ms: int
) -> Call:
    """`endings_from_ms`: from when on a new ending may be written under another server than the stream's.

    → tail, now (ms), state, t of the last event that was already there, events in the log, bytes of all or ''
    """
    lease_ms = round(append.lease_s * 1000)
    before, after = _unchanging(append.pen, lease_ms, retention_ms, max_events, max_bytes, append.attempt)
    args = [*before, append.first, *after, append.claimed_under, seen_server, endings_from_ms, append.usage]
    args += (_or_empty(append.bytes_before), append.not_before_ms)
    for kind, data, t in append.events:
        args += (kind, data, "" if t is None else t)
    return Call(APPEND, append.sid, args)


def extend(extend: Extend) -> Call:
    """→ 1, or 0 if nothing was done"""
    args: list[Any] = [extend.claim_id, extend.length, extend.t]
    for event_id, (kind, data, _) in enumerate(extend.events, extend.first):
        args += (event_id, kind, data)
    return Call(EXTEND, extend.sid, args)


def renew(renew: Renew) -> Call:
    """→ now (ms), or 0 if nothing was done"""
    lease_ms = round(renew.lease_s * 1000)
    return Call(RENEW, renew.sid, (renew.claim_id, lease_ms, renew.usage, renew.length, renew.tail, renew.bytes))


def tail(sid: str) -> Call:
    """→ id of the last event before the ending"""
    return Call(TAIL, sid, ())


@lru_cache(STREAMS_KEPT)
def _unchanging(pen: Pen, *numbers: int) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """What all appends of a pen have in front of the first event's number, and behind it."""
    return [str(part).encode() for part in pen], [b"%d" % number for number in numbers]


def restore(
    sid: str,
    claimed_under: str,
    created_ms: int,
    lease_ms: int,
    held_ms: int | None,
    request: str,
    fields: Mapping[str, str],
) -> Call:
    return Call(RESTORE, sid, (claimed_under, created_ms, lease_ms, _or_empty(held_ms), request, *_flat(fields)))


def release(sid: str, pen: Pen, *, unbegun: bool = False) -> Call:
    return Call(RELEASE, sid, (pen.epoch, pen.claim_id, int(unbegun)))


def seize(seizure: Seizure, lease_ms: int, retention_ms: int, only_expired: bool, seen: Seen, channel: str) -> Call:
    """→ state, id of the ending, of the last event before it, 1 if it had already ended, epoch, t, data as written"""
    sid, claim_id, kind, data, *lost = seizure
    args = (claim_id, kind, data, lease_ms, retention_ms, int(only_expired), *seen, channel, *lost)
    return Call(SEIZE, sid, args)


def archived(sid: str, archived_ms: int, retention_ms: int) -> Call:
    return Call(ARCHIVED, sid, (archived_ms, retention_ms))


def erase(sid: str, erased_ms: int, retention_ms: int, tombstone: Mapping[str, str]) -> Call:
    """→ erased ms"""
    return Call(ERASE, sid, (erased_ms, retention_ms, *_flat(tombstone)))


def hold(request_of: str, sid: str, held_ms: int | None, request: str = "") -> Call:
    """`held_ms` None: until it lets go. → 1 if the request is there"""
    return Call(HOLD, request_of, (sid, _or_empty(held_ms), request))


def let_go(request_of: str, sid: str, held_ms: int) -> Call:
    return Call(LET_GO, request_of, (sid, held_ms))


def inputs(sid: str, what: str, data: bytes, about: str, channel: str, max_waiting: int, max_bytes: int) -> Call:
    """`about`: an approval's id, or ''. → id of the entry that stands, its data"""
    return Call(INPUTS, sid, (what, data, about, channel, max_waiting, max_bytes))


def produce(
    sid: str, asked: Produce, retention_ms: int, max_events: int, max_bytes: int, seen_server: str, from_ms: int
) -> Call:
    """`from_ms`: from when on it may be written to under another server than the stream's.

    → id of the last event before the ending, state, the producer's last number (or ''), 1 if it was there already
    """
    producer = asked.producer or Producer("", 0, 0)
    args: list[Any] = [*producer, asked.seq, int(asked.closes), _or_empty(asked.life_ms), retention_ms]
    args += (max_events, max_bytes, seen_server, from_ms)
    for kind, data in asked.events:
        args += (kind, data)
    return Call(PRODUCE, sid, args)


def copy(sid: str, events: Sequence[Event]) -> Call:
    return Call(COPY, sid, [part for event in events for part in event])


def prolong(sid: str, life_ms: int) -> Call:
    return Call(PROLONG, sid, (life_ms,))


def _or_empty(number: int | None) -> int | str:
    return "" if number is None else number


def _flat(fields: Mapping[str, str] | Mapping[str, str | bytes]) -> list[str | bytes]:
    return [part for field in fields.items() for part in field]


class Scripts:
    """Runs calls, and loads the scripts into a Redis that does not have them yet.

    `in_batches`: on the client's line, one batch at a time, instead of on any connection of its pool.
    """

    def __init__(self, redis: Redis, keys: Keys, *, in_batches: bool = False) -> None:
        self._redis = redis
        self._keys = keys
        self._send = redis.send_batch if in_batches and isinstance(redis, Client) else self._in_a_pipeline

    async def run(self, call: Call) -> list[Any]:
        """The step's answer after its OK. Raises the error that the step answered, or RedisUnavailable."""
        return (await self.run_each([call]))[0]

    async def run_each(self, calls: Sequence[Call]) -> list[list[Any]]:
        """The answers of steps that follow each other in one round trip. Raises the first error that one answered."""
        outcomes = []
        for answer in await self.run_many(lambda: calls):
            outcome = typed(answer)
            if isinstance(outcome, LasteventError):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    async def run_many(self, calls: Callable[[], Sequence[Call]]) -> list[Any]:
        """The answers of many steps in one round trip, in their order, still to be `typed`.

        `calls`: asked at each sending, on a line once it is connected: what a call says may no longer hold when it
        has waited, or has to be sent again.
        Raises RedisUnavailable if any call did not reach Redis; all of them may be repeated.
        """
        sent: Sequence[Call] = ()

        def commands() -> list[Command]:
            nonlocal sent
            sent = calls()
            return [(*_beginning(call.script, self._keys, call.sid), *call.args) for call in sent]

        answers = await self._send(commands)
        for _ in range(WAYS):
            if not any(isinstance(answer, redis.exceptions.NoScriptError) for answer in answers):
                break
            await self._load({call.script for call in sent})
            answers = await self._send(commands)
        return answers

    async def _load(self, scripts: Collection[Script]) -> None:
        """On the way that the calls take: another connection may lead to another server, after a failover."""
        for answer in await self._send(lambda: [("SCRIPT", "LOAD", script.text) for script in scripts]):
            if isinstance(answer, Exception):
                raise translated(answer) or answer

    async def _in_a_pipeline(self, commands: Callable[[], Sequence[Command]]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for command in commands():
                pipe.execute_command(*command)
            return await pipe.execute(raise_on_error=False)


@lru_cache(STREAMS_KEPT)
def _beginning(script: Script, keys: Keys, sid: str) -> Command:
    """Of a call of this script for this stream: all in front of its arguments."""
    names = keys.stream(sid)[: script.keys]
    return (b"EVALSHA", script.sha.encode(), b"%d" % script.keys, *(name.encode() for name in names))


def typed(answer: Any) -> list[Any] | LasteventError:
    """A step's answer after its OK, or the error that it answered. Raises the error of a call that Redis refused."""
    if type(answer) is list and answer[0] == b"OK":  # nearly all are
        return answer[1:]
    if isinstance(answer, redis.exceptions.NoScriptError):  # although it was loaded (run_many)
        raise RedisRefuses(
            "Redis does not keep scripts that were loaded. Perhaps a proxy stands in front of several servers: "
            "Lastevent needs one."
        )
    if isinstance(answer, Exception):
        raise translated(answer) or answer
    match answer:
        case [b"NOT_FOUND"]:
            return StreamNotFound("There is no stream with this id.")
        case [b"CLOSED"]:
            return StreamClosed("The stream has its terminal event. No event can follow it.")
        case [b"SUPERSEDED"]:
            return WriterSuperseded("Another writer holds the pen now. Stop writing.")
        case [b"GAP", tail]:
            return AppendGap(tail)
        case [b"LIMIT"]:
            return StreamLimit("The stream is at its limit of events or bytes. Only its terminal event still fits.")
        case [b"HELD", until_ms]:
            return LeaseHeld(until_ms)
        case [b"RUNNING"]:
            return StreamRunning("The stream is still running. Cancel it first, or wait until it has ended.")
        case [b"HEALING", wait_ms]:
            return LogHealing(wait_ms / 1000)
        case [b"NOT_ASKED"]:
            return ApprovalNotFound("This stream has not asked for an approval with this id.")
        case [b"FULL"]:
            return RateLimited(
                "As many inputs as may (1,000, or 1 MiB) wait until the agent takes them. Send more when it has.",
                "waiting_inputs",
            )
        case [b"STALE_EPOCH", epoch]:
            return ProducerFenced(epoch)
        case [b"NEW_EPOCH"]:
            return SessionGap("A new session of a producer begins with its request 0.")
        case [b"SEQUENCE_GAP", expected]:
            return ProducerGap(expected)
        case [b"OUT_OF_ORDER"]:
            return OutOfOrder("The Stream-Seq is not larger than the last one.")
        case [b"NEW_SERVER", server]:
            return NewServer(server.decode())
    raise AssertionError(f"script.py does not know this answer of a script: {answer[:1]!r}")


class GoesWholeWay(LasteventError):
    """The short way did nothing, or what it did is not known. The same by `append` is harmless in either case."""


class NewServer(LasteventError):
    """The step ran on a server that this process has not met. The caller must say since when it has been in use."""

    def __init__(self, server: str) -> None:
        super().__init__("Redis runs on another server than before.")
        self.server = server
