"""Which of the request's tools the stand-in calls, and with which arguments: as asked, or by a guess at the words.

Pure functions. A guess is no understanding: a tool is called because its name or its description shares words with the
message, and an argument is a word of the message whose look fits the tool's JSON Schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from worker.standin.directives import Directives, without_directives

CALL_ARGS = '{"city": "Oslo", "unit": "celsius", "days": 3}'


class Tool(NamedTuple):
    name: str
    description: str
    schema: Mapping[str, Any]
    """Of its arguments."""


class Call(NamedTuple):
    name: str
    args: str
    """JSON."""


class Turn(NamedTuple):
    calls: tuple[Call, ...] = ()
    told: str = ""
    """What the text begins with: what tools have said."""
    is_calling: bool = False
    """It is there for its calls. What is said before them some frameworks take for the whole answer (pydantic-ai)."""


def turn_of(message: str, asked: Directives, tools: Sequence[Tool], results: Sequence[str], forced: str = "") -> Turn:
    """What this turn calls and says. `results`: what tools have said since the message. `forced`: `none`, `any` or the
    name of a tool, which the request demands.
    """
    if asked.plan:
        calls = tuple(_as_asked(call, tools, message) for call in _due(asked, len(results)))
        return _calling(calls) if calls else _telling(results)
    if asked.calls:
        return Turn() if results else Turn((Call("get_weather", CALL_ARGS),) * asked.calls)
    if asked.is_given and not asked.guess:
        return Turn()
    if results:
        return _telling(results)
    tool = guessed(message, tools, forced)
    return _calling((Call(tool.name, arguments(tool.schema, message)),)) if tool else Turn()


def _due(asked: Directives, results: int) -> Sequence[tuple[str, str | None]]:
    """By how many results there are: clients differ in how they group them."""
    for calls in asked.plan:
        if results < len(calls):
            return calls
        results -= len(calls)
    return ()


def _as_asked(asked: tuple[str, str | None], tools: Sequence[Tool], message: str) -> Call:
    name, args = asked
    schema = next((tool.schema for tool in tools if tool.name == name), {})
    return Call(name, arguments(schema, message) if args is None else args)


def _calling(calls: tuple[Call, ...]) -> Turn:
    return Turn(calls, is_calling=True)


def _telling(results: Sequence[str]) -> Turn:
    said = " and ".join(f"“{' '.join(result.split())[:120]}”" for result in results[-4:])
    return Turn(told=f"The tools said {said}." if said else "")


# -- in text -------------------------------------------------------------------------------------------------------


def acted(form: str, turn: Turn, answer: str, is_inventing: bool) -> str:
    """The turn as a model without tools writes it. `answer`: if it calls nothing."""
    thought = f"I call {' and '.join(call.name for call in turn.calls)}." if turn.calls else "I know enough."
    if form == "tags":
        called = "".join(f'<tool>{{"name": {_json(call.name)}, "args": {call.args}}}</tool>' for call in turn.calls)
        return f"<think>{thought}</think>{called or answer}"
    steps = [f"Action: {call.name}\nAction Input: {call.args}" for call in turn.calls]
    if not steps:
        return f"Thought: {thought}\nFinal Answer: {answer}"
    if is_inventing:
        steps.append("Observation: I have made this up.\nThought: I know enough.\nFinal Answer: I have made this up.")
    return "\n".join([f"Thought: {thought}", *steps])


_TOLD = re.compile(r"^Observation:[ ]?|<(\w+)_result>(.*?)</\1_result>", re.MULTILINE | re.DOTALL)


def told_results(text: str) -> list[str]:
    """The results in a user's message to such a model; none if it is not one."""
    if not _TOLD.match(text):
        return []
    if text.startswith("<"):
        return [found[2] for found in _TOLD.finditer(text) if found[1]]
    return [part.strip() for part in re.split(r"^Observation:", text, flags=re.MULTILINE)[1:]]


# -- a guess at the tool -----------------------------------------------------------------------------------------------

_COMMON = frozenset(
    re.findall(
        r"\w+",
        "the and for with what this that you your from its are was can please tool tools use not have has how who when "
        "where why all any one give tell show get let out about into which their them they does did will would could",
    )
)


def guessed(message: str, tools: Sequence[Tool], forced: str = "") -> Tool | None:
    """The tool that shares most words with the message; or the first that wants an id, if the message has one."""
    if forced == "none" or not tools:
        return None
    if named := next((tool for tool in tools if tool.name == forced), None):
        return named
    message = without_directives(message)
    said = _words(message)
    shared = {tool.name: len(said & _words(f"{tool.name} {tool.description}")) for tool in tools}
    best = max(tools, key=lambda tool: shared[tool.name])
    if shared[best.name]:
        return best
    if _IDENTIFIER.search(message) and (fitting := next(filter(_wants_an_id, tools), None)):
        return fitting
    return tools[0] if forced == "any" else None


def _words(text: str) -> set[str]:
    found = re.findall(r"[^\W\d_]{3,}", text.casefold())
    return {word.rstrip("s") for word in found if word not in _COMMON}


def _wants_an_id(tool: Tool) -> bool:
    return any(map(_is_id, _required(tool.schema)))


