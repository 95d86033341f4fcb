"""A process' connections to Redis: a pool with a limit, for which callers wait, and a client that raises our errors.

Each new connection looks up the primary, so whatever breaks in a failover reconnects to the right server. A connection
whose server turns out to be a replica by now (READONLY) is dropped and made again.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis.exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import Sentinel

from broker import gauges
from broker.errors import LasteventError, RedisRefuses, RedisUnavailable, WrongType
from broker.store.errors import AWAY, translated
from broker.store.line import Command, Line
from broker.store.redis_url import Address, RedisUrl, parse_redis_url
from broker.store.silence import ANSWER_S, ASK_AFTER_S, SOCKET_TIMEOUT_S

POOL_CONNECTIONS = 16
"""A process' reads and writes are short. With more connections they would only queue inside Redis instead of here."""

FIND_TIMEOUT_S = 1.0
"""How long one Sentinel, or one server, may take to say which server is primary; then the next one is asked."""

KEEPALIVE: dict[str, Any] = {
    "socket_keepalive": True,
    "socket_keepalive_options": {
        getattr(socket, name): value
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    },
}
"""The kernel's own sign of life: a firewall that counts it forgets nothing, and a dead connection ends in a minute.
Those that do not count it (proxies answer for themselves) are why a silent connection is asked."""

FindPrimary = Callable[[], Awaitable[Address]]


class _Pool(BlockingConnectionPool):
    """Gives out connections that are alive.

    A command that was sent is never sent again here: it may have been carried out, and only its caller knows whether
    that matters. So a connection is asked before it carries one, with a command that changes nothing.
    """

    async def ensure_connection(self, connection: Any) -> None:
        if connection.is_connected and _is_silent(connection) and not await _answers(connection):
            # What was silent for as long has gone the same way. Asking each in turn would add up.
            others = [other for other in self._available_connections if _is_silent(other)]
            for gone in (connection, *others):
                await gone.disconnect(nowait=True)
        await super().ensure_connection(connection)

    async def release(self, connection: Any) -> None:
        connection.released_at_s = time.monotonic()
        await super().release(connection)


def _is_silent(connection: Any) -> bool:
    silent_s: float = time.monotonic() - connection.released_at_s
    return silent_s > ASK_AFTER_S


async def _answers(connection: AbstractConnection) -> bool:
    try:
        async with asyncio.timeout(ANSWER_S):
            await connection.send_command("PING", check_health=False)
            await connection.read_response()
    except redis.exceptions.ResponseError:  # it may not: it was heard
        return True
    except (redis.exceptions.RedisError, OSError, TimeoutError):
        return False
    return True


class _Cancellable(AbstractConnection):
    """redis-py writes within asyncio.wait_for. Before Python 3.12 that swallows a cancellation which arrives just as
    the write is done (bpo-37658): a viewer that had left was still served, and a drain waited for it in vain.
    """

    released_at_s = 0.0
    """When the pool got it back."""

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        elif check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        if isinstance(command, str):
            command = command.encode()
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command([command] if isinstance(command, bytes) else command)
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise redis.exceptions.TimeoutError("Timeout writing to the socket") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise redis.exceptions.ConnectionError(f"Error while writing to the socket: {error}") from error
        except BaseException:  # the command may be half written: nothing may be written after it
            await self.disconnect(nowait=True)
            raise


class _ToPrimary(AbstractConnection):
    """A connection whose address is looked up each time it is made."""

    host: str
    port: int

    def __init__(self, *, find_primary: FindPrimary, **options: Any) -> None:
        self._find_primary = find_primary
        super().__init__(**options)

    async def connect(self) -> None:
        if not self.is_connected:
            self.host, self.port = await self._find_primary()
        await super().connect()  # type: ignore[no-untyped-call]

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except redis.exceptions.ReadOnlyError:
            await self.disconnect(nowait=True)
            raise


def _find_primary(url: RedisUrl, options: dict[str, Any]) -> FindPrimary:
    asked = {**options, "socket_timeout": FIND_TIMEOUT_S, "socket_connect_timeout": FIND_TIMEOUT_S}
    if url.service is not None:
        return _ask_sentinels(url, asked)
    return _ask_for_role(url, asked)


def _ask_sentinels(url: RedisUrl, options: dict[str, Any]) -> FindPrimary:
    own = ("username", "password", "db", "host", "port")  # the Sentinels' differ from the server's
    theirs = {name: value for name, value in options.items() if name not in own} | url.sentinel_credentials
    sentinel = Sentinel(url.addresses, sentinel_kwargs=theirs)  # type: ignore[no-untyped-call]

    async def find() -> Address:
        host, port = await sentinel.discover_master(str(url.service))
        return host, int(port)

    return find


def _ask_for_role(url: RedisUrl, options: dict[str, Any]) -> FindPrimary:
    async def find() -> Address:
        for host, port in url.addresses:
            with suppress(redis.exceptions.RedisError, OSError):
                async with Redis(**{**options, "host": host, "port": port}) as client:
                    role: Any = await client.execute_command("ROLE")  # type: ignore[no-untyped-call]
                    if role[0] == b"master":
                        return host, port
        raise redis.exceptions.ConnectionError("none of the servers is reachable and a primary")

    return find


