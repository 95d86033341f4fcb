"""What a tenant may ask for: models, agents, tokens. Refused before anything is started, in words that name what may.

A model counts by the name it is asked for: of a chain each, an alias by its own. The default one is no exception.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from broker.errors import InvalidRequest, UnknownAgent, UnknownModel
from broker.tenants.limits import Limits

NAMED = 8
"""Names that an answer lists."""

DEPTH = 4
"""Of objects in `provider_options`: a provider, `extra_body`, a group of parameters, a parameter."""

_TOKENS = frozenset({"maxtokens", "maxcompletiontokens", "maxoutputtokens"})
_ANSWERS = frozenset({"n", "candidatecount", "bestof"})
_MODELS = frozenset({"model", "models", "fallbacks", "fallbackmodels"})
"""How providers call them, in whatever case, with or without underscores."""


def require_models(limits: Limits, models: Sequence[str], default: str) -> None:
    """`models`: those asked for, one after the other; none: the default one. Raises UnknownModel."""
    allowed = limits.models
    if allowed is None or all(model in allowed for model in models or (default,)):
        return
    which = "not all of these may be asked for here" if models else "the default one may not be used here; give one"
    raise UnknownModel(f"model: {which}. There are {named(allowed)}.")


def require_agent(limits: Limits, agent: str) -> None:
    """Raises UnknownAgent."""
    if limits.agents is not None and agent not in limits.agents:
        raise UnknownAgent(f"agent: not one that may be asked for here. There are {named(limits.agents)}.")


def require_tokens(limits: Limits, max_tokens: int | None) -> None:
    """Raises InvalidRequest."""
    if max_tokens is not None and limits.max_tokens is not None and max_tokens > limits.max_tokens:
        raise InvalidRequest(f"max_tokens: at most {limits.max_tokens} here.")


def require_options(limits: Limits, options: Mapping[str, Any] | None, max_tokens: int | None) -> None:
    """`provider_options` are merged over the request, which asks for `max_tokens`: they must not say what it may not,
    nor ask for several answers that are too long together. Raises InvalidRequest.
    """
    tokens, answers = max_tokens or 1, 1
    for name, value in _parameters(options or {}, DEPTH):
        if name in _TOKENS:
            tokens = max(tokens, _count(value))
        if name in _ANSWERS:
            answers = max(answers, _count(value))
        if name in _MODELS and limits.models is not None:
            raise InvalidRequest("provider_options: they may not choose models here. Give them as model.")
    require_tokens(limits, tokens)
    if answers > 1 and limits.max_tokens is not None and answers * tokens > limits.max_tokens:
        raise InvalidRequest(
            f"provider_options: at most {limits.max_tokens} tokens here, of all answers (`n`) together. "
            "Ask for fewer, or for a smaller max_tokens."
        )


def _count(value: object) -> int:
    """As a server might read it: some take a text for its number, too."""
    try:
        return int(min(float(value), 2**53))  # type: ignore[arg-type]  # what is no number it refuses
    except (TypeError, ValueError):
        return 0


def named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _parameters(options: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            if depth > 1:
                yield from _parameters(value, depth - 1)
        elif len(name) < 40:
            yield name.replace("_", "").lower(), value