# -- and at its arguments ----------------------------------------------------------------------------------------------

_IDENTIFIER = re.compile(r"\b(?=[\w-]*\d)(?=[\w-]*[^\W\d])[\w-]+\b")
_NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:\.\d+)?(?![\w-])")
_QUOTED = re.compile(r"[“\"]([^“”\"]+)[”\"]")
_NAME = re.compile(r"(?<=[\w,] )[^\W\d_a-z][^\W_]+")
_FORMATS = {
    "date": (r"\d{4}-\d\d-\d\d", "2026-01-01"),
    "date-time": (r"\d{4}-\d\d-\d\dT[\d:]+Z", "2026-01-01T12:00:00Z"),
    "time": (r"\d\d:\d\d:\d\dZ?", "12:00:00Z"),
    "email": (r"[\w.+-]+@[\w.-]+\w", "somebody@example.com"),
    "uri": (r"https?://\S+", "https://example.com/"),
}
_TEXTS = frozenset({"query", "question", "prompt", "text", "message", "topic", "input", "task", "reason", "search"})
_DEEPEST = 8
"""Levels of a schema that are filled: one may refer to itself."""
_LARGEST = 2.0**53


def arguments(schema: Mapping[str, Any], message: str) -> str:
    """JSON of the arguments that the schema requires."""
    return _json(_Filling(schema, without_directives(message)).object_of(schema, 0))


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _required(schema: Mapping[str, Any]) -> list[str]:
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        return []
    return [name for name in required if isinstance(name, str) and name in properties]


def _is_id(name: str) -> bool:
    return bool(re.search(r"(^|_|-)(id|ids|number|no|nr|code|key|ref)$|[a-z]I[dD]$", name))


class _Filling:
    """Each word of the message is given to one argument only, as long as there are others."""

    def __init__(self, schema: Mapping[str, Any], message: str) -> None:
        self._definitions = schema
        self._message = " ".join(message.split())[:200]
        self._found: dict[re.Pattern[str], Iterator[str]] = {}

    def object_of(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        return {name: self._value(schema["properties"][name], name, depth + 1) for name in _required(schema)}

    def _value(self, given: Any, name: str, depth: int) -> Any:
        schema = self._resolved(given)
        if "const" in schema:
            return schema["const"]
        if isinstance(choices := schema.get("enum"), list) and choices:
            said = self._message.casefold()
            return next((one for one in choices if isinstance(one, str) and one.casefold() in said), choices[0])
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        kind = str(kind).lower()  # Gemini's own are STRING, OBJECT
        if depth > _DEEPEST or kind == "null":
            return None
        if kind in ("integer", "number"):
            return self._number(schema, kind)
        if kind == "boolean":
            return schema.get("default", False)
        if kind == "array":
            least = _number_of(schema, "minItems") or 1
            return [self._value(schema.get("items", {}), name, depth + 1)] * min(max(int(least), 1), 8)
        if kind == "object" or "properties" in schema:
            return self.object_of(schema, depth)
        return self._text(schema, name)

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        for _ in range(_DEEPEST):
            if not isinstance(schema, Mapping):
                return {}
            if isinstance(path := schema.get("$ref"), str):
                schema = self._at(path)
            elif options := next((schema[key] for key in ("anyOf", "oneOf", "allOf") if schema.get(key)), None):
                schema = next((one for one in options if one.get("type") != "null"), {})
            else:
                break
        return schema if isinstance(schema, Mapping) else {}

    def _at(self, path: str) -> Any:
        found: Any = self._definitions
        for step in path.removeprefix("#/").split("/"):
            found = found.get(step) if isinstance(found, Mapping) else None
        return found

    def _number(self, schema: Mapping[str, Any], kind: str) -> float:
        step = 1 if kind == "integer" else 0.01
        lows = [_number_of(schema, "minimum"), _number_of(schema, "exclusiveMinimum", step)]
        highs = [_number_of(schema, "maximum"), _number_of(schema, "exclusiveMaximum", -step)]
        value = min([float(self._next(_NUMBER) or 1), _LARGEST, *(high for high in highs if high is not None)])
        value = max([value, -_LARGEST, *(low for low in lows if low is not None)])
        return int(value) if kind == "integer" else value

    def _text(self, schema: Mapping[str, Any], name: str) -> str:
        if form := _FORMATS.get(str(schema.get("format"))):
            return self._next(re.compile(form[0])) or form[1]
        said = self._next(_QUOTED)
        if not said and _is_id(name):
            said = self._next(_IDENTIFIER) or self._next(_NUMBER)
        if not said and name.lower() not in _TEXTS:
            said = self._next(_NAME)
        said = said or self._message or "something"
        most, least = _number_of(schema, "maxLength"), _number_of(schema, "minLength")
        return said[: 200 if most is None else int(most)].ljust(min(int(least or 0), 200), "x")

    def _next(self, pattern: re.Pattern[str]) -> str | None:
        if pattern not in self._found:
            self._found[pattern] = (found[found.re.groups] for found in pattern.finditer(self._message))
        return next(self._found[pattern], None)


def _number_of(schema: Mapping[str, Any], name: str, and_more: float = 0) -> float | None:
    given = schema.get(name)
    return given + and_more if isinstance(given, int | float) else None
