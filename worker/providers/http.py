"""The HTTP client of every provider's adapter: httpx2's for the SDK above, aiohttp's transport below."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2

from worker.providers.bounds import Bounds
from worker.providers.transport import AiohttpTransport

CONNECT_TIMEOUT_S = 10.0
WARM_UP_S = 1.0
# Never through HTTP_PROXY: a proxy elsewhere cannot reach this machine's loopback, where the stand-in lives.
DIRECT = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
# A compressed answer may be a thousand times longer than what was received of it.
UNCOMPRESSED = {"Accept-Encoding": "identity"}

_FOR_ANYBODY = {
    *("host", "connection", "accept", "accept-encoding", "user-agent", "content-type", "content-length"),
    *("transfer-encoding", "anthropic-version", "anthropic-beta"),
}


class HttpClient(httpx2.AsyncClient):
    """For an SDK's `http_client`; the SDK closes it. Its time limits are those of requests that give none."""

    def __init__(self, bounds: Bounds, silence_s: float) -> None:
        self._bounds = bounds
        self._tls = httpx2.create_ssl_context()
        self._tls.set_alpn_protocols(["http/1.1"])
        super().__init__(
            mounts=DIRECT,
            headers=UNCOMPRESSED,
            timeout=httpx2.Timeout(silence_s, connect=CONNECT_TIMEOUT_S, pool=None),
            follow_redirects=True,
            # One user's requests are nothing to another's.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )

    def _redirect_headers(self, request: httpx2.Request, url: httpx2.URL, method: str) -> httpx2.Headers:
        """httpx2 keeps `Authorization` from another origin. Keys have other headers too: those of the environment
        (OPENAI_CUSTOM_HEADERS), a gateway's.
        """
        headers = super()._redirect_headers(request, url, method)
        if url.origin != request.url.origin:
            for name in set(headers.keys()) - _FOR_ANYBODY:
                del headers[name]
        return headers

    # httpx2's own way to the proxies of the environment, HTTP_PROXY and the others, is by these two.

    def _init_transport(self, *_: Any, **__: Any) -> AiohttpTransport:
        return AiohttpTransport(self._bounds, self._tls)

    def _init_proxy_transport(self, proxy: httpx2.Proxy, *_: Any, **__: Any) -> AiohttpTransport:
        return AiohttpTransport(self._bounds, self._tls, proxy)

    async def warm_up(self, url: httpx2.URL) -> None:
        """A connection, kept for the first attempt.

        Nothing is asked and no key is sent: any answer, also a refusal, leaves a connection.
        """
        with suppress(Exception):
            async with asyncio.timeout(WARM_UP_S):
                await self.head(url)
