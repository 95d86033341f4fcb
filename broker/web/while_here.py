"""Work for as long as its caller is there: an ASGI server leaves it to the application to see one go."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

T = TypeVar("T")


async def while_here(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns. When the caller goes before that, it is cancelled. Raises ClientDisconnect then.

    The request's body, if there is one, was read before.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request.receive))
    leaving.add_done_callback(lambda left: left.cancelled() or working.cancel())
    try:
        return await working
    except asyncio.CancelledError:
        if leaving.done() and working.cancelled():
            raise ClientDisconnect from None
        raise  # the server gives up on this request
    finally:
        leaving.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
