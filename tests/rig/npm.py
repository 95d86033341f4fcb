"""npm packages for tests: what a folder's package-lock.json names, installed in a copy of that folder."""

import shutil
import subprocess
from pathlib import Path

INSTALL_LIMIT_S = 120


def install(folder: Path, into: Path, npm: str) -> Path:
    """Copy the files of `folder` and run `npm ci` there: nothing is written where the tests stand."""
    for file in folder.iterdir():
        if file.is_file():
            shutil.copy(file, into)
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    ran = subprocess.run(command, cwd=into, timeout=INSTALL_LIMIT_S, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return into
