"""Agents: `@agent` for code of your own, `Agent(…)` for the built-in loop of model and tools."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

from lastevent.context import AGENT_ATTRIBUTE
from lastevent.errors import AppError
from lastevent.functions import NAME, NAMING, Tool
from lastevent.schema import Value, hints_of
from lastevent.tools import as_tool

F = TypeVar("F", bound=Callable[..., Any])

SHOWABLE = ("thinking", "args", "results")


@dataclass(frozen=True)
class Prompt:
    """What a person asks: one text, or the messages so far, as `POST /v1/streams` takes them."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            from pydantic_core import PydanticCustomError  # a ValueError whose words are ours, so they are told

            raise PydanticCustomError("prompt", "give either prompt or messages")

    @property
    def text(self) -> str:
        """What was said last."""
        if self.prompt is not None:
            return self.prompt
        content = self.messages[-1].get("content", "") if self.messages else ""
        if isinstance(content, str):
            return content
        return "".join(block.get("text", "") for block in content if isinstance(block, dict))


_PROMPT_AS_TOOL = {
    "type": "object",
    "properties": {"prompt": {"type": "string"}},
    "required": ["prompt"],
    "additionalProperties": False,
}
"""What a model fills in to ask an agent that takes a Prompt."""


@dataclass(frozen=True)
class Limits:
    """How much one run may take; the operator's settings are ceilings over these."""

    turns: int = 10
    tool_calls: int = 20
    tool_calls_per_turn: int = 8
    parallel: int = 8
    """Tools that run at the same time."""
    seconds: float = 600
    session_tool_calls: int | None = None
    session_cost_usd: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name.startswith("session_"):
                continue
            may_be = (int,) if "int" in str(field.type) else (int, float)
            if isinstance(value, bool) or not isinstance(value, may_be) or not 0 < value < float("inf"):
                kind = "a whole number" if may_be == (int,) else "a number"
                raise AppError(f"Limits({field.name}={value!r}): it must be {kind} above 0.")


@dataclass(frozen=True)
class Tags:
    names: tuple[str, ...]


def tags(*names: str) -> Tags:
    """For a model that acts in text: what stands in `<name>…</name>` is thinking or a tool's call."""
    for name in names:
        if not NAME.fullmatch(name):
            raise AppError(f"tags({name!r}): a tag is up to 64 letters, digits, _ and -, and begins with no digit.")
    if not names:
        raise AppError("tags() needs names: tags('think', 'tool').")
    return Tags(names)


class _Base:
    name: str
    limits: Limits
    show: tuple[str, ...]

    def _set_up(self, name: str, show: Iterable[str], limits: Limits) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise AppError(f"An agent is named {name!r}: {NAMING}")
        self.name, self.limits, self.show = name, limits, tuple(show)
        wrong = [one for one in self.show if one not in SHOWABLE]
        if wrong or isinstance(show, str):
            raise AppError(f"The agent {name}: show={show!r} must be of {', '.join(SHOWABLE)}.")
        if not isinstance(limits, Limits):
            raise AppError(f"The agent {name}: limits are Limits(…), not {type(limits).__name__}.")

    @property
    def input_type(self) -> Any:
        raise NotImplementedError

    @property
    def description(self) -> str:
        raise NotImplementedError

    @cached_property
    def input(self) -> Value:
        return Value(self.input_type, f"The input of the agent {self.name}")

    @property
    def takes_messages(self) -> bool:
        return self.input_type is Prompt

    def input_schema(self) -> dict[str, Any] | None:
        """None for a Prompt, which is checked as messages are everywhere."""
        return None if self.takes_messages else self.input.json_schema()

    def announced_as_tool(self) -> dict[str, Any]:
        """For the model of another agent."""
        schema = self.input_schema() or _PROMPT_AS_TOOL
        if schema.get("type") != "object":
            raise AppError(
                f"The agent {self.name} is a tool of another one, and its input is no object: models give arguments "
                f"by name. Make its input a dataclass or a pydantic model."
            )
        return {
            "name": self.name,
            "title": None,
            "description": self.description,
            "input_schema": schema,
            "idempotent": False,
            "key": None,
            "has_resolve": False,
            "timeout_s": None,
            "public": True,
            "approval": "never",
            "agent": self.name,
        }

    def _announced(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "input_schema": self.input_schema(),
            "takes_messages": self.takes_messages,
            "show": list(self.show),
            "limits": asdict(self.limits),
        }


