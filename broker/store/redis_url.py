"""LASTEVENT_REDIS_URL: one server, a primary with its replicas, or Sentinels that know which server is the primary.

    redis://[user:password@]host[:6379][/db]                      one server (rediss:// with TLS, unix:///path)
    redis://[user:password@]host-a[:6379],host-b[:6379][/db]      a primary and its replicas: ROLE shows which is which
    redis+sentinel://[user:password@]host[:26379],…/service[/db]  Sentinels; if they have a user and password of their
                                                                  own, ?sentinel_username=…&sentinel_password=…

Other query parameters (?ssl_ca_certs=…) are passed on to redis-py, as far as PARAMETERS names them.

An address holds a password. So no message here repeats a part of it: where the parts begin is just what may be wrong.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from redis.asyncio.connection import Connection, parse_url

from broker.store.host import require_host

REDIS_PORT, SENTINEL_PORT = 6379, 26379
SENTINEL = "+sentinel"

PARAMETERS = frozenset(
    {
        *("db", "username", "password", "client_name", "protocol", "timeout", "max_connections"),
        *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "retry_on_timeout", "health_check_interval"),
        *("ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_data", "ssl_check_hostname"),
        *("ssl_ciphers",),
    }
)
OF_THE_POOL = ("timeout", "max_connections")

FORM = (
    "an address is redis://user:password@host:6379/0, rediss://… with TLS, unix:///path, or "
    "redis+sentinel://host/name; in a password, % is written %25, / %2F, ? %3F, # %23 and @ %40"
)

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
    """Raises ValueError; its message says what is wrong and what an address looks like, and repeats nothing of it."""
    try:
        parts = urlsplit(url)
        parsed = _unix_socket(parts, url) if parts.scheme == "unix" else _servers(parts)
        _require_options(parsed.one)
    except _Wrong as wrong:
        raise ValueError(f"{wrong}; {FORM}") from None
    except Exception:  # redis-py has many for one that it cannot use, and they repeat it
        raise ValueError(FORM) from None
    return parsed


def shown_redis_url(url: str) -> str:
    """A checked address as a person may read it: no user, no password, no parameters."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class _Wrong(Exception):
    """What is wrong with an address, without a part of it."""


def _unix_socket(parts: SplitResult, url: str) -> RedisUrl:
    if not parts.path or (parts.netloc and "@" in parts.path) or parts.fragment:
        raise _Wrong("the socket has no path")
    _query(parts)
    return RedisUrl(url)


def _servers(parts: SplitResult) -> RedisUrl:
    scheme = parts.scheme.removesuffix(SENTINEL)
    if scheme not in ("redis", "rediss"):
        raise _Wrong("its scheme is not known")
    credentials, at, hosts = parts.netloc.rpartition("@")
    is_sentinel = parts.scheme.endswith(SENTINEL)
    addresses = tuple(_address(host, SENTINEL_PORT if is_sentinel else REDIS_PORT) for host in hosts.split(","))
    path, service = parts.path, None
    if is_sentinel:
        service, _, db = path.strip("/").partition("/")
        if not re.fullmatch(r"[\w.-]+", service):
            raise _Wrong("redis+sentinel:// needs the service's name behind the hosts")
        path = f"/{db}"
    if not re.fullmatch(r"(/[0-9]*)?", path, re.ASCII) or parts.fragment:
        raise _Wrong("what is behind the host is not the number of a database")
    query = _query(parts, "sentinel_username", "sentinel_password")
    if scheme == "rediss" and query.get("ssl_cert_reqs") != "none":
        # redis-py's own default accepts any host's certificate: whoever has one could stand in between.
        query.setdefault("ssl_check_hostname", "true")
    own = {name: query.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in query}
    host, port = addresses[0]
    one = urlunsplit((scheme, f"{credentials}{at}{_bracketed(host)}:{port}", path, urlencode(query), ""))
    return RedisUrl(one, addresses, service, own)


def _query(parts: SplitResult, *others: str) -> dict[str, str]:
    query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    if not query.keys() <= PARAMETERS.union(others):
        raise _Wrong("behind its ? is a parameter that is not known")
    return query


def _require_options(url: str) -> None:
    """redis-py looks at most of them only when it makes a connection, which is not opened here."""
    options: dict[str, Any] = {name: value for name, value in parse_url(url).items() if name not in OF_THE_POOL}
    options.pop("connection_class", Connection)(**options)


def _address(text: str, default_port: int) -> Address:
    parts = urlsplit(f"//{text}")
    try:
        port = default_port if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not 0 < port <= 65535:
        raise _Wrong("its port is not a number from 1 to 65535")
    if not parts.hostname:
        raise _Wrong("it names no host")
    require_host(parts.hostname)
    return parts.hostname, port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
