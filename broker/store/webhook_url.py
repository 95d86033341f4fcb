"""Where webhooks may be sent: which addresses, which hosts, and what their URLs may look like. Pure functions.

A caller names the URL, and a worker inside the operator's network asks it: server-side request forgery. So
- what counts is the address that the name resolved to, never its text: `0x7f.1`, `127.1` and `2130706433` are loopback
- every address that it resolved to has to be allowed, and the connection goes to one of those (worker/sending.py)
- `ipaddress` calls some addresses global that reach the inside: a cloud's own services, and IPv4 within IPv6

`Allowed` are the operator's own exceptions (LASTEVENT_WEBHOOK_ALLOW): hosts by name, wherever they resolve to, and
networks. Plain HTTP goes to these alone: to a host that is named there, or an address that is in a network there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

from broker.store.host import require_host

LONGEST = 2048
"""Of a URL, in characters."""

ADVICE = "LASTEVENT_WEBHOOK_ALLOW lists the hosts and networks of your own that webhooks may reach, by http too"

INSIDE_V4 = tuple(
    map(
        IPv4Network,
        (
            "168.63.129.16/32",  # Azure's host: DHCP, DNS, health, and its agent's secrets
            "192.0.0.0/24",  # IETF protocol assignments; 192.0.0.192 is Oracle's metadata service
            "192.88.99.0/24",  # 6to4 relays (RFC 7526)
            "198.18.0.0/15",  # measurements within a network (RFC 2544)
        ),
    )
)
"""What `ipaddress` of some releases calls global."""

GLOBAL_V6 = IPv6Network("2000::/3")
"""All that is assigned for use across the internet. Beside it lie mapped IPv4 (::ffff:0:0/96), NAT64 (64:ff9b::/96 and
64:ff9b:1::/48), unique local, link local and multicast addresses."""

INSIDE_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/32",  # Teredo: an IPv4 address within (RFC 4380)
            "2002::/16",  # 6to4: the same (RFC 3056)
            "2001:db8::/32",  # documentation
            "3fff::/20",  # documentation (RFC 9637)
        ),
    )
)

Address = IPv4Address | IPv6Address


class Allowed(NamedTuple):
    """Beside the internet. `hosts`: lower case."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()


class Target(NamedTuple):
    """A URL taken apart. `host`: as its certificate names it, lower case; of an IPv6 address without brackets.
    `path`: with the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """For the Host header: without the port if that is the scheme's own (RFC 9110, section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"https": 443, "http": 80}[self.scheme] else f"{host}:{self.port}"


def read_allowed(parts: Iterable[str]) -> Allowed:
    """Hosts and networks, one a part. Raises ValueError; its message does not repeat them."""
    hosts, networks = set(), []
    for part in parts:
        try:
            networks.append(ip_network(part, strict=False))
            continue
        except ValueError:
            pass
        if not _NAME.fullmatch(part):
            raise ValueError("each is a host's name, an address, or a network such as 10.0.0.0/8 or fd00::/8")
        require_host(part)
        hosts.add(part.lower().rstrip("."))
    return Allowed(frozenset(hosts), tuple(networks))


def is_public(address: Address) -> bool:
    """Whether it is one across the internet, that leads to nothing of the operator's."""
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in inside for inside in INSIDE_V4)
    return address in GLOBAL_V6 and not any(address in inside for inside in INSIDE_V6)


def may_reach(address: str, host: str, allowed: Allowed) -> bool:
    """Whether a webhook for this host may be sent to this address, to which the host was resolved."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return is_public(found) or host in allowed.hosts or _is_in(found, allowed)


def target_of(url: str, allowed: Allowed) -> Target:
    """The URL taken apart. Raises ValueError, with what is wrong in plain words, for one that no webhook is sent to."""
    if len(url) > LONGEST:
        raise ValueError(f"at most {LONGEST} characters")
    if not _VISIBLE.fullmatch(url) or "\\" in url:
        raise ValueError(
            "ASCII without blanks; write a host's international name in its xn-- form, and %20 for a blank"
        )
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:  # it repeats what it could not use
        raise ValueError("this is not an address such as https://app.example.com/hooks") from None
    if parts.scheme not in ("https", "http"):
        raise ValueError("an address that begins with https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("no user and password in it: webhook-signature says whose it is")
    if parts.fragment or "#" in url:
        raise ValueError("nothing behind a #, which is not sent")
    address = _literal(host)
    if port == 0 or (address is None and not _NAME.fullmatch(host)):
        raise ValueError("this is not an address such as https://app.example.com/hooks")
    is_own = host in allowed.hosts or (address is not None and _is_in(address, allowed))
    if not is_own and (host == "localhost" or host.endswith(".localhost") or (address and not is_public(address))):
        raise ValueError(f"this host is not on the internet. {ADVICE}")
    if parts.scheme == "http" and not is_own:
        raise ValueError(f"https, or who is on the way reads it. {ADVICE}")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or {"https": 443, "http": 80}[parts.scheme], path)


_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
_VISIBLE = re.compile(r"[!-~]+")


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host) if "%" not in host else None  # a zone is of this machine (RFC 6874)
    except ValueError:
        return None


def _is_in(address: Address, allowed: Allowed) -> bool:
    return any(address.version == network.version and address in network for network in allowed.networks)
