"""LangGraph's SDKs: runs and threads (docs/DIALECTS.md). A thread is a session, a run is a stream of it.

A thread is nothing but its runs: what it holds is what its newest run was asked and has answered. So nothing is stored
for one, and one without runs is empty. A run has two checkpoints, before its answer and behind it, and the first of a
thread one before its input: from each of them a run can begin, which is how a client regenerates and edits.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

import orjson
from fastapi import APIRouter, Header, Path, Query, Request
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response

from broker.auth import Grant
from broker.dialects.langgraph import (
    FAILED,
    MODES,
    OF_JOINED,
    PENDING,
    RUNNING,
    STATUS,
    LangGraph,
    Run,
    run_id_of,
    sid_of,
)
from broker.dialects.langgraph_messages import Asked, Json
from broker.dialects.langgraph_request import STRATEGIES, asked_run, checkpoint_of, modes_of, strategy_of
from broker.dialects.parts import refused
from broker.dialects.sse import MEDIA_TYPE
from broker.errors import BadCursor, LasteventError, StreamNotFound, StreamRunning
from broker.log.deeds import CANCELLED
from broker.log.index import Filter
from broker.log.meta import Meta
from broker.log.rfc3339 import rfc3339
from broker.service.streams import Said, Started
from broker.tenants.scopes import CANCEL, INSPECT, READ, WRITE
from broker.web.dialect import (
    IGNORED_HEADER,
    STREAM_HEADER,
    After,
    Beginning,
    Where,
    dialect_route,
    find,
    fold_now,
    follow_in,
    read_asked,
    start,
    wait_for_end,
)
from broker.web.grants import ReaderGrant, grant_of, needs, needs_nothing
from broker.web.inputs import IdempotencyKey
from broker.web.openapi import gives_nothing, speaks
from broker.web.strict_json import json_response
from broker.web.tier import Tier
from broker.web.while_here import while_here

WHOLE = LangGraph(frozenset())
"""For what is asked of a run without being sent in any mode."""

MAX_HISTORY = 100
HISTORY_BYTES = 8 * 2**20
"""Each state has all of its thread's messages. Beyond this a page ends, and `before` gives the next."""

MAX_RUNS = 200
MAX_IGNORED = 32
"""Of what is ignored so many are named: a header has bounds."""

LONGEST_SILENCE_S = 20.0
"""The SDK for JavaScript takes a connection for dead that is silent for three of the pauses that it has seen, and for
30 s at the most, however long they were."""

BEFORE_ANSWER, BEFORE_INPUT = ".input", ".start"
"""What a run's id has behind it, as a checkpoint's."""

_CURSOR = r"(\d{1,15})-(\d{1,6})"

_BUSY = "A run of this thread has not ended. Wait for it, or give multitask_strategy interrupt or rollback."

RUN_BODY: dict[str, Any] = {
    "type": "object",
    "required": ["assistant_id"],
    "properties": {
        "assistant_id": {"type": "string"},
        "input": {"type": ["object", "null"]},
        "config": {"type": ["object", "null"]},
        "context": {"type": ["object", "null"]},
        "metadata": {"type": ["object", "null"]},
        "stream_mode": {"type": ["string", "array", "null"], "items": {"type": "string"}},
        "multitask_strategy": {"type": ["string", "null"], "enum": [*STRATEGIES, None]},
        "on_disconnect": {"type": ["string", "null"], "enum": ["continue", "cancel", None]},
        "checkpoint_id": {"type": ["string", "null"]},
    },
}


_ENDS: dict[str, Any] = {
    **gives_nothing("Ends a run"),
    "responses": {204: {"description": "It has ended"}, "default": speaks("")["responses"]["default"]},
}


def _answer(_: Request, error: LasteventError) -> Response:
    return json_response({"detail": str(error), "code": error.code}, error.status)


