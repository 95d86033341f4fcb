"""What a client may say on a socket: an object with `op`, and the fields of that op. Pure: nothing is done here.

An op that a route has too is checked by that route's own model: its fields are those of the route's body, beside the
op's. Every type is checked, as of any body (strict_json.py), and nothing that was sent is repeated but `ref`.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, StringConstraints, model_validator

from broker.errors import InvalidRequest, UnknownOp
from broker.log.event import KIND
from broker.service.bodies import LONGEST_TYPO, Body, Cancel, CreateStream, GiveInput, Name, Object
from broker.web.strict_json import check

REF_CHARACTERS = 64
MAX_KINDS = 32
MIN_WINDOW, MAX_WINDOW = 16, 10_000
_EXACT = 2**53
"""Below it, numbers are exact in JavaScript."""

StreamId = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Cursor = Annotated[int, Field(ge=0, lt=_EXACT)]
Kind = Annotated[str, StringConstraints(pattern=rf"^{KIND.pattern}$")]

Ref = str | int | None


class Shape(Body):
    """How a follow is sent."""

    window: Annotated[int, Field(ge=MIN_WINDOW, le=MAX_WINDOW)] | None = None
    """Events that may be unacknowledged. Default: as many as TCP takes."""
    compact: bool = False
    kinds: Annotated[list[Kind], Field(max_length=MAX_KINDS, fail_fast=True)] | None = None
    presence: bool = False


class Auth(Body):
    token: Annotated[str, StringConstraints(min_length=1, max_length=16_384)]


class Follow(Shape):
    """Either `stream`, from `cursor` on, or `session`, from `cursors` on."""

    stream: StreamId | None = None
    session: Name | None = None
    cursor: Cursor | Literal["earliest", "latest"] = 0
    cursors: Object | None = None
    """As `ok` and `stream` gave them (dialects/vector.py)."""

    @model_validator(mode="after")
    def _has_one(self) -> Follow:
        if (self.stream is None) == (self.session is None):
            raise ValueError("give either stream or session")
        if self.session is not None and "cursor" in self.model_fields_set:
            raise ValueError("cursor: of a stream; a session has cursors")
        if self.stream is not None and self.cursors is not None:
            raise ValueError("cursors: of a session; a stream has a cursor")
        return self

    @property
    def resume_at(self) -> int | None:
        """None: at the latest event."""
        return {"earliest": 0, "latest": None}[self.cursor] if isinstance(self.cursor, str) else self.cursor


class Unfollow(Body):
    """Either `stream` or `session`."""

    stream: StreamId | None = None
    session: Name | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Unfollow:
        if (self.stream is None) == (self.session is None):
            raise ValueError("give either stream or session")
        return self


class Ack(Body):
    stream: StreamId
    id: Cursor


class Start(Body):
    """Beside the fields of POST /v1/streams."""

    idempotency_key: str | None = None
    follow: bool | Shape = False


class OfStream(Body):
    stream: StreamId


class Nothing(Body):
    pass


class _Interrupt(GiveInput):
    interrupt: Literal[True] = True


_OPS: dict[str, tuple[type[Body], type[Body] | None]] = {
    "auth": (Auth, None),
    "follow": (Follow, None),
    "unfollow": (Unfollow, None),
    "ack": (Ack, None),
    "start": (Start, CreateStream),
    "input": (OfStream, GiveInput),
    "interrupt": (OfStream, _Interrupt),
    "cancel": (OfStream, Cancel),
    "ping": (Nothing, None),
}
"""Each op's own fields, and the route's body that the others are."""


class Asked(NamedTuple):
    """`own`: the op's fields. `body`: those of the route's body, if the op has one. `size`: of the message, bytes."""

    op: str
    ref: Ref
    size: int
    own: Any
    body: Any = None

    @property
    def stream(self) -> str | None:
        return getattr(self.own, "stream", None)

    @property
    def session(self) -> str | None:
        return getattr(self.own, "session", None)

    @property
    def line(self) -> str | None:
        """What it is about: the ops of one thing run in order."""
        return self.stream if self.stream is not None else self.session


def ref_of(value: Any) -> Ref:
    """What the answer names, if it is something that it may name."""
    ref = value.get("ref") if isinstance(value, dict) else None
    if isinstance(ref, str):
        return ref if len(ref) <= REF_CHARACTERS else None
    return ref if isinstance(ref, int) and not isinstance(ref, bool) and abs(ref) < _EXACT else None


def asked_of(value: Any, size: int) -> Asked:
    """What a message asks for. Takes the object apart. Raises InvalidRequest, which names the field, or UnknownOp."""
    if not isinstance(value, dict):
        raise InvalidRequest("A message is a JSON object with `op`.")
    ref = ref_of(value)
    if value.pop("ref", None) != ref:
        raise InvalidRequest(f"ref: a text of at most {REF_CHARACTERS} characters, or an integer below 2^53.")
    op = value.pop("op", None)
    if not isinstance(op, str):
        raise InvalidRequest(f"op: a text is required. There are: {', '.join(_OPS)}.")
    if op not in _OPS:
        raise UnknownOp(_advice(op))
    model, body = _OPS[op]
    if body is None:
        return Asked(op, ref, size, check(model, value))
    own = {name: value.pop(name) for name in model.model_fields if name in value}
    return Asked(op, ref, size, check(model, own), check(body, value))


def _advice(op: str) -> str:
    near = get_close_matches(op.lower(), _OPS, n=1) if len(op) <= LONGEST_TYPO else []
    meant = f" Did you mean `{near[0]}`?" if near else ""
    return f"op: there is none of this name.{meant} There are: {', '.join(_OPS)}."
