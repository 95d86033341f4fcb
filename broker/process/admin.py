"""The admin port: /metrics, /readyz and /healthz of a process, or of all that a supervisor has started.

It is served by threads beside the event loop, so a scrape holds no viewer up, and a loop that hangs is noticed: its
process is not ready. Under a supervisor the port is the supervisor's. It asks each child over a socket pair that the
child has inherited, in order to answer for all of them:

    question   "7 metrics\\n"                            the number tells a late answer from the present one's
    answer     number and length, 4 bytes each, the body

No file is left behind by a process that dies, its figures are gone at once, and one that hangs costs a scrape
ANSWER_S. Both are then 0 in lastevent_process_up.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from broker import gauges
from broker.errors import LasteventError
from broker.process.scrapers import Scrapers
from broker.settings import LOOPBACK, Settings, SettingsError

logger = logging.getLogger(__name__)

DEFAULT_PORT = 9464
"""Where OpenTelemetry's exporters for Prometheus are, too."""

ANSWER_S = 1.0
"""How long a loop, or a child, has to answer. Prometheus waits 10 s by default, Kubernetes' probes 1 s."""

REQUEST_S = 5.0
"""For all of it. To each read alone, a client that sends a byte a second would hold its place for days, and eight such
the probes: a process that is well would be restarted."""
AT_ONCE = 8
"""Requests; the next one waits. Whoever reaches this port is an operator's, but may be broken."""

_LOOPBACK_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
"""As at the door (web/door.py): a page whose own domain was pointed at 127.0.0.1 says its own name."""

_HEAD = struct.Struct("!II")


class Answers(NamedTuple):
    """What the port is asked. Both are called in any thread. `lack`: why it is not ready; None: it is."""

    metrics: Callable[[], bytes]
    lack: Callable[[], str | None]


def answers_of(ready: Callable[[], Awaitable[object]], loop: asyncio.AbstractEventLoop) -> Answers:
    """Of this process. `ready` raises a LasteventError that says what is missing."""
    return Answers(gauges.render, lambda: _lack(ready, loop))


def _lack(ready: Callable[[], Awaitable[object]], loop: asyncio.AbstractEventLoop) -> str | None:
    async def ask() -> None:
        await ready()

    if loop.is_closed():
        return "The process is ending."
    asked = asyncio.run_coroutine_threadsafe(ask(), loop)
    try:
        asked.result(ANSWER_S)
    except LasteventError as lack:
        return str(lack)
    except TimeoutError:
        asked.cancel()
        return "The process does not answer in time."
    return None


# -- the port ------------------------------------------------------------------------------------------------


class AdminPort:
    """`may_scrape(credential)`: whether that opens /metrics; None: on this address everybody may."""

    def __init__(self, host: str, port: int, answers: Answers, may_scrape: Callable[[str], bool] | None = None) -> None:
        """Raises OSError."""
        self._server = _Server(host, port, answers, may_scrape)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="admin port", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def open_admin_port(
    settings: Settings, answers: Answers, may_scrape: Callable[[str], bool], say: Callable[[str], object]
) -> AdminPort | None:
    """The port of the settings; None: there is to be none, or the default one is taken, which is said.

    Raises SettingsError.
    """
    host, port = settings.admin_host, settings.admin_port
    if port == 0:
        return None
    try:
        return AdminPort(host, port or DEFAULT_PORT, answers, None if host in LOOPBACK else may_scrape)
    except OSError as error:
        if port is None and error.errno == errno.EADDRINUSE:
            say(f"No admin port here: {DEFAULT_PORT} is taken. LASTEVENT_ADMIN_PORT names another, 0 none.")
            return None
        is_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        name = "LASTEVENT_ADMIN_PORT" if is_port else "LASTEVENT_ADMIN_HOST"
        raise SettingsError(
            f"{name}: the admin port {port or DEFAULT_PORT} cannot be opened on {host} ({error.strerror})."
        ) from None


