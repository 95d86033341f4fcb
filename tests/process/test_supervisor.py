"""The supervisor's own loop."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

import pytest

import broker.process.supervisor
from broker.process.admin import Panel
from broker.process.supervisor import BAD_SETTINGS, STABLE_S, Child, Supervisor

LIMIT_S = 20.0
ROUNDS = 3


def test_a_signal_ends_it_whatever_it_is_doing_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every line of some rounds, also within what is called there: where Python runs a signal's handler."""
    monkeypatch.setattr(broker.process.supervisor, "POLL_S", 0.001)
    lines_of_a_round = 0
    for line in range(1, 1000):
        watched = _Watched(line)
        watched.start()
        watched.join(LIMIT_S)
        assert not watched.is_alive(), f"it does not end when the signal comes at line {line}"
        lines_of_a_round = lines_of_a_round or (line if watched.supervisor.rounds else 0)
        if lines_of_a_round and line > ROUNDS * lines_of_a_round:
            return
    pytest.fail("it goes no rounds")


@pytest.mark.parametrize(("says", "is_refused"), [("", True), ("started", False)])
def test_a_child_that_never_did_its_work_refuses_its_settings_however_long_it_took(says: str, is_refused: bool) -> None:
    """On a machine that is late, Python alone may take that long to start."""
    script = f"import os; os.write(0, {says.encode()!r}); os._exit({BAD_SETTINGS})"
    child = Child("a child", [sys.executable, "-Sc", script], {}, Panel())
    child.start()
    assert child.process
    child.process.wait(LIMIT_S)
    child.started -= 2 * STABLE_S
    assert child.has_refused_settings() is is_refused
    child.let_go()


class _Counted(Supervisor):
    rounds = 0

    def look_after_children(self) -> None:
        super().look_after_children()
        self.rounds += 1


class _Watched(threading.Thread):
    """A supervisor without children, whose signal comes at the n-th line."""

    def __init__(self, line: int) -> None:
        super().__init__(daemon=True)
        self.supervisor = _Counted([])
        self._left = line

    def run(self) -> None:
        sys.settrace(self._trace)
        try:
            self.supervisor.watch()
        finally:
            sys.settrace(None)

    def _trace(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            self._left -= 1
            if self._left == 0:
                self.supervisor.stop(signal.SIGTERM, None)
        return self._trace
