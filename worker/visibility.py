"""What users may see of what a model says and its tools do: decided once, by the name that an event is written under.

By default they see neither what a model thinks, nor what tools are called with, nor what these give: each may hold what
is not meant for them. It is written as internal (log/event.py) unless the stream shows it. What happens is public all
the same: that a tool is called, how long it took, and with what code it failed.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from broker.log.event import INTERNAL, THINKING_DELTA, TOOL_ARGS_DELTA
from broker.log.turn import TOOL_ARGS

THINKING, ARGS, RESULTS = "thinking", "args", "results"
"""What a stream may show."""

TOOL_END, TOOL_ERROR, TOOL_RESULT = "tool_end", "tool_error", "internal.tool_result"

_WHOSE = ("tool_call_id", "tool", "agent")


def visible(
    kind: str, data: dict[str, Any], show: Container[str], of_client: Container[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events to write for this one. Data is handed on as it is, or copied.

    `show`: some of `thinking`, `args`, `results`. `of_client`: ids of calls that the caller runs, and must see the
    arguments of. What a tool gave, or said of its failure, is taken out of `tool_end` and `tool_error`, and comes
    before it as `internal.tool_result`.
    """
    if kind == THINKING_DELTA:
        yield (kind if THINKING in show else INTERNAL + kind), data
    elif kind in (TOOL_ARGS_DELTA, TOOL_ARGS):
        yield (kind if ARGS in show or data.get("tool_call_id") in of_client else INTERNAL + kind), data
    elif kind in (TOOL_END, TOOL_ERROR) and RESULTS not in show:
        yield from _without_result(kind, data)
    else:
        yield kind, data


def _without_result(kind: str, data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    result: dict[str, Any] = {"output": data["output"]} if "output" in data else {}
    if "message" in data:
        result["error"] = {name: data[name] for name in ("code", "message") if name in data}
    if result:
        yield TOOL_RESULT, {**{name: data[name] for name in _WHOSE if name in data}, **result}
    yield kind, {name: value for name, value in data.items() if name not in ("output", "message")}
