"""What takes long to install, kept in build/ for as long as what it is made of is the same."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

BUILD = Path(__file__).parents[2] / "build"


def kept(name: str, made_of: bytes, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, elsewhere first: what is there is whole.

    Who comes while another one makes it, waits. A lock of the kernel's is gone with its process.
    """
    folder = BUILD / f"{name}-{sha256(made_of).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{Path(name).name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            for outdated in folder.parent.glob(f"{folder.name[:-12]}*"):
                shutil.rmtree(outdated)
            making = Path(mkdtemp(dir=folder.parent, prefix=".making-"))
            try:
                make(making)
                making.rename(folder)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    return folder
