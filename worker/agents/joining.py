"""What is said again is said in fewer events: neighbours that are pieces of one text become one."""

from __future__ import annotations

from typing import Any

from worker.stage import Part, Repeated

JOINED = {"text_delta": "text", "thinking_delta": "text", "agent_text_delta": "text", "tool_args_delta": "partial_json"}
"""Kind → the member whose pieces are joined."""

JOINED_CHARACTERS = 4096


def add_joined(said: list[Repeated], kind: str, data: dict[str, Any], part: Part | None = None) -> None:
    """Add this event to them, or its piece to the last one. `data` may be changed later."""
    if not (said and _is_joined(said[-1], kind, data, part)):
        said.append((kind, data, part))


def _is_joined(last: Repeated, kind: str, data: dict[str, Any], part: Part | None) -> bool:
    """Whether this went into the event before it."""
    member = JOINED.get(kind)
    if member is None or last[0] != kind or last[2] is not part or data.keys() != last[1].keys():
        return False
    if any(last[1][name] != value for name, value in data.items() if name != member):
        return False
    if not isinstance(data[member], str) or len(last[1][member]) > JOINED_CHARACTERS:
        return False
    last[1][member] += data[member]
    return True
