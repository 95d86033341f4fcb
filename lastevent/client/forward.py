"""For an endpoint of your own: a request goes on to the server with your key, and its answer back as it comes.

    @app.api_route("/api/chat/{id}/{call}", methods=["GET", "POST"])
    async def chat(request: Request, id: str) -> Response:
        ...                                              # is it theirs?
        return await forward(client, request, id)

Needs Starlette, which FastAPI brings. relay.py says what goes in and what comes out.

Races

- Who leaves before the server has answered: nothing of ours is being sent then, so nobody would notice. We listen for
  `http.disconnect` beside the request, and give it up.
- Who leaves before the first byte of the body: an async generator that was never begun runs no `finally`. So the
  *response* owns the upstream and closes it, however it is left.
- Who leaves while the server is silent: the response listens too, and does not wait for the next piece.
- A cut between the server and us raises out of the response: the ASGI server then ends the connection without the final
  chunk. But `@app.middleware("http")` (Starlette's BaseHTTPMiddleware) sends a proper end first and raises after it. So
  the last piece that is handed on is one that raises where it is looked at (`_Broken`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lastevent.client.relay import AsyncBytes, Cut, Head, pass_on, passed, problem

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from lastevent.client.asynchronous import AsyncClient


async def forward(
    client: AsyncClient,
    request: Request,
    id: str | None = None,
    *,
    call: str | None = None,
    body: Mapping[str, Any] | None = None,
    location: Callable[[str], str] | None = None,
) -> Response:
    """The server's answer to this request, under your key. `id`: of the stream; None: a start.

    `call`: what is asked of it (`events`, `text`, `cancel`, `input`, `regenerate`, `approvals/…`, empty: a record). By
    default what stands behind the id in the request's path, and `events` if the id is not in it. `body`: instead of
    the request's; of a start it says what your app, and not the page, decides: model, system, `user_id`.
    `location`: where a stream's id leads to in your app; by default the request's path up to the id.

    Whose stream it is, you have to know first: the key opens them all.
    """
    path: str = request.scope["path"]  # its URL has been tidied: without line breaks, say
    before, found, behind = path.partition(f"/{id}") if id else (path, "", "")
    here = quote(before.rstrip("/"))
    if call is None:
        call = behind.removeprefix("/") if found else "events"
    there = "/v1/streams" + (f"/{id}" if id else "") + (f"/{call}" if id and call else "")
    content = await request.body() if body is None else json.dumps(dict(body), allow_nan=False).encode()
    headers = dict(request.headers)
    if body is not None:
        headers["content-type"] = "application/json"
    going = passed(request.method, there, request.query_params.multi_items(), headers, content)
    leads_to = location or (lambda sid: f"{here}/{sid}")
    if going is None:
        return _response(AsyncBytes(problem(404, "not_found"), None))

    asking = asyncio.ensure_future(pass_on(client, going, leads_to))
    leaving = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait([asking, leaving], return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            await _surely(_ended(leaving))
            return _response(asking.result())
    except BaseException:
        await _surely(_give_up(asking, leaving))
        raise
    await _surely(_give_up(asking, leaving))
    return _response(AsyncBytes(Head(499, {}, b""), None))  # which nobody reads


async def _left(receive: Receive) -> None:
    """Until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _give_up(asking: asyncio.Future[AsyncBytes], leaving: asyncio.Future[None]) -> None:
    await _ended(asking, leaving)
    if not asking.cancelled() and asking.exception() is None:  # it was answered in this very moment
        await asking.result().aclose()


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _surely(closing: Coroutine[Any, Any, None]) -> None:
    """To its end, though we are cancelled meanwhile: again and again, where it is a scope of anyio's."""
    task = asyncio.ensure_future(closing)
    _closing.add(task)
    task.add_done_callback(_closing.discard)
    await asyncio.shield(task)


_closing: set[asyncio.Future[None]] = set()
"""A task that nobody refers to may be collected before it ends."""


class _Broken(bytes):
    """A piece of a body that raises where anybody asks whether there is anything in it."""

    error: Cut

    def __new__(cls, error: Cut) -> _Broken:
        piece = super().__new__(cls)
        piece.error = error
        return piece

    def __bool__(self) -> bool:
        raise self.error

    def __len__(self) -> int:
        raise self.error


def _response(body: AsyncBytes) -> Response:
    from starlette.responses import Response

    class Forwarded(Response):
        """Owns the upstream."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            sending = asyncio.ensure_future(self._send(send))
            leaving = asyncio.ensure_future(_left(receive))
            try:
                await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
            except Cut:
                raise
            except OSError:
                pass  # the client has left while it was being sent to
            finally:
                await _surely(self._close(sending, leaving))
            if self.background is not None:
                await self.background()

        async def _close(self, *tasks: asyncio.Future[None]) -> None:
            await _ended(*tasks)
            await body.aclose()

        async def _send(self, send: Send) -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for piece in body:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except Cut as cut:
                await send({"type": "http.response.body", "body": _Broken(cut), "more_body": True})
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    response = Forwarded(status_code=body.status, headers=body.headers)
    del response.headers["content-length"]  # of the empty body that it was made with
    return response
