"""Times as callers see them."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(ms: int | None) -> str | None:
    """A time in ms since 1970 as RFC 3339 (section 5.6), UTC, with milliseconds."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
