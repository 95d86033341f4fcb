"""The frames of WebSockets (RFC 6455), as a server sends and reads them: bytes in, bytes out, no I/O.

A server's frames have no mask, so the same bytes go to many clients. A client's frames have one (§5.3), so that nobody
can have a browser write what a proxy takes for another protocol. No extension is ever agreed on: no compression.

`Reader` takes the bytes of a client in whatever pieces they come, and gives what they say. It keeps 14 bytes of a
header and the message so far, which is never longer than the limit: a frame says its length first. Its end is
- Closing     the client's close frame
- Violation   what it sent is none of the protocol, or too much; with the close code that tells it so (§7.4.1)
After either it reads nothing. What came whole before a Violation is given before it, however the bytes are cut.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

MAX_CONTROL_BYTES = 125
MAX_FRAGMENTS = 64
"""Of a message. Each may be empty: without a limit a message of no bytes could be without an end."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FINAL, _RESERVED, _MASKED = 0x80, 0x70, 0x80
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_CONTROLS = (_CLOSE, _PING, _PONG)


class Code(IntEnum):
    """Why a connection closes, as the protocol's own list has it."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    UNSUPPORTED = 1003
    NOT_UTF8 = 1007
    TOO_LARGE = 1009


class Text(NamedTuple):
    """A whole text message: UTF-8, which has been checked."""

    payload: bytes


class Ping(NamedTuple):
    data: bytes


class Pong(NamedTuple):
    data: bytes


class Closing(NamedTuple):
    """`code`: None if the client gave none."""

    code: int | None
    reason: str


class Violation(NamedTuple):
    """`code`, `reason`: what the close frame that answers it says."""

    code: int
    reason: str


Said = Text | Ping | Pong | Closing | Violation


class _Broken(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.violation = Violation(code, reason)


class Reader:
    """`max_bytes`: of a text message, whole. `max_fragments`: of which it may consist."""

    __slots__ = (
        "_at",
        "_control",
        "_first",
        "_fragments",
        "_head",
        "_is_over",
        "_left",
        "_mask",
        "_max_bytes",
        "_max_fragments",
        "_message",
    )

    def __init__(self, max_bytes: int, max_fragments: int = MAX_FRAGMENTS) -> None:
        self._max_bytes = max_bytes
        self._max_fragments = max_fragments
        self._head = b""
        """Of a frame, as far as it has come."""
        self._first = 0
        """The first byte of the frame whose payload is being read."""
        self._mask: bytes | None = None
        """Its mask; None between frames."""
        self._left = 0
        """Bytes of its payload that are still to come."""
        self._at = 0
        """Bytes of it that have come."""
        self._control: bytearray | None = None
        self._message: bytearray | None = None
        """The text message so far; None between messages."""
        self._fragments = 0
        self._is_over = False

    def feed(self, data: bytes | memoryview) -> list[Said]:
        """What these bytes complete, in order. Each byte is looked at a fixed number of times, in whatever pieces."""
        said: list[Said] = []
        view, at = memoryview(data), 0
        try:
            while not self._is_over and (at < len(view) or (self._mask is not None and not self._left)):
                if self._mask is None:
                    at = self._read_head(view, at)
                    continue
                piece = view[at : at + self._left]
                at += len(piece)
                self._take(piece)
                if not self._left:
                    self._mask = None
                    if (one := self._end_of_frame()) is not None:
                        said.append(one)
        except _Broken as broken:
            self._stop()
            said.append(broken.violation)
        return said

    def _read_head(self, view: memoryview, at: int) -> int:
        """§5.2. Returns where the payload begins, or the end of what has come."""
        start = at - len(self._head)
        head = self._head + bytes(view[at : at + 14 - len(self._head)])
        if len(head) < 2:
            self._head = head
            return len(view)
        self._check(head[0], head[1])
        size_bytes = {126: 2, 127: 8}.get(head[1] & 0x7F, 0)
        needed = 2 + size_bytes + 4
        if len(head) >= 2 + size_bytes:  # before the mask is there: what is too large is refused as early as can be
            size = int.from_bytes(head[2 : 2 + size_bytes]) if size_bytes else head[1] & 0x7F
            if (size_bytes == 2 and size <= MAX_CONTROL_BYTES) or (size_bytes == 8 and size < 2**16) or size >= 2**63:
                raise _Broken(Code.PROTOCOL_ERROR, "a length that is not in its shortest form")
            if head[0] & 0xF not in _CONTROLS and len(self._message or b"") + size > self._max_bytes:
                raise _Broken(Code.TOO_LARGE, f"a message has {self._max_bytes} bytes at most")
        if len(head) < needed:
            self._head = head
            return len(view)
        self._head = b""
        self._first, self._mask, self._left, self._at = head[0], head[needed - 4 : needed], size, 0
        if head[0] & 0xF in _CONTROLS:
            self._control = bytearray()
        elif self._message is None:
            self._message = bytearray()
        return start + needed

    def _check(self, first: int, second: int) -> None:
        opcode, is_final = first & 0xF, first & _FINAL
        if first & _RESERVED:
            raise _Broken(Code.PROTOCOL_ERROR, "a reserved bit is set, and no extension was agreed on")
        if not second & _MASKED:
            raise _Broken(Code.PROTOCOL_ERROR, "a frame without a mask")
        if opcode in _CONTROLS:
            if not is_final or second & 0x7F > MAX_CONTROL_BYTES:
                raise _Broken(Code.PROTOCOL_ERROR, "a control frame is one frame, of 125 bytes at most")
        elif opcode == _BINARY:
            raise _Broken(Code.UNSUPPORTED, "messages here are text, each a JSON object")
        elif opcode not in (_TEXT, _CONTINUATION):
            raise _Broken(Code.PROTOCOL_ERROR, "an opcode that RFC 6455 does not have")
        elif (opcode == _CONTINUATION) is (self._message is None):
            raise _Broken(Code.PROTOCOL_ERROR, "a fragment of no message, or a message within another")
        elif self._message is not None and self._fragments >= self._max_fragments:
            raise _Broken(Code.TOO_LARGE, f"a message has {self._max_fragments} fragments at most")

    def _take(self, piece: memoryview) -> None:
        assert self._mask is not None
        kept = self._message if self._control is None else self._control
        assert kept is not None
        if piece:
            kept += unmask(piece, self._mask, self._at)
            self._at += len(piece)
            self._left -= len(piece)

    def _end_of_frame(self) -> Said | None:
        if self._control is not None:
            control, self._control = bytes(self._control), None
            opcode = self._first & 0xF
            return Ping(control) if opcode == _PING else Pong(control) if opcode == _PONG else self._closing(control)
        self._fragments += 1
        if not self._first & _FINAL:
            return None
        assert self._message is not None
        message, self._message, self._fragments = bytes(self._message), None, 0
        if not message.isascii():
            _text_of(message)
        return Text(message)

    def _closing(self, body: bytes) -> Closing:
        """§5.5.1, §7.4."""
        if not body:
            closing = Closing(None, "")
        else:
            code = int.from_bytes(body[:2])
            if len(body) == 1 or not _may_be_sent(code):
                raise _Broken(Code.PROTOCOL_ERROR, "a close code that may not be sent")
            closing = Closing(code, _text_of(body[2:]))
        self._stop()
        return closing

    def _stop(self) -> None:
        self._is_over = True
        self._head, self._mask, self._control, self._message = b"", None, None, None


def _text_of(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise _Broken(Code.NOT_UTF8, "a text that is not UTF-8") from None


def _may_be_sent(code: int) -> bool:
    """§7.4.1, §7.4.2, and what has been registered since. 1004 means nothing; 1005, 1006 and 1015 never travel."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def unmask(data: bytes | memoryview, mask: bytes, at: int = 0) -> bytes:
    """§5.3. `at`: of the payload, where these bytes begin. One number xor another: 1 GB/s, without a library."""
    size = len(data)
    if at := at % 4:
        mask = mask[at:] + mask[:at]
    key = mask * (size // 4) + mask[: size % 4]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


# -- what a server sends -------------------------------------------------------------------------------------


def ping(data: bytes = b"") -> bytes:
    return _frame(_PING, data)


def pong(data: bytes = b"") -> bytes:
    """`data`: the ping's."""
    return _frame(_PONG, data)


def closing(code: int | None, reason: str = "") -> bytes:
    """`reason`: as much of it as fits, in whole characters."""
    if code is None:
        return _frame(_CLOSE, b"")
    said = reason.encode()[: MAX_CONTROL_BYTES - 2].decode(errors="ignore").encode()
    return _frame(_CLOSE, code.to_bytes(2) + said)


def _frame(opcode: int, payload: bytes) -> bytes:
    """A control frame, which is short (§5.5). dialects/socket.py makes those of text."""
    return bytes((_FINAL | opcode, len(payload))) + payload


def pieces(frames: bytes, most: int) -> Iterator[bytes]:
    """Whole frames of a server, as many as fit into so many bytes. One that is longer by itself is a piece."""
    if len(frames) <= most:
        yield frames
        return
    start = end = 0
    while end < len(frames):
        size, head = frames[end + 1], 2
        if size == 126:
            size, head = int.from_bytes(frames[end + 2 : end + 4]), 4
        elif size == 127:
            size, head = int.from_bytes(frames[end + 2 : end + 10]), 10
        if end > start and end + head + size - start > most:
            yield frames[start:end]
            start = end
        end += head + size
    yield frames[start:]


def accept_key(key: bytes) -> bytes:
    """What the server answers to Sec-WebSocket-Key (§4.2.2), which proves that it has understood."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def is_key(key: bytes) -> bool:
    """Whether it is 16 bytes in base64 (§4.1)."""
    try:
        return len(key) == 24 and len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False
