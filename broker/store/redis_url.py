"""LASTEVENT_REDIS_URL: one server, a primary with its replicas, or Sentinels that know which server is the primary.

    redis://[user:password@]host[:6379][/db]                      one server (rediss:// with TLS, unix:///path)
    redis://[user:password@]host-a[:6379],host-b[:6379][/db]      a primary and its replicas: ROLE shows which is which
    redis+sentinel://[user:password@]host[:26379],…/service[/db]  Sentinels; if they have a user and password of their
                                                                  own, ?sentinel_username=…&sentinel_password=…

Other query parameters (?ssl_ca_certs=…) are passed on to redis-py.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from redis.connection import parse_url

REDIS_PORT, SENTINEL_PORT = 6379, 26379
SENTINEL = "+sentinel"

Address = tuple[str, int]


class RedisUrl(NamedTuple):
    """`one`: a URL for redis-py (of several addresses, the first). `service`: the primary's name in Sentinel."""

    one: str
    addresses: tuple[Address, ...] = ()
    service: str | None = None
    sentinel_credentials: dict[str, Any] = {}  # noqa: RUF012 - never changed

    @property
    def is_fixed(self) -> bool:
        """Whether the primary is always at the same address."""
        return self.service is None and len(self.addresses) < 2


def parse_redis_url(url: str) -> RedisUrl:
    """Raises ValueError; its message says what a URL looks like."""
    parts = urlsplit(url)
    scheme = parts.scheme.removesuffix(SENTINEL)
    if scheme not in ("redis", "rediss"):
        parse_url(url)  # type: ignore[no-untyped-call]  # a unix socket, or a ValueError
        return RedisUrl(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    is_sentinel = parts.scheme.endswith(SENTINEL)
    addresses = tuple(_address(host, SENTINEL_PORT if is_sentinel else REDIS_PORT) for host in hosts.split(","))
    path, service = parts.path, None
    if is_sentinel:
        service, _, db = path.strip("/").partition("/")
        if not service:
            raise ValueError("redis+sentinel:// needs the service's name: redis+sentinel://host:26379/name")
        path = f"/{db}"
    query = dict(parse_qsl(parts.query))
    own = {name: query.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in query}
    host, port = addresses[0]
    one = urlunsplit((scheme, f"{credentials}{at}{_bracketed(host)}:{port}", path, urlencode(query), ""))
    parse_url(one)  # type: ignore[no-untyped-call]  # redis-py checks the rest
    return RedisUrl(one, addresses, service, own)


def _address(text: str, default_port: int) -> Address:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "localhost", parts.port or default_port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
