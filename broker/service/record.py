"""A stream as the API shows it: meta (Redis) → JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson


def record(meta: dict[str, str], sid: str, token: str | None) -> dict[str, Any]:
    """The stream as JSON. Times are RFC 3339 in UTC with milliseconds, null where not yet.

    Of an erased stream only its state, its times and its last event's id are left.
    """
    ending = _json(meta.get("ending"))
    model = meta.get("model") or None
    return {
        "id": sid,
        "state": meta["state"],
        "session_id": meta.get("session"),
        "user_id": meta.get("user"),
        "producer": meta.get("producer"),
        "model": model,
        "provider": model.partition("/")[0] if model else None,
        "attempt": int(meta["attempt"]) if "attempt" in meta else None,
        "last_event_id": int(meta["tail"]),
        "created_at": rfc3339(meta.get("created")),
        "started_at": rfc3339(meta.get("started")),
        "first_text_at": rfc3339(meta.get("first_text")),
        "finished_at": rfc3339(meta.get("finished")),
        "archived_at": rfc3339(meta.get("archived")),
        "erased_at": rfc3339(meta.get("erased")),
        "usage": ending.get("usage") if isinstance(ending, dict) else None,
        "metadata": _json(meta.get("metadata")),
        "regenerates": meta.get("regenerates"),
        "request": _json(meta.get("request")),
        "events_url": events_url(sid, token),
    }


def _json(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)


def events_url(sid: str, token: str | None) -> str:
    """Relative to the server: behind a load balancer only the client knows the host it used."""
    path = f"/v1/streams/{sid}/events"
    return f"{path}?token={token}" if token else path


def rfc3339(ms: str | None) -> str | None:
    if ms is None:
        return None
    return datetime.fromtimestamp(int(ms) / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
