"""A caller's JSON Schema for the answer: whether it is one, and whether it is cheap enough to be compiled.

A worker compiles it again, to check the answer. A schema of 2 KB can take the compiler minutes, or all memory
(jsonschema-rs 0.60, measured): patterns that repeat repetitions, 400 `$id`s that refer to one another, 20 levels of
`unevaluatedProperties` over references. It holds Python's lock meanwhile, so a thread does not help. What is let
through takes it 50 ms at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard
from urllib.parse import unquote

import orjson

from broker.errors import InvalidRequest

MAX_BYTES = 128 * 1024
"""As JSON. Providers take less: OpenAI 120,000 characters of names, for one."""

MAX_REFERENCES = 500
MAX_APPLIED = 10_000
"""Schemas that one value is checked against: `allOf` and its like, references followed. Twenty levels of two references
each are a million, and 40 ms for each value of an answer.
"""

MAX_UNEVALUATED = 100
MAX_PATTERN_WEIGHT = 10_000
"""Of all patterns together: characters, each as often as it is repeated by a count. What takes the compiler 0.1 to 5 ms
counts as several: classes of Unicode's (any letter, any but these), looks ahead and behind."""

ONE_PATTERN, LARGE_CLASS, LOOK = 5, 50, 300

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_LISTED, _NAMED = ("allOf", "anyOf", "oneOf"), ("dependentSchemas", "dependencies")
_APPLIED = ("not", "if", "then", "else")
_ANCHORS = ("$anchor", "$dynamicAnchor")
_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")

_TOKENS = re.compile(
    r"""
    (?P<class> \[\^?\]?(?:\\.|[^\]\\])*\] | \\[pP]\{[^}]*\} | \\. )
    | (?P<look> \(\?<?[=!] ) | (?P<open> \( ) | (?P<close> \) )
    | \{ (?P<least>\d+) (?:,(?P<most>\d*))? \}
    | (?P<repeats> [*+?] ) | .
    """,
    re.DOTALL | re.VERBOSE,
)
_LARGE = re.compile(r"\\[wWpP]|^\[\^")

