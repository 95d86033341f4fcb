"""HTTP/1.1 to the byte: how a body ends and what comes before it are tested here, and client libraries hide both."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import orjson

LIMIT_S = 30.0

FRAME = re.compile(
    rb"(?:retry: (?P<retry>[0-9]+)\n)?(?:: ping\n)*event: (?P<kind>[^\n]*)\ndata: (?P<data>[^\n]*)"
    rb"(?:(?:\nretry: (?P<late>[0-9]+))?\nid: (?P<id>[0-9]+))?"
)

CURSOR = re.compile(rb"(retry: [0-9]+\n)?id: [0-9]+")


class Frame(NamedTuple):
    """`late`: the `retry:` of a terminal event."""

    id: int | None
    event: str
    data: Any
    retry: int | None = None
    late: int | None = None


def frames(body: bytes) -> list[Frame]:
    """Every complete frame of an SSE body, in exactly the form this server gives them; what is no event is left out."""
    return [_frame(block) for block in body.split(b"\n\n")[:-1] if not CURSOR.fullmatch(block)]


def _frame(block: bytes) -> Frame:
    found = FRAME.fullmatch(block)
    assert found, f"not a frame: {block!r}"
    number, retry, late = (found[name] and int(found[name]) for name in ("id", "retry", "late"))
    return Frame(number, found["kind"].decode(), orjson.loads(found["data"]), retry, late)


def ids(body: bytes) -> list[int | None]:
    return [frame.id for frame in frames(body)]


def ndjson(body: bytes) -> list[Any]:
    return [orjson.loads(line) for line in body.split(b"\n") if line]


class Exchange:
    """One request on a socket of its own. `chunks` are the body's, as they were framed."""

    def __init__(
        self, url: str, method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> None:
        at = urlsplit(url)
        own = [("Host", at.netloc)] if not any(name.lower() == "host" for name, _ in headers) else []
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in [*own, *headers])]
        self._socket = socket.create_connection((at.hostname, at.port), timeout=LIMIT_S)
        self._received = b""
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        head = self._take_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        self.status = int(head[0].split(" ")[1])
        self.headers = [(name.lower(), value) for name, value in (line.split(": ", 1) for line in head[1:] if line)]
        self.chunks: list[bytes] = []
        self.is_complete = False

    def header(self, name: str) -> str | None:
        """Its only value."""
        values = [value for known, value in self.headers if known == name.lower()]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def read_chunk(self) -> bytes | None:
        """The next chunk; None when the body is at its end (`is_complete`) or the connection was cut."""
        try:
            size = int(self._take_until(b"\r\n"), 16)
            chunk = self._take(size + 2)[:-2]
        except (EOFError, ConnectionError):
            return None
        if size == 0:
            self.is_complete = True
            return None
        self.chunks.append(chunk)
        return chunk

    def read_until(self, condition: Callable[[bytes], object]) -> bytes:
        """Read until the body so far is as wanted."""
        deadline = time.monotonic() + LIMIT_S
        while not condition(self.body):
            assert time.monotonic() < deadline, f"the body never was as wanted: {self.body!r}"
            assert self.read_chunk() is not None, f"the body ended first: {self.body!r}"
        return self.body

    def read_to_end(self) -> bytes:
        while self.read_chunk() is not None:
            pass
        return self.body

    def read_all(self) -> bytes:
        """What comes until the server closes, as it is: for answers with a length or none."""
        try:
            while received := self._socket.recv(65536):
                self._received += received
        except ConnectionError:
            pass
        return self._received

    def send(self, more: bytes) -> None:
        self._socket.sendall(more)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_until(self, mark: bytes) -> bytes:
        while mark not in self._received:
            self._receive()
        taken, _, self._received = self._received.partition(mark)
        return taken

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            self._receive()
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def _receive(self) -> None:
        received = self._socket.recv(65536)
        if not received:
            raise EOFError
        self._received += received


class Api:
    """One server, and what most tests do with it."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._headers = list(headers.items())
        # No TLS is verified, since there is none: reading the authorities' certificates takes 18 ms a client.
        self.http = httpx.Client(base_url=url, trust_env=False, verify=False, timeout=LIMIT_S, headers=headers)
        self._viewers: list[Exchange] = []

    def close(self) -> None:
        self.http.close()
        for viewer in self._viewers:
            viewer.close()

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.http.get(path, **more)

    def post(self, path: str, json: Any = None, **more: Any) -> httpx.Response:
        return self.http.post(path, json=json, **more)

    def delete(self, path: str) -> httpx.Response:
        return self.http.delete(path)

    def follow(self, sid: str, query: str = "", **headers: str) -> Exchange:
        """A viewer, which the test need not close."""
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return self.exchange("GET", f"/v1/streams/{sid}/events{query}", named)

    def exchange(self, method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> Exchange:
        """A request to the byte, with this caller's key; the test need not close it."""
        self._viewers.append(Exchange(self.url, method, path, [*self._headers, *headers], body))
        return self._viewers[-1]

    def start_external(self, **body: Any) -> str:
        answer = self.post("/v1/streams", {"producer": "external", **body})
        assert answer.status_code == 201, answer.text
        sid: str = answer.json()["id"]
        return sid

    def append(self, sid: str, *events: tuple[str, Any], epoch: int = 1, first: int | None = None) -> httpx.Response:
        body: dict[str, Any] = {"epoch": epoch, "events": [{"event": kind, "data": data} for kind, data in events]}
        return self.post(f"/v1/streams/{sid}/events", body if first is None else {**body, "first": first})

    def finished(self, *texts: str, **body: Any) -> str:
        """A stream that has ended: 1 queued, 2 start, one text_delta a text, done."""
        sid = self.start_external(**body)
        deltas = [("text_delta", {"text": text}) for text in texts]
        self.append(sid, ("start", {}), *deltas, ("done", {"stop_reason": "end_turn"})).raise_for_status()
        return sid

    def record(self, sid: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/v1/streams/{sid}").json()
        return found

    def newest_ids(self) -> set[str]:
        """The newest streams there are: enough to see whether one has been made."""
        page = self.get("/v1/streams", params={"limit": 20}).json()
        return {stream["id"] for stream in page["streams"]}


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The answer is this problem, in the one form that all of them have."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    said: dict[str, Any] = answer.json()
    assert (said["status"], said["code"]) == (status, code)
    assert said.keys() >= {"type", "title", "detail", "request_id"}
    assert said["request_id"] == answer.headers["x-request-id"]
    return said


def walked(api: Api, path: str, what: str, **params: Any) -> list[list[str]]:
    """The ids of every page, to the last one."""
    pages = []
    cursor = None
    while True:
        page = api.get(path, params={**params, **({"cursor": cursor} if cursor else {})}).json()
        pages.append([one["id"] for one in page[what]])
        cursor = page["next"]
        if cursor is None:
            return pages
