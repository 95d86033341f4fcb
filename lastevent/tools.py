"""@tool: a function whose calls are journalled while an agent runs, and which is that plain function everywhere else.

What frameworks see is a function: its name, docstring, signature and annotations, without the Context parameter. So it
is given to them as it is, and whatever calls it, the call finds its run by contextvars.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from lastevent import calls
from lastevent.context import CURRENT, Context
from lastevent.errors import AppError
from lastevent.functions import Approval, Tool

F = TypeVar("F", bound=Callable[..., Any])

_ATTRIBUTE = "__lastevent_tool__"


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(
    *,
    idempotent: bool = False,
    key: Sequence[str] | None = None,
    resolve: Callable[..., Any] | None = None,
    timeout_s: float | None = 60,
    title: str | None = None,
    public: bool = True,
    approval: Approval = False,
    name: str | None = None,
) -> Callable[[F], F]: ...
def tool(function: Any = None, /, **options: Any) -> Any:
    """A tool. On `async def`, or on `def`, which then runs in a thread.

    Its JSON Schema is made of the signature by pydantic, its description is the docstring; a parameter of type Context
    is given by Lastevent and no part of either.

    - `idempotent`: running it again harms nobody. A call that was cut (its worker was lost) is run again, with the same
      `ctx.idempotency_key`. Otherwise it never is: the model reads that its outcome is not known.
    - `resolve`: `f(ctx, **args)`, asked instead: what the call that was cut has given, or NOT_DONE. If it raises, the
      outcome is not known.
    - `key`: names of parameters that identify the effect: one call a stream for their values, whatever else differs.
    - `timeout_s`: then the model reads `timeout`. None: no limit.
    - `title`: what end users read while it runs. `public=False`: they do not see that it ran.
    - `approval`: True, or `f(args) -> bool`: somebody must approve the call first.
    """
    if function is None:
        return lambda function: tool_of_function(function, **options)
    return tool_of_function(function)


def tool_of_function(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    made = Tool(function, **options)
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise AppError(f"@tool {made.name} yields: a tool returns its result, and tells what comes by ctx.progress.")
    wrapper = _async_wrapper(made) if inspect.iscoroutinefunction(function) else _wrapper(made)
    functools.update_wrapper(wrapper, function)
    setattr(wrapper, _ATTRIBUTE, made)
    if made.context_parameter:
        wrapper.__annotations__ = {
            name: value for name, value in function.__annotations__.items() if name != made.context_parameter
        }
    wrapper.__signature__ = made.signature  # type: ignore[attr-defined]
    return wrapper


def as_tool(value: Any) -> Tool | None:
    found = getattr(value, _ATTRIBUTE, None)
    return found if isinstance(found, Tool) else None


def _async_wrapper(made: Tool) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        context = _context_of_a_run()
        if context is None:
            return await _plain(made, args, kwargs)
        return await calls.journalled(calls.Awaiting(context), made, made.bound(args, kwargs))

    return wrapper


def _wrapper(made: Tool) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        context = _context_of_a_run()
        if context is None:
            return _plain(made, args, kwargs)
        return calls.at_once(calls.journalled(calls.Blocking(context), made, made.bound(args, kwargs)))

    return wrapper


def _context_of_a_run() -> Context | None:
    context = CURRENT.get(None)
    return context if context is not None and context._run is not None else None


def _plain(made: Tool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The function's own call. A Context that nobody gives, as frameworks know of none, is one that is alone."""
    name = made.context_parameter
    if name is None or name in kwargs or any(isinstance(arg, Context) for arg in args):
        return made.function(*args, **kwargs)
    try:
        named = made.signature.bind(*args, **kwargs).arguments
    except TypeError:  # something else stands in its place: a test's own; or the call is wrong, and says so
        return made.function(*args, **kwargs)
    return made.function(**named, **{name: Context()})
