"""Where a viewer continues: header → cursor. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable

from broker.errors import BadCursor

EARLIEST, LATEST = "earliest", "latest"
MAX_CURSOR = 2**53 - 1
"""Ids are numbers in JSON: beyond this, JavaScript would confuse them."""

_DIGITS = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)


def resume_at(fields: Iterable[str], queries: Iterable[str] = ()) -> int | None:
    """Where a viewer resumes that gave these cursors. A field may be a list, with blanks (RFC 9110 §5.6.1).

    The greatest counts: a client that keeps its cursor in the address, and learns newer ones, sends both for ever.
    `earliest` and `latest` count where there is no number, and of those the first. Raises BadCursor as `parse_cursor`.
    """
    words = [part.strip(" \t") for field in fields for part in field.split(",")] + list(queries)
    cursors = [(word, parse_cursor(word)) for word in words if word]
    numbers = [cursor for word, cursor in cursors if cursor is not None and word != EARLIEST]
    if numbers:
        return max(numbers)
    return cursors[0][1] if cursors else 0


def parse_cursor(text: str | None) -> int | None:
    """Where a viewer resumes: the id of the last event it has; 0 from the start; None at the latest event.

    Absent and empty count the same (an EventSource that has no id sends none; some clients send an empty one).
    Raises BadCursor for anything but a canonical integer from 0 to 2^53 - 1, `earliest` or `latest`: a cursor that
    is silently misread would repeat or skip events.
    """
    if not text or text == EARLIEST:
        return 0
    if text == LATEST:
        return None
    if _DIGITS.fullmatch(text) and int(text) <= MAX_CURSOR:
        return int(text)
    raise BadCursor("A cursor is the id of the last event received (0 to 9007199254740991), `earliest` or `latest`.")
