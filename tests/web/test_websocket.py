"""The frames of RFC 6455, to the byte: what a server reads, from whatever pieces; what it sends; what it refuses."""

from __future__ import annotations

import random
import struct
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.dialects.socket import text_frame
from broker.web.websocket import (
    Closing,
    Ping,
    Pong,
    Reader,
    Said,
    Text,
    Violation,
    accept_key,
    closing,
    is_key,
    pieces,
    ping,
    pong,
    unmask,
)
from tests.rig.long import LONG

MOST = 100_000
MASK = bytes.fromhex("37fa213d")


def frame(
    opcode: int, payload: bytes = b"", *, final: bool = True, mask: bytes | None = MASK, size: int | None = None
) -> bytes:
    """As a client sends it. `size`: what the header says, if that is not true."""
    size = len(payload) if size is None else size
    masked = 0x80 if mask is not None else 0
    if size < 126:
        length = bytes([masked | size])
    elif size < 2**16:
        length = bytes([masked | 126]) + struct.pack(">H", size)
    else:
        length = bytes([masked | 127]) + struct.pack(">Q", size)
    body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if mask else payload
    return bytes([(0x80 if final else 0) | opcode]) + length + (mask or b"") + body


def read(data: bytes, *cuts: int, most: int = MOST, fragments: int = 64) -> list[Said]:
    reader = Reader(most, fragments)
    edges = pairwise([0, *sorted(cuts), len(data)])
    return [said for start, end in edges for said in reader.feed(data[start:end])]


# -- the specification's own examples (§1.3, §5.7) -----------------------------------------------------------


def test_the_key_of_the_specification_is_answered_as_it_says() -> None:
    assert accept_key(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        ("818537fa213d7f9f4d5158", Text(b"Hello")),
        ("898537fa213d7f9f4d5158", Ping(b"Hello")),
        ("8a8537fa213d7f9f4d5158", Pong(b"Hello")),
    ],
)
def test_a_masked_frame_of_the_specification_is_read(wire: str, said: Said) -> None:
    assert read(bytes.fromhex(wire)) == [said]


def test_what_a_server_sends_is_as_in_the_specification() -> None:
    assert text_frame(b"Hello").hex() == "810548656c6c6f"
    assert ping(b"Hello").hex() == "890548656c6c6f"
    assert pong(b"Hello").hex() == "8a0548656c6c6f"
    assert text_frame(b"x" * 256)[:4].hex() == "817e0100"
    assert text_frame(b"x" * 65536)[:10].hex() == "817f0000000000010000"
    assert closing(1000).hex() == "880203e8"
    assert closing(None).hex() == "8800"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
def test_a_length_has_its_shortest_form(size: int) -> None:
    head = text_frame(b"x" * size)[:-size] if size else text_frame(b"")
    assert len(head) == (2 if size < 126 else 4 if size < 2**16 else 10)
    assert read(frame(1, b"x" * size)) == [Text(b"x" * size)]


def test_a_close_frame_has_room_for_whole_characters_only() -> None:
    said = closing(4401, "é" * 100)
    assert len(said) <= 2 + 125
    assert said[4:].decode() == "é" * 61


@pytest.mark.parametrize("key", ["", "x", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZSE=", "é" * 24, "=" * 24])
def test_what_is_no_key_of_16_bytes_is_none(key: str) -> None:
    assert not is_key(key.encode())
    assert is_key(b"dGhlIHNhbXBsZSBub25jZQ==")


# -- messages ------------------------------------------------------------------------------------------------


def test_a_message_in_fragments_is_one_and_pings_may_come_between() -> None:
    data = frame(1, b"a", final=False) + frame(9, b"?") + frame(0, b"b", final=False) + frame(0, b"c") + frame(1, b"d")
    assert read(data) == [Ping(b"?"), Text(b"abc"), Text(b"d")]


def test_a_character_may_be_cut_between_fragments() -> None:
    word = "é€𝄞".encode()
    for cut in range(len(word) + 1):
        assert read(frame(1, word[:cut], final=False) + frame(0, word[cut:])) == [Text(word)]


def test_an_empty_message_and_empty_fragments_are_read() -> None:
    assert read(frame(1)) == [Text(b"")]
    assert read(frame(1, final=False) + frame(0, final=False) + frame(0)) == [Text(b"")]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", Closing(None, "")),
        (struct.pack(">H", 1000), Closing(1000, "")),
        (struct.pack(">H", 1001) + "bye é".encode(), Closing(1001, "bye é")),
        (struct.pack(">H", 4999), Closing(4999, "")),
    ],
)
def test_a_close_frame_says_why_and_nothing_behind_it_is_read(body: bytes, said: Closing) -> None:
    assert read(frame(8, body) + frame(1, b"late")) == [said]
    assert read(frame(8, body) + b"\xff" * 100) == [said]