class _RunId(Convertor[str]):
    """A run's id in an address is the stream's wherever the request is looked at: a token names that."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return sid_of(value)

    def to_string(self, value: str) -> str:
        return run_id_of(value)


register_url_convertor("run", _RunId())

router = APIRouter(prefix="/langgraph", route_class=dialect_route(_answer), tags=["Dialects"])

ThreadId = Annotated[str, Path(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID")]
StreamModes = Annotated[list[str] | None, Query(alias="stream_mode")]


# -- the server ----------------------------------------------------------------------------------------------------


@router.get("/ok", **speaks("That there is a server"))
@needs_nothing
async def langgraph_ok() -> Response:
    """Whether it can serve says /readyz."""
    return json_response({"ok": True})


@router.get("/info", **speaks("What this server has of LangGraph's"))
@needs(client_keys=True)
async def langgraph_info() -> Response:
    """Nothing but runs and threads."""
    flags = {"assistants": False, "crons": False, "langsmith": False, "store": False}
    return json_response({"version": "lastevent", "flags": flags})


# -- threads -------------------------------------------------------------------------------------------------------


@router.post("/threads", **speaks("A thread, which is empty", asked={"type": "object"}))
@needs(WRITE, client_keys=True)
async def langgraph_create_thread(request: Request) -> Response:
    """Nothing is stored: a thread is there with its first run."""
    grant = grant_of(request)
    body = await read_asked(request, optional=True)
    if body.get("supersteps"):
        raise refused("supersteps", "a thread begins empty")
    thread_id = body.get("thread_id") or str(uuid.uuid4())
    if not isinstance(thread_id, str) or len(thread_id) > 200 or "/" in thread_id or not thread_id.isprintable():
        raise refused("thread_id", "a text of at most 200 characters, without a slash")
    if body.get("thread_id") and await _newest(request, grant, thread_id):
        if body.get("if_exists") != "do_nothing":
            raise StreamRunning("There is a thread with this id. Give if_exists do_nothing to have it.")
        grant.require(INSPECT)
    ignored = [name for name in ("metadata", "ttl") if body.get(name)]
    return _json(await _thread(request, grant, thread_id), ignored)


@router.get("/threads/{thread_id}", **speaks("A thread"))
@needs(INSPECT, client_keys=True)
async def langgraph_thread(request: Request, thread_id: ThreadId) -> Response:
    """One that has no run is idle and empty."""
    return _json(await _thread(request, grant_of(request), thread_id))


@router.get("/threads/{thread_id}/state", **speaks("What a thread holds"))
@needs(INSPECT, client_keys=True)
async def langgraph_state(request: Request, thread_id: ThreadId) -> Response:
    """The newest run's: what it was asked, and what it has answered by now."""
    grant = grant_of(request)
    newest = await _newest(request, grant, thread_id)
    if newest is None:
        return _json(_state(thread_id, b"{}", None, None, datetime.now(UTC).isoformat()))
    run, meta = await _run_now(request, grant, newest["id"])
    return _json(_states(thread_id, newest["id"], run, meta)[0])


@router.post("/threads/{thread_id}/history", **speaks("What a thread held, newest first", asked={"type": "object"}))
@needs(INSPECT, client_keys=True)
async def langgraph_history(request: Request, thread_id: ThreadId) -> Response:
    """Each run has a state before its answer and one behind it."""
    grant = grant_of(request)
    body = await read_asked(request, optional=True)
    asked = body.get("limit")
    limit = min(max(0, asked), MAX_HISTORY) if isinstance(asked, int) else 10
    checkpoint = body.get("checkpoint")
    if isinstance(checkpoint, dict) and checkpoint.get("checkpoint_ns"):
        return _json([])  # of a graph within the graph
    before = _before(body)
    states: list[Json] = []
    told = 0
    for record in await _records(request, grant, thread_id, MAX_HISTORY):
        if len(states) >= limit or told >= HISTORY_BYTES:
            break
        if before is not None and sid_of(before.partition(".")[0]) != record["id"]:
            continue
        run, meta = await _run_now(request, grant, record["id"])
        of_run = _states(thread_id, record["id"], run, meta)
        told += 2 * len(run.values())
        if before is not None:
            named = [one["checkpoint"]["checkpoint_id"] for one in of_run]
            of_run = of_run[named.index(before) + 1 :] if before in named else []
            before = None
        states += of_run
    return _json(states[:limit])


# -- runs: started -------------------------------------------------------------------------------------------------