def pool(redis_url: str, connections: int) -> BlockingConnectionPool:
    """At most `connections`; a caller waits SOCKET_TIMEOUT_S for a free one. Raises ValueError for a bad URL."""
    url = parse_redis_url(redis_url)
    pool: _Pool = _Pool.from_url(
        url.one,
        max_connections=connections,
        timeout=SOCKET_TIMEOUT_S,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
    )
    if not issubclass(pool.connection_class, UnixDomainSocketConnection):
        pool.connection_kwargs = {**KEEPALIVE, **pool.connection_kwargs}
    # redis-py has chosen the class by the URL's scheme: TCP, TLS or a unix socket.
    classes: tuple[type[AbstractConnection], ...] = (_Cancellable, pool.connection_class)
    if not url.is_fixed:
        pool.connection_kwargs["find_primary"] = _find_primary(url, _server_options(pool))
        classes = (_Cancellable, _ToPrimary, pool.connection_class)
    pool.connection_class = type("Connection", classes, {})
    return pool


def _server_options(pool: BlockingConnectionPool) -> dict[str, Any]:
    options = {name: value for name, value in pool.connection_kwargs.items() if name not in ("host", "port")}
    return {**options, "ssl": True} if issubclass(pool.connection_class, SSLConnection) else options


class Client(Redis):
    """redis-py's client with our errors, whatever redis-py or the OS raises. `on_refused`: called when Redis says no:
    what it may not, cannot, or has not the type for.
    """

    on_refused: Callable[[], object] = staticmethod(lambda: None)
    _line: Line | None = None

    async def send_batch(self, commands: Callable[[], Sequence[Command]]) -> list[Any]:
        """Many commands in one round trip, on a connection which the client keeps for that alone: batch after batch,
        one under way at a time. The answers in order; what concerns one command alone is among them, as redis-py's
        error. `commands`: asked, for one at least, at the moment of sending.

        Raises RedisUnavailable, after which some of the batch may have been carried out, or RedisRefuses.
        """
        if self._line is None:
            pool = self.connection_pool
            self._line = Line(lambda: pool.connection_class(**pool.connection_kwargs))
        try:
            answers = await self._line.send(commands)
        except Exception as error:
            if meaning := self.meaning(error):
                raise meaning from error
            raise
        self._raise_if_away(answers)
        return answers

    def _raise_if_away(self, answers: Iterable[Any]) -> None:
        """What concerns one key alone is for the caller, who has the others' answers."""
        for answer in answers:
            if isinstance(answer, Exception) and isinstance(meaning := self.meaning(answer), RedisUnavailable):
                raise meaning from answer

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        if self._line:
            self._line.close()
        await super().aclose(close_connection_pool)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            with _measured(args[0]):
                return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except Exception as error:
            if meaning := self.meaning(error, _named(args[1]) if len(args) > 1 else ""):
                raise meaning from error
            raise

    def meaning(self, error: Exception, key: str = "") -> LasteventError | None:
        """As `translated`. Who talks to Redis beside `execute_command` and pipelines asks here: refusals are noted."""
        meaning = translated(error, key=key)
        if meaning:
            gauges.redis_errors.labels(meaning.code).inc()
        if isinstance(meaning, RedisRefuses | WrongType) or (meaning and str(meaning) != AWAY):
            self.on_refused()
        return meaning

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        pipeline = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.meaning = self.meaning
        pipeline.raise_if_away = self._raise_if_away
        return pipeline


class ReleasingPipeline(Pipeline):
    """redis-py's pipeline, which returns its connection however it is left.

    redis-py says UNWATCH first. A cancellation or a time-out amid that kept the connection in the pipeline, and out of
    the pool, for good: arq leaves a pipeline so whenever another worker has taken the job that it looked at.
    """

    async def reset(self) -> None:
        if self.connection and not self.connection.is_connected:
            self.watching = False  # a connection that broke watches nothing: it need not be made again to say so
        try:
            await super().reset()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        finally:
            if connection := self.connection:
                self.connection = None
                await connection.disconnect(nowait=True)  # its answer may still come
                await self.connection_pool.release(connection)


def _named_in_a_pipeline(error: Exception) -> str:
    """The key of the command that failed, as redis-py names it."""
    found = re.match(r"Command # \d+ \(\S+ ([^\s)]+)", str(error))
    return _named(found[1]) if found else ""


class _Pipeline(ReleasingPipeline):
    meaning: Callable[..., LasteventError | None]
    raise_if_away: Callable[[Iterable[Any]], None]

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        try:
            with _measured("pipeline"):
                answers = await super().execute(raise_on_error)
        except Exception as error:
            if meaning := self.meaning(error, _named_in_a_pipeline(error)):
                raise meaning from error
            raise
        self.raise_if_away(answers)  # with raise_on_error=False
        return answers


@contextmanager
def _measured(command: str) -> Iterator[None]:
    """Of what Redis answered: an error of its connection says nothing about how fast it is."""
    began_s = time.monotonic()
    yield
    gauges.redis_seconds.observe(time.monotonic() - began_s, command)


def _named(key: object) -> str:
    """A key as a message may name it: behind its second part stand the callers' names, of sessions for instance."""
    text = key.decode(errors="replace") if isinstance(key, bytes) else str(key)
    first, colon, rest = text.partition(":")
    second, more, _ = rest.partition(":")
    return f"{first}{colon}{second}{':…' if more else ''}"


def connect(redis_url: str, *, connections: int = POOL_CONNECTIONS) -> Client:
    """A client that connects at its first call. Raises ValueError for a bad URL."""
    client = Client(connection_pool=pool(redis_url, connections))
    client.auto_close_connection_pool = True
    return client
