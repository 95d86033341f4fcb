"""Why a connection is refused before any route sees it: the answer it gets, and its line in the log."""

from __future__ import annotations

import secrets
from enum import Enum

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from broker.web import problems
from broker.web.tally import Tally


class Refused(Enum):
    """The value is what the log calls it."""

    MALFORMED = "not HTTP/1.1"
    HEAD_TOO_LARGE = "headers too large"
    LATE = "request not complete in time"
    SILENT = "no request in time"
    UNREAD = "answer not read"
    ONE_ADDRESS = "connections of one address beyond LASTEVENT_CONNECTIONS_PER_ADDRESS"
    CROWDED = "connections beyond LASTEVENT_MAX_CONNECTIONS, or beyond what the descriptors allow (ulimit -n)"


_ANSWERS = {
    Refused.MALFORMED: (400, "bad_request", "The request is not valid HTTP/1.1"),
    Refused.HEAD_TOO_LARGE: (431, "headers_too_large", "The address and the headers, or the trailers, are too large"),
    Refused.LATE: (408, "request_timeout", "The request did not arrive in time"),
}
_DETAILS = {
    Refused.MALFORMED: "Nothing was done. The connection is closed.",
    Refused.HEAD_TOO_LARGE: "Nothing was done. Send fewer or shorter headers.",
    Refused.LATE: "Nothing was done. Send the request again, without pauses.",
}


def answer(why: Refused) -> bytes:
    """The whole answer, as problem+json. b'' for a connection that asked nothing."""
    if why not in _ANSWERS:
        return b""
    status, code, title = _ANSWERS[why]
    request_id = secrets.token_hex(8)
    body = problems.problem_body(request_id, status, code, title, _DETAILS[why])
    headers = {
        "content-type": problems.MEDIA_TYPE,
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "x-request-id": request_id,
        "connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[status] + head.encode() + b"\r\n" + body


class Refusals(Tally[Refused]):
    def __init__(self) -> None:
        super().__init__("connections refused", lambda why: why.value)