@router.post("/runs/stream", include_in_schema=False)
@router.post("/threads/{thread_id}/runs/stream", **speaks("A run of a thread", MEDIA_TYPE, asked=RUN_BODY))
@needs(WRITE, client_keys=True)
async def langgraph_stream(
    request: Request, grant: ReaderGrant, thread_id: str | None = None, idempotency_key: IdempotencyKey = None
) -> Response:
    """In the modes that were asked for. Location is where it goes on after a cut."""
    grant.require(READ)
    await Tier.of(request).require_place(grant)
    started, thread_id, body, ignored = await _started(request, grant, thread_id, idempotency_key)
    modes = modes_of(body.get("stream_mode")) or ("values",)
    return await _follow(request, grant, thread_id, started.sid, modes, Beginning(), ignored)


@router.post("/runs/wait", include_in_schema=False)
@router.post("/threads/{thread_id}/runs/wait", **speaks("A run's end: what the thread holds then", asked=RUN_BODY))
@needs(WRITE, client_keys=True)
async def langgraph_wait(
    request: Request, grant: ReaderGrant, thread_id: str | None = None, idempotency_key: IdempotencyKey = None
) -> Response:
    """With `__error__` in it, if the run failed."""
    grant.require(READ)
    await Tier.of(request).require_place(grant)
    started, thread_id, _, ignored = await _started(request, grant, thread_id, idempotency_key)
    return await _end(request, grant, thread_id, started.sid, ignored)


@router.post("/runs", include_in_schema=False)
@router.post("/threads/{thread_id}/runs", **speaks("A run, which goes on by itself", asked=RUN_BODY))
@needs(WRITE, client_keys=True)
async def langgraph_create_run(
    request: Request, grant: ReaderGrant, thread_id: str | None = None, idempotency_key: IdempotencyKey = None
) -> Response:
    """Nobody needs to follow it."""
    started, thread_id, body, ignored = await _started(request, grant, thread_id, idempotency_key)
    told = _told(thread_id, started.sid, ignored)
    assistant: str = body["assistant_id"]
    made = await _found(request, grant, started.sid, thread_id, whole=True)
    return _json(_run(thread_id, started.sid, made, assistant), headers=told)


# -- runs: there already -------------------------------------------------------------------------------------------


@router.get("/threads/{thread_id}/runs", **speaks("A thread's runs, newest first"))
@needs(INSPECT, client_keys=True)
async def langgraph_runs(
    request: Request,
    thread_id: ThreadId,
    limit: Annotated[int, Query(ge=0, le=MAX_RUNS)] = 10,
    offset: Annotated[int, Query(ge=0, le=MAX_RUNS)] = 0,
    status: str | None = None,
) -> Response:
    """Of the newest ones."""
    grant = grant_of(request)
    listed = [_listed_run(thread_id, record) for record in await _records(request, grant, thread_id, MAX_RUNS)]
    found = [run for run in listed if status is None or run["status"] == status]
    return _json(found[offset : offset + limit])


@router.get("/runs/{sid:run}", include_in_schema=False)
@router.get("/threads/{thread_id}/runs/{sid:run}", **speaks("A run"))
@needs(INSPECT, READ, token=READ, address=True, cookie=True, client_keys=True)
async def langgraph_run(request: Request, sid: str, thread_id: str | None = None) -> Response:
    """The SDKs ask for it where a stream ended without `end`. Who may not inspect sees less of it."""
    grant = grant_of(request)
    meta = await _found(request, grant, sid, thread_id, whole=True)
    assistant = ((meta.dialect or {}).get("echo") or {}).get("assistant_id") or meta.agent or "agent"
    run = _run(meta.session or "", sid, meta, assistant)
    return _json({**run, "metadata": {}} if grant.is_viewer else run)


