"""Why a socket closes, as a number that clients act on (docs/API.md, sockets). RFC 6455 has its own (websocket.py).

A browser sees nothing of a handshake that is refused, and would try again for ever: it is let in, told, and closed with
one of these. For 4401 the reason is the problem's code.
"""

from __future__ import annotations

from enum import IntEnum

from broker.errors import Draining, Forbidden, LasteventError, RateLimited, TooManyStreams, TooManyViewers, Unauthorized


class CloseCode(IntEnum):
    FAULT = 1011
    RESTART = 1012
    FULL = 1013
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    NO_AUTH = 4408
    LIMITED = 4429


def close_code(error: LasteventError) -> CloseCode:
    """For a socket that this error ends."""
    match error:
        case Draining():
            return CloseCode.RESTART
        case Unauthorized():
            return CloseCode.UNAUTHORIZED
        case TooManyViewers(limit="process"):
            return CloseCode.FULL
        case TooManyViewers() | TooManyStreams() | RateLimited():
            return CloseCode.LIMITED
        case Forbidden():
            return CloseCode.FORBIDDEN
        case _ if error.status in (403, 404):
            return CloseCode.FORBIDDEN
        case _:
            return CloseCode.FULL if error.status == 503 else CloseCode.FAULT