class CodeAgent(_Base):
    """A function under @agent."""

    def __init__(self, function: Callable[..., Any], name: str, show: Iterable[str], limits: Limits) -> None:
        self._set_up(name, show, limits)
        self.function = function
        self.is_generator = inspect.isasyncgenfunction(function)
        if not self.is_generator and not inspect.iscoroutinefunction(function):
            raise AppError(f"@agent({name!r}) is on {function.__qualname__}, which is not `async def`.")
        if len(inspect.signature(function).parameters) != 2:
            raise AppError(f"@agent({name!r}): {function.__qualname__} must take two parameters, (ctx, input).")

    @cached_property
    def input_type(self) -> Any:
        second = list(inspect.signature(self.function).parameters)[1]
        return hints_of(self.function).get(second, Any)

    @property
    def description(self) -> str:
        return inspect.getdoc(self.function) or ""

    def announced(self) -> dict[str, Any]:
        return {
            **self._announced(),
            "kind": "code",
            "model": None,
            "instructions": "",
            "tools": [],
            "options": {},
            "transform": None,
        }


class Agent(_Base):
    """A model with tools, in Lastevent's own loop.

    - `model`, `fallbacks`: `provider/model` or an alias; the next one where one fails.
    - `instructions`: a text, or `f(ctx, input) -> str` (also `async def`).
    - `tools`: functions under @tool, and other agents, whose text is their result.
    - `input`: the type that `input` in POST is validated by; a Prompt takes `prompt` and `messages`.
    - `show`: of "thinking", "args", "results", what end users see besides text and the tools' names.
    - `options`: per provider, handed to its SDK as they are.
    - `transform`: for models that act in text: "react", or tags("think", "tool").
    - `description`: what another agent's model reads, if this is its tool.
    """

    def __init__(
        self,
        name: str,
        *,
        model: str,
        fallbacks: Sequence[str] = (),
        instructions: str | Callable[[Any, Any], Any] = "",
        tools: Sequence[Any] = (),
        input: Any = Prompt,
        show: Iterable[str] = (),
        limits: Limits = Limits(),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        transform: Literal["react"] | Tags | None = None,
        description: str = "",
    ) -> None:
        self._set_up(name, show, limits)
        self.model = [model, *([fallbacks] if isinstance(fallbacks, str) else fallbacks)]
        if not all(isinstance(one, str) and one for one in self.model):
            raise AppError(f"The agent {name}: model and fallbacks are names of models, not {self.model!r}.")
        if not isinstance(instructions, str) and not callable(instructions):
            raise AppError(f"The agent {name}: instructions are a text or f(ctx, input) -> str.")
        if transform is not None and transform != "react" and not isinstance(transform, Tags):
            raise AppError(f"The agent {name}: transform is 'react' or tags(…), not {transform!r}.")
        self.instructions, self.transform, self._description = instructions, transform, description
        self._input_type, self.options = input, {key: dict(value) for key, value in (options or {}).items()}
        self.tools, self.agents = self._sorted(tools)

    def _sorted(self, given: Sequence[Any]) -> tuple[dict[str, Tool], dict[str, AnyAgent]]:
        tools: dict[str, Tool] = {}
        agents: dict[str, AnyAgent] = {}
        for one in given:
            found = as_tool(one) or as_agent(one)
            if found is None:
                named = getattr(one, "__name__", type(one).__name__)
                raise AppError(f"The agent {self.name}: {named} is neither a function under @tool nor an agent.")
            if found.name in tools or found.name in agents:
                raise AppError(f"The agent {self.name} has two tools named {found.name}.")
            if isinstance(found, Tool):
                tools[found.name] = found
            else:
                agents[found.name] = found
        return tools, agents

    @property
    def input_type(self) -> Any:
        return self._input_type

    @property
    def description(self) -> str:
        return self._description

    def announced(self) -> dict[str, Any]:
        tools = [tool.announced() for tool in self.tools.values()]
        return {
            **self._announced(),
            "kind": "model",
            "model": self.model,
            "instructions": self.instructions if isinstance(self.instructions, str) else None,
            "tools": tools + [agent.announced_as_tool() for agent in self.agents.values()],
            "options": self.options,
            "transform": {"tags": list(self.transform.names)} if isinstance(self.transform, Tags) else self.transform,
        }


AnyAgent = Agent | CodeAgent


def agent(name: str, *, show: Iterable[str] = (), limits: Limits = Limits()) -> Callable[[F], F]:
    """Code of your own: `async def f(ctx, input)`.

    A generator yields text (`str`) and Events; a coroutine says what it has to say by `ctx`, and what it returns is the
    `result` in `done`. The second parameter's type validates `input`. The function stays the plain function it is.
    """

    def mark(function: F) -> F:
        setattr(function, AGENT_ATTRIBUTE, CodeAgent(function, name, show, limits))
        return function

    return mark


def as_agent(value: Any) -> AnyAgent | None:
    if isinstance(value, (Agent, CodeAgent)):
        return value
    found = getattr(value, AGENT_ATTRIBUTE, None)
    return found if isinstance(found, CodeAgent) else None
