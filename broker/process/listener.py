"""A web process' listening socket. Apart from the server: the supervisor of web processes loads no web framework."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys

UNSENT_BYTES = 64 * 1024
"""What the kernel holds of a connection beyond what is on its way: it would take megabytes for each slow viewer."""

_SO_ATTACH_FILTER = 26  # Linux; not in the socket module
_DROP_SYN = (  # classic BPF, on the TCP header: load the flags; SYN is not set: skip one; drop; keep
    struct.pack("HBBI", 0x30, 0, 0, 13)
    + struct.pack("HBBI", 0x45, 0, 1, 0x02)
    + struct.pack("HBBI", 0x06, 0, 0, 0)
    + struct.pack("HBBI", 0x06, 0, 0, 0xFFFFFFFF)
)


def bind(host: str, port: int) -> socket.socket:
    """A listening address of this process' own, beside those of its siblings. Raises OSError."""
    [(family, kind, proto, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    listener = socket.socket(family, kind, proto)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux and macOS; connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    listener.bind(address)
    listener.set_inheritable(False)
    return listener


def drop_new_connections(listener: socket.socket) -> bool:
    """Have the kernel drop requests for new connections here. False where it cannot."""
    program = ctypes.create_string_buffer(_DROP_SYN, len(_DROP_SYN))
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_DROP_SYN) // 8, ctypes.addressof(program))
        )
    except OSError:
        return False
    return sys.platform == "linux"