@router.get("/runs/{sid:run}/stream", include_in_schema=False)
@router.get(
    "/threads/{thread_id}/runs/{sid:run}/stream",
    **speaks("A run, from its beginning or behind Last-Event-ID", MEDIA_TYPE),
)
@needs(READ, token=READ, address=True, cookie=True, client_keys=True)
async def langgraph_join_stream(
    request: Request,
    sid: str,
    grant: ReaderGrant,
    thread_id: str | None = None,
    stream_mode: StreamModes = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Without modes, in those that the run was started with."""
    where = _where(last_event_id)
    meta = await _found(request, grant, sid, thread_id)
    echo = (meta.dialect or {}).get("echo") or {}
    modes = modes_of(stream_mode) or tuple(mode for mode in echo.get("stream_mode") or OF_JOINED if mode in MODES)
    cancels = request.query_params.get("cancel_on_disconnect", "").lower() in ("1", "true")
    ignored = ["cancel_on_disconnect"] if cancels else []  # others may follow it
    return await _follow(request, grant, meta.session or "", sid, modes, where, ignored)


@router.get("/runs/{sid:run}/join", include_in_schema=False)
@router.get("/threads/{thread_id}/runs/{sid:run}/join", **speaks("A run's end: what the thread holds then"))
@needs(READ, token=READ, address=True, cookie=True, client_keys=True)
async def langgraph_join(request: Request, sid: str, grant: ReaderGrant, thread_id: str | None = None) -> Response:
    """With `__error__` in it, if the run failed."""
    meta = await _found(request, grant, sid, thread_id)
    return await _end(request, grant, meta.session or "", sid, [])


@router.post("/runs/{sid:run}/cancel", include_in_schema=False)
@router.post("/threads/{thread_id}/runs/{sid:run}/cancel", **_ENDS)
@needs(CANCEL, token=CANCEL, cookie=True, client_keys=True)
async def langgraph_cancel(
    request: Request, sid: str, thread_id: str | None = None, action: Literal["interrupt"] = "interrupt"
) -> Response:
    """A run that has ended stays as it is."""
    grant = grant_of(request)
    await _found(request, grant, sid, thread_id)
    await _cancel(request, grant, sid)
    return Response(status_code=204)


# -- what they have in common --------------------------------------------------------------------------------------


async def _started(
    request: Request, grant: Grant, thread_id: str | None, key: str | None
) -> tuple[Started, str, Json, list[str]]:
    """The run, its thread, its body, and what of that changes nothing."""
    body = await read_asked(request)
    before, parent = await _begun(request, grant, thread_id, body, key) if thread_id is not None else ([], None)
    asked = asked_run(body, before, parent)
    native = asked.start if thread_id is None else {**asked.start, "session_id": thread_id}
    said = Said(WHOLE.name, asked.model, asked.echo, asked.kept)
    started = await start(request, grant, native, said, key=key)
    return started, thread_id or started.record["session_id"], body, asked.ignored


async def _begun(
    request: Request, grant: Grant, thread_id: str, body: Json, key: str | None
) -> tuple[list[Asked], str | None]:
    """What the thread holds where the run begins, and which checkpoint that is."""
    checkpoint, strategy = checkpoint_of(body), strategy_of(body)
    newest = await _newest(request, grant, thread_id)
    if newest is None:
        if checkpoint is not None:
            raise StreamNotFound("This thread has no such checkpoint.")
        return [], None
    grant.require(INSPECT)  # what the thread holds becomes a part of the request
    sid: str = newest["id"]
    if key is not None and await _is_of_key(request, grant, sid, key):
        # It was sent again: what it began with is what it begins with.
        run, _ = await _run_now(request, grant, sid)
        return await _at(request, grant, thread_id, checkpoint or run.parent)
    if STATUS[newest["state"]] in (PENDING, RUNNING):
        if strategy not in ("interrupt", "rollback"):
            raise StreamRunning(_BUSY)
        await _cancel(request, grant, sid)
        if strategy == "rollback" and checkpoint is None:
            run, _ = await _run_now(request, grant, sid)
            return await _at(request, grant, thread_id, run.parent)
    return await _at(request, grant, thread_id, checkpoint or run_id_of(sid))


async def _is_of_key(request: Request, grant: Grant, sid: str, key: str) -> bool:
    meta = (await find(request, grant, sid)).meta
    return meta.idempotency_key is not None and meta.idempotency_key[0] == key


async def _at(request: Request, grant: Grant, thread_id: str, checkpoint: str | None) -> tuple[list[Asked], str | None]:
    """What the thread held at a checkpoint. Raises StreamNotFound."""
    if checkpoint is None:
        return [], None
    run_id, dot, where = checkpoint.partition(".")
    await _found(request, grant, sid := sid_of(run_id), thread_id)
    if dot + where == BEFORE_INPUT:
        return [], checkpoint
    run, _ = await _run_now(request, grant, sid)
    asked = run.request.get("messages") or []
    held = [Asked(message, shown) for message, shown in zip(asked, run.asked, strict=True)]
    if dot + where == BEFORE_ANSWER:
        return held, checkpoint
    answer = orjson.loads((await while_here(request, Tier.of(request).reading.message(sid, grant))).content)
    if answer["content"]:
        held.append(Asked(answer, run.answer()))
    return held, checkpoint


async def _cancel(request: Request, grant: Grant, sid: str) -> None:
    tier = Tier.of(request)
    grant.require(CANCEL)
    ended = await tier.streams.cancel(sid, grant, "requested")
    if not ended.already:
        tier.deeds.note(tier.deed(request, CANCELLED, sid))


async def _found(request: Request, grant: Grant, sid: str, thread_id: str | None, *, whole: bool = False) -> Meta:
    """`whole`: with its metadata. Raises StreamNotFound, also for a run of another thread."""
    meta = (await Tier.of(request).streams.look_up_content(sid, grant, whole=whole)).meta
    if thread_id is not None and meta.session != thread_id:
        raise StreamNotFound("This thread has no such run.")
    return meta


async def _run_now(request: Request, grant: Grant, sid: str) -> tuple[Run, Meta]:
    fold, meta = await while_here(request, fold_now(request, grant, sid, WHOLE))
    assert isinstance(fold, Run)
    return fold, meta


async def _follow(
    request: Request,
    grant: Grant,
    thread_id: str,
    sid: str,
    modes: tuple[str, ...],
    where: Where,
    ignored: list[str],
) -> Response:
    again = urlencode([("stream_mode", mode) for mode in modes])
    told = _told(thread_id, sid, ignored)
    told["Location"] = f"{told['Content-Location']}/stream?{again}"
    dialect = LangGraph(frozenset(modes), shows_asked=_shows_asked(grant))
    silence_s = min(Tier.of(request).settings.heartbeat_s, LONGEST_SILENCE_S)
    return await follow_in(request, grant, sid, dialect, where, told, heartbeat_s=silence_s)


async def _end(request: Request, grant: Grant, thread_id: str, sid: str, ignored: list[str]) -> Response:
    run = await wait_for_end(request, grant, sid, replace(WHOLE, shows_asked=_shows_asked(grant)))
    assert isinstance(run, Run)
    told = _told(thread_id, sid, ignored)
    told["Location"] = f"{told['Content-Location']}/join"
    values = run.values()
    if run.error is not None:
        values = values[:-1] + b',"__error__":' + orjson.dumps(run.error) + b"}"
    return Response(values, media_type="application/json", headers=told)


def _shows_asked(grant: Grant) -> bool:
    """As a stream's record does."""
    return not grant.is_viewer


def _told(thread_id: str, sid: str, ignored: list[str]) -> dict[str, str]:
    """Without this server's own path: the SDKs put what they know of the server before it."""
    told = {"Content-Location": f"/threads/{quote(thread_id, safe='')}/runs/{run_id_of(sid)}", STREAM_HEADER: sid}
    return {**told, IGNORED_HEADER: ", ".join(map(_ascii, ignored[:MAX_IGNORED]))} if ignored else told


def _ascii(name: str) -> str:
    """As much of it as a header may have."""
    return re.sub(r"[^ -~]", "?", name[:80])


def _json(value: Any, ignored: list[str] | None = None, headers: dict[str, str] | None = None) -> Response:
    told = headers or ({IGNORED_HEADER: ", ".join(ignored)} if ignored else {})
    return Response(orjson.dumps(value), media_type="application/json", headers=told)


def _where(last_event_id: str | None) -> Where:
    if last_event_id is None or last_event_id.strip() in ("", "-1"):
        return Beginning()
    if found := re.fullmatch(_CURSOR, last_event_id.strip(), re.ASCII):
        return After(int(found[1]), int(found[2]))
    raise BadCursor("Last-Event-ID is the id of an event of this run, or -1.")


# -- what a thread and a run look like -----------------------------------------------------------------------------


async def _records(request: Request, grant: Grant, thread_id: str, limit: int) -> list[Json]:
    """Of a thread's runs, newest first, those whose content is there."""
    tier = Tier.of(request)
    reading = tier.listing.streams(
        grant.tenant,
        Filter(session=thread_id),
        limit=limit,
        after=None,
        records=lambda found: tier.listed_json(found, grant),
    )
    page = await while_here(request, reading)
    return [record for record in page["streams"] if record["erased_at"] is None]


async def _newest(request: Request, grant: Grant, thread_id: str) -> Json | None:
    records = await _records(request, grant, thread_id, 1)
    return records[0] if records else None


async def _thread(request: Request, grant: Grant, thread_id: str) -> Json:
    newest = await _newest(request, grant, thread_id)
    made = {"thread_id": thread_id, "metadata": {}, "config": {}, "interrupts": {}}
    if newest is None:
        now = datetime.now(UTC).isoformat()
        return {**made, "created_at": now, "updated_at": now, "status": "idle", "values": {}}
    run, meta = await _run_now(request, grant, newest["id"])
    status = "busy" if run.status in (PENDING, RUNNING) else "error" if run.status == FAILED else "idle"
    updated = rfc3339(meta.finished or meta.created)
    times = {"created_at": rfc3339(meta.created), "updated_at": updated}
    return {**made, **times, "status": status, "values": orjson.Fragment(run.values())}


def _states(thread_id: str, sid: str, run: Run, meta: Meta) -> list[Json]:
    """Those that a run made, newest first."""
    run_id, created = run_id_of(sid), rfc3339(meta.created)
    before_answer, parent = run_id + BEFORE_ANSWER, run.parent or run_id + BEFORE_INPUT
    has_ended = run.status not in (PENDING, RUNNING)
    task: Json = {"id": run_id, "name": "agent", "error": None, "interrupts": [], "checkpoint": None, "state": None}
    if run.error:
        task["error"] = f"{run.error['error']}: {run.error['message']}"
    asked = orjson.dumps({"messages": [one for of_one in run.asked for one in of_one]})
    states = [_state(thread_id, asked, before_answer, parent, created, ["agent"], [{**task, "error": None}])]
    if has_ended:
        finished = rfc3339(meta.finished or meta.created)
        failed = [task] if run.error else []
        states.insert(0, _state(thread_id, run.values(), run_id, before_answer, finished, [], failed))
    if run.parent is None:
        states.append(_state(thread_id, b'{"messages":[]}', parent, None, created, ["__start__"]))
    return states


def _state(
    thread_id: str,
    values: bytes,
    checkpoint: str | None,
    parent: str | None,
    created_at: str | None,
    following: list[str] | None = None,
    tasks: list[Json] | None = None,
) -> Json:
    return {
        "values": orjson.Fragment(values),
        "next": following or [],
        "tasks": tasks or [],
        "checkpoint": _checkpoint(thread_id, checkpoint),
        "parent_checkpoint": _checkpoint(thread_id, parent),
        "metadata": {},
        "created_at": created_at,
        "interrupts": [],
    }


def _checkpoint(thread_id: str, checkpoint_id: str | None) -> Json | None:
    if checkpoint_id is None:
        return None
    return {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": checkpoint_id, "checkpoint_map": {}}


def _run(thread_id: str, sid: str, meta: Meta, assistant: str) -> Json:
    created = rfc3339(meta.created)
    updated = rfc3339(meta.finished or meta.started or meta.created)
    return _of_run(thread_id, sid, assistant, created, updated, meta.state, meta.metadata or {})


def _listed_run(thread_id: str, record: Json) -> Json:
    updated = record["finished_at"] or record["started_at"] or record["created_at"]
    assistant = record["agent"] or record["model"] or "agent"
    return _of_run(
        thread_id, record["id"], assistant, record["created_at"], updated, record["state"], record["metadata"]
    )


def _of_run(
    thread_id: str, sid: str, assistant: str, created_at: str | None, updated_at: str | None, state: str, metadata: Any
) -> Json:
    return {
        "run_id": run_id_of(sid),
        "thread_id": thread_id,
        "assistant_id": assistant,
        "created_at": created_at,
        "updated_at": updated_at,
        "status": STATUS[state],
        "metadata": metadata,
        "multitask_strategy": "reject",
    }


def _before(body: Json) -> str | None:
    before = body.get("before")
    if isinstance(before, dict):
        configurable = before.get("configurable")
        of_config = configurable.get("checkpoint_id") if isinstance(configurable, dict) else None
        before = before.get("checkpoint_id") or of_config
    return before if isinstance(before, str) else None
