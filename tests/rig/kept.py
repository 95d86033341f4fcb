"""What takes long to make ready, made once: by the first that needs it, for all others."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

BUILD = Path(__file__).parents[2] / "build"


def kept(name: str, made_of: bytes, make: Callable[[Path], object]) -> Path:
    """A folder in build/, kept for as long as what it is made of is the same."""
    folder = BUILD / f"{name}-{sha256(made_of).hexdigest()[:12]}"

    def make_anew(there: Path) -> None:
        for outdated in folder.parent.glob(f"{Path(name).name}-*/"):
            shutil.rmtree(outdated)
        make(there)

    return made(folder, make_anew)


def made(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, elsewhere first: what is there is whole.

    Who comes while another one makes it, waits. A lock of the kernel's is gone with its process.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            making = Path(mkdtemp(dir=folder.parent, prefix=".making-"))
            try:
                make(making)
                making.rename(folder)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    return folder
