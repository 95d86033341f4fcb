"""A function as agents know it: its signature and schema, its options, and what a call of it is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from lastevent.context import Context
from lastevent.errors import AppError
from lastevent.schema import Arguments, Value, hints_of, jsonable

Approval = bool | Callable[[dict[str, Any]], bool]
"""Whether somebody must approve a call, always or by its arguments."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
"""What every provider takes as a tool's name; agents may be tools too, and their names stand in paths."""

NAMING = "a name is up to 64 letters, digits, _ and -, and begins with no digit."


class _NotDone:
    def __repr__(self) -> str:
        return "NOT_DONE"


NOT_DONE: Any = _NotDone()
"""What a `resolve` gives, if the call that was cut did not come to be: then it is made."""


class Tool:
    """A function as agents know it."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        idempotent: bool = False,
        key: Sequence[str] | None = None,
        resolve: Callable[..., Any] | None = None,
        timeout_s: float | None = 60,
        title: str | None = None,
        public: bool = True,
        approval: Approval = False,
        is_step: bool = False,
    ) -> None:
        self.function = function
        self.name = name or function.__name__
        self.idempotent, self.key, self.resolve = idempotent, list(key) if key is not None else None, resolve
        self.timeout_s, self.title, self.public, self.approval = timeout_s, title, public, approval
        self.is_step = is_step
        if not is_step:
            self._check()

    def _check(self) -> None:
        if not NAME.fullmatch(self.name):
            raise AppError(f"@tool {self.name!r}: {NAMING}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise AppError(f"@tool {self.name}: timeout_s is {self.timeout_s!r}; it is seconds, or None for no limit.")
        unknown = [name for name in self.key or () if name not in self.parameters]
        if unknown or self.key == []:
            there = ", ".join(self.parameters)
            raise AppError(f"@tool {self.name}: key={self.key} must name parameters of it: {there}.")

    # -- its signature ---------------------------------------------------------------------------------------

    @cached_property
    def signature(self) -> inspect.Signature:
        """As the caller sees it: without the Context."""
        signature = inspect.signature(self.function)
        return signature.replace(parameters=list(self.parameters.values()))

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        found = inspect.signature(self.function).parameters
        return {name: parameter for name, parameter in found.items() if name != self.context_parameter}

    @cached_property
    def context_parameter(self) -> str | None:
        for name, parameter in inspect.signature(self.function).parameters.items():
            if _is_context(parameter.annotation):
                return name
        return None

    @cached_property
    def arguments(self) -> Arguments:
        return Arguments(self.parameters, hints_of(self.function), f"The tool {self.name}")

    @cached_property
    def _result(self) -> Value:
        if self.is_step:
            return Value(Any, self.name)
        return Value(hints_of(self.function).get("return", Any), f"The result of the tool {self.name}")

    def restore(self, result: Any) -> Any:
        """What the function gave, from JSON. In the first run too: a takeover must not be the first to see JSON."""
        try:
            return self._result.restore(result)
        except AppError:  # its annotation is not known here
            return result

    # -- its calls -------------------------------------------------------------------------------------------

    def bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name, with defaults. A Context that is given is left out: the call has one of its own."""
        args = tuple(arg for arg in args if not isinstance(arg, Context))
        named = {name: value for name, value in kwargs.items() if name != self.context_parameter}
        bound = self.signature.bind(*args, **named)
        bound.apply_defaults()
        return self._flat(bound)

    def _flat(self, bound: inspect.BoundArguments) -> dict[str, Any]:
        kinds = {parameter.kind for parameter in self.parameters.values()}
        if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            raise AppError(f"@tool {self.name} takes *args or **kwargs: its calls cannot be told apart by name.")
        return dict(bound.arguments)

    def given(self, context: Context, args: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """What the function itself is called with."""
        if self.is_step:
            return list(args.values()), {}
        named = dict(args)
        if self.context_parameter:
            named[self.context_parameter] = context
        return [], named

    def opening(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """What the journal is asked before a call."""
        try:
            told = jsonable(dict(args))
        except ValueError as error:
            told = f"{self.name}: its arguments must be JSON, to be found again in the journal: {error}"
            raise TypeError(told) from None
        return {
            "tool": self.name,
            "args": told,
            "key": self.key,
            "idempotent": self.idempotent,
            "has_resolve": self.resolve is not None,
            "title": self.title,
            "public": self.public,
            "approval": self.needs_approval(args),
            "is_step": self.is_step,
        }

    def needs_approval(self, args: Mapping[str, Any]) -> bool:
        return bool(self.approval(dict(args)) if callable(self.approval) else self.approval)

    def announced(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "description": inspect.getdoc(self.function) or "",
            "input_schema": self.arguments.json_schema(),
            "idempotent": self.idempotent,
            "key": self.key,
            "has_resolve": self.resolve is not None,
            "timeout_s": self.timeout_s,
            "public": self.public,
            "approval": "ask" if callable(self.approval) else "always" if self.approval else "never",
            "agent": None,
        }


def _is_context(annotation: Any) -> bool:
    if isinstance(annotation, str):  # `from __future__ import annotations`
        return annotation.strip("'\"").split(".")[-1] == "Context"
    return annotation is Context
