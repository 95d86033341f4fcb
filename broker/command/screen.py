"""A stream as a person sees it grow: its text, notices of restarts and gaps, and a status while nothing comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from broker.command.terminal import clean, note, print_json, quiet
from broker.log.event import INTERNAL, RESTART, STATUS, TERMINAL, TEXT_DELTA, THINKING_DELTA, TOOL_ARGS_DELTA

SILENT_S = 1.0


class Screen:
    """A stream on standard output: its text, or (JSON) its events. On a terminal a quiet status fills the silences."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._status = quiet.status("waiting") if quiet.is_terminal and not as_json else None
        self._at_line_start = True
        self._wrote_s = 0.0
        self.ending: dict[str, Any] | None = None

    def __enter__(self) -> Screen:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()
        self._end_line()

    def show(self, event: dict[str, Any]) -> None:
        if event["event"] in TERMINAL:
            self.ending = event
        if self._as_json:
            print_json(event)
        elif event["event"] == TEXT_DELTA:
            self._write(clean(str(event["data"].get("text", ""))))
        elif event["event"] in _NOTICES:
            self._end_line()
            note(_NOTICES[event["event"]], style="dim")
        else:
            self._say_what_happens(event)

    def _say_what_happens(self, event: dict[str, Any]) -> None:
        """For minutes an agent may only think and use tools."""
        happens = _HAPPENS.get(event["event"].removeprefix(INTERNAL))
        if self._status is None or happens is None or self._is_writing():
            return
        self._end_line()
        self._status.update(clean(happens(event["data"])))
        self._status.start()

    def _is_writing(self) -> bool:
        """In the middle of a line, which a status would end. What is thought between two words is not worth that."""
        return not self._at_line_start and time.monotonic() - self._wrote_s < SILENT_S

    def lost(self, reason: str) -> None:
        """The connection was lost; it is being made again."""
        if self._status:
            self._end_line()  # a status takes its line for itself
            self._status.update(f"{reason}; trying again")
            self._status.start()
        else:
            note(f"{reason}; trying again")

    def _write(self, text: str) -> None:
        if self._status:
            self._status.stop()
        sys.stdout.write(text)
        sys.stdout.flush()
        self._wrote_s = time.monotonic()
        self._at_line_start = text.endswith("\n") if text else self._at_line_start

    def _end_line(self) -> None:
        if not self._at_line_start:
            print(flush=True)
        self._at_line_start = True


def _tool(data: dict[str, Any], does: str) -> str:
    return f"{data.get('tool', 'a tool')} {does}"


_HAPPENS: dict[str, Callable[[dict[str, Any]], str]] = {
    STATUS: lambda data: str(data.get("message", "")),
    THINKING_DELTA: lambda _: "thinking",
    "tool_start": lambda data: _tool(data, "is called"),
    TOOL_ARGS_DELTA: lambda data: _tool(data, "is called"),
    "tool_progress": lambda data: str(data.get("message") or _tool(data, "works")),
    "tool_end": lambda data: _tool(data, "is done"),
    "tool_error": lambda data: _tool(data, "failed"),
}

_NOTICES = {
    RESTART: "[the generation starts again; what came before is void]",
    "gap": "[events that you have seen no longer exist]",
}
