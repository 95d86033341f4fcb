"""All sockets of a process: one timer looks after them, and one call ends them.

- *silence*: a socket that was written nothing for a heartbeat gets a ping frame, and `ping` as a message: a page cannot
  see ping frames
- *dead*: a ping was not answered, nor anything else heard, for two heartbeats more, nor has its system acknowledged
  anything that is still on its way: a slow reader's answer to a ping waits behind what the ping waits behind. Who is
  written to all the time is not asked, and need not say anything: if it takes nothing, it stalls
- *stalled*: its connection is full, and has taken nothing for `stall_s`
The last two are resets: a close would wait for who does not read.

The timer's turn is an eighth of a heartbeat. Each socket stands in the turn in which it is looked at next; those whose
connection is full stand in `full` besides, and are looked at in each turn. Silence is counted in turns, not in time: of
a process that stood still, and has not read yet what came meanwhile, no viewer is taken for dead.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from socket import IPPROTO_TCP
from typing import Protocol

from broker.live.lane import unsent
from broker.web.websocket import MAX_FRAGMENTS

TURNS = 8
"""In a heartbeat."""

DEAD_AFTER = 2 * TURNS
"""Behind a ping that has no answer, which comes a heartbeat after the last word."""

AT_ONCE = 250
"""Sockets that are looked at before others have their turn: about a millisecond."""


class Socket(Protocol):
    """One of them, as it is looked after (socket_connection.py). `heard_at`: in which turn it was heard last.
    `asked_at`: in which the first ping was written that has no answer; not beyond `heard_at`: there is none.
    `is_held`: this server does not read it just now. `is_full`: it takes nothing more just now.
    """

    transport: asyncio.Transport
    heard_at: int
    asked_at: int

    @property
    def is_closing(self) -> bool: ...
    @property
    def is_held(self) -> bool: ...
    @property
    def is_full(self) -> bool: ...
    def silent_turns(self) -> float: ...
    def ping(self) -> None: ...
    def reset(self) -> None: ...
    def stall(self) -> None: ...
    def shutdown(self) -> None: ...


class Sockets:
    """`heartbeat_s`, `stall_s`: see above. `message_bytes`: of a message from a client."""

    def __init__(self, *, heartbeat_s: float, stall_s: float, message_bytes: int) -> None:
        self.turn_s = heartbeat_s / TURNS
        self.message_bytes = message_bytes
        self.max_fragments = MAX_FRAGMENTS
        self.here: set[Socket] = set()
        self.turn = 0
        self.full: dict[Socket, tuple[int, int]] = {}
        """Those that may have stalled: bytes that were not taken when some had been taken last, and that turn."""
        self._stall_turns = max(1, round(stall_s / self.turn_s))
        self._due: list[list[Socket]] = [[] for _ in range(TURNS + 1)]
        self._timer: asyncio.TimerHandle | None = None

    def add(self, socket: Socket) -> None:
        self.here.add(socket)
        self._look_in(random.randint(1, TURNS), socket)  # thousands may come in one turn: they spread over a heartbeat
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.turn_s, self._next_turn)

    def remove(self, socket: Socket) -> None:
        self.here.discard(socket)
        self.full.pop(socket, None)

    def drain(self) -> None:
        """Send all away, each after a whole frame. Those that do not read are dropped a second later."""
        for socket in tuple(self.here):
            socket.shutdown()

    def _look_in(self, turns: int, socket: Socket) -> None:
        self._due[(self.turn + turns) % len(self._due)].append(socket)

    def _next_turn(self) -> None:
        self.turn += 1
        if not self.here:
            self._timer = None
            for gone in self._due:
                gone.clear()
            return
        self._timer = asyncio.get_running_loop().call_later(self.turn_s, self._next_turn)
        for socket, (waiting, since) in tuple(self.full.items()):
            self._look_whether_it_takes(socket, waiting, since)
        now = self.turn % len(self._due)
        due, self._due[now] = self._due[now], []
        self._look(iter(due))

    def _look(self, due: Iterator[Socket]) -> None:
        looked = 0
        for socket in islice(due, AT_ONCE):
            looked += 1
            if not socket.is_closing and (turns := self._next_look(socket)):
                self._look_in(turns, socket)
        if looked == AT_ONCE:
            asyncio.get_running_loop().call_soon(self._look, due)

    def _next_look(self, socket: Socket) -> int:
        """0: never. At most a heartbeat."""
        is_asked = socket.asked_at > socket.heard_at
        if is_asked and self.turn - socket.asked_at >= DEAD_AFTER and not socket.is_held:
            if not self._may_be_slow(socket):
                socket.reset()
                return 0
            self.full.setdefault(socket, (unsent(socket.transport), self.turn))
        elif not socket.is_full:
            self.full.pop(socket, None)
        silent = socket.silent_turns()
        if silent >= TURNS:
            socket.ping()
            return TURNS
        return max(1, TURNS - int(silent))

    def _may_be_slow(self, socket: Socket) -> bool:
        """Its answer to a ping may lie behind what it has not taken yet. If it takes nothing, that is a stall."""
        acknowledged_s = (DEAD_AFTER + TURNS) * self.turn_s
        return unsent(socket.transport) > 0 and acknowledged_ago_s(socket.transport) < acknowledged_s

    def _look_whether_it_takes(self, socket: Socket, waiting: int, since: int) -> None:
        now = unsent(socket.transport)
        if now < waiting:
            self.full[socket] = now, self.turn
        elif self.turn - since >= self._stall_turns:
            socket.stall()


_TCP_INFO, _LAST_ACK_RECV = 11, 56
"""Linux' own (linux/tcp.h): the field `tcpi_last_ack_recv`, ms."""


def acknowledged_ago_s(transport: asyncio.Transport) -> float:
    """Since the other system acknowledged anything. Infinite where this one does not tell."""
    with suppress(OSError, ValueError, AttributeError):
        told = transport.get_extra_info("socket").getsockopt(IPPROTO_TCP, _TCP_INFO, _LAST_ACK_RECV + 4)
        if len(told) == _LAST_ACK_RECV + 4:
            return int.from_bytes(told[-4:], "little") / 1000
    return float("inf")
