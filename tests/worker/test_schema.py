"""Whether an answer is as its `output_schema` asks, and what that may cost the streams beside it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

import worker.schema
from worker.schema import violation

pytestmark = pytest.mark.processes

LISTS = {"type": "array", "items": {"enum": [[i] for i in range(8000)]}}
SLOW = json.dumps([[7999]] * 10_000)
"""With LISTS 20 s of work, in which no other thread of a process gets its turn."""

TREE = {"$defs": {"a": {"type": "object", "properties": {"next": {"$ref": "#/$defs/a"}, "n": {"type": "integer"}}}}}


@pytest.mark.parametrize(
    ("schema", "text", "found"),
    [
        ({"type": "object"}, "{}", None),
        ({"type": "object"}, "no", {"place": "", "message": "The answer is not JSON."}),
        ({"items": {"type": "integer"}}, '[1, "a", "b"]', {"place": "/1", "message": '"a" is not of type "integer"'}),
        ({**TREE, "$ref": "#/$defs/a"}, '{"next": {"n": 1}}', None),
        (
            {**TREE, "$ref": "#/$defs/a"},
            '{"next": {"n": "x"}}',
            {"place": "/next/n", "message": '"x" is not of type "integer"'},
        ),
    ],
)
async def test_the_first_fault_is_named_with_its_place(schema: Any, text: str, found: Any) -> None:
    assert await violation(schema, text) == found


async def test_a_check_without_end_ends_and_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.schema, "LIMIT_S", 0.5)
    checking = asyncio.create_task(violation(LISTS, SLOW))
    turns = 0
    while not checking.done():
        await asyncio.sleep(0.01)
        turns += 1
    found = await checking
    assert found is not None
    assert "was not checked" in found["message"]
    assert turns > 5, "the loop has gone on"


async def test_millions_of_faults_are_one() -> None:
    schema = {"items": {"required": [f"k{i}" for i in range(5000)]}}
    found = await violation(schema, json.dumps([{}] * 10_000))
    assert found == {"place": "/0", "message": '"k0" is a required property'}
