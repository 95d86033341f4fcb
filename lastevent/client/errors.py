"""Why a client cannot go on.

StreamError   for good: a refusal, or no server in the time that was given; for those who call
Lost          for now: no network, a cut, silence; the loop comes back, and callers of single requests get a StreamError
"""

from __future__ import annotations


class StreamError(Exception):
    """A stream cannot be started or followed, or a call was refused.

    `code` is the server's (docs/API.md), or one of these: `not_a_stream` (no Lastevent server answers there),
    `no_ending`, `no_location`, `lost` (patience is over), `unreachable` (a single call got no answer).
    `status` is that of HTTP; 0: none. `title` is what the server calls it, the same for each error of a code; empty: it
    said none. The message is the server's `detail`.
    """

    def __init__(self, code: str, status: int = 0, message: str = "", title: str = "") -> None:
        super().__init__(message or code)
        self.code = code
        self.status = status
        self.title = title

    def __reduce__(self) -> tuple[type[StreamError], tuple[str, int, str, str]]:
        """Queues of jobs pickle what is raised."""
        return type(self), (self.code, self.status, str(self), self.title)


class Lost(Exception):
    """Another try may be answered. The message is for a log."""


class Silent(Lost):
    """Nothing came for as long as a read may wait."""
