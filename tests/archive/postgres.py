"""A PostgreSQL server of Debian's for tests, on a unix socket; it ends when this process does, however that ends.

On the socket everybody is who they say, over TCP (for who asks for it) they need a password: as in PostgreSQL's image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.rig.deployment import wait_until

# PostgreSQL does not run as root, and a killed session must leave nothing behind: this stands between the two.
KEEPER = """
import signal, subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
sys.stdin.read()
server.send_signal(signal.SIGINT)  # at once: SIGTERM waits until every client has gone
server.wait()
"""
_OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",  # nobody pulls the plug here; kill -9 is survived all the same
    "max_connections": "200",
    "shared_buffers": "32MB",
}
_AUTHENTICATION = ("--auth-local=trust", "--auth-host=scram-sha-256")
USER = "postgres"
DEFAULT_PORT = 5432
"""A socket has a port, too: in its name."""


def postgres_binaries() -> Path | None:
    """Where Debian keeps them: not in PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


@contextmanager
def running_postgres(binaries: Path, port: int | None = None) -> Iterator[str]:
    """The folder of its socket. With a port, it listens on loopback too."""
    with tempfile.TemporaryDirectory(prefix="le-pg-", dir="/tmp") as folder:
        data = f"{folder}/data"
        setpriv = as_user(folder)
        made = [*setpriv, str(binaries / "initdb"), "-D", data, "-U", USER, *_AUTHENTICATION, "-E", "UTF8", "--no-sync"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, cwd="/")
        listen = {"listen_addresses": "127.0.0.1", "port": str(port)} if port else {}
        options = [part for name, value in (_OPTIONS | listen).items() for part in ("-c", f"{name}={value}")]
        command = [*setpriv, str(binaries / "postgres"), "-D", data, "-k", folder, *options]
        keeper = [sys.executable, "-IS", "-c", KEEPER, *command]
        with subprocess.Popen(keeper, stdin=subprocess.PIPE, cwd="/", start_new_session=True) as process:
            wait_until(lambda: _answers(folder, port), "PostgreSQL answers")
            yield folder
            assert process.stdin
            process.stdin.close()
            process.wait()


def as_user(folder: str) -> list[str]:
    if os.geteuid() != 0:
        return []
    shutil.chown(folder, USER)
    setpriv = shutil.which("setpriv")
    assert setpriv
    return [setpriv, f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]


def _answers(folder: str, port: int | None) -> bool:
    try:
        with connect(folder, port=port):
            return True
    except psycopg.OperationalError:
        return False


def connect(folder: str, database: str = "postgres", port: int | None = None) -> psycopg.Connection:
    return psycopg.connect(host=folder, port=port or DEFAULT_PORT, user=USER, dbname=database, autocommit=True)
