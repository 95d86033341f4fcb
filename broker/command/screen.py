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

    def __init__(self, as_json: bool, sid: str) -> None:
        self._sid = sid
        self._as_json = as_json
        self._status = quiet.status("waiting") if quiet.is_terminal and not as_json else None
        self._at_line_start = True
        self._wrote_s = 0.0
        self._titles: dict[str, str] = {}
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
        if event["event"] == "tool_start" and (title := event["data"].get("title")):
            self._titles[str(event["data"].get("tool_call_id"))] = str(title)
        if self._as_json:
            print_json(event)
        elif event["event"] == TEXT_DELTA:
            self._write(clean(str(event["data"].get("text", ""))))
        elif event["event"] in _NOTICES:
            self._end_line()
            note(_NOTICES[event["event"]], style="dim")
        elif event["event"] == "approval_request":  # said to a file as well: nothing goes on before it is decided
            self._end_line()
            note(_approval(self._sid, event["data"]))
        elif self._status and event["event"] in _ENDS and not self._is_writing():
            self._status.stop()
            self._end_line()
            if not event["data"].get("replayed"):  # after a takeover: it had its line before
                quiet.print(clean(self._ended(event)), style="dim", soft_wrap=True)
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

    def _ended(self, event: dict[str, Any]) -> str:
        """A line that stays, of what a tool has done."""
        data = event["data"]
        took = f" ({ms / 1000:.1f} s)" if isinstance(ms := data.get("duration_ms"), int | float) else ""
        how = "done" if event["event"] == "tool_end" else data.get("code") or "failed"
        return f"[{self._titles.get(str(data.get('tool_call_id'))) or _called(data)}: {how}{took}]"

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
    return f"{_called(data)} {does}"


def _called(data: dict[str, Any]) -> str:
    return str(data.get("title") or data.get("tool") or "a tool")


def _approval(sid: str, data: dict[str, Any]) -> str:
    return clean(
        f"[{_called(data)}: waits for an approval. "
        f'POST /v1/streams/{sid}/approvals/{data.get("approval_id")} {{"approve": true}}]'
    )


_HAPPENS: dict[str, Callable[[dict[str, Any]], str]] = {
    STATUS: lambda data: str(data.get("message", "")),
    THINKING_DELTA: lambda _: "thinking",
    "tool_start": lambda data: _tool(data, "is called"),
    TOOL_ARGS_DELTA: lambda data: _tool(data, "is called"),
    "tool_progress": lambda data: str(data.get("message") or _tool(data, "works")),
}

_ENDS = frozenset({"tool_end", "tool_error"})

_NOTICES = {
    RESTART: "[the generation starts again; what came before is void]",
    "gap": "[events that you have seen no longer exist]",
}
