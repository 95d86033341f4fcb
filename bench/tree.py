"""A tree: the folder that a measured process takes its code from. It is this work tree, or a copy of a commit's.

When two commits are compared both sides are copies in a temporary folder, so that they start alike and that no editing
changes one of them between two rounds. A copy holds the product of its commit and the bench of this work tree, since
what loads and what measures must be the same on both sides. One bench file is the commit's own: the Lastevent sink
(contestants/lastevent.py), which calls the append script with the arguments and the modules of its commit.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]

PRODUCT = ("broker", "worker")
LINKED = "clients/js/src"
"""What the console of the product links to, in commits that have it."""
SINK = "bench/contestants/lastevent.py"
DEPENDENCIES = "requirements.txt"

WHAT_IS_LOADED = """\
import broker, worker, bench.contestants.lastevent as contestant
contestant.sink
print(*(module.__file__ for module in (broker, worker, contestant)), sep="\\n")
"""


class CannotPair(Exception):
    """The message says, in a line, why this commit cannot be measured beside the work tree."""


class Tree(NamedTuple):
    folder: Path
    name: str

    @property
    def settings(self) -> dict[str, str]:
        """With the folder as its working directory, these make a Python process import from there.

        The .venv names the work tree, too, but what is in PYTHONPATH comes before what is installed.
        """
        return {"PYTHONPATH": str(self.folder)}


HERE = Tree(REPOSITORY, "now")


class Sides(NamedTuple):
    then: Tree
    now: Tree
    notes: list[str]
    """What a reader of the figures must know: which commits these are, and in what they are not alike."""


@contextmanager
def beside(revision: str) -> Iterator[Sides]:
    """Copies of that commit and of the work tree as it is, removed again in the end.

    Raises CannotPair if git knows no such commit, or if its product cannot be run by this bench.
    """
    commit = _git(f"there is no commit {revision!r} here", "rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    name = _git("", "rev-parse", "--short", commit).strip()
    with tempfile.TemporaryDirectory(prefix="lastevent-bench-", ignore_cleanup_errors=True) as folder:
        then, now = Tree(Path(folder) / "then", name), Tree(Path(folder) / "now", "now")
        for tree in (then, now):
            _copy("bench", tree.folder)
        _take_out(commit, then)
        for part in PRODUCT:
            _copy(part, now.folder)
        _compile(then, now)
        for tree in (then, now):
            _check(tree)
        yield Sides(then, now, _notes(commit, then))


def _git(wrong: str, *arguments: str) -> str:
    return _git_bytes(wrong, *arguments).decode()


def _git_bytes(wrong: str, *arguments: str) -> bytes:
    if not shutil.which("git"):
        raise CannotPair("to take out a commit, git must be installed")
    ran = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, check=False)
    if ran.returncode:
        raise CannotPair(f"{wrong} (git: {_last_line(ran.stderr)})")
    return ran.stdout


def _take_out(commit: str, tree: Tree) -> None:
    """The commit's product, and its own sink over that of the work tree."""
    # An archive and not a `git worktree`: git need not be asked to forget it, also when this process is killed.
    wrong = f"{tree.name} lacks what this bench needs"
    linked = _git(wrong, "ls-tree", "-d", "--name-only", commit, LINKED).split()
    taken = _git_bytes(wrong, "archive", "--format=tar", commit, "--", *PRODUCT, SINK, DEPENDENCIES, *linked)
    with tarfile.open(fileobj=io.BytesIO(taken)) as archive:  # and not a zip, which keeps no links
        archive.extractall(tree.folder, filter="data")


def _copy(part: str, to: Path) -> None:
    shutil.copytree(REPOSITORY / part, to / part, ignore=shutil.ignore_patterns("__pycache__"))


def _compile(*trees: Tree) -> None:
    """Beforehand: a server that compiles its modules keeps more memory than the next one, which finds them compiled."""
    folders = [str(tree.folder) for tree in trees]
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-j", "0", *folders], stdout=sys.stderr, check=False)


def _check(tree: Tree) -> None:
    """That a process started there loads the code from there, and finds all that the sink needs."""
    ran = subprocess.run(
        [sys.executable, "-c", WHAT_IS_LOADED],
        cwd=tree.folder,
        env={**os.environ, **tree.settings},
        capture_output=True,
        check=False,
    )
    if ran.returncode:
        raise CannotPair(f"{tree.name} cannot be measured by this bench ({_last_line(ran.stderr)})")
    for file in ran.stdout.decode().splitlines():
        if not Path(file).is_relative_to(tree.folder):
            raise CannotPair(f"{tree.name} would run {file}, which is not its own code")


def _last_line(said: bytes) -> str:
    return said.decode(errors="replace").strip().rpartition("\n")[2]


def _notes(commit: str, then: Tree) -> list[str]:
    described = _git("", "log", "-1", "--format=%h, %cs: %s", commit).strip()
    here = _git("", "describe", "--always", "--dirty", "--exclude=*").strip()
    notes = [f"{described}", f"now: the work tree, {here}"]
    if (then.folder / DEPENDENCIES).read_bytes() != (REPOSITORY / DEPENDENCIES).read_bytes():
        notes.append(f"{then.name} pins other dependencies: both sides run with those that are installed now")
    return notes
