"""An app: a module, or an attribute of it, and the agents that are found there."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from lastevent.agents import Agent, AnyAgent, as_agent
from lastevent.errors import AppError


def load(app: str) -> dict[str, AnyAgent]:
    """The agents of `module` or `module:attribute` (a list of agents, or a module), by name.

    AppError says what is wrong with them; whatever importing the module raises is raised.
    """
    require_pydantic()
    name, _, attribute = app.partition(":")
    found: Any = _imported(name)
    for part in filter(None, attribute.split(".")):
        if not hasattr(found, part):
            raise AppError(f"{name} has no {attribute}.")
        found = getattr(found, part)
    agents: dict[str, AnyAgent] = {}
    for agent in _those_of(found, app):
        _add(agents, agent)
    if not agents:
        raise AppError(f"{app} has no agents: there is neither an Agent(…) nor a function under @agent in it.")
    return agents


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Of a module that the app itself imports, its traceback tells more.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise AppError(
            f"There is no module {error.name}: neither in {os.getcwd()}, where Lastevent was started, "
            f"nor installed for {sys.executable} (--python names another interpreter)."
        ) from None


def require_pydantic() -> None:
    """Here, where the message reaches somebody, and not at the first schema."""
    try:
        import pydantic
    except ImportError:
        raise AppError(f"Agents need pydantic 2, which {sys.executable} does not have: pip install pydantic") from None
    if not pydantic.VERSION.startswith("2."):
        raise AppError(f"Agents need pydantic 2; {sys.executable} has {pydantic.VERSION}: pip install 'pydantic>=2'")


def announced(agents: dict[str, AnyAgent]) -> list[dict[str, Any]]:
    """As the worker is told of them; AppError for a type without a JSON Schema."""
    return [agent.announced() for agent in agents.values()]


def _those_of(found: Any, app: str) -> Iterable[AnyAgent]:
    if isinstance(found, ModuleType):
        return [agent for value in vars(found).values() if (agent := as_agent(value)) is not None]
    if (agent := as_agent(found)) is not None:
        return [agent]
    if not isinstance(found, (list, tuple)):
        raise AppError(f"{app} is {type(found).__name__}: it should be a list of agents, or a module.")
    agents = [as_agent(value) for value in found]
    if None in agents:
        wrong = found[agents.index(None)]
        raise AppError(f"{app} has {getattr(wrong, '__name__', type(wrong).__name__)} in it, which is no agent.")
    return [agent for agent in agents if agent is not None]


def _add(agents: dict[str, AnyAgent], agent: AnyAgent) -> None:
    """It, and the agents that are its tools."""
    there = agents.setdefault(agent.name, agent)
    if there is not agent:
        raise AppError(f"Two agents are named {agent.name}: streams are given to agents by name.")
    if isinstance(agent, Agent):
        for inner in agent.agents.values():
            if agents.get(inner.name) is not inner:
                _add(agents, inner)
