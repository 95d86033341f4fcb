"""For the tests of your app: a server in a thread of yours, whose answers are what the test says. No Redis, no worker.

    # conftest.py
    pytest_plugins = ["lastevent.testing"]

    def test_my_app(lastevent_server):
        lastevent_server.answer("Hello, ", "Ann.")
        with Client(lastevent_server.url) as client:
            assert client.start("Hello").wait().text == "Hello, Ann."
        assert lastevent_server.asked[0]["prompt"] == "Hello"

It speaks the real wire: Server-Sent Events with ids, `Last-Event-ID`, 204, Idempotency-Key, producers' batches; and it
cuts and refuses where a test says so. What it does not know (keys, agents, limits, listings) is 404. Besides pytest it
needs the standard library alone.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

ENDINGS = ("done", "error", "cancelled")


class _Stream:
    def __init__(self, sid: str, asked: dict[str, Any]) -> None:
        self.sid = sid
        self.asked = asked
        self.events: list[tuple[str, dict[str, Any]]] = [("queued", {})]

    @property
    def has_ended(self) -> bool:
        return self.events[-1][0] in ENDINGS

    @property
    def text(self) -> str:
        return "".join(data["text"] for kind, data in self.events if kind == "text_delta")

    @property
    def record(self) -> dict[str, Any]:
        return {
            "id": self.sid,
            "state": self.events[-1][0] if self.has_ended else "running",
            "agent": self.asked.get("agent"),
            "session_id": self.asked.get("session_id"),
            "user_id": self.asked.get("user_id"),
            "attempt": 1,
            "last_event_id": len(self.events),
            "events_url": f"/v1/streams/{self.sid}/events",
            **({"epoch": 1} if self.asked.get("producer") == "external" else {}),
        }


class Server:
    """What the fixture `lastevent_server` is."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        """The bodies of starts, each once, however often it was sent."""
        self.requests: list[str] = []
        """`GET /v1/streams/…`: all that came."""
        self._answers: list[list[tuple[str, dict[str, Any]]]] = []
        self._streams: dict[str, _Stream] = {}
        self._keys: dict[str, str] = {}
        self._cuts: list[int] = []
        self._refusals: list[tuple[int, str]] = []
        self._changed = threading.Condition()
        self._is_closing = False
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def answer(self, *said: str | tuple[str, Mapping[str, Any]], goes_on: bool = False) -> None:
        """The next start's: texts, and events as (kind, data). Without an ending of its own it ends with `done`, or, if
        it `goes_on`, when somebody cancels it. A start for which nothing was said is answered with "Hello".
        """
        events = [("text_delta", {"text": one}) if isinstance(one, str) else (one[0], dict(one[1])) for one in said]
        if not goes_on and (not events or events[-1][0] not in ENDINGS):
            events.append(("done", {"stop_reason": "end_turn"}))
        self._answers.append(events)

    def cut(self, *after: int) -> None:
        """The next connections break off, one behind each of these ids."""
        self._cuts += after

    def refuse(self, status: int, code: str, times: int = 1) -> None:
        """The next requests are answered with a problem."""
        self._refusals += [(status, code)] * times

    def text(self, id: str) -> str:
        """What a stream says by now; also one that your app writes as its producer."""
        return self._streams[id].text

    def events(self, id: str) -> list[tuple[str, dict[str, Any]]]:
        """All of a stream, (kind, data) each; its first is `queued`, of id 1."""
        return list(self._streams[id].events)

    def say(self, id: str, *said: str | tuple[str, Mapping[str, Any]]) -> None:
        """More of an answer that goes on."""
        with self._changed:
            for one in said:
                event = ("text_delta", {"text": one}) if isinstance(one, str) else (one[0], dict(one[1]))
                self._streams[id].events.append(event)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def lastevent_server() -> Iterator[Server]:
    """A Lastevent server whose answers are scripted: see lastevent.testing."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "lastevent.testing"
    wbufsize = -1  # a frame is one write
    its: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test's output is the test's."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        its, url = self.its, urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(raw) if raw else {}
        its.requests.append(f"{self.command} {url.path}")
        if its._refusals:
            self._problem(*its._refusals.pop(0))
            return
        parts = url.path.strip("/").split("/")
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if parts[:2] != ["v1", "streams"]:
            self._problem(404, "not_found")
        elif len(parts) == 2 and self.command == "POST":
            self._start(body)
        elif len(parts) < 3 or not (stream := its._streams.get(parts[2])):
            self._problem(404, "stream_not_found")
        else:
            self._call(f"{self.command} {'/'.join(parts[3:])}", stream, body, query)

    def _start(self, body: dict[str, Any]) -> None:
        its = self.its
        key = self.headers.get("Idempotency-Key") or str(uuid.uuid4())
        with its._changed:
            is_new = key not in its._keys
            sid = its._keys.setdefault(key, uuid.uuid4().hex)
            if is_new:
                its.asked.append(body)
                stream = its._streams[sid] = _Stream(sid, body)
                if body.get("producer") != "external":
                    said = its._answers.pop(0) if its._answers else [("text_delta", {"text": "Hello"}), ("done", {})]
                    stream.events += [("start", {"attempt": 1}), *said]
        place = {"Location": f"/v1/streams/{sid}"}
        if "text/event-stream" in self.headers.get("Accept", ""):
            self._follow(its._streams[sid], 0, {}, 201 if is_new else 200, place)
        else:
            self._json(201 if is_new else 200, its._streams[sid].record, place)

    def _call(self, call: str, stream: _Stream, body: dict[str, Any], query: dict[str, str]) -> None:
        if call == "GET ":
            self._json(200, stream.record)
        elif call == "GET events":
            cursor = self.headers.get("Last-Event-ID") or query.get("last_event_id") or "0"
            if not (cursor.isascii() and cursor.isdigit()):
                self._problem(400, "bad_cursor")
            elif stream.has_ended and int(cursor) >= len(stream.events):
                self._answer(204, b"")
            else:
                self._follow(stream, int(cursor), query)
        elif call == "GET text":
            headers = {"Content-Type": "text/plain; charset=utf-8", "Last-Event-ID": str(len(stream.events))}
            self._answer(200, stream.text.encode(), headers)
        elif call == "POST cancel":
            already, stopped_after = stream.has_ended, len(stream.events)
            if not already:
                self.its.say(stream.sid, ("cancelled", {"reason": body.get("reason", "requested"), "by": "anyone"}))
            record = stream.record
            told = {"state": record["state"], "last_event_id": record["last_event_id"]}
            self._json(200, {**told, "stopped_after": stopped_after, "already": already})
        elif call == "POST events":
            self._append(stream, body)
        elif call == "POST heartbeat":
            self._json(200, {"last_event_id": len(stream.events)})
        else:
            self._problem(404, "not_found")

    def _append(self, stream: _Stream, body: dict[str, Any]) -> None:
        with self.its._changed:
            events = [(event["event"], event["data"]) for event in body["events"]]
            tail = len(stream.events)
            first = body.get("first") or tail + 1
            there = stream.events[first - 1 : first - 1 + len(events)]
            if there != events[: len(there)]:
                self._problem(409, "stream_closed" if stream.has_ended else "writer_superseded")
            elif first > tail + 1:
                self._problem(409, "append_gap", last_event_id=tail)
            elif len(there) < len(events) and stream.has_ended:
                self._problem(409, "stream_closed")
            else:
                stream.events += events[len(there) :]
                self.its._changed.notify_all()
                self._json(200, {"last_event_id": len(stream.events)})

    def _follow(
        self,
        stream: _Stream,
        cursor: int,
        query: dict[str, str],
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        its = self.its
        cut = its._cuts.pop(0) if its._cuts else None
        is_ndjson = "ndjson" in self.headers.get("Accept", "")
        kind = "application/x-ndjson" if is_ndjson else "text/event-stream; charset=utf-8"
        self._head(status, {**(headers or {}), "Content-Type": kind, "Transfer-Encoding": "chunked"})
        if not is_ndjson:
            self._chunk(b"retry: 100\n\n")
        while True:
            with its._changed:
                while cursor >= len(stream.events) and not (its._is_closing or query.get("follow") == "0"):
                    its._changed.wait(4.0)
                    if cursor >= len(stream.events):
                        self._chunk(b": ping\n" if not is_ndjson else b"\n")
                events = list(enumerate(stream.events[cursor:], cursor + 1))
            for number, (name, data) in events:
                self._chunk(_framed(number, name, data, is_ndjson))
                cursor = number
                if number == cut:
                    self.close_connection = True
                    return
            if stream.has_ended or query.get("follow") == "0":
                self._chunk(b"")
                return
            if its._is_closing:
                self.close_connection = True
                return

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Cache-Control": "no-store", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        length = {} if status == 204 else {"Content-Length": str(len(body))}
        self._head(status, {**length, **(headers or {})})
        self.wfile.write(body)
        self.wfile.flush()

    def _json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _problem(self, status: int, code: str, **more: Any) -> None:
        said = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": code, **more}
        self._answer(status, json.dumps(said).encode(), {"Content-Type": "application/problem+json"})

    def handle(self) -> None:
        with suppress(ConnectionError):  # who followed has left
            super().handle()


def _framed(number: int, kind: str, data: dict[str, Any], is_ndjson: bool) -> bytes:
    if is_ndjson:
        return json.dumps({"id": number, "event": kind, "data": data}).encode() + b"\n"
    return f"event: {kind}\ndata: {json.dumps(data)}\nid: {number}\n\n".encode()


def _handler_of(server: Server) -> type[_Handler]:
    return type("Handler", (_Handler,), {"its": server})
