"""One question to Redis for all who ask it at the same time: its answer is everybody's, and so is its failure. When
servers start, or Redis is away, thousands come within a second; one after the other they would wait for hours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Shared:
    """Questions by name."""

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Task[None]] = {}

    def is_asked(self, name: str) -> bool:
        return name in self._asked

    async def ask(self, name: str, question: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Who is cancelled leaves the others their answer."""
        if name not in self._asked:
            task = self._asked[name] = asyncio.create_task(question(), name=f"question {name}")
            task.add_done_callback(lambda _: self._over(name))
        await asyncio.shield(self._asked[name])

    def _over(self, name: str) -> None:
        task = self._asked.pop(name)
        if not task.cancelled():
            task.exception()  # whoever asked may have gone, and nobody else would have looked at it
