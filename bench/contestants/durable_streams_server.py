"""The Durable Streams server in Rust (axum): streams in its memory, read from an offset on, live by SSE.

It resumes as we do, within one process: nothing survives that. It knows no ending by whoever cancels, no lease and no
takeover. Each stream is created by a PUT; each event is a POST. As text: of JSON it would change the order of the keys.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench.contestants.side import SERVER, Contestant, Shape, Side, lack_of, open_streams
from bench.load.posting import PostSink, post
from bench.ports import free_port
from bench.processes import start, temporary_folder, wait_for_port

PROGRAM = "durable-streams-server"
TEXT = b"Content-Type: text/plain"


class DurableStreamsSink(PostSink):
    paths = "/v1/stream/{}?offset=-1&live=sse"

    def request(self, stream: int, body: bytes) -> bytes:
        return post(b"/v1/stream/%d" % stream, body, TEXT)

    def creation(self, stream: int) -> bytes:
        return b"PUT /v1/stream/%d HTTP/1.1\r\nHost: a\r\n%b\r\nContent-Length: 0\r\n\r\n" % (stream, TEXT)


def sink(port: str) -> DurableStreamsSink:
    return DurableStreamsSink(port)


def start_durable_streams(stack: ExitStack, shape: Shape) -> Side:
    folder, port = temporary_folder(stack), free_port()
    settings = {
        "DS_SERVER__BIND_ADDRESS": f"127.0.0.1:{port}",
        "DS_LIMITS__MAX_MEMORY_BYTES": str(2**32),
        "TOKIO_WORKER_THREADS": "1",
    }
    pid = start(stack, [PROGRAM], cwd=folder, RUST_LOG="error", **settings)
    wait_for_port(port, pid)
    agents, paths = open_streams(stack, "durable_streams_server", str(port), shape.streams)
    return Side(port, paths, {SERVER: pid}, agents)


DURABLE_STREAMS = Contestant(
    "Durable Streams, Rust", start_durable_streams, lack_of(PROGRAM, "cargo install durable-streams-server")
)
