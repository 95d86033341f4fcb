"""A web process: uvicorn, its own listening socket, and its drain.

Each process binds the port itself (SO_REUSEPORT) and closes it when it drains: a listener held by a parent would
go on taking connections that nobody answers. Draining begins at the signal, not in the lifespan's shutdown, which
uvicorn runs only after the connections have gone: here they go because of it.

Closing a listener resets whatever the kernel has queued for it, though its siblings could have taken it. So a drain
has two steps: for SETTLE_S no new connection is begun here (its SYN is dropped; it comes again a second later, to a
sibling), while those already begun are accepted and served as ever; then the listener closes, and viewers are cut.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import signal
import socket
import struct
import sys
from types import FrameType

import uvicorn
from sse_starlette.sse import AppStatus

from broker.app import Tier, create_app
from broker.protocol import Protocol
from broker.settings import Settings

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
BACKLOG = 2048

UNSENT_BYTES = 64 * 1024
"""What the kernel holds of a connection beyond what is on its way: it would take megabytes for each slow viewer."""

SETTLE_S = 0.3
"""What a connection that has begun may take to be accepted: a round trip, and this loop's turn."""

_SO_ATTACH_FILTER = 26  # Linux; not in the socket module
_DROP_SYN = (  # classic BPF, on the TCP header: load the flags; SYN is not set: skip one; drop; keep
    struct.pack("HBBI", 0x30, 0, 0, 13)
    + struct.pack("HBBI", 0x45, 0, 1, 0x02)
    + struct.pack("HBBI", 0x06, 0, 0, 0)
    + struct.pack("HBBI", 0x06, 0, 0, 0xFFFFFFFF)
)

KEEP_ALIVE_S = 75
"""Longer than a load balancer keeps an idle connection (nginx: 60 s): it must be the one that lets go first."""


class Server(uvicorn.Server):
    """uvicorn's server, with one owner of draining: this one."""

    def __init__(self, config: uvicorn.Config, tier: Tier, listener: socket.socket) -> None:
        super().__init__(config)
        self._tier = tier
        self._listener = listener
        self._is_leaving = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A signal handler may run anywhere in the loop's code: the loop itself does the rest.
        self._loop.call_soon_threadsafe(self._leave, sig)

    def _leave(self, sig: int) -> None:
        if self._is_leaving:
            self.force_exit = self.force_exit or sig == signal.SIGINT
            return
        self._is_leaving = True
        if _begin_no_connection(self._listener):
            self._loop.call_later(SETTLE_S, self._drain)
        else:
            self._drain()

    def _drain(self) -> None:
        self._tier.drain()
        self.should_exit = True


def run_server(settings: Settings, host: str, port: int, *, parent_pipe: bool = False) -> None:
    """Serve until SIGTERM or SIGINT. With `parent_pipe`, also until standard input ends: its parent is gone."""
    # sse-starlette replaces uvicorn's handler when it is imported, and would cut replays by itself.
    AppStatus.enable_automatic_graceful_drain = False
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s server %(levelname)s %(message)s")
    logging.getLogger("uvicorn.error").addFilter(_is_no_deliberate_cut)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        access_log=False,  # addresses may hold read tokens
        log_level=settings.log_level,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.drain_s),
        backlog=BACKLOG,
    )
    listener = bind(host, port)
    _tune_garbage_collection()
    server = Server(config, app.state.tier, listener)
    if parent_pipe:
        _follow_parent(server)
    server.run(sockets=[listener])


def _tune_garbage_collection() -> None:
    """Viewers are many objects that live long and are freed without the collector: it would walk all of them again and
    again, half a second at a time. It still comes, once in some millions of allocations, for whatever is left.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


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


def _begin_no_connection(listener: socket.socket) -> bool:
    """Have the kernel drop requests for new connections here. False where it cannot."""
    program = ctypes.create_string_buffer(_DROP_SYN, len(_DROP_SYN))
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_DROP_SYN) // 8, ctypes.addressof(program))
        )
    except OSError:
        return False
    return sys.platform == "linux"


def require_closed_door(settings: Settings, host: str) -> str | None:
    """Why this server may not listen on this address; None if it may."""
    if settings.keys or host in LOOPBACK:
        return None
    return (
        f"Refusing to listen on {host} without keys: everybody who reaches it could read and start generations.\n"
        "Set LASTEVENT_API_KEYS to one or more secrets of at least 16 characters, separated by commas, for example\n"
        "  export LASTEVENT_API_KEYS=$(openssl rand -hex 24)\n"
        "or listen on 127.0.0.1."
    )


def _follow_parent(server: Server) -> None:
    """End when standard input does: the parent holds its other end, and a killed parent closes it too."""
    startup = server.startup

    async def startup_and_watch(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), parent_went)

    def parent_went() -> None:  # it never writes: readable means closed
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        server.handle_exit(signal.SIGTERM, None)

    server.startup = startup_and_watch  # type: ignore[method-assign]


def _is_no_deliberate_cut(entry: logging.LogRecord) -> bool:
    """A viewer that is cut has an answer without an end, on purpose (viewer.py). uvicorn takes it for an error."""
    return "returned without completing response" not in entry.getMessage()