# -- what is refused -----------------------------------------------------------------------------------------

REFUSED = {
    "no mask": (frame(1, b"a", mask=None), 1002),
    "reserved bit 1": (bytes([0xC1]) + frame(1, b"a")[1:], 1002),
    "reserved bit 2": (bytes([0xA1]) + frame(1, b"a")[1:], 1002),
    "reserved bit 3": (bytes([0x91]) + frame(1, b"a")[1:], 1002),
    **{f"opcode {code}": (frame(code, b"a"), 1002) for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "a fragment of nothing": (frame(0, b"a"), 1002),
    "a message in a message": (frame(1, b"a", final=False) + frame(1, b"b"), 1002),
    "a ping in fragments": (frame(9, b"a", final=False), 1002),
    "a close in fragments": (frame(8, b"", final=False), 1002),
    "a long ping": (frame(9, b"a" * 126), 1002),
    "a long close": (frame(8, struct.pack(">H", 1000) + b"a" * 124), 1002),
    "a length of 2 bytes for 1": (bytes([0x81, 0xFE, 0, 5]) + MASK + b"hello", 1002),
    "a length of 8 bytes for 2": (bytes([0x81, 0xFF]) + struct.pack(">Q", 65535) + MASK, 1002),
    "a negative length": (bytes([0x81, 0xFF]) + struct.pack(">Q", 2**63) + MASK, 1002),
    "a close of one byte": (frame(8, b"\x03"), 1002),
    **{
        f"close code {code}": (frame(8, struct.pack(">H", code)), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
    "a close that is not UTF-8": (frame(8, struct.pack(">H", 1000) + b"\xff"), 1007),
    "binary": (frame(2, b"a"), 1003),
    "not UTF-8": (frame(1, b"\xff"), 1007),
    "half a character": (frame(1, "é".encode()[:1]), 1007),
    "a surrogate": (frame(1, b"\xed\xa0\x80"), 1007),
    "too long": (frame(1, b"", size=MOST + 1), 1009),
    "too long in fragments": (frame(1, b"a" * MOST, final=False) + frame(0, b"", size=1), 1009),
    "2 ** 62 bytes": (frame(1, b"", size=2**62), 1009),
    "too many fragments": (frame(1, final=False) + 64 * frame(0, final=False), 1009),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", 1002),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_none_of_the_protocol_is_refused_with_its_code(name: str) -> None:
    wire, code = REFUSED[name]
    for data in (wire, frame(1, b"before") + wire):
        *before, last = read(data)
        assert before in ([], [Text(b"before")])
        assert isinstance(last, Violation)
        assert last.code == code
        assert closing(last.code, last.reason)


def test_exactly_the_limits_are_taken() -> None:
    assert read(frame(1, b"a" * MOST)) == [Text(b"a" * MOST)]
    assert read(frame(1, final=False) + 62 * frame(0, final=False) + frame(0, b"a")) == [Text(b"a")]


def test_what_is_too_long_is_refused_before_it_has_come() -> None:
    reader = Reader(1000)
    assert reader.feed(frame(1, b"a" * 500, final=False)) == []
    [violation] = reader.feed(frame(0, b"", size=501)[:4])
    assert isinstance(violation, Violation)
    assert violation.code == 1009


# -- whatever the pieces -------------------------------------------------------------------------------------

_BYTES = st.binary(max_size=300)
_CUTS = st.lists(st.integers(0, 3000), max_size=40)


@st.composite
def _frames(draw: st.DrawFn) -> bytes:
    """Of a client that keeps to the protocol for the most part."""
    wire = b""
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["text", "text", "fragments", "ping", "pong", "close", "anything"]))
        mask = draw(st.binary(min_size=4, max_size=4))
        if kind == "text":
            wire += frame(1, draw(st.text(max_size=200)).encode(), mask=mask)
        elif kind == "fragments":
            parts = draw(st.lists(_BYTES, min_size=2, max_size=5))
            wire += frame(1, parts[0], final=False, mask=mask)
            wire += b"".join(frame(0, part, final=False, mask=mask) for part in parts[1:-1])
            wire += frame(0, parts[-1], mask=mask)
        elif kind == "ping":
            wire += frame(9, draw(st.binary(max_size=125)), mask=mask)
        elif kind == "pong":
            wire += frame(10, draw(st.binary(max_size=125)), mask=mask)
        elif kind == "close":
            wire += frame(8, struct.pack(">H", draw(st.integers(0, 5100))), mask=mask)
        else:
            wire += draw(_BYTES)
    return wire


@given(wire=_frames(), cuts=_CUTS)
def test_any_cuts_give_the_same(wire: bytes, cuts: list[int]) -> None:
    whole = read(wire)
    assert read(wire, *(min(cut, len(wire)) for cut in cuts)) == whole
    assert read(wire, *range(1, len(wire))) == whole


@given(data=st.binary(max_size=600), mask=st.binary(min_size=4, max_size=4), at=st.integers(0, 9))
def test_a_mask_is_what_the_specification_says_of_it(data: bytes, mask: bytes, at: int) -> None:
    assert unmask(data, mask, at) == bytes(byte ^ mask[(at + n) % 4] for n, byte in enumerate(data))


@given(sizes=st.lists(st.integers(0, 300) | st.integers(65000, 66000), max_size=20), most=st.integers(1, 2000))
def test_pieces_are_whole_frames_and_all_of_them(sizes: list[int], most: int) -> None:
    frames = [text_frame(b"x" * size) for size in sizes]
    cut = list(pieces(b"".join(frames), most))
    assert b"".join(cut) == b"".join(frames)
    edges = {sum(map(len, frames[:n])) for n in range(len(frames) + 1)}
    assert {sum(map(len, cut[:n])) for n in range(len(cut) + 1)} <= edges
    assert all(len(piece) <= most or piece in frames for piece in cut)


def malformed(seed: int) -> bytes:
    """Frames, of which one or more are broken: a bit, a length, a cut, a byte put in, or nothing but noise."""
    at_random = random.Random(seed)
    opcodes = [0, 1, 1, 1, 2, 8, 9, 10, 11]
    wire = bytearray()
    for _ in range(at_random.randint(1, 6)):
        payload = at_random.randbytes(at_random.choice([0, 1, 5, 125, 126, 130]))
        size = at_random.choice([None, None, None, at_random.randrange(2**32)])
        mask = at_random.choice([MASK, MASK, MASK, None])
        wire += frame(at_random.choice(opcodes), payload, final=at_random.random() < 0.7, mask=mask, size=size)
    for _ in range(at_random.randint(0, 4)):
        at = at_random.randrange(len(wire))
        wire[at : at + at_random.randint(0, 2)] = at_random.randbytes(at_random.randint(0, 3))
        wire = wire or bytearray(b"\x00")
    return bytes(wire)


# A frame that says what may not be: whatever is unfinished before it.
_SURELY_WRONG = frame(1, b"", size=2**40) + b"\xff" * 200_000

CODES = {1002, 1003, 1007, 1009}


def test_malformed_inputs_end_in_a_close_code_each() -> None:
    codes: dict[int, int] = {}
    for seed in range(10_000 if LONG else 1_500):
        *_, last = read(malformed(seed) + _SURELY_WRONG[: 400 + MOST // 50], most=1000)
        assert isinstance(last, Violation | Closing), seed
        if isinstance(last, Violation):
            assert last.code in CODES
            codes[last.code] = codes.get(last.code, 0) + 1
    assert codes.keys() == CODES


# -- what it costs -------------------------------------------------------------------------------------------


def _seconds(data: bytes, piece: int) -> float:
    reader = Reader(2**22, 10**9)
    began = time.process_time()
    for at in range(0, len(data), piece):
        reader.feed(data[at : at + piece])
    return time.process_time() - began


@pytest.mark.parametrize(
    ("unit", "piece"),
    [
        (frame(1, b"a" * 10_000), 1),
        (frame(1, b"a"), 65536),
        (frame(9), 1),
        (frame(1, final=False) + frame(0), 7),
    ],
)
def test_the_cost_grows_with_the_bytes_and_not_faster(unit: bytes, piece: int) -> None:
    """Ten times as much takes ten times as long; were it quadratic, a hundred."""
    short = min(_seconds(unit * (20_000 // len(unit)), piece) for _ in range(3))
    assert min(_seconds(unit * (200_000 // len(unit)), piece) for _ in range(2)) < 30 * short


def test_a_reader_keeps_no_more_than_a_message_so_far() -> None:
    reader = Reader(MOST)
    for _ in range(1000):
        reader.feed(frame(9, b"x" * 125))
        reader.feed(frame(1, b"a" * 100))
    reader.feed(frame(1, b"a" * 999, final=False))
    kept = [getattr(reader, name) for name in Reader.__slots__]
    assert sum(len(one) for one in kept if isinstance(one, bytes | bytearray)) <= 999 + 14
