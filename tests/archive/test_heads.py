"""The heads of the chains at a URL: no worker takes back what another has written, and time stamps of them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from broker.archive.heads import Head, HeadsUnavailable, open_heads

OURS, THEIRS = Head(5, "5" * 64, 1), Head(7, "7" * 64, 1)


class Place(ThreadingHTTPServer):
    """A document that HTTP can replace. `meanwhile`: what another worker writes between a GET and the PUT after it."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.meanwhile: bytes | None = None
        self.has_versions = True
        self.refuses = False
        self.conditions: list[str | None] = []
        super().__init__(("127.0.0.1", 0), _Document)
        self.url = f"http://127.0.0.1:{self.server_port}/heads"

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.content or b"").hexdigest()}"'


class _Document(BaseHTTPRequestHandler):
    server: Place

    def do_GET(self) -> None:
        place = self.server
        if place.content is None:
            self._answer(404)
        else:
            self._answer(200, place.content, {"ETag": place.tag} if place.has_versions else {})

    def do_PUT(self) -> None:
        place = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if place.meanwhile is not None:
            place.content, place.meanwhile = place.meanwhile, None
        tag, none = self.headers["If-Match"], self.headers["If-None-Match"]
        place.conditions.append((tag and "If-Match") or (none and "If-None-Match"))
        if place.refuses or (tag and tag != place.tag) or (none and place.content is not None):
            self._answer(412)
        else:
            place.content = body
            self._answer(204)

    def _answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def place() -> Iterator[Place]:
    with Place() as place:
        serving = threading.Thread(target=place.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield place
        place.shutdown()
        serving.join()


def test_each_replaces_just_what_it_has_read(place: Place) -> None:
    heads = open_heads(place.url)
    heads.advance("t", OURS)
    heads.advance("u", OURS)
    heads.advance("u", OURS)  # it is there
    assert place.conditions == ["If-None-Match", "If-Match"]
    assert heads.read() == {"t": OURS, "u": OURS}


def test_what_another_worker_writes_in_between_stays(place: Place) -> None:
    heads = open_heads(place.url)
    heads.advance("t", THEIRS)
    place.meanwhile, place.content = place.content, None
    heads.advance("u", OURS)
    heads.advance("t", OURS)
    assert heads.read() == {"t": THEIRS, "u": OURS}


def test_a_place_without_versions_is_replaced_as_it_is(place: Place) -> None:
    place.has_versions = False
    heads = open_heads(place.url)
    heads.advance("t", OURS)
    heads.advance("t", THEIRS)
    assert (place.conditions, heads.read()) == (["If-None-Match", None], {"t": THEIRS})


def test_a_place_that_refuses_to_replace_is_said(place: Place) -> None:
    place.refuses = True
    with pytest.raises(HeadsUnavailable, match="must let a document be replaced"):
        open_heads(place.url).advance("t", OURS)
