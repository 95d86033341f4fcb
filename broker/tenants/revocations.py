"""Tokens that are no longer good before they expire. A sorted set for each tenant, le:revoked:<tenant>:

    jti <id>              that token
    sub <ms> <subject>    the subject's, of those issued before then
    stream <ms> <sid>     those that name this stream, of those issued before then

Its scores say until when each is kept (s): the longest token issued before it is over by then.

A server knows the revocations of those tenants whose tokens it has seen. It reads them before it lets the first of
these in, at each word on the channel, and every 5 s, since a word may be lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.errors import TokenRevoked
from broker.store.connect import Client
from broker.store.durable import require_durable
from broker.store.shared import Shared
from broker.tenants.token import Token

READ_S = 5.0

WORD = "revoked"
"""On the channel, which keys have too: theirs says a key's id."""


@dataclass(slots=True)
class _Revoked:
    """Of one tenant. Times in ms: issued before then."""

    jtis: set[str] = field(default_factory=set)
    subjects: dict[str, int] = field(default_factory=dict)
    streams: dict[str, int] = field(default_factory=dict)

    def holds(self, token: Token) -> bool:
        issued_ms = round(token.issued * 1000)
        return (
            token.jti in self.jtis
            or issued_ms < self.subjects.get(token.subject, 0)
            or any(issued_ms < self.streams.get(sid, 0) for sid in token.streams or ())
        )


class Revocations:
    """`key_of`: tenant → its key. `longest_s`: the life of a token at the most, and the leeway."""

    def __init__(self, redis: Client, key_of: Callable[[str], str], channel: str, *, longest_s: int) -> None:
        self._redis = redis
        self._key_of = key_of
        self._channel = channel
        self._longest_s = longest_s
        self._known: dict[str, _Revoked] = {}
        self._raw: dict[str, list[bytes]] = {}
        self._reading = asyncio.Lock()
        self._first = Shared()
        self.on_change: Callable[[], object] = lambda: None

    async def require_good(self, token: Token) -> None:
        """Raises TokenRevoked. Raises RedisUnavailable while it is not known of this tenant."""
        if token.tenant not in self._known:
            await self._first.ask(token.tenant, lambda: self._read([token.tenant]))
        if not self.is_good(token):
            raise TokenRevoked("The token has been revoked. Get a new one.")

    def is_good(self, token: Token) -> bool:
        """As far as it is known: a connection was let in when it was."""
        revoked = self._known.get(token.tenant)
        return revoked is None or not revoked.holds(token)

    async def revoke_token(self, tenant: str, jti: str) -> None:
        """Each of these returns once Redis has it on disk. Raises RedisUnavailable: it may be revoked."""
        await self._revoke(tenant, f"jti {jti}")

    async def revoke_subject(self, tenant: str, subject: str, issued_before_ms: int) -> None:
        await self._revoke(tenant, f"sub {issued_before_ms} {subject}")

    async def revoke_stream(self, tenant: str, sid: str, issued_before_ms: int) -> None:
        await self._revoke(tenant, f"stream {issued_before_ms} {sid}")

    async def run(self) -> None:
        """Read them again, for ever. Only cancellation ends this, or RedisUnavailable."""
        while True:
            await self.read()
            await asyncio.sleep(READ_S)

    async def read(self) -> None:
        """Those of the tenants that are known. Raises RedisUnavailable."""
        await self._read(list(self._known))

    async def _revoke(self, tenant: str, member: str) -> None:
        key, now_s = self._key_of(tenant), int(time.time())
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zremrangebyscore(key, "-inf", now_s)
            pipe.zadd(key, {member: now_s + self._longest_s})
            pipe.expire(key, self._longest_s)
            await require_durable(pipe)
        await self._redis.publish(self._channel, WORD)
        await self._read([tenant])  # this server's own answer is right from here on

    async def _read(self, tenants: list[str]) -> None:
        """Redis' answer is taken apart only where it is another one: a tenant may have 100,000."""
        if tenants:
            async with self._reading:  # or an older answer could come last
                await self._read_now(tenants)

    async def _read_now(self, tenants: list[str]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for tenant in tenants:
            pipeline.zrangebyscore(self._key_of(tenant), f"({int(time.time())}", "+inf")
        is_new = False
        for tenant, raw in zip(tenants, await pipeline.execute(), strict=True):
            if tenant not in self._known or self._raw[tenant] != raw:
                self._known[tenant], self._raw[tenant] = _taken_apart(raw), raw
                is_new = True
        if is_new:
            self.on_change()


def _taken_apart(raw: list[bytes]) -> _Revoked:
    revoked = _Revoked()
    for member in raw:
        kind, _, rest = member.decode(errors="replace").partition(" ")
        if kind == "jti":
            revoked.jtis.add(rest)
            continue
        before, _, name = rest.partition(" ")
        named = revoked.subjects if kind == "sub" else revoked.streams
        if before.isdecimal():
            named[name] = max(named.get(name, 0), int(before))
    return revoked
