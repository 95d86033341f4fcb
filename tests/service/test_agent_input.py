"""Whether an input is what its agent takes: the place is named, nothing is repeated, and it never takes long."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import BaseModel, Field

from broker.errors import InvalidInput
from broker.service.agent_input import require_input


class Line(BaseModel):
    article: str = Field(pattern="^[A-Z]")
    count: int = Field(gt=0)
    title: str = ""


class Order(BaseModel, extra="forbid"):
    lines: list[Line]
    notes: dict[str, str] = {}
    kind: Line | str | None = None


class Tree(BaseModel):
    left: Tree | int
    right: Tree | int


ORDER, TREE = Order.model_json_schema(), Tree.model_json_schema()
GOOD = {"lines": [{"article": "A17", "count": 1}]}


def line(**fields: Any) -> dict[str, Any]:
    return {"lines": [GOOD["lines"][0], {"article": "A", "count": 1, **fields}]}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "input: it must be object."),
        ({}, "input: lines is missing."),
        (line(count="sEcReT"), "input at /lines/1/count: it must be integer."),
        (line(article="sEcReT"), "input at /lines/1/article: pattern of the agent's input_schema is not met."),
        (line(title=5), "input at /lines/1/title: it must be string."),
        ({**GOOD, "sEcReT": 1}, "input: it has a property that the agent does not know."),
        ({**GOOD, "notes": {"sEcReT": 5}}, "input at /notes/*: it must be string."),
        ({**GOOD, "kind": {"sEcReT": 5}}, "input at /kind: anyOf of the agent's input_schema is not met."),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_without_what_was_sent(given: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        require_input("shop", ORDER, given)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("schema", "given"),
    [
        (None, {"anything": [1]}),
        (True, {"anything": [1]}),
        ({}, None),
        (ORDER, GOOD),
        (ORDER, {**GOOD, "lines": GOOD["lines"] * 300, "notes": {"a": "x" * 100_000}}),
    ],
)
def test_what_an_agent_takes_is_let_through(schema: Any, given: Any) -> None:
    require_input("shop", schema, given)


def nested(depth: int) -> Any:
    return {"left": nested(depth - 1), "right": "x"} if depth else "x"


@pytest.mark.parametrize(
    ("schema", "given"),
    [
        (TREE, nested(40)),
        ({"items": {"enum": [[n] for n in range(8000)]}}, [[7999]] * 10_000),
        ({"items": {"patternProperties": {f"^k{n}.*": {"type": "string"} for n in range(200)}}}, [{"k1": 1}] * 20_000),
        ({"$ref": "#"}, 1),
        ({"$ref": "https://elsewhere.example/schema"}, 1),
        ({"pattern": "((a{0,100}){0,100}){0,100}b"}, "a" * 10_000),
        ({"type": "no such type"}, 1),
        ([], 1),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, 1),
    ],
    ids=str,
)
def test_what_would_take_long_or_cannot_be_checked_is_left_to_the_app(schema: Any, given: Any) -> None:
    began_s = time.process_time()
    require_input("shop", schema, given)
    assert time.process_time() - began_s < 2, "some of them would take minutes"


def test_that_a_schema_is_left_to_the_app_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        require_input("a tree's", TREE, {})
    assert [record.getMessage() for record in caplog.records] == [
        "agent a tree's: servers do not check inputs by its schema, its app alone does: it is too intricate"
    ]


def test_references_that_double_at_each_step_are_left_to_the_app() -> None:
    steps = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)}
    require_input("shop", {"$defs": {**steps, "d30": {"type": "integer"}}, "$ref": "#/$defs/d0"}, "x")