_KEYWORDS = frozenset(
    {
        *("$anchor", "$comment", "$defs", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema"),
        *("additionalItems", "additionalProperties", "allOf", "anyOf", "const", "contains", "default", "definitions"),
        *("dependencies", "dependentRequired", "dependentSchemas", "deprecated", "description", "else", "enum"),
        *("examples", "exclusiveMaximum", "exclusiveMinimum", "format", "if", "items", "maxContains", "maxItems"),
        *("maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum"),
        *("multipleOf", "not", "oneOf", "pattern", "patternProperties", "prefixItems", "properties", "propertyNames"),
        *("required", "then", "title", "type", "unevaluatedItems", "unevaluatedProperties", "uniqueItems"),
    }
)
"""What an answer may repeat of a place: other names are the caller's own."""


def require_schema(schema: dict[str, Any]) -> None:
    """Raises InvalidRequest, with the place and without what stands there. Reads no file and no network."""
    if len(orjson.dumps(schema)) > MAX_BYTES:
        raise _refused(f"it may have {MAX_BYTES} bytes as JSON")
    _require_cheap(schema)
    import jsonschema_rs  # 60 ms, for those who use it

    try:
        jsonschema_rs.validator_for(schema, offline=True)
    except jsonschema_rs.ValidationError as error:
        place = ".".join(
            str(step) if isinstance(step, int) or step in _KEYWORDS else "*" for step in error.instance_path
        )
        if error.kind.name == "$ref":
            raise _refused("a reference in it, or its `$schema`, names nothing that there is") from None
        raise _refused(f"not a JSON Schema at {place or 'its top'} ({error.kind.name})") from None


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(f"output_schema: {why}.")


def _require_cheap(schema: dict[str, Any]) -> None:
    references = unevaluated = weight = 0
    anchors: dict[str, Any] = {}
    for node in _objects(schema):
        if isinstance(node.get("$id"), str) and node is not schema:
            raise _refused("`$id` may stand at its top alone")
        for reference in filter(_is_text, map(node.get, _REFERENCES)):
            references += 1
            if not reference.startswith("#"):
                raise _refused("a reference may only lead to a place in the schema itself (`#/…`)")
        anchors |= dict.fromkeys(filter(_is_text, map(node.get, _ANCHORS)), node)
        if references + len(anchors) > MAX_REFERENCES:
            raise _refused(f"it may have {MAX_REFERENCES} references and anchors")
        unevaluated += sum(name in node for name in _UNEVALUATED)
        for pattern in _patterns(node):
            weight += _weight(pattern, MAX_PATTERN_WEIGHT - weight)
            if weight > MAX_PATTERN_WEIGHT:
                raise _refused(
                    f"its patterns may have {MAX_PATTERN_WEIGHT} characters in all, each as often as it is repeated"
                )
    if unevaluated > (0 if references else MAX_UNEVALUATED):
        raise _refused(
            "unevaluatedProperties and unevaluatedItems cannot be used beside references, "
            f"and {MAX_UNEVALUATED} times at most; use additionalProperties"
        )
    try:
        applied = _Applied(schema, anchors)
        for node in _objects(schema):
            applied.to_one_value(node)
    except RecursionError:
        raise _refused("its references lead on to others too often") from None


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _patterns(node: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(pattern := node.get("pattern"), str):
        yield pattern
    if isinstance(by_pattern := node.get("patternProperties"), dict):
        yield from by_pattern


def _weight(pattern: str, limit: int) -> int:
    """How large it becomes when it is compiled, where each counted repetition is written out; above `limit` anything
    that is.
    """
    outer: list[int] = []
    here, last = ONE_PATTERN, 0
    for token in _TOKENS.finditer(pattern):
        if token["open"] or token["look"]:
            outer.append(here)
            here, last = LOOK if token["look"] else 1, 0
        elif token["close"] and outer:
            here, last = outer.pop() + here, here
        elif token["least"]:
            times = max(_count(token["least"]), _count(token["most"] or "0"), 1)
            here, last = here + last * (times - 1), last * times
        elif token["repeats"]:
            here, last = here + 1, last + 1
        else:
            last = len(token[0]) + (LARGE_CLASS * len(_LARGE.findall(token[0])) if token["class"] else 0)
            here += last
        if here > limit:
            return here
    return here + sum(outer)


def _count(digits: str) -> int:
    return int(digits) if len(digits) < 7 else MAX_PATTERN_WEIGHT + 1


class _Applied:
    """Counts the schemas that a value is checked against in its place; one that leads back to itself counts once."""

    def __init__(self, root: dict[str, Any], anchors: Mapping[str, Any]) -> None:
        self._root = root
        self._anchors = anchors
        self._counts: dict[int, int] = {}

    def to_one_value(self, schema: Any) -> int:
        """Raises InvalidRequest beyond MAX_APPLIED, RecursionError for a long way."""
        if not isinstance(schema, dict):
            return 1
        if (known := self._counts.get(id(schema))) is not None:
            return known
        self._counts[id(schema)] = 1
        count = 1 + sum(map(self.to_one_value, self._in_place(schema)))
        if count > MAX_APPLIED:
            raise _refused(f"it checks a value against more than {MAX_APPLIED} schemas, references followed")
        self._counts[id(schema)] = count
        return count

    def _in_place(self, schema: dict[str, Any]) -> Iterator[Any]:
        yield from (schema[name] for name in _APPLIED if name in schema)
        yield from (one for name in _LISTED if isinstance(schema.get(name), list) for one in schema[name])
        yield from (one for name in _NAMED if isinstance(schema.get(name), dict) for one in schema[name].values())
        yield from map(self._target, filter(_is_text, map(schema.get, _REFERENCES)))

    def _target(self, reference: str) -> Any:
        """None: it leads nowhere, which the compiler refuses."""
        pointer = unquote(reference[1:])
        if not pointer.startswith("/"):
            return self._anchors.get(pointer) if pointer else self._root
        found: Any = self._root
        for step in pointer[1:].split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict):
                found = found.get(name)
            elif isinstance(found, list) and name.isdecimal() and len(name) < 9 and int(name) < len(found):
                found = found[int(name)]
            else:
                return None
        return found
