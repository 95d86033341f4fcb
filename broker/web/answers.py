"""The forms of the API's JSON answers, for the OpenAPI document alone: what is sent is made without them.

A field with a default may be absent. `Json` is what callers, providers or external producers choose.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from broker.web.inputs import State, What

Json = Annotated[Any, Field(description="Any JSON: it is the caller's own")]
Time = Annotated[datetime, Field(description="UTC, with milliseconds")]
Cursor = Annotated[str | None, Field(description="Give it as `cursor` for the next page; null: this is the last")]


def _no_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)  # it says only that the field may be absent


Absent: Any = Field(default=None, json_schema_extra=_no_default)


class RequestMessage(BaseModel):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Json]]
    native: dict[str, Json] = Absent


class TagsInText(BaseModel):
    tags: list[str]


class ProviderRequest(BaseModel):
    """What is asked of the model, or of the agent. Of an external stream: what its producer says of that."""

    agent: str = Absent
    input: Annotated[Json, Field(description="Of an agent")] = Absent

    messages: list[RequestMessage] = Absent
    max_tokens: int = Absent
    system: str | list[dict[str, Json]] = Absent
    model: Annotated[list[str], Field(description="Only of several, tried one after the other")] = Absent
    tools: list[dict[str, Json]] = Absent
    tool_choice: dict[str, Json] = Absent
    thinking: dict[str, Json] = Absent
    effort: str = Absent
    stop_sequences: list[str] = Absent
    temperature: float = Absent
    output_schema: dict[str, Json] = Absent
    provider_options: dict[str, dict[str, Json]] = Absent
    on_tool_effects: Literal["restart", "fail"] = Absent
    transform: Literal["react"] | TagsInText = Absent


class StreamState(BaseModel):
    """What a stream shows to a token, and to a key that may not inspect."""

    id: str
    state: State
    agent: Annotated[str | None, Field(description="Who answers; null: a model, or an external producer")]
    attempt: Annotated[int | None, Field(description="1 from the first start; null if erased")]
    last_event_id: int
    created_at: Time
    started_at: Time | None
    first_text_at: Time | None
    finished_at: Time | None
    archived_at: Time | None
    erased_at: Time | None
    events_url: Annotated[str, Field(description="Relative to the server; with a token if the server has keys")]


class ListedStream(StreamState):
    """A stream; of an erased one, what is left."""

    session_id: str | None
    user_id: str | None
    producer: Literal["worker", "external", "shared"] | None
    model: str | None
    provider: str | None
    regenerates: Annotated[str | None, Field(description="The id of the stream whose request this one repeats")]
    erased_by: str | None
    metadata: dict[str, Json] | None
    usage: Annotated[Any, Field(description="Of a worker's stream, its tokens; else what its producer said")]
    cost_usd: Annotated[float | None, Field(description="Null: not known, which is not 0")]
    usage_incomplete: Annotated[bool, Field(description="An attempt was cut before its provider had counted it")]
    request: Annotated[ProviderRequest | None, Field(description="Only with include=request")] = Absent


class WebhookState(BaseModel):
    state: Annotated[
        Literal["waiting", "pending", "delivered", "stopped", "failed", "forgotten"],
        Field(description="stopped: it answered 410; failed: all attempts did; forgotten: 4 days after the ending"),
    ]
    attempts: Annotated[int, Field(description="How many were begun")]
    last_status: Annotated[int | None, Field(description="Null: nothing answered")]
    next_at: Annotated[Time | None, Field(description="When the next attempt may begin")]


class Stream(ListedStream):
    """A stream; of an erased one, what is left."""

    request: ProviderRequest | None
    webhook: Annotated[WebhookState | None, Field(description="What became of it; null: it names none")]


class Native(BaseModel):
    """Who said it, and the message in that provider's own form."""

    provider: str
    model: str
    content: Annotated[Json, Field(description="Absent: it is the message's `content`")] = Absent


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: list[dict[str, Json]]
    native: Annotated[Native, Field(description="Absent: it would say no more than `content`")] = Absent


class StartedStream(Stream):
    epoch: Annotated[int, Field(description="Of an external stream: what its producer sends with each batch")] = Absent


class Tokens(BaseModel):
    """What all providers count. No token is in two of them, but those of thinking are in the output too."""

    input_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int
    thinking_tokens: int


class Totals(BaseModel):
    """Sums over streams. What is erased has no usage any more."""

    usage: Tokens
    cost_usd: Annotated[float | None, Field(description="Of those whose cost is known; null: of none")]
    usage_incomplete: bool
    without_price: Annotated[int, Field(description="How many used something and have no known cost")]


class SessionTotals(Totals):
    streams: Annotated[int, Field(description="How many are in these sums")]
    is_whole: Annotated[bool, Field(description="False: the session has more, older ones")]


class StreamPage(BaseModel):
    streams: list[ListedStream]
    totals: Annotated[Totals, Field(description="Of the streams on this page")]
    next: Cursor


class SessionStreams(StreamPage):
    id: str
    session_totals: Annotated[SessionTotals, Field(description="Of the session; only on the first page")] = Absent


class Session(BaseModel):
    id: str
    last_stream_at: Time


class SessionPage(BaseModel):
    sessions: list[Session]
    next: Cursor


class Ended(BaseModel):
    state: State
    last_event_id: Annotated[int, Field(description="The terminal event's id")]
    stopped_after: Annotated[int, Field(description="The id of the last event before it")]
    already: Annotated[bool, Field(description="It had ended before this call")]


