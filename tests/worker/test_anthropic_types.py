"""Every type that the anthropic SDK knows, walked: none is new to docs/PROVIDERS.md, and nothing in one gets lost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from types import UnionType
from typing import Annotated, Any, Literal, TypedDict, Union, get_args, get_origin

import orjson
import pytest
from anthropic.types import RawMessageStreamEvent
from anthropic.types.beta import BetaRawMessageStreamEvent
from anthropic.types.beta.beta_content_block_param import BetaContentBlockParam
from pydantic import BaseModel

from tests.worker.anthropic_events import (
    block,
    delta,
    end,
    stop,
    turn_of,
)
from tests.worker.providers_table import documented, kinds
from worker.providers.anthropic_answer import Answer
from worker.providers.provider import Counted
from worker.providers.sdk_types import checked_options

UNIONS = [RawMessageStreamEvent, BetaRawMessageStreamEvent]
KEPT_WHOLE = frozenset(
    {
        *("caller", "usage", "container", "diagnostics", "context_management", "input_transformations"),
        *("stop_details", "tool_changes", "trigger", "tools"),
    }
)


def test_every_kind_that_the_sdk_knows_is_in_the_table() -> None:
    known = {kind for union in UNIONS for kind in kinds(union, whole=KEPT_WHOLE)}
    assert known <= documented("anthropic").keys()
    assert documented("anthropic").keys() - known == {"ping", "error"}


class Samples:
    """Values of the SDK's types, every text and number in them another one, so that a lost one is seen."""

    def __init__(self) -> None:
        self._numbers = count(1_000_000)
        self.marks: set[str] = set()

    def of(self, hint: Any) -> list[Any]:
        """One at least; more where a type is one of several."""
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self.of(arguments[0])
        if origin in (Union, UnionType):
            return [one for inner in arguments if inner is not type(None) for one in self.of(inner)]
        if origin is Literal:
            return [arguments[0]]
        if origin is list:
            return [[one] for one in self.of(arguments[0])]
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            return self._objects(hint)
        return [self._plain(hint)]

    def _objects(self, model: type[BaseModel]) -> list[dict[str, Any]]:
        fields = {field.alias or name: self.of(field.annotation) for name, field in model.model_fields.items()}
        most = max(map(len, fields.values()), default=1)
        return [{name: some[min(i, len(some) - 1)] for name, some in fields.items()} for i in range(most)]

    def _plain(self, hint: Any) -> Any:
        if hint is bool:
            return True
        number = next(self._numbers)
        mark = f"mark {number}"
        self.marks.add(str(number))
        if hint is int:
            return number
        if get_origin(hint) is dict:
            return {"some": mark}
        return f"2026-01-01T00:00:00Z {mark}" if hint is datetime else mark


def starts_and_deltas(union: Any) -> Iterator[dict[str, Any]]:
    samples = Samples()
    for model in get_args(get_args(union)[0]):
        if model.__name__.endswith(("StartEvent", "DeltaEvent")):
            yield from ({**one, "index": 0} if "index" in one else one for one in samples.of(model))


@pytest.mark.parametrize("union", UNIONS)
def test_every_field_of_every_type_is_in_some_event(union: Any) -> None:
    for event in starts_and_deltas(union):
        kept = dumped(read_alone(event))
        assert [mark for mark in re.findall(r"1\d{6}", dumped(event)) if mark not in kept] == [], event


def read_alone(event: dict[str, Any]) -> list[Any]:
    """What is made of an answer that has this event, and what belongs to it."""
    before: list[dict[str, Any]] = []
    after: list[dict[str, Any]] = []
    if "index" in event:
        after = [stop(0)]
    if event["type"] == "content_block_delta":
        is_args = event["delta"]["type"] == "input_json_delta"
        before = [block(0, "tool_use", id="t", name="look", input={}) if is_args else block(0, "text", text="")]
    return read([*before, event, *after, *end("max_tokens")])  # with which a call's arguments may be anything


def read(events: list[dict[str, Any]]) -> list[Any]:
    answer = Answer("anthropic")
    return [*(said for one in events for said in answer.take(b"", orjson.dumps(one))), answer.finish]


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class SentBack(TypedDict, total=False):
    content: list[BetaContentBlockParam]


def test_what_is_sent_back_is_of_the_types_that_the_api_takes() -> None:
    for event in starts_and_deltas(BetaRawMessageStreamEvent):
        if event["type"] == "content_block_start":
            pieces = [delta(0, "text_delta", text="x")] if event["content_block"]["type"] == "text" else []
            *said, finish = read([event, *pieces, stop(0), *end()])
            content = turn_of([one for one in said if not isinstance(one, Counted)], finish)["content"]
            assert len(content) == 1
            checked_options({"provider_options": {"it": {"content": content}}}, "it", SentBack, not_here=set())
