"""A web site on loopback for a test's pages: its files, and a Lastevent server behind `/v1`.

It tells what that server was asked.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import NamedTuple

HOP_BY_HOP = {"connection", "transfer-encoding", "date", "server"}
TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8"}


class Asked(NamedTuple):
    method: str
    path: str
    last_event_id: str | None
    idempotency_key: str | None


class Site(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream_port = upstream_port
        self.files: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.following: set[BaseHTTPRequestHandler] = set()
        """Whose answers are on their way."""
        self.answers_starts = Event()
        """Cleared: the server starts what it is asked for, and the page does not hear of it."""
        self.answers_starts.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked_for(self, sid: str) -> list[Asked]:
        """The connections that followed a stream."""
        return [asked for asked in self.asked if asked.path.startswith(f"/v1/streams/{sid}/events")]

    def starts(self) -> list[Asked]:
        return [asked for asked in self.asked if (asked.method, asked.path) == ("POST", "/v1/streams")]

    def handle_error(self, request: object, client_address: object) -> None:
        """A page that has gone away is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/v1/"):
            self._forward(b"")
            return
        name = self.path.partition("?")[0].removeprefix("/") or "index.html"
        body = self.server.files.get(name)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", TYPES.get(name.rpartition(".")[2], "text/plain"))
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def do_POST(self) -> None:
        self._forward(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _forward(self, body: bytes) -> None:
        site = self.server
        headers = self.headers
        site.asked.append(Asked(self.command, self.path, headers["Last-Event-ID"], headers["Idempotency-Key"]))
        upstream = http.client.HTTPConnection("127.0.0.1", site.upstream_port)
        site.following.add(self)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            if self.command == "POST":
                site.answers_starts.wait()
            self._bring_back(answer)
        finally:
            site.following.discard(self)
            upstream.close()

    def _bring_back(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        is_long = answer.status != 204 and answer.getheader("Content-Length") is None
        if is_long:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := answer.read1(2**16):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_long else piece)
        if is_long:
            self.wfile.write(b"0\r\n\r\n")


@contextmanager
def serving(upstream_port: int) -> Iterator[Site]:
    site = Site(upstream_port)
    thread = Thread(target=site.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield site
    finally:
        site.answers_starts.set()
        site.shutdown()
        site.server_close()
        thread.join()
