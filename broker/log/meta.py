"""Meta: what is kept of a stream beside its events. Each field is declared once, here.

In Redis, Meta is a hash of strings; in the archive, a field is a column or a part of the sealed record. A declaration
says how the field is read and which copies of a stream have it:

    is_restored         a writer that puts back a stream that Redis lost writes it again. The other fields say how far
                        the stream has come; the steps set them again
    is_archived         the archive's record has it, under the stream's seal
    outlives_erasure    the tombstone has it
    api_name            its name in the stream's record over HTTP (service/record.py)
    is_client_supplied  a caller chose its content, so masks are applied to it

Each script shows which fields it reads and writes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

import orjson

from broker.log.event import is_terminal
from broker.log.keys import SCHEMA

T = TypeVar("T")

COUNTS = (
    *("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
    *("output_tokens", "thinking_tokens"),
)
"""Of a usage: what all providers have in common, so that it adds up. An external producer's usage may have anything,
under these names too."""

FOLD = 1
"""The version of all folds (dialects/fold.py). A stream keeps the one that it was created with: a release that says
something in other words must not move the cursors of streams that run."""

WORKER, EXTERNAL, SHARED = "worker", "external", "shared"
"""What produces a stream's events: a worker, a producer of the caller's over HTTP, or any number of those (Durable
Streams), each request by itself: nobody holds the pen."""

NEVER_MS = 253_402_300_799_000
"""The end of the year 9999. A shared stream's lease runs until then, so nobody takes its pen but to end it; nor does a
worker of a release that knows no such streams."""


def _is_1(text: str) -> bool:
    return text == "1"


class Field(Generic[T]):
    """A field that a stream may lack: it then reads as None. `read`: from the stored string to the value."""

    def __init__(
        self,
        read: Callable[[str], T],
        *,
        is_restored: bool = False,
        is_archived: bool = False,
        outlives_erasure: bool = False,
        api_name: str | None = None,
        is_client_supplied: bool = False,
    ) -> None:
        self.read = read
        self.is_restored = is_restored
        self.is_archived = is_archived
        self.outlives_erasure = outlives_erasure
        self.api_name = api_name
        self.is_client_supplied = is_client_supplied

    def __set_name__(self, _: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, meta: None, owner: type) -> Field[T]: ...
    @overload
    def __get__(self, meta: Meta, owner: type) -> T | None: ...
    def __get__(self, meta: Meta | None, owner: type) -> Field[T] | T | None:
        if meta is None:
            return self
        text = meta.fields.get(self.name)
        return None if text is None else self.read(text)


class Always(Field[T]):
    """A field that every stream has, also an erased one. Raises KeyError if it is absent."""

    @overload
    def __get__(self, meta: None, owner: type) -> Always[T]: ...
    @overload
    def __get__(self, meta: Meta, owner: type) -> T: ...
    def __get__(self, meta: Meta | None, owner: type) -> Always[T] | T:
        return self if meta is None else self.read(meta.fields[self.name])


@dataclass(frozen=True, slots=True)
class Meta:
    """A stream's meta as it was read. `fields`: name → the stored string."""

    fields: Mapping[str, str]

    # What the stream is, from its creation on.
    schema = Field(int, is_restored=True, is_archived=True, outlives_erasure=True)
    tenant = Always(str, is_restored=True, is_archived=True, outlives_erasure=True)
    state = Always(str, is_archived=True, outlives_erasure=True, api_name="state")
    """queued → running → done | error | cancelled"""
    session = Field(str, is_restored=True, is_archived=True, api_name="session_id", is_client_supplied=True)
    user = Field(str, is_restored=True, is_archived=True, api_name="user_id", is_client_supplied=True)
    producer = Field(str, is_restored=True, is_archived=True, api_name="producer")
    """WORKER, EXTERNAL or SHARED"""
    model = Field(str, is_restored=True, is_archived=True, api_name="model", is_client_supplied=True)
    """provider/name, or a name alone (an alias, or a model's own); of a chain the first one, `request` has all of it.
    Of an external stream what its producer says, or ''"""
    request = Field(orjson.loads, is_restored=True, is_archived=True, api_name="request", is_client_supplied=True)
    """The request that the worker sends to the provider, JSON; of an external stream what its producer says that was
    asked, if it says so: nothing is sent. In Redis it has a key of its own (request.py); only a
    stream that an older release created has it here."""
    request_of = Field(str, is_restored=True, outlives_erasure=True)
    """The stream under whose id the request is kept: this one, or the first one that had it.
    An erased stream keeps it until its request has been let go."""
    agent = Field(str, is_restored=True, is_archived=True, api_name="agent")
    """The agent that answers. None: a model does, or an external producer."""
    show = Field(orjson.loads, is_restored=True, is_archived=True)
    """What viewers see besides the answer: a JSON list of `thinking`, `args`, `results`."""
    sentences = Field(_is_1, is_restored=True, is_archived=True)
    """Whether its worker also tells the answer in sentences, for speech."""
    language = Field(str, is_restored=True, is_archived=True)
    """Of the sentences, BCP 47."""
    metadata = Field(orjson.loads, is_restored=True, is_archived=True, api_name="metadata", is_client_supplied=True)
    regenerates = Field(str, is_restored=True, is_archived=True, api_name="regenerates")
    dialect = Field(orjson.loads, is_restored=True, is_archived=True)
    """Of a stream that was started in a dialect, JSON: {"name", "model", "echo"}: the model as it was asked for, and
    what its answers repeat of the request."""
    fold = Field(int, is_restored=True, is_archived=True)
    """The version of the folds (dialects/fold.py) that give its cursors."""
    webhook = Field(str, is_restored=True, is_archived=True)
    """The URL that is told of the ending (hooks.py). No record over HTTP has it: it may open its receiver."""
    on_worker_loss = Field(str, is_restored=True, is_archived=True)
    """restart | fail"""
    abandon_after_s = Field(float, is_restored=True, is_archived=True)
    idempotency = Field(str, is_restored=True)
    """The Idempotency-Key, a space, the digest of the request."""
    durable = Field(orjson.loads, is_restored=True, is_archived=True)
    """What Durable Streams keeps of a shared stream: JSON, see shared.py."""
    path = Field(str, is_restored=True, is_archived=True, outlives_erasure=True)
    """Of a shared stream: where it is found (paths.py). An erased one keeps it until the path no longer names it."""
    traceparent = Field(str, is_restored=True)
    """W3C Trace Context: the span that queued it, where starts are traced."""
    boot = Field(str, is_restored=True)
    """The Redis server that created it: run_id and replication id (prelude.lua). '': unknown."""
    counted_from = Field(int, is_restored=True)
    """Of a stream whose id a client chose: the time from which its blocks of ids are counted, long before `created`."""

    # The pen, and the writer that holds it.
    epoch = Field(int)
    """The fencing token: it grows by one each time the pen changes hands."""
    claim = Field(str)
    base = Field(int)
    """The pen's first event id."""
    claimed_under = Field(str)
    """The server that ran the claim."""
    jumped = Field(str, is_restored=True)
    """The server under which the ids of a producer that does not number its events jumped last."""
    worker = Field(str, is_restored=True)
    lease_until = Field(int)
    """ms since 1970 by Redis' clock"""
    attempt = Field(int, is_archived=True, api_name="attempt")

    # How far the stream has come. Times are ms since 1970 by Redis' clock.
    tail = Always(int, is_archived=True, outlives_erasure=True, api_name="last_event_id")
    """The id of the last event. While a worker writes (`may_be_behind`), of the last one that a whole step knew of, a
    heartbeat ago at most: `StreamLog.at_tail` says where the log ends."""
    events = Field(int, is_archived=True, outlives_erasure=True)
    """How many there are, likewise."""
    bytes = Field(int, is_archived=True)
    """The size of all events' data, likewise."""
    kept = Field(int)
    """The attempt in which an agent's turn or a call's result was written last: what a takeover need not do again.
    `append` sets it with the event, so it is what the log says. Attempts without any are what is counted."""
    usage = Field(orjson.loads)
    """While it runs: what its provider has counted so far, as the members that an ending by seizure takes over, JSON:
    {"usage": {…}, "cost_usd": …, "usage_incomplete": true}. The step that ends the stream removes it."""
    created = Always(int, is_archived=True, outlives_erasure=True, api_name="created_at")
    started = Field(int, is_restored=True, is_archived=True, api_name="started_at")
    first_text = Field(int, is_archived=True, api_name="first_text_at")
    finished = Field(int, is_archived=True, outlives_erasure=True, api_name="finished_at")
    stopped_after = Field(int, is_archived=True)
    """The id of the last event before the ending."""
    ending = Field(orjson.loads, is_archived=True)
    """The terminal event's data, JSON."""
    archived = Field(int, outlives_erasure=True, api_name="archived_at")
    """When the stream was archived."""
    expires = Field(int)
    """When the life of a shared stream is over. Its use may move that."""
    erased = Field(int, api_name="erased_at")
    """When its content was erased. The step that erases sets it."""
    erased_by = Field(str, api_name="erased_by")
    """Who erased it, as in the access record. A tombstone of release 0.1 does not say."""

    @property
    def has_ended(self) -> bool:
        return is_terminal(self.state)

    @property
    def may_be_behind(self) -> bool:
        """Whether the log may have more than `tail`, `events` and `bytes` say (scripts/extend.lua)."""
        return self.state == "running" and self.producer not in (EXTERNAL, SHARED)

    @property
    def is_external(self) -> bool:
        return self.producer == EXTERNAL

    @property
    def is_shared(self) -> bool:
        return self.producer == SHARED

    @property
    def provider(self) -> str | None:
        """The part of `model` before the slash; None where it has none."""
        provider, slash, _ = (self.model or "").partition("/")
        return provider if slash else None

    @property
    def model_name(self) -> str:
        """The part of `model` after the slash, as its provider calls it."""
        return (self.model or "").partition("/")[2]

    @property
    def idempotency_key(self) -> tuple[str, str] | None:
        """The key and the digest of the request that it belongs to."""
        if self.idempotency is None:
            return None
        key, digest = self.idempotency.split(" ")
        return key, digest

    # -- copies: fields as they are stored ---------------------------------------------------------------

    def with_request(self, text: str) -> Meta:
        """This meta and the request, which has a key of its own, as the archive keeps both."""
        return Meta({**self.fields, "request": text})

    def with_tail(self, tail: int) -> Meta:
        return Meta({**self.fields, "tail": str(tail)})

    def restored(self) -> dict[str, str]:
        """The fields with which a lost stream is put back. Fields of a newer release are kept."""
        elsewhere = _PROGRESS if self.request_of is None else _PROGRESS | {"request"}
        return {name: text for name, text in self.fields.items() if name not in elsewhere}

    def archived_fields(self) -> dict[str, str]:
        return {name: self.fields[name] for name in _ARCHIVED if name in self.fields}

    def tombstone(self) -> dict[str, str]:
        return {name: self.fields[name] for name in _TOMBSTONE if name in self.fields}

    def erased_at(self, erased_ms: int) -> Meta:
        """The meta that is left once the stream's content is erased."""
        erased = {name: self.fields[name] for name in ("erased", "erased_by") if name in self.fields}
        return Meta({**self.tombstone(), "erased": str(erased_ms), **erased})


