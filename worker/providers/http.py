"""The HTTP client of every provider's adapter: httpx2's for the SDK above, aiohttp's transport below."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2

from worker.providers.bounds import Bounds
from worker.providers.failures import failed
from worker.providers.transport import AiohttpTransport

KEY_OF_NONE = "none"
"""For a server of one's own that wants no key: an SDK must have one, and would look for its provider's in the
environment."""

CONNECT_TIMEOUT_S = 10.0
WARM_UP_S = 1.0
MAX_REDIRECTS = 5
_LED_AWAY = (
    "The model provider's address redirects to another server, which is sent neither the request nor the key. "
    "If that is where the provider is now, configure its address."
)
# Never through HTTP_PROXY: a proxy elsewhere cannot reach this machine's loopback, where the stand-in lives.
DIRECT = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
# A compressed answer may be a thousand times longer than what was received of it.
UNCOMPRESSED = {"Accept-Encoding": "identity"}


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
            follow_redirects=False,
            # One user's requests are nothing to another's.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Follows redirects within the provider's own origin. Raises ProviderFailure for one that leads away from it:
        the key would go along, in a header that httpx2 does not know for one (x-api-key, x-goog-api-key), and so would
        what people wrote.
        """
        follows = options.pop("follow_redirects", None) is not False
        response = await super().send(request, **options)
        for _ in range(MAX_REDIRECTS):
            following = response.next_request if follows else None
            if following is None:
                break
            if not _is_same_origin(request.url, following.url):
                await response.aclose()
                raise failed("provider_bad_answer", _LED_AWAY, status=response.status_code)
            await response.aclose()
            response = await super().send(following, **options)
        return response

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


def _is_same_origin(one: httpx2.URL, other: httpx2.URL) -> bool:
    is_upgraded = one.scheme == "http" and other.scheme == "https" and other.port is None and one.port is None
    return one.host == other.host and (is_upgraded or (one.scheme, one.port) == (other.scheme, other.port))
