"""What a message asks of the stand-in, between double brackets, as in `[[tokens=200 rate=50 cut_at=120]]`.

What is unknown or malformed in there is ignored:


    tokens=60 rate=30    that many text deltas, so many a second (0: as fast as it can)
    ttft_ms=300          silence before the first of them
    thinking=N           N thinking deltas in a block of their own before the text
    tools=N              N tool_use blocks after the text
    server_tool=ok       a server-side search after the text, and its result (server_tool=error: it failed)
    stop=refusal         the stop_reason to give
    overload=K           the first K requests with this very message get 529 (with status=S: get S)
    status=S             every request gets HTTP status S (400 to 599; or 200, though the body is not a stream)
    retry_after=S        the retry-after header of those, in seconds (retry_date=S: as an HTTP date, S from now)

and the faults. N counts the text deltas sent before it happens:

    error_at=N           an `error` event (overloaded_error; error=api_error names another)
    cut_at=N             the connection is dropped in the middle of the body
    end_at=N             the body ends properly, but without message_stop
    stall_at=N           silence, without pings, until the client goes away (stall_ms=M: for so long; then the
                         answer continues)
    garbage_at=N         a data line that is not JSON; the answer then continues
    hold=1               the answer is complete, message_stop included, but the body does not end
    surrogate_at=N       the next text delta ends in half of a UTF-16 surrogate pair

and what is right, or the client's to refuse, but seldom met:

    line_end=cr          lines end in CR (line_end=crlf: in CRLF; line_end=torn: in CRLF, its halves in two writes)
    piece=N              the body is written N bytes at a time
    gzip=1               the body is compressed, whatever the client accepts

    cut_times=K, error_times=K    cut_at, error_at break only the first K attempts at this very message; the next one
                                  is whole, and after it the count begins anew
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Directives:
    tokens: int = 60
    rate: float = 30.0
    ttft_ms: int = 300
    thinking: int = 0
    tools: int = 0
    server_tool: str = ""
    stop: str = ""
    overload: int | None = None
    status: int | None = None
    retry_after: int | None = None
    retry_date: int | None = None
    hold: int = 0
    error: str = "overloaded_error"
    error_at: int | None = None
    error_times: int | None = None
    cut_at: int | None = None
    cut_times: int | None = None
    end_at: int | None = None
    stall_at: int | None = None
    stall_ms: int | None = None
    garbage_at: int | None = None
    surrogate_at: int | None = None
    line_end: str = "lf"
    piece: int = 0
    gzip: int = 0

    def first_fault(self) -> tuple[int, str]:
        """How many text deltas are sent before the first fault, and which it is ("" when none is reached)."""
        asked = {
            "error": self.error_at,
            "cut": self.cut_at,
            "end": self.end_at,
            "stall": self.stall_at,
            "garbage": self.garbage_at,
        }
        reached = [(n, fault) for fault, n in asked.items() if n is not None and n <= self.tokens]
        return min(reached, default=(self.tokens, ""))

    @property
    def times(self) -> int | None:
        """How many attempts are broken; None for all of them."""
        given = [times for times in (self.cut_times, self.error_times) if times is not None]
        return max(given, default=None)

    def after(self, attempts: int) -> Directives:
        """What is asked of the attempt after so many."""
        cut_at = self.cut_at if self.cut_times is None or attempts < self.cut_times else None
        error_at = self.error_at if self.error_times is None or attempts < self.error_times else None
        return replace(self, cut_at=cut_at, error_at=error_at)


BRACKETS = re.compile(r"\[\[([^\[\]]*)\]\]")
_COUNTS = "tokens ttft_ms thinking tools overload retry_after retry_date hold stall_ms cut_times error_times piece gzip"
_PLACES = "error_at cut_at end_at stall_at garbage_at surrogate_at"
_SHAPES = {
    **dict.fromkeys(f"{_COUNTS} {_PLACES}".split(), (r"[0-9]{1,9}", int)),
    "rate": (r"[0-9]{1,7}(\.[0-9]{1,3})?", float),
    "status": (r"200|[45][0-9]{2}", int),
    "server_tool": (r"ok|error", str),
    "stop": (r"[a-z_]{1,64}", str),
    "error": (r"[a-z_]{1,64}", str),
    "line_end": (r"lf|cr|crlf|torn", str),
}


def read_directives(message: str) -> Directives:
    asked: dict[str, Any] = {}
    for part in " ".join(BRACKETS.findall(message)).replace(",", " ").split():
        name, _, value = part.partition("=")
        shape, read = _SHAPES.get(name, ("", str))
        if shape and re.fullmatch(shape, value):
            asked[name] = read(value)
    return Directives(**asked)
