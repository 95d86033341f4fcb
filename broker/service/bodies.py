"""The bodies of requests: one model each, strict (no coercion, no unknown field).

A body of the wrong form may be wrong in 300,000 places, and pydantic takes some microseconds for each, in which nobody
else is answered. So a list's first wrong item, and an object's first unknown field, end the check.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, InstanceOf, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from broker.log.event import KIND, NOTICES, OF_CLIENTS, RESERVED, TERMINAL
from broker.settings import MODEL, PROVIDERS

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""An id that callers choose (session, user): it becomes part of keys and log lines, and appears in terminals."""

EventId = Annotated[int, Field(ge=1, lt=2**53)]
"""Below 2^53 a number is exact in JavaScript (RFC 8259, section 6)."""

ANY_MODEL = r"^[^/\x00-\x1f\x7f]{1,64}/[^\x00-\x1f\x7f]{1,128}$"
"""provider/name, as an external stream's producer calls them: it appears in terminals."""

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
        meant = f"did you mean `{near[0]}`? " if near else ""
        fields = ", ".join(cls.model_fields)
        return f"unknown field; {meant}" + (f"There are: {fields}" if fields else "There are none")


class Message(Body):
    role: Literal["user", "assistant"]
    content: str | Blocks


class CreateStream(Body):
    """POST /v1/streams. Either `messages` or `prompt`; an external stream may have neither.

    What an external one says here is kept as its producer's word for what was asked: nothing is sent to a model.
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000, fail_fast=True)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    system: str | None = None
    model: Annotated[str, StringConstraints(pattern=ANY_MODEL)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    session_id: Name | None = None
    user_id: Name | None = None
    metadata: Object | None = None
    on_worker_loss: Literal["restart", "fail"] = "restart"
    abandon_after_s: Annotated[float, Field(ge=1, le=86_400)] | None = None
    """The stream is cancelled after so long without a viewer. Default: it continues without viewers."""
    producer: Literal["worker", "external"] = "worker"

    @model_validator(mode="after")
    def _has_one_input(self) -> CreateStream:
        given = sum(value is not None for value in (self.messages, self.prompt))
        if self.producer == "external" and self.abandon_after_s is not None:
            raise ValueError("abandon_after_s stops a worker; the producer of an external stream stops by itself")
        if given > 1 or (self.producer == "worker" and not given):
            raise ValueError("give either messages or prompt")
        if self.producer == "worker" and self.model and not re.fullmatch(MODEL, self.model):
            raise ValueError(f"model: a worker needs provider/name, and its providers are {', '.join(PROVIDERS)}")
        return self

    def provider_request(self, default_max_tokens: int) -> dict[str, Any]:
        """The request that the worker sends to the provider, in the form of its Messages API without the model."""
        return {**self.stated_request(), "max_tokens": self.max_tokens or default_max_tokens}

    def stated_request(self) -> dict[str, Any]:
        """As much of it as the caller gave: the producer of an external stream need not say what was asked."""
        asked = [{"role": message.role, "content": message.content} for message in self.messages or []]
        if self.prompt is not None:
            asked = [{"role": "user", "content": self.prompt}]
        stated = {"messages": asked or None, "max_tokens": self.max_tokens, "system": self.system}
        return {name: value for name, value in stated.items() if value is not None}


class Regenerate(Body):
    """POST /v1/streams/{id}/regenerate. The body is empty: the request is the first stream's."""


class Cancel(Body):
    """POST /v1/streams/{id}/cancel."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=500)] = "requested"


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
