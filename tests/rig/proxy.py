"""A wire to Redis that can be broken: between a client under test and a real server, on a Unix socket."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

PONG = b"+PONG\r\n"


class Proxy:
    def __init__(self, socket_path: str, server_path: str) -> None:
        self.url = f"unix://{socket_path}"
        self.connections = 0
        self.held = 0
        """How many pieces of what clients sent have arrived and do not pass."""
        self._server_path = server_path
        self._cuts: set[Callable[[], None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._spoil: bytes | None = None
        self._forgets_after_s = float("inf")

    def cut(self) -> None:
        """Every connection, now."""
        for cut in list(self._cuts):
            cut()

    def hold(self) -> None:
        """Not a byte passes, either way, and nothing breaks: a network that has gone away."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def refuse(self, refusing: bool = True) -> None:
        """No server there."""
        self._refusing = refusing
        if refusing:
            self.cut()

    def forget_after(self, silent_s: float) -> None:
        """A firewall: a connection on which no byte has passed for so long is forgotten. What either side sends into
        it disappears, and neither is told."""
        self._forgets_after_s = silent_s

    def lose_next_reply(self) -> None:
        """Redis does what it is told, and the connection breaks before it has said so. (Whether it is alive, which a
        connection that was silent is asked first, it may say.)
        """
        self._spoil = b""

    def garble_next_reply(self) -> None:
        self._spoil = b"@ this is no reply\r\n"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.close()
            return
        self.connections += 1
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(self._server_path)

        def cut() -> None:
            writer.close()
            upstream_writer.close()

        self._cuts.add(cut)
        wire = _Wire()
        with suppress(OSError):
            await asyncio.wait(
                [
                    asyncio.ensure_future(self._pass_on(reader, upstream_writer, wire)),
                    asyncio.ensure_future(self._bring_back(upstream_reader, writer, cut, wire)),
                ]
            )
        cut()
        self._cuts.discard(cut)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: _Wire) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                self.held += 1
                await self._open.wait()
                self.held -= 1
                if wire.is_forgotten(self._forgets_after_s):
                    continue
                writer.write(data)
        writer.close()

    async def _bring_back(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: Callable[[], None], wire: _Wire
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                await self._open.wait()
                if wire.is_forgotten(self._forgets_after_s):
                    continue
                if self._spoil is None or data == PONG:
                    writer.write(data)
                    continue
                writer.write(self._spoil)
                self._spoil = None
                break
        cut()


class _Wire:
    """When the last byte passed, either way."""

    def __init__(self) -> None:
        self._passed_at_s = time.monotonic()
        self._is_forgotten = False

    def is_forgotten(self, after_s: float) -> bool:
        now_s = time.monotonic()
        self._is_forgotten |= now_s - self._passed_at_s > after_s
        self._passed_at_s = now_s
        return self._is_forgotten


@asynccontextmanager
async def proxy_to(redis_url: str) -> AsyncIterator[Proxy]:
    # Not in pytest's own temporary directory: a socket's path has 107 bytes (103 on macOS).
    with tempfile.TemporaryDirectory(prefix="le-", dir="/tmp") as folder:
        proxy = Proxy(f"{folder}/s", redis_url.removeprefix("unix://"))
        server = await asyncio.start_unix_server(proxy.serve, f"{folder}/s")
        try:
            yield proxy
        finally:
            server.close()
            proxy.release()
            proxy.cut()
