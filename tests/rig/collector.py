"""A collector of traces on loopback: OTLP over HTTP, whose spans a test can look at."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan

SETTINGS = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
"""Of a process whose spans a test waits for, ms."""


class Span(NamedTuple):
    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    links: list[str]
    """trace-span of each."""
    attributes: dict[str, Any]
    events: list[str]
    is_error: bool

    @property
    def ids(self) -> str:
        return f"{self.trace}-{self.id}"


class Collector:
    def __init__(self, url: str) -> None:
        self.url = url
        self.received: list[bytes] = []

    @property
    def settings(self) -> dict[str, str]:
        return {**SETTINGS, "OTEL_EXPORTER_OTLP_ENDPOINT": self.url}

    def spans(self, name: str = "") -> list[Span]:
        """Those received so far whose name begins so."""
        return [span for body in list(self.received) for span in _spans(body) if span.name.startswith(name)]


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                collector.received.append(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield collector
        server.shutdown()


def _spans(body: bytes) -> Iterator[Span]:
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = {one.key: _value(one.value) for one in of_resource.resource.attributes}
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield Span(
                    resource["service.name"],
                    span.name,
                    ProtoSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    [f"{link.trace_id.hex()}-{link.span_id.hex()}" for link in span.links],
                    {one.key: _value(one.value) for one in span.attributes},
                    [event.name for event in span.events],
                    span.status.code == span.status.STATUS_CODE_ERROR,
                )


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, str(kind))
