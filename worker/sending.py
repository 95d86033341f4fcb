"""One webhook, sent once: resolve, check every address, connect to one of those, verify the certificate of the name.

The way from the name to the connection has one resolution, whose answer is checked and then used: a name that resolves
otherwise a second later (DNS rebinding) leads nowhere else. Redirects are not followed, since each would have to be
checked; no proxy of the environment is asked, since it would resolve the name itself. Every request has a connection of
its own: one that is kept would serve another name at the same address, whose certificate nobody has looked at.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import httpx2

from broker.store.webhook_url import Allowed, Target, may_reach, target_of
from worker.hearing import Transport

TIMEOUT_S = 10.0
"""For all of it."""

CONNECT_S = 4.0
"""To one address; the next one is tried after it."""

MOST_ADDRESSES = 3
"""That are tried, of those that a name has."""

REST_S = 1.0
"""For what follows an answer's head. It is read and dropped, as far as hearing.py reads: a receiver that is still
writing sees no error. What counts is the status."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port → its addresses. Raises OSError."""


class Answer(NamedTuple):
    """`error`: without a status, why there is none: invalid_url, dns, address_not_allowed, connect, tls, timeout,
    bad_answer. `retry_after_s`: as the receiver asks."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def signature(keys: Sequence[bytes], webhook_id: str, at_s: int, body: bytes) -> str:
    """The webhook-signature header (Standard Webhooks, "Symmetric"): one signature a key, so that keys can change."""
    signed = b"%s.%d.%s" % (webhook_id.encode(), at_s, body)
    digests = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


async def resolve(host: str, port: int) -> Sequence[str]:
    """In a thread of its own: a name server that does not answer would take those that all else waits for."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str], error: Exception | None) -> None:
        if found.done():  # nobody waits any more
            return
        if error:
            found.set_exception(error)
        else:
            found.set_result(addresses)

    def look() -> None:
        addresses, error = [], None
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
        except (OSError, UnicodeError) as reason:
            error = OSError(str(reason))
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, addresses, error)

    threading.Thread(target=look, name="resolve a webhook's host", daemon=True).start()
    return await found


class Sender:
    """`resolve`: another resolver. `tls`: another context, of certificates that are trusted."""

    def __init__(
        self,
        allowed: Allowed,
        *,
        resolve: Resolve = resolve,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._tls = tls
        self._timeout_s = timeout_s

    async def send(self, webhook_id: str, url: str, keys: Sequence[bytes], body: bytes) -> Answer:
        """Never raises for what a receiver does."""
        try:
            target = target_of(url, self._allowed)
        except ValueError:  # what may be reached has changed since it was named
            return Answer(error="invalid_url")
        answered: list[Answer] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                addresses = await self._addresses(target)
                if isinstance(addresses, Answer):
                    return addresses
                at_s = int(time.time())
                headers = {
                    "Host": target.authority,
                    "Content-Type": "application/json",
                    "User-Agent": "Lastevent-Webhooks",
                    "Accept-Encoding": "identity",
                    "webhook-id": webhook_id,
                    "webhook-timestamp": str(at_s),
                    "webhook-signature": signature(keys, webhook_id, at_s, body),
                }
                return await self._send_to_one(addresses, target, headers, body, answered)
        except TimeoutError:
            return answered[0] if answered else Answer(error="timeout")

    async def _addresses(self, target: Target) -> Sequence[str] | Answer:
        try:
            addresses = await self._resolve(target.host, target.port)
        except OSError:
            addresses = ()
        if not addresses:
            return Answer(error="dns")
        # All or none: whoever mixes an inner address among others wants that one to be tried.
        if not all(may_reach(address, target.host, self._allowed) for address in addresses):
            return Answer(error="address_not_allowed")
        return addresses[:MOST_ADDRESSES]

    async def _send_to_one(
        self,
        addresses: Sequence[str],
        target: Target,
        headers: dict[str, str],
        body: bytes,
        answered: list[Answer],
    ) -> Answer:
        answer = Answer(error="connect")
        for address in addresses:
            answer = await self._send_to(address, target, headers, body, answered)
            if answer.error != "connect":
                break
        return answer

    async def _send_to(
        self, address: str, target: Target, headers: dict[str, str], body: bytes, answered: list[Answer]
    ) -> Answer:
        host = f"[{address}]" if ":" in address else address
        url = f"{target.scheme}://{host}:{target.port}{target.path}"
        extensions = {"sni_hostname": target.host, "timeout": {"connect": CONNECT_S}}
        try:
            request = httpx2.Request("POST", url, headers=headers, content=body, extensions=extensions)
        except httpx2.InvalidURL:
            return Answer(error="invalid_url")
        if self._tls is None and target.scheme == "https":
            self._tls = httpx2.create_ssl_context()  # 10 ms
        transport = Transport(self._tls)
        try:
            return await self._ask(transport, request, answered)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return Answer(error="tls" if _is_of_tls(error) else "connect")
        except httpx2.TimeoutException:
            return Answer(error="timeout")
        except (httpx2.HTTPError, OSError) as error:
            return Answer(error="tls" if _is_of_tls(error) else "bad_answer")
        finally:
            await transport.aclose()

    async def _ask(self, transport: Transport, request: httpx2.Request, answered: list[Answer]) -> Answer:
        """`answered`: there it is as soon as it counts, whatever becomes of the rest of it."""
        response = await transport.handle_async_request(request)
        answer = Answer(response.status_code, retry_after_s=_retry_after_s(response.headers.get("retry-after", "")))
        answered.append(answer)
        with suppress(httpx2.HTTPError, OSError):  # also TimeoutError
            async with asyncio.timeout(REST_S):
                async for _ in response.aiter_raw():
                    pass
        with suppress(httpx2.HTTPError, OSError):
            await response.aclose()
        return answer


def _is_of_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _retry_after_s(text: str) -> float | None:
    """RFC 9110, section 10.2.3: seconds, or a date."""
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
