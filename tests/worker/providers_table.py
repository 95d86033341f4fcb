"""docs/PROVIDERS.md against an SDK's types: its tables name every kind of thing that the provider may say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

DOCS = Path(__file__).parents[2] / "docs" / "PROVIDERS.md"


def documented(provider: str) -> dict[str, str]:
    """What the provider says → what becomes of it: the rows of the tables that are headed `says`, in its section.

    A row may name several, each in backticks.
    """
    section = re.search(rf"(?ms)^## {re.escape(provider)}\n(.*?)(?=^## |\Z)", DOCS.read_text())
    assert section, f"docs/PROVIDERS.md has no section {provider}"
    found = {}
    for table in re.findall(r"(?m)^\| says \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", section[1]):
        for row in table.splitlines():
            says, becomes = re.split(r"(?<!\\)\|", row)[1:3]
            found.update(dict.fromkeys(re.findall(r"`([^`]+)`", says), becomes.strip()))
    return found


def kinds(union: Any, *, tag: str = "type", whole: frozenset[str] = frozenset()) -> set[str]:
    """The values of `tag` of all the SDK's models in a type, and in these models' fields, however deep.

    `whole`: fields that are kept whole, so that what is in them need not be told.
    """
    return {kind for model in _models(union, whole, set()) for kind in _kinds_of(model, tag)}


def _models(hint: Any, whole: frozenset[str], seen: set[Any]) -> Iterator[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        if hint in seen:
            return
        seen.add(hint)
        yield hint
        for name, field in hint.model_fields.items():
            if name not in whole:
                yield from _models(field.annotation, whole, seen)
    elif get_origin(hint) is Annotated:
        yield from _models(get_args(hint)[0], whole, seen)
    elif get_origin(hint) in (Union, UnionType, list, dict):
        for inner in get_args(hint):
            yield from _models(inner, whole, seen)


def _kinds_of(model: type[BaseModel], tag: str) -> Iterator[str]:
    field = model.model_fields.get(tag)
    hints = [field.annotation, *get_args(field.annotation)] if field else []
    for hint in hints:
        if get_origin(hint) is Literal:
            yield from (value for value in get_args(hint) if isinstance(value, str))
