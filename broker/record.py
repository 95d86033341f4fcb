"""A stream as the API shows it: meta (Redis) → JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson


def record(meta: dict[str, str], sid: str, token: str | None) -> dict[str, Any]:
    """The stream as JSON. Times are RFC 3339 in UTC with milliseconds, null where not yet."""
    ending = orjson.loads(meta["ending"]) if "ending" in meta else {}
    model = meta["model"] or None
    return {
        "id": sid,
        "state": meta["state"],
        "session_id": meta["session"],
        "user_id": meta.get("user"),
        "producer": meta["producer"],
        "model": model,
        "provider": model.partition("/")[0] if model else None,
        "attempt": int(meta["attempt"]),
        "last_event_id": int(meta["tail"]),
        "created_at": rfc3339(meta.get("created")),
        "started_at": rfc3339(meta.get("started")),
        "first_text_at": rfc3339(meta.get("first_text")),
        "finished_at": rfc3339(meta.get("finished")),
        "archived_at": rfc3339(meta.get("archived")),
        "usage": ending.get("usage") if isinstance(ending, dict) else None,
        "metadata": orjson.loads(meta["metadata"]),
        "regenerates": meta.get("regenerates"),
        "request": orjson.loads(meta["request"]),
        "events_url": events_url(sid, token),
    }


def events_url(sid: str, token: str | None) -> str:
    """Relative to the server: behind a load balancer only the client knows the host it used."""
    path = f"/v1/streams/{sid}/events"
    return f"{path}?token={token}" if token else path


def rfc3339(ms: str | None) -> str | None:
    if ms is None:
        return None
    return datetime.fromtimestamp(int(ms) / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
