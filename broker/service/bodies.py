"""The bodies of requests: one model each, strict (no coercion, no unknown field).

A body of the wrong form may be wrong in 300,000 places, and pydantic takes some microseconds for each, in which nobody
else is answered. So a list's first wrong item, and an object's first unknown field, end the check.
"""

from __future__ import annotations

import re
import time
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from broker.log.event import KIND, NOTICES, OF_CLIENTS, RESERVED, TERMINAL
from broker.settings import MODEL, MODEL_CHARACTERS
from broker.tenants.keyring import TENANT
from broker.tenants.scopes import OF_TOKENS, READ
from broker.tenants.tokens import LEEWAY_S, MAX_SESSIONS, MAX_STREAMS

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""An id that callers choose (session, user): it becomes part of keys and log lines, and appears in terminals."""

Subject = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
"""Whom a token names. It stands in the access record."""

Lifetime = Annotated[int, Field(ge=1, le=10 * 366 * 86_400)]
"""In s; LASTEVENT_TOKEN_MAX_TTL_S says how long it may be."""

EventId = Annotated[int, Field(ge=1, lt=2**53)]
"""Below 2^53 a number is exact in JavaScript (RFC 8259, section 6)."""

ANY_MODEL = r"^[^/\x00-\x1f\x7f]{1,64}/[^\x00-\x1f\x7f]{1,128}$"
"""provider/name, as an external stream's producer calls them."""

ModelName = Annotated[str, StringConstraints(pattern=rf"^[^\x00-\x1f\x7f]{{1,{MODEL_CHARACTERS}}}$")]
"""It appears in terminals."""

Words = Annotated[str, Field(min_length=1)]

AGENT = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
AgentName = Annotated[str, StringConstraints(pattern=AGENT)]

Tag = Literal["think", "thinking", "thought", "reasoning", "tool", "tool_call", "function_call"]
"""As a model writes it, between < and >: what is in there is thinking, or a call."""

Shown = Literal["thinking", "args", "results"]

MAX_CHAIN = 8
MAX_INPUT_BYTES = 256 * 1024
"""Of an agent, as JSON: what more than that is belongs where the agent can fetch it."""

MAX_TOOLS = 512
MAX_STOP_SEQUENCES = 64

UNKNOWN_FIELD = "unknown_field"
LONGEST_TYPO = 40
"""Of a longer name nobody has mistyped one of ours, and to compare takes its square."""

MAX_BATCH = 1000
"""Events of one body: they are one script, and Redis serves nothing else while it runs."""


def _are_objects(blocks: list[Any]) -> list[Any]:
    if any(type(block) is not dict for block in blocks):  # as JSON makes them; isinstance takes twice as long
        raise ValueError("each block is a JSON object")
    return blocks


Object = InstanceOf[dict[str, Any]]
"""Any JSON object, not looked into. As a dict, pydantic would check and copy each of its 100,000 keys."""


def _are_few_objects(tools: list[Any]) -> list[Any]:
    if len(tools) > MAX_TOOLS:
        raise ValueError(f"at most {MAX_TOOLS} tools")
    if any(type(tool) is not dict for tool in tools):
        raise ValueError("each tool is a JSON object")
    return tools


def _holds_objects(options: dict[str, Any]) -> dict[str, Any]:
    if any(type(of_one) is not dict for of_one in options.values()):
        raise ValueError("give a JSON object for each provider, by its name")
    return options


Tools = Annotated[InstanceOf[list[dict[str, Any]]], AfterValidator(_are_few_objects)]

ProviderOptions = Annotated[InstanceOf[dict[str, dict[str, Any]]], AfterValidator(_holds_objects)]

