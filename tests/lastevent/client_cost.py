"""What an event costs the Python client, read from a socket and folded, in CPU: python -m tests.lastevent.client_cost

The server is a thread that sends what was written beforehand, so nearly all of the time is the client's. An answer has
20,000 pieces of text. The bar is 25 µs an event.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator

from lastevent import AsyncClient, Client
from lastevent.client.frames import Frames

EVENTS = 20_000
ROUNDS = 5
BAR_US = 25.0
PIECE = 16_384
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def body(events: int) -> bytes:
    said = [("queued", {}), ("start", {"model": "m", "attempt": 1})]
    said += [("text_delta", {"text": "some "})] * events
    said.append(("done", {"stop_reason": "end_turn", "usage": {"output_tokens": events}}))
    return b"".join(
        f"id: {n}\nevent: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
        for n, (kind, data) in enumerate(said, 1)
    )


def pieces(whole: bytes) -> Iterator[bytes]:
    yield from (whole[at : at + PIECE] for at in range(0, len(whole), PIECE))


def serve(whole: bytes) -> int:
    """The port of a server that gives this body to each request."""
    listening = socket.create_server(("127.0.0.1", 0))
    answer = HEAD + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces(whole)) + b"0\r\n\r\n"

    def run() -> None:
        while True:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    threading.Thread(target=run, daemon=True).start()
    port: int = listening.getsockname()[1]
    return port


def parsed(whole: bytes) -> int:
    frames = Frames()
    return sum(1 for piece in pieces(whole) for _ in frames.push(piece))


def followed(url: str) -> int:
    with Client(url) as client:
        return sum(1 for _ in client.follow("x"))


async def followed_asynchronously(url: str) -> int:
    count = 0
    async with AsyncClient(url) as client:
        async for _ in client.follow("x"):
            count += 1
    return count


def main() -> None:
    whole = body(EVENTS)
    url = f"http://127.0.0.1:{serve(whole)}"
    ways = {
        "frames alone": lambda: parsed(whole),
        "Client": lambda: followed(url),
        "AsyncClient": lambda: asyncio.run(followed_asynchronously(url)),
    }
    for name, way in ways.items():
        costs = []
        for _ in range(ROUNDS):
            began = time.process_time()
            count = way()
            costs.append((time.process_time() - began) / count * 1e6)
            assert count == EVENTS + 3
        print(f"{name:14} {min(costs):5.1f} to {max(costs):5.1f} µs an event (bar {BAR_US:.0f})")


if __name__ == "__main__":
    main()
