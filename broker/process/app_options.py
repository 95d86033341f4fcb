"""The options that give workers an app: typed at `up` and `work`, checked there, and passed on to each worker."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from broker.settings import SettingsError

if TYPE_CHECKING:
    import argparse

_NAME = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
APP = re.compile(rf"{_NAME}(:{_NAME})?")
APP_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""It is a part of a key in Redis."""

DEFAULT_NAME = "default"
MAX_PROCESSES = 64


class AppOptions(NamedTuple):
    """`app`: module, or module:attribute. `python`: another interpreter for it. `reloads`: when its code changes."""

    app: str
    name: str
    processes: int
    python: str | None
    reloads: bool

    @classmethod
    def checked(
        cls, app: str | None, name: str | None, processes: int | None, python: str | None, *, reloads: bool = False
    ) -> AppOptions | None:
        """What was typed; None: no app. Raises SettingsError with one line an option that cannot be used."""
        if app is None:
            alone = {
                "--app-name": name,
                "--agent-processes": processes,
                "--python": python,
                "--reload": reloads or None,
            }
            if given := [option for option, value in alone.items() if value is not None]:
                raise SettingsError(f"{', '.join(given)}: without --app there is no app that this could be about")
            return None
        options = cls(
            app, DEFAULT_NAME if name is None else name, 1 if processes is None else processes, python, reloads
        )
        if problems := "\n".join(options._problems()):
            raise SettingsError(problems)
        return options

    def _problems(self) -> Iterator[str]:
        if not APP.fullmatch(self.app):
            yield f"--app: {self.app!r} is no module: give its name as in an import, such as myapp.agents"
        elif self.app.endswith(".py") and os.path.isfile(self.app):
            yield f"--app: {self.app!r} is a file: give the module's name, {self.app.removesuffix('.py')}"
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


def add_app_options(parser: argparse.ArgumentParser) -> None:
    """For a worker's own command line, which `up` and `work` write."""
    parser.add_argument("--app", help="the module with your agents: module, or module:attribute")
    parser.add_argument("--app-name", help="what the queue of its streams is called (default)")
    parser.add_argument("--agent-processes", type=int, help="processes that run it (1)")
    parser.add_argument("--python", help="another interpreter for it")
    parser.add_argument("--reload", action="store_true", help="import it anew when its code changes")


def given_app(options: argparse.Namespace) -> AppOptions | None:
    """Raises SettingsError."""
    return AppOptions.checked(
        options.app, options.app_name, options.agent_processes, options.python, reloads=options.reload
    )
