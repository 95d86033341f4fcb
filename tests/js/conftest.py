"""The JavaScript package (clients/js) as its users have it: packed by npm, installed beside React, marked and the rest.

Programs that run in Node, Deno, Bun or a page stand in npm/, where their packages are.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.js.packages import installed


@pytest.fixture(scope="session")
def js(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Path:
    """The folder of tests/js/npm with all that it needs (tests/js/packages.py)."""
    return installed(tmp_path_factory, require)