Blocks = Annotated[InstanceOf[list[dict[str, Any]]], AfterValidator(_are_objects)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_only_its_fields(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.keys() <= cls.model_fields.keys():
            raise PydanticCustomError(UNKNOWN_FIELD, "{advice}", {"advice": cls._advice(given)})
        return given

    @classmethod
    def _advice(cls, given: dict[str, Any]) -> str:
        """Names fields that there are, and none that was sent: that may be anything, and anybody's."""
        unknown = next(name for name in given if name not in cls.model_fields)
        near = get_close_matches(unknown.lower(), cls.model_fields, n=1) if len(unknown) <= LONGEST_TYPO else []
        meant = f"; did you mean `{near[0]}`?" if near else "."
        fields = ", ".join(cls.model_fields)
        return f"unknown field{meant} " + (f"There are: {fields}" if fields else "There are none")


class Message(Body):
    role: Literal["user", "assistant", "system"]
    content: str | Blocks
    native: Object | None = None
    """Of an answer, as `GET …/message` gave it: what its provider needs for the next turn."""

    def given(self) -> dict[str, Any]:
        # Not model_dump, which copies the blocks.
        plain = {"role": self.role, "content": self.content}
        return plain if self.native is None else {**plain, "native": self.native}


class Tags(Body):
    """Tags that a model writes within its text."""

    tags: Annotated[list[Tag], Field(min_length=1, max_length=7, fail_fast=True)]


class ForToken(Body):
    """Of the token in the answer's `events_url`."""

    sub: Subject | None = None
    """Default: the stream's `user_id`."""
    ttl_s: Lifetime | None = None
    """Default: LASTEVENT_READ_TOKEN_TTL_S."""


class Webhook(Body):
    """Who is told of the ending."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    """https; webhook_url.py says what it may be."""


LANGUAGE = r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,7}$"
"""BCP 47 (RFC 5646, section 2.1), as far as its form goes; what has a form only is not looked up."""

OF_PROVIDERS = (
    *("tools", "tool_choice", "thinking", "effort", "stop_sequences", "temperature", "output_schema"),
    *("provider_options", "on_tool_effects"),
)
"""Fields that are in a worker's request just as they were given."""


OF_AN_AGENT = ("model", "system", "max_tokens", *OF_PROVIDERS, "transform")
"""What is the agent's own."""


class CreateStream(Body):
    """POST /v1/streams. Either `messages` or `prompt`, or an agent's `input`; an external stream may have none.

    What an external one says here is kept as its producer's word for what was asked: nothing is sent to a model.
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000, fail_fast=True)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    system: str | Blocks | None = None
    model: ModelName | Annotated[list[ModelName], Field(min_length=1, max_length=MAX_CHAIN)] | None = None
    """provider/name, an alias, or a model's own name. Several: one after the other, until one answers."""
    max_tokens: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    tools: Tools | None = None
    tool_choice: Object | None = None
    thinking: Object | None = None
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    stop_sequences: Annotated[list[Words], Field(max_length=MAX_STOP_SEQUENCES, fail_fast=True)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    output_schema: Object | None = None
    """A JSON Schema, which output_schema.py checks."""
    provider_options: ProviderOptions | None = None
    """Provider's name → parameters of its own, which the worker checks."""
    on_tool_effects: Literal["restart", "fail"] | None = None
    """Whether a try that failed is repeated although the provider has run a tool in it. Default: fail."""
    agent: AgentName | None = None
    input: Any = None
    """What the agent takes, any JSON."""
    show: Annotated[list[Shown], Field(max_length=3)] | None = None
    """What viewers see besides the answer. Default: what the agent says, and of a plain stream nothing."""
    transform: Literal["react"] | Tags | None = None
    """The model thinks and acts in its text: how that becomes events."""
    sentences: bool = False
    """The worker also writes the answer in sentences (`sentence`), for speech."""
    language: Annotated[str, StringConstraints(pattern=LANGUAGE, max_length=35)] | None = None
    """Of the sentences, BCP 47. Default: en."""
    session_id: Name | None = None
    user_id: Name | None = None
    metadata: Object | None = None
    on_worker_loss: Literal["restart", "fail"] = "restart"
    abandon_after_s: Annotated[float, Field(ge=1, le=86_400)] | None = None
    """The stream is cancelled after so long without a viewer. Default: it continues without viewers."""
    producer: Literal["worker", "external"] = "worker"
    token: ForToken | None = None
    webhook: Webhook | None = None
    """null: none, also if LASTEVENT_WEBHOOK_URL is set."""

    @model_validator(mode="after")
    def _has_one_input(self) -> CreateStream:
        has_input = "input" in self.model_fields_set
        given = sum((self.messages is not None, self.prompt is not None, has_input))
        if self.agent is not None:
            self._require_what_agents_take(given)
        elif has_input:
            raise ValueError("input: it is for an agent; give its name as agent, or give messages or prompt")
        elif given > 1 or (self.producer == "worker" and not given):
            raise ValueError("give either messages or prompt")
        if self.language is not None and "sentences" not in self.model_fields_set:
            raise ValueError('language: it is that of the sentences; give "sentences": true as well')
        if self.producer == "external":
            self._require_what_producers_say()
        elif not all(re.fullmatch(MODEL, name, re.ASCII) for name in self.chain):
            raise ValueError("model: provider/name, an alias or a model's name; letters, digits and / [ ] : @ . _ - +")
        return self

    def _require_what_agents_take(self, given: int) -> None:
        if self.producer == "external":
            raise ValueError("agent: a worker runs it; the producer of an external stream runs its own code")
        if given != 1:
            raise ValueError("give the agent either input, or messages or prompt")
        if found := next((name for name in OF_AN_AGENT if getattr(self, name) is not None), None):
            raise ValueError(f"{found}: it is the agent's own; leave it out, or start a stream without agent")
        if "input" in self.model_fields_set and len(orjson.dumps(self.input)) > MAX_INPUT_BYTES:
            raise ValueError(f"input: at most {MAX_INPUT_BYTES} bytes as JSON")

    def _require_what_producers_say(self) -> None:
        if self.abandon_after_s is not None:
            raise ValueError("abandon_after_s stops a worker; the producer of an external stream stops by itself")
        if found := next((name for name in (*OF_PROVIDERS, "transform") if getattr(self, name) is not None), None):
            raise ValueError(f"{found}: the producer of an external stream calls its model itself")
        if self.show is not None:
            raise ValueError("show: the producer of an external stream decides by the kinds of its events")
        if self.sentences:
            raise ValueError("sentences: the producer of an external stream writes its `sentence` events itself")
        if not (isinstance(self.model, str | None) and re.fullmatch(ANY_MODEL, self.model or "any/model")):
            raise ValueError("model: of an external stream provider/name, one")
        if not isinstance(self.system, str | None) or self.max_tokens == 0:
            raise ValueError("of an external stream, system is a text and max_tokens at least 1")
        if any(message.role == "system" or message.native is not None for message in self.messages or ()):
            raise ValueError("messages: of an external stream user's and assistant's, without native")

    @property
    def chain(self) -> list[str]:
        """The models that are asked for, one after the other. Empty: the default one."""
        return self.model if isinstance(self.model, list) else [self.model] if self.model else []

    def provider_request(self, default_max_tokens: int) -> dict[str, Any]:
        """The neutral request, in the form of Anthropic's Messages API, which the worker translates for a provider.

        `model` is in it only if there are several.
        """
        max_tokens = default_max_tokens if self.max_tokens is None else self.max_tokens
        asked = {**self.stated_request(), "max_tokens": max_tokens}
        asked |= {name: value for name in OF_PROVIDERS if (value := getattr(self, name)) is not None}
        if self.transform is not None:
            asked["transform"] = self.transform if isinstance(self.transform, str) else self.transform.model_dump()
        return {**asked, "model": self.chain} if len(self.chain) > 1 else asked

    def agent_request(self) -> dict[str, Any]:
        """What the agent is given: its input, or messages."""
        if "input" in self.model_fields_set:
            return {"agent": self.agent, "input": self.input}
        return {"agent": self.agent, **self.stated_request()}

    def stated_request(self) -> dict[str, Any]:
        """As much of it as the caller gave: the producer of an external stream need not say what was asked."""
        asked = [message.given() for message in self.messages or []]
        if self.prompt is not None:
            asked = [{"role": "user", "content": self.prompt}]
        stated = {"messages": asked or None, "max_tokens": self.max_tokens, "system": self.system}
        return {name: value for name, value in stated.items() if value is not None}


class GiveInput(Body):
    """POST /v1/streams/{id}/input. Either `text` or `data`."""

    text: Annotated[str, Field(min_length=1)] | None = None
    data: Any = None
    """Any JSON, for an agent that takes more than a text."""
    interrupt: bool = False
    """Whether the agent stops saying what it says."""

    @model_validator(mode="after")
    def _has_one(self) -> GiveInput:
        if (self.text is not None) == ("data" in self.model_fields_set):
            raise ValueError("give either text or data")
        return self

    def told(self) -> dict[str, Any]:
        """{"text"} or {"data"}, and "interrupt" only if it is true."""
        what = {"text": self.text} if self.text is not None else {"data": self.data}
        return {**what, "interrupt": True} if self.interrupt else what


class Decide(Body):
    """POST /v1/streams/{id}/approvals/{approval_id}."""

    approve: bool
    reason: Annotated[str, StringConstraints(max_length=2000)] = ""
    """For the agent: why, or what to do instead."""


class Regenerate(Body):
    """POST /v1/streams/{id}/regenerate. The body is empty: the request is the first stream's."""


class Cancel(Body):
    """POST /v1/streams/{id}/cancel."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=500)] = "requested"


class ErasePerson(Body):
    """POST /v1/erasures. Either `user_id` or `session_id`."""

    user_id: Name | None = None
    session_id: Name | None = None
    reason: Annotated[str, StringConstraints(min_length=1, max_length=500)] | None = None
    """Kept for good, in a seal: it must not say who."""

    @model_validator(mode="after")
    def _has_one(self) -> ErasePerson:
        if (self.user_id is None) == (self.session_id is None):
            raise ValueError("give either user_id or session_id")
        return self


class NewEvent(Body):
    event: Annotated[str, StringConstraints(pattern=rf"^{KIND.pattern}$")]
    data: Object

    @model_validator(mode="after")
    def _is_theirs(self) -> NewEvent:
        if self.event in RESERVED:
            raise ValueError(f"only the broker writes {', '.join(sorted(RESERVED))}")
        if self.event in NOTICES:
            raise ValueError(f"these are notices, not events: {', '.join(sorted(NOTICES))}. Use another kind")
        if self.event in OF_CLIENTS:
            raise ValueError(f"clients have these for themselves: {', '.join(sorted(OF_CLIENTS))}. Use another kind")
        return self


class AppendEvents(Body):
    """POST /v1/streams/{id}/events. `first` is the first event's id: with it, sending again is harmless."""

    epoch: EventId
    first: EventId | None = None
    events: Annotated[list[NewEvent], Field(min_length=1, max_length=MAX_BATCH, fail_fast=True)]

    @model_validator(mode="after")
    def _ends_once(self) -> AppendEvents:
        if any(event.event in TERMINAL for event in self.events[:-1]):
            raise ValueError("no event can follow a terminal event (done, error, cancelled)")
        return self


class ProducerHeartbeat(Body):
    """POST /v1/streams/{id}/heartbeat."""

    epoch: EventId


class MintToken(Body):
    """POST /v1/tokens. What it opens is one of `streams`, `sessions`, `own`; they are names, and nothing is looked up:
    what is another tenant's, or is not there, the token does not open.
    """

    sub: Subject
    streams: Annotated[list[Subject], Field(min_length=1, max_length=MAX_STREAMS, fail_fast=True)] | None = None
    sessions: Annotated[list[Subject], Field(min_length=1, max_length=MAX_SESSIONS, fail_fast=True)] | None = None
    own: Literal[True] | None = None
    """The streams whose `user_id` is `sub`."""
    scope: str = READ
    """Separated by spaces."""
    ttl_s: Lifetime = 3600

    @model_validator(mode="after")
    def _opens_one_thing(self) -> MintToken:
        if len(self.opened) != 1:
            raise ValueError("give one of streams, sessions and own")
        if not self.scopes or not self.scopes <= OF_TOKENS:
            raise ValueError(f"scope: of {', '.join(sorted(OF_TOKENS))}, separated by spaces")
        return self

    @property
    def opened(self) -> dict[str, Any]:
        given = {"streams": self.streams, "sessions": self.sessions, "own": self.own}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def scopes(self) -> frozenset[str]:
        return frozenset(self.scope.split())


def _is_text(given: object) -> object:
    if not isinstance(given, str):  # pydantic takes numbers for times
        raise ValueError("a time as RFC 3339 writes it")  # noqa: TRY004 - pydantic explains a ValueError
    return given


class RevokeTokens(Body):
    """POST /v1/tokens/revoke. One token; or a subject's, or those that name a stream, as far as they were issued before
    now, or before `issued_before`.
    """

    jti: Subject | None = None
    sub: Subject | None = None
    stream: Subject | None = None
    issued_before: Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_is_text)] | None = None
    """RFC 3339. Only with `sub`."""
    tenant: Annotated[str, StringConstraints(pattern=rf"^{TENANT}$")] | None = None
    """Only with the scope `admin`. Default: the caller's."""

    @model_validator(mode="after")
    def _names_one_thing(self) -> RevokeTokens:
        if sum(given is not None for given in (self.jti, self.sub, self.stream)) != 1:
            raise ValueError("give one of jti, sub and stream")
        if self.issued_before is not None and self.sub is None:
            raise ValueError("issued_before: it goes with sub")
        if self.issued_before is not None and self.issued_before.timestamp() > time.time() + LEEWAY_S:
            # It would be forgotten before the last token that it means is over.
            raise ValueError("issued_before: it lies in the future; what is not issued yet cannot be revoked")
        return self
