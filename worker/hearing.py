"""The connection to a webhook's receiver: what it says is read in small pieces, and no more of it than HEARD_BYTES.

Who reads it parses all that a piece has without a pause. A receiver that packs its answer with what costs more than it
weighs (`100 Continue` again and again, chunks of one byte) would hold up all else that this process does: 64 KiB of
it, which eight connections read at once, stood for 7.7 s.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore2
import httpx2
from anyio import CancelScope

HEARD_BYTES = 64 * 1024
"""Of a connection, its answer's head and all. Beyond it there is a ReadError."""

PIECE_BYTES = 1024
"""Some 40 answers of nothing but `100 Continue`: 4 ms."""


class Transport(httpx2.AsyncHTTPTransport):
    """For one request. `tls`: None for plain HTTP."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__(verify=tls or False, trust_env=False)
        self._pool = httpcore2.AsyncConnectionPool(ssl_context=tls, network_backend=_Backend())


class _Backend(httpcore2.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        return _Stream(await self._inner.connect_tcp(host, port, timeout, local_address, socket_options))


class _Stream(httpcore2.AsyncNetworkStream):
    def __init__(self, inner: httpcore2.AsyncNetworkStream) -> None:
        self._inner = inner
        self._left = HEARD_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left <= 0:
            raise httpcore2.ReadError("the answer is too long")
        await asyncio.sleep(0)  # what TLS has deciphered already comes without a pause
        piece = await self._inner.read(min(max_bytes, PIECE_BYTES, self._left), timeout)
        self._left -= len(piece)
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return _Stream(await self._inner.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:  # also the end of our patience, for which httpcore2 leaves the connection open
            with CancelScope(shield=True):
                await self._inner.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