class Appended(BaseModel):
    last_event_id: int


class Renewed(Appended):
    lease_until: Time


class Viewer(BaseModel):
    who: Annotated[str, Field(description="`user:` and a token's subject; of keys `key`; without keys `anyone`")]
    since: Time


class Present(BaseModel):
    """Who follows a stream now, or a session's running streams."""

    connections: int
    people: Annotated[int, Field(description="Names, each once, whether they are shown or not")]
    viewers: Annotated[list[Viewer], Field(description="Those the caller may see; the longest here first, 200 at most")]


class ViewRecord(BaseModel):
    """Who followed or read a stream, and what each was sent (docs/API.md, views)."""

    id: str
    who: str | None
    address: str | None
    forwarded_for: str | None
    user_agent: str | None
    format: str | None
    server: str | None
    requested: int | None
    first_id: int | None
    last_id: int | None
    opened_at: Time
    closed_at: Time | None
    how: str | None
    count: int


class ViewPage(BaseModel):
    views: list[ViewRecord]
    next: Cursor


class SealRecord(BaseModel):
    number: int | None
    tenant: str | None
    key: str | None
    log: str | None
    record: str | None
    previous: str | None
    sealed_at: Time | None
    hash: str


class ErasureRecord(BaseModel):
    number: int | None
    reason: str | None
    by: str | None
    sealed_at: Time | None


class Finding(BaseModel):
    what: str
    detail: str


class Verification(BaseModel):
    id: str
    verdict: Literal["verified", "differs", "broken", "erased", "not_sealed"]
    is_head_known: bool | None
    seal: SealRecord | None
    erasure: ErasureRecord | None
    findings: list[Finding]


class DeedRecord(BaseModel):
    """What a caller did."""

    id: str
    at: Time
    who: str
    what: What
    stream: str | None
    address: str | None
    request_id: str | None
    detail: dict[str, Json] | None


class DeedPage(BaseModel):
    deeds: list[DeedRecord]
    next: Cursor


class Erasure(BaseModel):
    """An order to erase a person: all streams of a user, or of a session."""

    id: str
    state: Literal["ordered", "erasing", "done"]
    found: Annotated[int, Field(description="Streams, so far")]
    erased: Annotated[int, Field(description="Of those, gone everywhere")]
    by: str
    reason: str | None
    ordered_at: Time
    finished_at: Time | None


class ListedModel(BaseModel):
    """A model, or an alias, as OpenAI lists them."""

    id: Annotated[str, Field(description="As `model` in a start")]
    object: Literal["model"]
    created: int
    owned_by: str
    chain: Annotated[list[str], Field(description="Of an alias: the models that are tried in turn")] = Absent


class ListedProvider(BaseModel):
    name: str
    is_standin: Annotated[bool, Field(description="The stand-in answers, which is no model")]


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ListedModel]
    default: str
    providers: list[ListedProvider]


class AgentsTool(BaseModel):
    name: str
    title: str | None


class ListedAgent(BaseModel):
    name: Annotated[str, Field(description="As `agent` in a start")]
    app: str
    input_schema: Annotated[Json, Field(description="The JSON Schema of its `input`; null: any will do")]
    show: list[Literal["thinking", "args", "results"]]
    tools: list[AgentsTool]


class AgentList(BaseModel):
    agents: list[ListedAgent]


class TenantsLimits(BaseModel):
    creations_per_minute: int | None
    streams_running: Annotated[int | None, Field(description="At once; those of workers wait beyond it")]
    viewers: Annotated[int | None, Field(description="At once, of each web process")]
    weight: Annotated[int | None, Field(description="Its share of the workers; null: 1")]
    models: Annotated[list[str] | None, Field(description="That may be asked for, by these names; null: all")]
    max_tokens: Annotated[int | None, Field(description="Of an answer")]
    agents: Annotated[list[str] | None, Field(description="That may be asked for; null: all")]


class SetLimits(TenantsLimits):
    """null: not set for this tenant."""

    tenant: str


class LimitList(BaseModel):
    tenants: list[SetLimits]
    others: Annotated[
        TenantsLimits,
        Field(description="What counts where nothing is set; of the tenant `default` models and max_tokens alone"),
    ]


class Told(BaseModel):
    id: str


class ListedKey(BaseModel):
    """Of its secret nothing is known."""

    id: Annotated[str, Field(description="As in `who`, behind `key:`")]
    tenant: str
    name: Annotated[str, Field(description="Of a server's own settings, the setting's")]
    scopes: list[str]
    created_at: Time | None
    expires_at: Time | None
    revoked_at: Time | None


class KeyList(BaseModel):
    keys: list[ListedKey]


class MintedToken(BaseModel):
    token: str
    expires_at: Time


class Status(BaseModel):
    status: Literal["ok", "ready"]


class Event(BaseModel):
    """A line of NDJSON. Over SSE, `id` and `event` are fields of their own, `data` is this one's, and `t` is absent."""

    id: Annotated[int, Field(description="Absent: a notice, such as `gap`")] = Absent
    event: str
    data: dict[str, Json]
    t: Annotated[int, Field(description="When it was written, in ms since 1970")] = Absent


ANSWERS: tuple[type[BaseModel], ...] = (
    *(Stream, StreamState, StartedStream, StreamPage, SessionStreams, SessionPage, Ended, Appended, Renewed),
    *(AssistantMessage, Present, ViewPage, Verification, ModelList, AgentList, KeyList, LimitList, MintedToken, Told),
    *(Status, Event, DeedPage, Erasure),
)
