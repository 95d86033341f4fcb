"""A child and its parent: a supervisor holds one end of a socket pair, and its child the other, as standard input.

The kernel closes the supervisor's end with it, however it dies, so a child never outlives its parent. The child says
one word in the other direction: that it does its work.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

STARTED = b"started"


def on_parents_end(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Call once, in the loop, when the parent has gone."""
    stdin = sys.stdin.fileno()

    def parent_went() -> None:  # the parent never writes: readable means closed
        loop.remove_reader(stdin)
        call()

    loop.add_reader(stdin, parent_went)


def tell_parent() -> None:
    """Say, in a child, that it does its work now."""
    with suppress(OSError):  # a parent that has gone, or one that only wants to be outlived by nobody
        os.write(sys.stdin.fileno(), STARTED)


def has_started(child: socket.socket) -> bool:
    """Whether the child at the other end has said so, or does now. Never waits."""
    with suppress(OSError):
        return child.recv(len(STARTED), socket.MSG_PEEK | socket.MSG_DONTWAIT) == STARTED
    return False
