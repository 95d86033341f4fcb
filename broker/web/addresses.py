"""Whose request it is, as far as an address tells: for limits, and for the access record.

The client is the peer of the connection; where that is a proxy of LASTEVENT_TRUSTED_PROXIES, the last address in
X-Forwarded-For that is not one. What stands before that one the client may have written itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.requests import Request

from broker.tenants.enforcement import Enforcement

MOST_HOPS = 32
"""More proxies than a request has passed: of a longer list only what was added last is read."""

Address = IPv4Address | IPv6Address


class Addresses:
    def __init__(self, trusted_proxies: Sequence[str] = ()) -> None:
        self._trusted: list[IPv4Network | IPv6Network] = [ip_network(name, strict=False) for name in trusted_proxies]
        self.counted = lru_cache(maxsize=4096)(self._counted)

    def of(self, request: Request) -> str | None:
        """The client's address; None if the connection has none. Where the header cannot be read, the peer's."""
        if request.client is None:
            return None
        peer = request.client.host
        if self._trusted and (found := _parsed(peer)) and self._is_trusted(found):
            hops = ", ".join(request.headers.getlist("x-forwarded-for"))
            if hops and (client := self._forwarded(hops)):
                return str(client)
        return _written(peer)

    def _counted(self, address: str | None) -> str | None:
        """What an address counts as: itself, of IPv6 the /64, which is one customer's. None: it is not counted, being
        this machine's or a trusted proxy's, behind which may be anybody.
        """
        parsed = _parsed(address or "")
        if parsed is None or parsed.is_loopback or self._is_trusted(parsed):
            return None
        return str(parsed) if parsed.version == 4 else str(ip_network((int(parsed), 64), strict=False))

    def _forwarded(self, hops: str) -> Address | None:
        """None: it is not a list of addresses, as far as it matters."""
        found = None
        for hop in reversed(hops.rsplit(",", MOST_HOPS)):
            found = _parsed(_without_port(hop.strip(" \t")))
            if found is None or not self._is_trusted(found):
                return found
        return found  # a proxy's own request, or somebody's beside it

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


class AddressPlaces:
    """Connections of each address to this process; by the peer alone, since there is no header yet."""

    def __init__(self, per_address: int, addresses: Addresses, enforcement: Enforcement) -> None:
        self._per_address = per_address
        self._addresses = addresses
        self._enforcement = enforcement
        self._taken: Counter[str] = Counter()

    def take(self, peer: str | None) -> bool:
        """Whether this peer may have one more. It is counted all the same, until `free`."""
        address = self._addresses.counted(peer)
        if address is None:
            return True
        self._taken[address] += 1
        return self._taken[address] <= self._per_address or not self._enforcement.refuses("connections_per_address")

    def free(self, peer: str | None) -> None:
        address = self._addresses.counted(peer)
        if address is not None:
            self._taken[address] -= 1
            if not self._taken[address]:
                del self._taken[address]


@lru_cache(maxsize=4096)
def _written(address: str) -> str:
    """In one form, however it was written."""
    return str(_parsed(address) or address)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Address | None:
    """An IPv4 address in IPv6's form (::ffff:192.0.2.1) is what it stands for."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _without_port(hop: str) -> str:
    """Some proxies write 192.0.2.1:4711 and [2001:db8::1]:4711."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