def offer_answers(
    settings: Settings, answers: Answers, *, say: Callable[[str], object], admin_fd: int | None, has_parent: bool
) -> None:
    """To a supervisor, over the socket that it gave, or at a port of this process' own. Raises SettingsError."""
    if admin_fd is not None:
        answer_supervisor(admin_fd, answers)
    elif not has_parent:
        open_admin_port(settings, answers, Scrapers(settings).have, say)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, answers: Answers, may_scrape: Callable[[str], bool] | None) -> None:
        self.answers = answers
        self.may_scrape = may_scrape
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        [(self.address_family, _, _, _, _), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own looks this machine's name up, which may take long.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._slots.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        end = threading.Timer(REQUEST_S, _break_off, [request])
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a request at the admin port broke off", exc_info=True)


def _break_off(connection: socket.socket) -> None:
    with suppress(OSError):  # it is closed by now
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/healthz":
                self._json(200, {"status": "ok"})
            case "/readyz":
                lack = self.server.answers.lack()
                self._json(503, _problem(503, lack)) if lack else self._json(200, {"status": "ready"})
            case "/metrics":
                self._metrics()
            case _:
                self.send_error(404)

    do_HEAD = do_GET

    def _metrics(self) -> None:
        if self.server.may_scrape is None:
            if not _LOOPBACK_HOST.fullmatch(self.headers.get("host", "")):
                self._json(403, _problem(403, "On loopback this port answers to localhost, 127.0.0.1 and [::1] only."))
                return
        elif not (credential := self._credential()):
            self._json(401, _problem(401, "Send the header Authorization: Bearer <an API key with metrics:read>."))
            return
        elif not self.server.may_scrape(credential):
            self._json(403, _problem(403, "This takes an API key with the scope metrics:read."))
            return
        self._send(200, gauges.CONTENT_TYPE, self.server.answers.metrics())

    def _credential(self) -> str:
        scheme, _, credential = self.headers.get("authorization", "").partition(" ")
        return credential.strip() if scheme.lower() == "bearer" else ""

    def _json(self, status: int, said: Mapping[str, Any]) -> None:
        media_type = "application/json" if status == 200 else "application/problem+json"
        self._send(status, media_type, json.dumps(said).encode())

    def _send(self, status: int, media_type: str, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The base class would answer HTML, with the request's own words in it."""
        self.close_connection = True
        self._json(code, _problem(code, "This port has /metrics, /readyz and /healthz, and no more."))

    def log_message(self, format: str, *args: Any) -> None:
        """Probes ask every few seconds."""


def _problem(status: int, detail: str) -> dict[str, Any]:
    title = HTTPStatus(status).phrase
    code = title.lower().replace(" ", "_")
    return {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail}


# -- a child, and its supervisor -----------------------------------------------------------------------------


def answer_supervisor(descriptor: int, answers: Answers) -> None:
    """Answer, in a thread, what is asked over the inherited socket, until its other end is closed."""
    end = socket.socket(fileno=descriptor)
    end.set_inheritable(False)
    threading.Thread(target=_answer, args=(end, answers), name="supervisor's questions", daemon=True).start()


def _answer(end: socket.socket, answers: Answers) -> None:
    with suppress(OSError), end, end.makefile("rb") as questions:
        for question in questions:
            number, what = question.split()
            try:
                body = answers.metrics() if what == b"metrics" else (answers.lack() or "").encode()
            except Exception:
                logger.exception("this process could not tell its supervisor: %s", what.decode())
                continue
            end.sendall(_HEAD.pack(int(number), len(body)) + body)


class Panel:
    """A supervisor's view of its children, by name. `add` and `drop` may be called while the others ask."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._ends: dict[str, _End | None] = {}
        self._number = 0

    @property
    def answers(self) -> Answers:
        return Answers(self.metrics, self.lack)

    def add(self, name: str) -> socket.socket:
        """The child's end of a new pair."""
        ours, theirs = socket.socketpair()
        with self._asking:
            self._drop(name)
            self._ends[name] = _End(ours)
        return theirs

    def drop(self, name: str) -> None:
        """It has died; it is named as one that is not up."""
        with self._asking:
            self._drop(name)

    def _drop(self, name: str) -> None:
        if end := self._ends.get(name):
            end.socket.close()
        self._ends[name] = None

    def metrics(self) -> bytes:
        told = self._ask(b"metrics")
        up = [f'lastevent_process_up{{process="{name}"}} {float(body is not None)}' for name, body in told.items()]
        head = "# HELP lastevent_process_up 1 if the process answered\n# TYPE lastevent_process_up gauge\n"
        return merged(told) + "\n".join([head.rstrip(), *up, ""]).encode()

    def lack(self) -> str | None:
        """Of each kind of process one at least is ready."""
        kinds: dict[str, list[str]] = {}
        for name, body in self._ask(b"ready").items():
            lack = "It does not answer." if body is None else body.decode()
            kinds.setdefault(name.rpartition(" ")[0], []).append(lack)
        lacking = [f"{kind}: {lacks[0]}" for kind, lacks in kinds.items() if all(lacks)]
        return " ".join(lacking) or None if kinds else "Nothing has been started yet."

    def _ask(self, what: bytes) -> dict[str, bytes | None]:
        """What each child answers; None of one that does not."""
        with self._asking:
            self._number += 1
            asked = {name: end for name, end in self._ends.items() if end and end.ask(self._number, what)}
            told: dict[str, bytes | None] = dict.fromkeys(self._ends)
            until_s = time.monotonic() + ANSWER_S
            while asked and (left_s := until_s - time.monotonic()) > 0:
                readable, _, _ = select.select([end.socket for end in asked.values()], [], [], left_s)
                for name, end in list(asked.items()):
                    if end.socket in readable and end.has_read(self._number):
                        told[name] = end.answer
                        del asked[name]
            return told


class _End:
    """A supervisor's end. `answer`: None, if the child has gone."""

    def __init__(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        self.socket = ours
        self.answer: bytes | None = None
        self._read = bytearray()

    def ask(self, number: int, what: bytes) -> bool:
        question = b"%d %b\n" % (number, what)
        self.answer = None
        try:
            return self.socket.send(question) == len(question)
        except OSError:  # it has gone, or has hung for so long that there is no room
            return False

    def has_read(self, number: int) -> bool:
        """Whether this answer, or the end, has come."""
        try:
            read = self.socket.recv(2**20)
        except BlockingIOError:
            return False
        except OSError:
            return True
        self._read += read
        while len(self._read) >= _HEAD.size:
            answered, length = _HEAD.unpack_from(self._read)
            if len(self._read) < _HEAD.size + length:
                break
            body = bytes(self._read[_HEAD.size : _HEAD.size + length])
            del self._read[: _HEAD.size + length]
            if answered == number:
                self.answer = body
                return True
        return not read


def merged(told: Mapping[str, bytes | None]) -> bytes:
    """Scrapes of several processes as one: each family once, each sample with the label `process`."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for process, body in told.items():
        family = ""
        for line in (body or b"").decode().splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                if family not in heads:
                    heads[family], samples[family] = [line], []
            elif line.startswith("# TYPE "):
                if len(heads[family]) == 1:
                    heads[family].append(line)
            else:
                samples[family].append(_labelled(line, process))
    return "".join(f"{line}\n" for family in heads for line in (*heads[family], *samples[family])).encode()


def _labelled(sample: str, process: str) -> str:
    """A metric's name has neither a brace nor a space."""
    at = next(at for at, character in enumerate(sample) if character in "{ ")
    more = f'{{process="{process}",{sample[at + 1 :]}' if sample[at] == "{" else f'{{process="{process}"}}{sample[at:]}'
    return sample[:at] + more