FIELDS: tuple[Field[Any], ...] = tuple(value for value in vars(Meta).values() if isinstance(value, Field))

_PROGRESS = frozenset(field.name for field in FIELDS if not field.is_restored)
_ARCHIVED = tuple(field.name for field in FIELDS if field.is_archived)
_TOMBSTONE = tuple(field.name for field in FIELDS if field.outlives_erasure)


def read_hash(fields: Mapping[bytes, bytes]) -> Meta | None:
    """The meta of a Redis hash; None if the hash does not exist."""
    return Meta({name.decode(): text.decode() for name, text in fields.items()}) if fields else None


def new_sid() -> str:
    """A stream id of 128 random bits: it cannot be guessed and never collides."""
    return secrets.token_hex(16)


def new_claim_id() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class NewStream:
    """What a stream is created from. `request` is sent to the provider, unless the stream is external. As bytes,
    it is JSON already.

    `request_of`: an earlier stream's id whose request this one shares; `request` is then None.
    """

    tenant: str
    session: str
    sid: str = field(default_factory=new_sid)
    producer: str = WORKER
    agent: str | None = None
    show: Sequence[str] | None = None
    sentences: bool = False
    language: str | None = None
    user: str | None = None
    model: str = ""
    request: dict[str, Any] | bytes | None = None
    request_of: str | None = None
    metadata: dict[str, Any] | None = None
    regenerates: str | None = None
    on_worker_loss: str = "restart"
    abandon_after_s: float | None = None
    dialect: bytes | None = None
    fold: int | None = None
    webhook: str | None = None
    idempotency: str | None = None
    traceparent: str | None = None
    durable: Mapping[str, Any] | None = None
    path: str | None = None
    expires: int | None = None

    @classmethod
    def again(cls, sid: str, meta: Meta) -> NewStream:
        """A new stream of the same session, with the same request."""
        return cls(
            tenant=meta.tenant,
            session=meta.session or "",
            agent=meta.agent,
            show=meta.show,
            sentences=bool(meta.sentences),
            language=meta.language,
            user=meta.user,
            model=meta.model or "",
            request=meta.fields["request"].encode() if meta.request_of is None else None,
            request_of=meta.request_of,
            metadata=meta.metadata,
            regenerates=sid,
            on_worker_loss=meta.on_worker_loss or "restart",
            abandon_after_s=meta.abandon_after_s,
            dialect=meta.fields["dialect"].encode() if "dialect" in meta.fields else None,
            fold=meta.fold,
            webhook=meta.webhook,
        )

    @property
    def own_request(self) -> bytes:
        """The request as it is stored with this stream. Empty: it has none, or shares another's."""
        if self._has_none or self.request_of is not None:
            return b""
        return self.request if isinstance(self.request, bytes) else orjson.dumps(self.request)

    @property
    def _has_none(self) -> bool:
        return self.producer != WORKER and self.request is None

    def fields(self) -> dict[str, str | bytes]:
        """The first meta, without what `create` sets (times, tail, counts). Only a worker's waits."""
        runs = self.producer != WORKER
        fields: dict[str, str | bytes | None] = {
            "schema": str(SCHEMA),
            "tenant": self.tenant,
            "session": self.session,
            "producer": self.producer,
            "model": self.model,
            "agent": self.agent,
            "show": None if self.show is None else orjson.dumps(list(self.show)),
            "sentences": "1" if self.sentences else None,
            "language": self.language if self.sentences else None,
            "request_of": None if self._has_none else self.request_of or self.sid,
            "metadata": orjson.dumps(self.metadata or {}),
            "on_worker_loss": self.on_worker_loss,
            "state": "running" if runs else "queued",
            "epoch": "1" if runs else "0",
            "attempt": "1" if runs else "0",
            "claim": new_claim_id() if runs else "",
            "base": "2",
            "user": self.user,
            "regenerates": self.regenerates,
            "abandon_after_s": None if self.abandon_after_s is None else str(self.abandon_after_s),
            "dialect": self.dialect,
            "fold": None if self.fold is None else str(self.fold),
            "webhook": self.webhook,
            "idempotency": self.idempotency,
            "traceparent": self.traceparent,
            "durable": None if self.durable is None else orjson.dumps(self.durable),
            "path": self.path,
            "expires": None if self.expires is None else str(self.expires),
            "lease_until": str(NEVER_MS) if self.producer == SHARED else None,
        }
        return {name: text for name, text in fields.items() if text is not None}
