"""aiohttp under httpx2, which the SDKs speak: reading over it costs a third of what it does over httpx2's own.

The SDKs bring such a bridge too. This one takes no more of an answer than its bounds, keeps no cookies, tries anew
where a kept connection turns out to be dead, and lets a body be read without the iterators that httpx2 wraps around it.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from io import BytesIO
from types import SimpleNamespace

import aiohttp
import httpx2
from yarl import URL

from broker.settings import SettingsError
from worker.providers.bounds import Bounds, OutOfBounds, bound_of

KEEPALIVE_S = 5.0  # an idle connection's life; httpx2's default, too
HEADER_BYTES = 64 * 1024  # one header's; aiohttp's 8190 are fewer than some gateways' policies take
# How much of a body lies here unread, twice that at most, until its peer is made to wait. aiohttp's 256 KiB would be
# 0.2 GB for 400 generations whose commits wait for Redis.
UNREAD_BYTES = 64 * 1024
BODY = "body"
"""The name in `httpx2.Response.extensions` of the Body."""


class Body(httpx2.AsyncByteStream):
    """An answer's body, as its bytes come. `read` is for streams; what httpx2 and the SDKs read whole they iterate."""

    def __init__(self, answer: aiohttp.ClientResponse, bound_bytes: int, silence_s: float | None) -> None:
        """Beyond its bound it raises OutOfBounds; a bound of 0: it counts as empty. `silence_s` None: without limit."""
        self._answer = answer
        self._content = answer.content if bound_bytes else aiohttp.EMPTY_PAYLOAD
        self._left_bytes = bound_bytes
        self._silence_s = silence_s
        self._clock = asyncio.get_running_loop().time
        self._waits_since_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        if silence_s is not None and answer.connection is not None and answer.connection.protocol is not None:
            # aiohttp's timer is armed anew at each read, which is a twelfth of what reading costs. This one is not. The
            # next request on this connection sets aiohttp's again.
            answer.connection.protocol.read_timeout = None
            answer.connection.protocol.start_timeout()
            self._look_in(silence_s)

    async def read(self) -> bytes:
        """What has come, or else the next that comes; b"" at the end. Raises OutOfBounds, httpx2.TransportError.

        What is within the bound is given out first, however much came at once.
        """
        if self._left_bytes < 0:
            raise OutOfBounds("It is too long.")
        self._waits_since_s = self._clock()
        try:
            some = await self._content.readany()
        except aiohttp.ClientError as error:
            # It broke while nobody read. What had come until then is there, and aiohttp would keep it back.
            some = self._content._read_nowait(-1)
            if not some:
                raise _translated(error) from None
        finally:
            self._waits_since_s = None
        self._left_bytes -= len(some)
        if self._left_bytes >= 0:
            return some
        return some[: self._left_bytes] or await self.read()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while some := await self.read():
            yield some

    async def aclose(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._answer.close()  # a body read to its end has given its connection back already

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Whether who reads has waited for too long. While nobody reads, it is not the peer that is silent."""
        assert self._silence_s is not None
        waited_s = 0.0 if self._waits_since_s is None else self._clock() - self._waits_since_s
        if waited_s < self._silence_s:
            self._look_in(self._silence_s - waited_s)
        else:
            self._content.set_exception(aiohttp.SocketTimeoutError("the peer is silent"))


class AiohttpTransport(httpx2.AsyncBaseTransport):
    def __init__(self, bounds: Bounds, tls: ssl.SSLContext, proxy: httpx2.Proxy | None = None) -> None:
        self._bounds = bounds
        self._tls = tls
        self._proxy = _with_password(proxy) if proxy else None
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Raises httpx2.TransportError, which tells no headers (they have the key), by its cause neither; OutOfBounds
        for a compressed answer.
        """
        _check_headers(request.headers)
        body = await request.aread()
        try:
            answer = await self._answer(request, body)
        except aiohttp.ClientError as error:
            raise _translated(error) from None
        try:
            return self._response(answer, request.extensions.get("timeout", {}).get("read"))
        except BaseException:
            answer.close()
            raise

    async def _answer(self, request: httpx2.Request, body: bytes) -> aiohttp.ClientResponse:
        """A kept connection may have been closed by now. What was sent over it then is sent once more, at once.

        The provider may have read it before it hung up (RFC 9110 §9.2.2 warns of that). But nothing of an answer has
        come, and a generation tries again anyway, only later.
        """
        connection = _Connection()
        try:
            return await self._send(request, body, connection)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not connection.was_kept:
                raise
        return await self._send(request, body, _Connection())

    async def _send(self, request: httpx2.Request, body: bytes, connection: _Connection) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = self._open_session()
        timeout = request.extensions.get("timeout", {})
        return await self._session.request(
            request.method,
            # Without a user and a password: httpx2 has made a header of them, and aiohttp refuses to have both.
            URL(str(request.url.copy_with(userinfo=b"")), encoded=True),
            headers=request.headers.multi_items(),
            data=BytesIO(body) if body else None,  # which is sent in pieces, between which the loop goes on
            allow_redirects=False,  # httpx2 follows them
            timeout=aiohttp.ClientTimeout(connect=timeout.get("connect"), sock_read=timeout.get("read")),
            proxy=self._proxy,
            trace_request_ctx=connection,
        )

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # No cap: how many generations run is the worker's decision, and a second one in here, such as aiohttp's
            # own of 100, would let the next one wait without a word.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=self._tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=UNREAD_BYTES,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
            request_class=_Request,
            trace_configs=[_CONNECTIONS],
        )

    def _response(self, answer: aiohttp.ClientResponse, silence_s: float | None) -> httpx2.Response:
        headers = httpx2.Headers(answer.raw_headers)
        body = Body(answer, bound_of(answer.status, headers, self._bounds), silence_s)
        headers.pop("content-encoding", None)
        response = httpx2.Response(answer.status, headers=headers, stream=body, extensions={BODY: body})
        response.encoding = "utf-8"  # whatever it says: Python's codecs unpack zlib and bz2, too
        return response

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


