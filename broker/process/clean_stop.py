"""The mark of a clean stop: which server ended with everything on the disk, so that the next one may continue it.

After a crash the next server may have lost the last second, and for a lease nobody may begin anything (broker/log/
servers.py). After a clean stop nothing is lost. The mark is what tells the two apart, so it must never lie:

    left    by the owner, when the process has exited with code 0, after the data has been synced once more
    taken   by the next owner, which removes it before its server runs: a mark serves once
    void    if the data's files are not the very ones that it was left with: somebody else's server has written them
            since, or they were put back from a backup. A copy may have their bytes and times, but not their inode's
            change time, which cannot be set. (A snapshot of the whole disk has it: see Known limits in ARCHITECTURE.)

Killed at any point in between, there is no mark or it is a true one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

MARK = "stopped.json"
DATA = "appendonlydir"


class Ended(NamedTuple):
    """A server by its name in the log, and when it ended (ms, by its clock)."""

    server: str
    at_ms: int


def leave(folder: Path, ended: Ended) -> None:
    """Its process has gone, and wrote all it had. Raises OSError; then there is no mark, or one that is true."""
    for file in _data(folder):
        _sync(file)  # a file that was just rewritten may still be in the kernel's hands
    _sync(folder / DATA)
    written = folder / f"{MARK}.new"
    written.write_text(json.dumps({**ended._asdict(), "files": _fingerprint(folder)}))
    _sync(written)
    written.replace(folder / MARK)
    _sync(folder)


def take(folder: Path) -> Ended | None:
    """What the last stop left, if it was clean and nothing has happened to the data since; and it is left no more.

    Raises OSError if the mark cannot be removed: no server may run beside it.
    """
    path = folder / MARK
    try:
        written = path.read_bytes()
    except FileNotFoundError:
        return None
    path.unlink()
    _sync(folder)
    try:
        mark = json.loads(written)
        ended, files = Ended(str(mark["server"]), int(mark["at_ms"])), mark["files"]
    except (ValueError, TypeError, KeyError):
        return None  # damaged
    return ended if files == _fingerprint(folder) else None


def _data(folder: Path) -> list[Path]:
    return sorted(file for file in (folder / DATA).glob("*") if file.is_file())


def _fingerprint(folder: Path) -> dict[str, list[int]]:
    of = {file.name: file.stat() for file in _data(folder)}
    return {name: [at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns] for name, at in of.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
