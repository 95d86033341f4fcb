"""Whether an input is what its agent says that it takes. Otherwise a start is refused, with the place and no echo.

The schema is an app's own, the input a stranger's, and jsonschema-rs keeps Python's lock for as long as it checks: with
a schema that leads back to itself an input of 64 levels takes it for ever, and with an enumeration of 8,000 lists one
of 700 bytes 0.7 s. So only what is checked within some milliseconds is checked here. The app, which has the last word
anyway, checks the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

import orjson

from broker.errors import InvalidInput, InvalidRequest
from broker.service.output_schema import require_schema

logger = logging.getLogger(__name__)

MAX_MEETINGS = 250_000
"""Parts of the schema, references written out, times parts of the input: each of the one may meet each of the other.
20 ms at most, and for what people write 1 ms."""

MAX_PARTS = 20_000
"""Of a schema, references written out."""

TEXT_PART = 64
"""So many characters of a text count as one part: a pattern looks at each of them."""

SCHEMAS_KEPT = 64

_NOT_FOLLOWED = frozenset({"$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor"})
"""References that pydantic does not make."""


class _Checked(NamedTuple):
    validator: Any
    parts: int
    names: frozenset[str]
    """Names of properties: what an answer may repeat of a place. All others are the caller's own."""


def require_input(agent: str, schema: Any, given: Any) -> None:
    """Raises InvalidInput. `schema`: None if any input will do. Takes some ms, and 0.1 s with a schema that is new."""
    checked = _compiled(agent, orjson.dumps(schema)) if schema is not None else None
    if checked is None or not _has_few_parts(given, MAX_MEETINGS // checked.parts):
        return
    import jsonschema_rs  # 60 ms, for those who use it

    try:
        checked.validator.validate(given)  # up to the first fault
    except jsonschema_rs.ValidationError as wrong:
        raise InvalidInput(f"input{_place(wrong, checked.names)}: {_fault(wrong.kind)}.") from None
    except ValueError:  # nested too deeply for it
        return


@lru_cache(SCHEMAS_KEPT)
def _compiled(agent: str, schema_json: bytes) -> _Checked | None:
    """None, and a line in the log, for a schema by which nothing is checked here."""
    import jsonschema_rs

    schema = orjson.loads(schema_json)
    try:
        if isinstance(schema, dict):
            require_schema(schema)
        parts = _Parts(schema).of(schema)
        plain, none = jsonschema_rs.RegexOptions(), _no_document
        validator = jsonschema_rs.validator_for(schema, pattern_options=plain, retriever=none, validate_formats=False)
    except (InvalidRequest, RecursionError, ValueError, jsonschema_rs.ValidationError) as unfit:
        why = str(unfit).removeprefix("output_schema: ") if isinstance(unfit, InvalidRequest) else "it is too intricate"
        logger.warning("agent %s: servers do not check inputs by its schema, its app alone does: %s", agent, why)
        return None
    return _Checked(validator, parts, frozenset(_names(schema)))


def _no_document(_: str) -> Any:
    raise ValueError("references to elsewhere are not followed")


class _Parts:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._counts: dict[int, int] = {}
        self._within: set[int] = set()

    def of(self, schema: Any) -> int:
        """How many parts it has, references written out. Raises RecursionError where it leads back to itself, or beyond
        MAX_PARTS."""
        if isinstance(schema, str):
            return 1 + len(schema) // TEXT_PART
        if not isinstance(schema, dict | list):
            return 1
        if (known := self._counts.get(id(schema))) is not None:
            return known
        if id(schema) in self._within:
            raise RecursionError
        self._within.add(id(schema))
        count = 1 + sum(map(self.of, schema if isinstance(schema, list) else self._inner(schema)))
        if isinstance(schema, dict) and isinstance(reference := schema.get("$ref"), str):
            count += self.of(self._target(reference))
        if count > MAX_PARTS:
            raise RecursionError
        self._within.discard(id(schema))
        self._counts[id(schema)] = count
        return count

    def _inner(self, schema: Mapping[str, Any]) -> Iterator[Any]:
        """Not the definitions at the top: what counts is how often they are referred to."""
        for name, value in schema.items():
            if name in _NOT_FOLLOWED:
                raise RecursionError
            if not (schema is self._root and name in ("$defs", "definitions")):
                yield value

    def _target(self, reference: str) -> Any:
        found = self._root
        for step in unquote(reference).split("/")[1:]:  # `require_schema` has let it through: it begins with #
            name = step.replace("~1", "/").replace("~0", "~")
            found = found[int(name)] if isinstance(found, list) else found[name]
        return found


def _names(schema: Any) -> Iterator[str]:
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if isinstance(properties := one.get("properties"), dict):
                yield from properties
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _has_few_parts(given: Any, limit: int) -> bool:
    waiting, count = [given], 0
    while waiting and count <= limit:
        one = waiting.pop()
        count += 1
        if isinstance(one, dict):
            count += len(one)
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, str):
            count += len(one) // TEXT_PART
    return count <= limit


def _place(wrong: Any, names: frozenset[str]) -> str:
    """As a JSON Pointer (RFC 6901), with * for a name that the schema does not know."""
    steps = (step if isinstance(step, int) or step in names else "*" for step in wrong.instance_path)
    pointer = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)
    return f" at {pointer}" if pointer else ""


def _fault(kind: Any) -> str:
    """In the schema's own words: what it asks for, and nothing of what was sent."""
    match kind.name:
        case "required":
            return f"{kind.property} is missing"
        case "type":
            return f"it must be {' or '.join(kind.types)}"
        case "additionalProperties" | "unevaluatedProperties":
            return "it has a property that the agent does not know"
        case "minLength" | "maxLength" | "minItems" | "maxItems" | "minimum" | "maximum":
            return f"{kind.name} is {kind.limit}"
        case name:
            return f"{name} of the agent's input_schema is not met"
