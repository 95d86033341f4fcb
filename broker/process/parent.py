"""The end of the parent: a supervisor holds the other end of its children's standard input.

The kernel closes it with the supervisor, however that dies, so a child never outlives its parent.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable


def on_parents_end(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Call once, in the loop, when the parent has gone."""
    stdin = sys.stdin.fileno()

    def parent_went() -> None:  # the parent never writes: readable means closed
        loop.remove_reader(stdin)
        call()

    loop.add_reader(stdin, parent_went)
