"""A stream as a person sees it grow: its text, notices of restarts and gaps, and a status while nothing comes."""

from __future__ import annotations

import sys
from typing import Any

from broker.command.terminal import clean, note, print_json, quiet
from broker.log.event import RESTART, STATUS, TERMINAL, TEXT_DELTA


class Screen:
    """A stream on standard output: its text, or (JSON) its events. On a terminal a quiet status fills the silences."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._status = quiet.status("waiting") if quiet.is_terminal and not as_json else None
        self._at_line_start = True
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
        elif event["event"] == STATUS and self._status:
            self._status.update(clean(str(event["data"].get("message", ""))))

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
        self._at_line_start = text.endswith("\n") if text else self._at_line_start

    def _end_line(self) -> None:
        if not self._at_line_start:
            print(flush=True)
        self._at_line_start = True


_NOTICES = {
    RESTART: "[the generation starts again; what came before is void]",
    "gap": "[events that you have seen no longer exist]",
}
