"""The options that give workers an app: typed at `up` and `work`, checked there, and passed on to each worker."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import NamedTuple

_NAME = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
APP = re.compile(rf"{_NAME}(:{_NAME})?")
APP_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""It is a part of a key in Redis."""

MAX_PROCESSES = 64


class AppOptions(NamedTuple):
    """`app`: module, or module:attribute. `python`: another interpreter for it. `reloads`: when its code changes."""

    app: str
    name: str = "default"
    processes: int = 1
    python: str | None = None
    reloads: bool = False

    def problems(self) -> Iterator[str]:
        """A line for each option that cannot be used."""
        if not APP.fullmatch(self.app):
            yield f"--app: {self.app!r} is no module: give its name as in an import, such as myapp.agents"
        if not APP_NAME.fullmatch(self.name):
            yield "--app-name: letters, digits, dots, dashes and underscores only, 64 at most"
        if not 1 <= self.processes <= MAX_PROCESSES:
            yield f"--agent-processes: 1 to {MAX_PROCESSES}"
        if self.python is not None and shutil.which(self.python) is None:
            yield f"--python: {self.python!r} is no program that can be run"

    def arguments(self) -> list[str]:
        """As they are passed on to a worker."""
        python = [] if self.python is None else ["--python", os.path.abspath(shutil.which(self.python) or self.python)]
        reload = ["--reload"] if self.reloads else []
        return ["--app", self.app, "--app-name", self.name, "--agent-processes", str(self.processes), *python, *reload]
