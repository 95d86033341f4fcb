"""What is said on a WebSocket. So far an echo: the ops are to come."""

from __future__ import annotations

import asyncio

import orjson
from fastapi import Request

from broker.auth import Grant
from broker.errors import LasteventError, Unauthorized
from broker.web.close_codes import close_code
from broker.web.problems import problem_body
from broker.web.socket_connection import SocketConnection
from broker.web.tier import Tier
from broker.web.websocket import text


async def serve(
    tier: Tier, request: Request, connection: SocketConnection, grant: Grant | None, refusal: LasteventError | None
) -> None:
    request_id: str = request.state.request_id
    del request, tier, grant
    if refusal:
        body = problem_body(request_id, refusal.status, refusal.code, refusal.title, str(refusal))
        connection.write(text(orjson.dumps({"event": "refused", "data": orjson.loads(body)})))
        connection.close(close_code(refusal), refusal.code if isinstance(refusal, Unauthorized) else "")
        return
    lost = asyncio.Event()
    connection.on_lost = lost.set
    connection.on_message = lambda payload: connection.write(text(payload))
    connection.write(text(b'{"event":"hello","data":{}}'))
    connection.resume_reading()
    await lost.wait()