class _Connection:
    was_kept = False


async def _note_a_kept_one(_session: object, context: SimpleNamespace, _params: object) -> None:
    context.trace_request_ctx.was_kept = True


_CONNECTIONS = aiohttp.TraceConfig()
_CONNECTIONS.on_connection_reuseconn.append(_note_a_kept_one)


class _Request(aiohttp.ClientRequest):
    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        # What came over a kept connection while nobody had asked would be taken for this request's answer.
        if conn.protocol is not None and conn.protocol.should_close:
            raise aiohttp.ServerDisconnectedError
        return await super().send(conn)


def _with_password(proxy: httpx2.Proxy) -> str:
    if proxy.url.scheme not in ("http", "https"):
        raise SettingsError(
            f"A worker reaches its model provider through proxies of HTTP only, and the environment (HTTPS_PROXY, "
            f"HTTP_PROXY, ALL_PROXY) names one of {proxy.url.scheme}. Give an http:// one, or unset it for the worker."
        )
    user, password = proxy.auth or (None, None)
    return str(proxy.url.copy_with(username=user, password=password))


_UNSENDABLE = re.compile(rb"[\x00-\x1f\x7f]")


def _check_headers(headers: httpx2.Headers) -> None:
    """aiohttp refuses most of these too, by a ValueError that means many things."""
    if any(_UNSENDABLE.search(value) for _, value in headers.raw):
        raise httpx2.LocalProtocolError("A header has characters that none can have.")


# The first that fits.
_ERRORS: tuple[tuple[type[aiohttp.ClientError], type[httpx2.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx2.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx2.ReadTimeout),
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.ClientHttpProxyError, httpx2.ProxyError),
    (aiohttp.InvalidURL, httpx2.UnsupportedProtocol),
    (aiohttp.ClientOSError, httpx2.ReadError),
    (aiohttp.ClientError, httpx2.RemoteProtocolError),
)


def _translated(error: aiohttp.ClientError) -> httpx2.TransportError:
    """Not in aiohttp's words, nor with it as the cause: it keeps the request's headers, and a proxy's password."""
    return next(ours for theirs, ours in _ERRORS if isinstance(error, theirs))(type(error).__name__)
