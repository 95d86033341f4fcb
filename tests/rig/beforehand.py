"""Installs what tests keep in build/, for .ci/run: `python -m tests.rig.beforehand`, while something else waits.

Without it the tests that come first do it, and others wait for them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.frameworks.environments import pythons
from tests.rig.environments import python_of_clients
from tests.rig.npm import packages

TESTS = Path(__file__).parents[1]

if __name__ == "__main__":
    pythons()
    python_of_clients()
    if npm := shutil.which("npm"):
        for lock in sorted(TESTS.glob("**/npm/package-lock.json")):
            packages(lock.parent, npm)
