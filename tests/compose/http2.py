"""An HTTP/2 client as small as tests need: h2's state machine on a TLS socket, any number of requests on it at a time.

httpx has one too, but its streams take turns in reading for each other: one that has its bytes may wait for another's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events


@dataclass
class Answer:
    number: int
    """The stream's, in its connection."""
    status: int | None = None
    body: bytearray = field(default_factory=bytearray)
    has_ended: bool = False
    """Properly: END_STREAM."""
    is_cut: bool = False

    def has_seen(self, event_id: int) -> bool:
        return b"id: %d\n" % event_id in self.body


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._answers: dict[int | None, Answer] = {}
        self.is_closed = False
        self._state.initiate_connection()

    def get(self, path: str) -> Answer:
        """Its answer, which grows as it comes."""
        number = self._state.get_next_available_stream_id()
        head = {":method": "GET", ":scheme": "https", ":authority": "localhost", ":path": path}
        self._state.send_headers(number, [*head.items(), ("accept", "text/event-stream")], end_stream=True)
        self._send()
        return self._answers.setdefault(number, Answer(number))

    def give_up(self, answer: Answer) -> None:
        self._state.reset_stream(answer.number)
        self._send()

    async def read(self) -> None:
        """Until nginx closes it, or for ever."""
        try:
            while some := await self._reader.read(65536):
                for event in self._state.receive_data(some):
                    self._take(event)
                self._send()
        except ConnectionError:
            pass
        finally:
            self.is_closed = True

    def _take(self, event: h2.events.Event) -> None:
        answer = self._answers.get(getattr(event, "stream_id", None))
        match event:
            case h2.events.ResponseReceived() if answer:
                answer.status = int(dict(event.headers)[b":status"])
            case h2.events.DataReceived() if answer:
                answer.body += event.data
                self._state.acknowledge_received_data(event.flow_controlled_length, answer.number)
            case h2.events.StreamEnded() if answer:
                answer.has_ended = True
            case h2.events.StreamReset() if answer:
                answer.is_cut = True

    def _send(self) -> None:
        self._writer.write(self._state.data_to_send())


@asynccontextmanager
async def connect(port: int, trust: ssl.SSLContext) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("localhost", port, ssl=trust)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    connection = Connection(reader, writer)
    reading = asyncio.create_task(connection.read())
    try:
        yield connection
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        writer.transport.abort()
