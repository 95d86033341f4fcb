"""Whether something can be a host: the resolver answers some of what cannot with UnicodeError, which nobody expects."""

from __future__ import annotations

from urllib.parse import urlsplit

LONGEST = 253  # RFC 1035 §2.3.4, as text


def require_host(host: str) -> None:
    """A name or an address, which need not be there. Raises ValueError; its message does not repeat it."""
    try:
        encoded = host.encode("idna")
    except UnicodeError:
        encoded = b""
    if not 0 < len(encoded) <= LONGEST or not host.isprintable() or " " in host:
        raise ValueError("this is neither the name of a host nor an address")


def require_http_url(url: str) -> None:
    """An address that can be asked by HTTP. Raises ValueError; its message does not repeat it."""
    try:
        parts = urlsplit(url)
        require_host(parts.hostname or "")
        if parts.scheme in ("http", "https") and url.isprintable() and parts.port != 0:
            return
    except ValueError:  # of urlsplit and its port: it repeats what it could not use
        pass
    raise ValueError("this is not an address such as https://user:password@host:8443/path")
