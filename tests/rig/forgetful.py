"""A way to a server that forgets its connections, as a firewall forgets idle ones, or that leads elsewhere after a
failover. On a Unix socket, to a server on a Unix socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Forgetful:
    def __init__(self, target: str) -> None:
        self.target = target
        """Where new connections go; those that are there stay where they are."""
        self.connections = 0
        self._known: set[asyncio.Event] = set()

    def forget(self) -> None:
        """What comes from either side of today's connections is dropped without a word. New ones are as ever."""
        for is_forgotten in self._known:
            is_forgotten.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        is_forgotten = asyncio.Event()
        self._known.add(is_forgotten)
        try:
            there_reader, there_writer = await asyncio.open_unix_connection(self.target)
        except OSError:
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_pass_on(reader, there_writer, is_forgotten))
                ways.create_task(_pass_on(there_reader, writer, is_forgotten))
        finally:
            self._known.discard(is_forgotten)
            for end in (writer, there_writer):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_forgotten: asyncio.Event) -> None:
    with suppress(OSError):
        while data := await reader.read(2**16):
            if not is_forgotten.is_set():
                writer.write(data)
    if not is_forgotten.is_set():
        writer.close()


@asynccontextmanager
async def forgetful(socket_path: str, target: str) -> AsyncIterator[Forgetful]:
    way = Forgetful(target)
    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.ensure_future(way.serve(reader, writer)))

    server = await asyncio.start_unix_server(accept, socket_path)
    try:
        yield way
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
