"""A model's side of a provider's streaming wire (wires.py), at next to no cost.

    python -m bench.load.provider PORT DELTAS RATE WIRE [CERTIFICATE KEY]

RATE 0: as fast as it is read, from bytes made beforehand, so that whoever reads is what is measured. Otherwise so many
text deltas a second to each request, each written on its own, its text with the time of that write: `~<time_ns>`.
With a certificate (a PEM file) and its key it speaks TLS.

worker/standin/server.py speaks more of the wire, and costs more; the faults it can play are of no use here.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import sys
import time
from typing import cast

import uvloop

from bench.load.agent import raise_descriptor_limit
from bench.load.wires import WIRES, Wire

BLOCK_EVENTS = 64  # in one write when there is no pace: some 8 KiB, as worker/standin/server.py does it
STAMP_DIGITS = 19


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
NOTHING = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_LENGTH = re.compile(rb"content-length: ([0-9]+)", re.IGNORECASE)


class Answering(asyncio.Protocol):
    """One connection: requests one after another, each answered with the same number of deltas."""

    def __init__(self, deltas: int, rate: float, wire: Wire) -> None:
        self._head = HEAD + (_chunk(wire.head) if wire.head else b"")
        self._word = wire.delta(" word")
        self._block = _chunk(self._word * BLOCK_EVENTS)
        self._before_stamp, self._after_stamp = wire.delta("~|").split(b"|")
        self._end = _chunk(wire.end) + _chunk(b"")
        self._deltas = deltas
        self._rate = rate
        self._request = b""
        self._answer: asyncio.Task[None] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._request += data
        head, end, body = self._request.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and len(body) >= int(length[1] if length else 0):
            self._request = b""
            if head.startswith(b"HEAD "):  # a worker that warms its connection up
                self._transport.write(NOTHING)
            else:
                self._answer = asyncio.create_task(self._speak())

    def connection_lost(self, _: Exception | None) -> None:
        if self._answer:
            self._answer.cancel()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    async def _speak(self) -> None:
        self._transport.write(self._head)
        await (self._speak_in_time() if self._rate else self._speak_at_once())
        self._transport.write(self._end)

    async def _speak_at_once(self) -> None:
        blocks, rest = divmod(self._deltas, BLOCK_EVENTS)
        for _ in range(blocks):
            self._transport.write(self._block)
            await self._may_write.wait()
            await asyncio.sleep(0)  # the others' turn
        self._transport.write(_chunk(self._word * rest) if rest else b"")

    async def _speak_in_time(self) -> None:
        clock = asyncio.get_running_loop().time
        # Requests that came together must not be in step.
        began_s = clock() + id(self) % 997 / 997 / self._rate
        for at in range(self._deltas):
            await asyncio.sleep(max(0.0, began_s + at / self._rate - clock()))
            self._transport.write(_chunk(self._before_stamp + b"%d" % time.time_ns() + self._after_stamp))


async def main(port: str, deltas: str, rate: str, wire: str, *certificate: str) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Answering(int(deltas), float(rate), WIRES[wire]),
        "127.0.0.1",
        int(port),
        backlog=2048,
        ssl=_speaking_tls(*certificate) if certificate else None,
    )
    await server.serve_forever()


def _speaking_tls(chain: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    return context


if __name__ == "__main__":
    raise_descriptor_limit()
    uvloop.run(main(*sys.argv[1:]))
