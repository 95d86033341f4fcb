"""What the API returns about a stream, as JSON: its record, its viewers' records, the verdict on its seal.

And about the models and agents that there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from broker.archive.setup import Verdict
from broker.log.agents import Announced
from broker.log.erasures import Order
from broker.log.hooks import LIFE_S, Hook
from broker.log.meta import FIELDS, Field, Meta
from broker.log.models import Known
from broker.log.rfc3339 import rfc3339
from broker.service.totals import cost_of, is_incomplete

_API_FIELDS = [(field, field.api_name) for field in FIELDS if field.api_name]

AS_STORED = frozenset({"request", "metadata"})
"""Fields that hold JSON as callers gave it, under the same name in meta."""

OURS = frozenset(name for field, name in _API_FIELDS if not field.is_client_supplied) | {"id", "provider", "events_url"}
"""Fields whose content no caller chose: patterns are not applied to them."""


def stream_record(meta: Meta, sid: str, token: str | None, *, is_parsed: bool = False) -> dict[str, Any]:
    """The stream as JSON. Times (`…_at`) are RFC 3339 in UTC with milliseconds, null if they have not come yet.

    An erased stream has only its state, its times and its last event's id. `token`: a token for `events_url`.
    `request` and `metadata` stay as they are stored, unless `is_parsed`: a nested one of 1 MB takes 60 ms to parse, in
    which nobody else has a turn.
    """
    ending = meta.ending
    return {
        "id": sid,
        **{
            name: _stored(meta, name) if name in AS_STORED and not is_parsed else _api_value(name, field, meta)
            for field, name in _API_FIELDS
        },
        "model": meta.model or None,
        "provider": meta.provider,
        "usage": ending.get("usage") if isinstance(ending, dict) else None,
        "cost_usd": cost_of(ending),
        "usage_incomplete": is_incomplete(ending),
        "events_url": events_url(sid, token),
    }


VIEWERS_FIELDS = frozenset(
    {"id", "state", "agent", "attempt", "last_event_id", "events_url"}
    | {"created_at", "started_at", "first_text_at", "finished_at", "archived_at", "erased_at"}
)
"""What a token, or a key that may not inspect, shows of a record: nothing of what was asked, by whom, at what cost."""


def viewers_record(meta: Meta, sid: str) -> dict[str, Any]:
    """The stream as JSON for who has a token. No token in it: a token makes no other, or it would never end."""
    return {name: value for name, value in stream_record(meta, sid, None).items() if name in VIEWERS_FIELDS}


WAITING, FORGOTTEN = "waiting", "forgotten"
"""Of a webhook: its stream has not ended, or has just done so; it ended so long ago that nobody knows."""


def webhook_json(meta: Meta, hook: Hook | None, now_ms: int) -> dict[str, Any]:
    """{"state", "attempts", "last_status", "next_at"} of a stream that names a webhook."""
    if hook is None:
        is_over = meta.finished is not None and now_ms - meta.finished > LIFE_S * 1000
        hook = Hook(FORGOTTEN if is_over else WAITING)
    return {**hook._asdict(), "next_at": rfc3339(hook.next_at)}


def _api_value(name: str, field: Field[Any], meta: Meta) -> Any:
    value = field.__get__(meta, Meta)
    return rfc3339(value) if name.endswith("_at") else value


def _stored(meta: Meta, name: str) -> orjson.Fragment | None:
    text = meta.fields.get(name)
    return None if text is None else orjson.Fragment(text)


def models_json(known: Known, default: str) -> dict[str, Any]:
    """What GET /v1/models gives. `default`: the servers' own, which a start without a model takes."""
    of_providers = [(f"{owner}/{name}", owner) for owner, one in known.providers.items() for name in one.models]
    models = [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in of_providers]
    aliases = [
        {"id": name, "object": "model", "created": 0, "owned_by": "lastevent", "chain": chain}
        for name, chain in known.aliases.items()
    ]
    providers = [{"name": name, "is_standin": one.is_standin} for name, one in known.providers.items()]
    return {"object": "list", "data": [*models, *aliases], "default": default, "providers": providers}


def anthropic_models(
    models: Sequence[dict[str, Any]], *, limit: int | None, after: str | None, before: str | None
) -> dict[str, Any]:
    """Some of `models_json`'s as Anthropic's API lists them: `limit` of those behind `after`, or right before `before`.
    A name that is not there is no bound.
    """
    names = [model["id"] for model in models]
    start = names.index(after) + 1 if after in names else 0
    end = names.index(before) if before in names else len(names)
    page = models[start:end]
    shown = page if limit is None else page[-limit:] if before in names else page[:limit]
    ends = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    data = [anthropic_model(model) for model in shown]
    return {"data": data, "has_more": len(shown) < len(page), "first_id": ends[0], "last_id": ends[1]}


def anthropic_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """One of `models_json`'s as Anthropic's API has it. What only its provider knows is null."""
    unknown = dict.fromkeys(("max_input_tokens", "max_tokens", "capabilities"))
    name = model["id"]
    return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z", **unknown}


def agents_json(known: Mapping[str, Announced]) -> dict[str, Any]:
    """What GET /v1/agents gives."""
    fields = ("app", "input_schema", "show", "tools")
    return {
        "agents": [{"name": name, **{field: getattr(one, field) for field in fields}} for name, one in known.items()]
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """{"verdict", "is_head_known", "seal", "erasure", "findings": [{"what", "detail"}]} (docs/API.md)."""
    claims = verdict.seal.claims() if verdict.seal else {}
    erased = verdict.erasure.claims() if verdict.erasure else {}
    return {
        "verdict": verdict.verdict,
        "is_head_known": verdict.is_head_known,
        "seal": verdict.seal
        and {
            **{name: claims.get(name) for name in ("number", "tenant", "key", "log", "record", "previous")},
            "sealed_at": _sealed_at(claims),
            "hash": verdict.seal.digest,
        },
        "erasure": verdict.erasure
        and {**{name: erased.get(name) for name in ("number", "reason", "by")}, "sealed_at": _sealed_at(erased)},
        "findings": [{"what": finding.what, "detail": finding.detail} for finding in verdict.findings],
    }


def _sealed_at(claims: Mapping[str, Any]) -> str | None:
    return rfc3339(claims["at"]) if isinstance(claims.get("at"), int) else None


def view_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """A viewer's record (log/access.py)."""
    fields = ("id", "who", "address", "forwarded_for", "user_agent", "format", "server", "requested", "first_id")
    return {
        **{name: record.get(name) for name in (*fields, "last_id")},
        "opened_at": rfc3339(record["opened"]),
        "closed_at": rfc3339(record.get("closed")),
        "how": record.get("how"),
        "count": record.get("count", 1),
    }


def deed_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """A deed (log/deeds.py)."""
    fields = ("who", "what", "stream", "address", "request_id", "detail")
    return {"id": record["id"], "at": rfc3339(record["at"]), **{name: record.get(name) for name in fields}}


def erasure_json(order: Order) -> dict[str, Any]:
    """An erasure of a person: without the name that it is about, which is gone when it is done."""
    counts = {"id": order.id, "state": order.state, "found": order.found, "erased": order.erased}
    times = {"ordered_at": rfc3339(order.at), "finished_at": rfc3339(order.finished)}
    return {**counts, "by": order.by, "reason": order.reason, **times}


def events_url(sid: str, token: str | None) -> str:
    """Relative to the server: behind a load balancer only the client knows the host it used."""
    path = f"/v1/streams/{sid}/events"
    return f"{path}?access_token={token}" if token else path
