"""A web process: uvicorn, its own listening socket, and its drain.

Each process binds the port itself (SO_REUSEPORT) and closes it when it drains: a listener held by a parent would
continue to accept connections that no process answers. Draining begins at the signal, not in the lifespan's shutdown,
which uvicorn runs only after the connections have gone: here they go because of it.

Closing a listener resets the connections that the kernel has queued for it, though its siblings could have taken them.
So a drain has two steps. For SETTLE_S no new connection begins here (its SYN is dropped, and sent again a second
later, to a sibling), while those already begun are accepted and served as usual. Then the listener closes and viewers
are cut.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn

from broker import gauges
from broker.process.admin import Answers, answers_of, offer_answers
from broker.process.descriptors import RAISE_IT, raise_limit, room_of
from broker.process.listener import bind, drop_new_connections
from broker.process.logs import set_up_logs
from broker.process.parent import on_parents_end, tell_parent
from broker.settings import LOOPBACK, Settings, listening
from broker.traces import end_traces, set_up_traces
from broker.web.addresses import AddressPlaces
from broker.web.app import create_app
from broker.web.bounded import Bounds
from broker.web.handshake import Handshake
from broker.web.problems import REFUSED
from broker.web.protocol import Protocol
from broker.web.refusals import Refusals, Refused
from broker.web.socket import serve as serve_socket
from broker.web.tier import Tier

logger = logging.getLogger(__name__)

BACKLOG = 2048

SETTLE_S = 0.3
"""What a connection that has begun may take to be accepted: a round trip, and this loop's turn."""

KEEP_ALIVE_S = 75
"""Longer than a load balancer keeps an idle connection (nginx: 60 s): it must be the one that lets go first."""

FEW_CONNECTIONS = 1000
"""So many a server should be able to hold, whatever it was asked for."""


class Server(uvicorn.Server):
    """uvicorn's server, with one owner of draining: this one."""

    def __init__(
        self,
        config: uvicorn.Config,
        tier: Tier,
        listener: socket.socket,
        on_start: Callable[[], object],
        offer: Callable[[Answers], object],
    ) -> None:
        super().__init__(config)
        self._offer = offer
        self._on_start = on_start
        self._tier = tier
        self._listener = listener
        self._is_leaving = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._offer(answers_of(self._tier.require_ready, self._loop))
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        logger.info("this server accepts connections")
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A signal handler may run anywhere in the loop's code: the loop itself does the rest.
        self._loop.call_soon_threadsafe(self._leave, sig)

    def _leave(self, sig: int) -> None:
        if self._is_leaving:
            self.force_exit = self.force_exit or sig == signal.SIGINT
            return
        self._is_leaving = True
        if drop_new_connections(self._listener):
            self._loop.call_later(SETTLE_S, self._drain)
        else:
            self._drain()

    def _drain(self) -> None:
        self._tier.drain()
        self.should_exit = True


def run_server(
    settings: Settings, host: str, port: int, *, parent_pipe: bool = False, admin_fd: int | None = None
) -> None:
    """Serve until SIGTERM or SIGINT. With `parent_pipe`, also until standard input ends: its parent is gone.

    `admin_fd`: where a supervisor asks what else is asked at the admin port, which is then the supervisor's.
    Raises SettingsError or OSError.
    """
    set_up_logs("server", settings.log_level, libraries=settings.log_libraries)
    set_up_traces("server")
    logging.getLogger("uvicorn.error").addFilter(_hide_deliberate_cuts)
    app = create_app(settings, may_open=host in LOOPBACK)
    refusals, tier = Refusals(), app.state.tier
    places = AddressPlaces(settings.connections_per_address, tier.addresses, tier.enforcement)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(Protocol, _bounds(settings), refusals, places, Handshake(app, serve_socket), tier.sockets),  # type: ignore[arg-type]  # called as a class would be
        ws="none",
        access_log=False,  # addresses may hold tokens
        log_config=None,  # its own would write past ours
        log_level=settings.log_level if settings.log_libraries else "warning",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.drain_s),
        backlog=BACKLOG,
    )
    listener = bind(host, port)
    _tune_garbage_collection()
    said = listening(host, listener.getsockname()[1], settings)

    def say(line: str) -> None:
        if not parent_pipe:
            print(line, file=sys.stderr)

    offer = partial(offer_answers, settings, say=say, admin_fd=admin_fd, has_parent=parent_pipe)
    server = Server(config, tier, listener, lambda: say(said), offer)
    gauges.connections.source = lambda: len(server.server_state.connections)
    gauges.connections_refused.source = lambda: {why.name.lower(): refusals.counts[why] for why in Refused}
    if parent_pipe:
        _follow_parent(server)
    server.run(sockets=[listener])
    refusals.log()
    tier.enforcement.log()
    REFUSED.log()
    end_traces()


def _bounds(settings: Settings) -> Bounds:
    """Connections stay below the descriptors that this process may have: Redis, the archive and files need some too."""
    limit = raise_limit()
    connections = min(settings.max_connections, room_of(limit))
    if connections < min(FEW_CONNECTIONS, settings.max_connections):
        logger.warning(
            "this server holds %d connections at a time, not %d: it may have %d descriptors. %s",
            *(connections, settings.max_connections, limit, RAISE_IT),
        )
    return Bounds(
        head_bytes=settings.max_head_bytes,
        head_s=settings.head_timeout_s,
        request_s=settings.request_timeout_s,
        stall_s=settings.viewer_stall_s,
        connections=connections,
    )


def _tune_garbage_collection() -> None:
    """Viewers are many objects that live long and are freed without the collector: it would walk all of them again and
    again, half a second at a time. It still runs once in some millions of allocations, for what is left.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _follow_parent(server: Server) -> None:
    """Tell the parent of the start, and end with it. It can be watched only once the server has its loop."""
    startup = server.startup

    async def startup_and_watch(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        on_parents_end(asyncio.get_running_loop(), lambda: server.handle_exit(signal.SIGTERM, None))
        tell_parent()

    server.startup = startup_and_watch  # type: ignore[method-assign]


def _hide_deliberate_cuts(entry: logging.LogRecord) -> bool:
    """A viewer that is cut has an answer without an end, on purpose (viewer.py). uvicorn takes it for an error."""
    return "returned without completing response" not in entry.getMessage()
