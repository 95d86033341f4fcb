"""The version, without the rest of the command: its imports take ten times as long as the answer."""

from __future__ import annotations

import sys
from importlib.metadata import version

ASKED_BY = (["version"], ["--version"])


def print_version() -> None:
    try:
        print(version("lastevent"), flush=True)
    except OSError as error:  # a full disk behind standard output, say
        sys.exit(f"lastevent: {error.strerror}")
