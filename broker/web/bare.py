"""What a body of JSON holds outside of its texts: brackets and numbers, found as bytes, before anything is parsed.

A body may be 32 MiB, nearly all of it one text (a photo in base64), which is passed over at some GB/s. It is looked at
in slices: where this runs in a thread, the loop has its turns in between.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple

SLICE_BYTES = 64 * 1024

LONGEST_NUMBER = 400
"""Digits of a double written without an exponent: 309, and its fraction."""

LARGEST, SMALLEST = 2**64 - 1, -(2**63)
"""Integers that orjson keeps. A larger one becomes the nearest double."""

_NUMBER = re.compile(rb"-?[0-9][0-9.eE+-]*")
_FRACTIONAL = re.compile(rb"[.eE]")
_OF_NUMBERS = b"0123456789.eE+-"
_SUSPECT = re.compile(rb"[0-9.]{16}|[0-9.][eE]|-0(?![0-9.])")
_ONE_KIND, _NO_BRACKET = bytes.maketrans(b"{}", b"[]"), bytes(set(range(256)) - set(b"[]{}"))
_NO_NUMBER = bytes(set(range(256)) - set(b'0123456789.eE+-,"'))


class Bare(NamedTuple):
    """`brackets`: all of them, each as a square one. `has_changing_number`: one would not be what it was, once it is
    parsed: an integer beyond 64 bits, more digits than a double has, a negative zero without a fraction.
    """

    brackets: bytes
    has_changing_number: bool


def look_outside_of_texts(body: bytes | bytearray, most: int) -> Bare | None:
    """None: there are more than so many bytes outside. Of what is not JSON it may say anything."""
    brackets: list[bytes] = []
    size = 0
    changes = False
    for _, pieces, begins_inside in _slices(body):
        outside = b'"'.join(pieces[begins_inside::2])
        size += len(outside)
        if size > most:
            return None
        brackets.append(outside.translate(_ONE_KIND, _NO_BRACKET))
        changes = changes or _has_changing_number(outside)
    return Bare(b"".join(brackets), changes)


def _has_changing_number(outside: bytes) -> bool:
    numbers = outside.translate(None, _NO_NUMBER)
    if not _SUSPECT.search(numbers):  # as in nearly every body
        return False
    return any(not is_kept(number[0]) for number in _NUMBER.finditer(numbers))


def changing_number(body: bytes | bytearray) -> tuple[int, int]:
    """Where the first such number begins and ends, in a body that is JSON. Raises LookupError if there is none."""
    for start, pieces, begins_inside in _slices(body):
        for at, piece in enumerate(pieces):
            if at % 2 == begins_inside:
                for number in _NUMBER.finditer(piece):
                    if not is_kept(number[0]):
                        return _whole_number(body, start + number.start())
            start += len(piece) + 1
    raise LookupError


def _whole_number(body: bytes | bytearray, at: int) -> tuple[int, int]:
    """One with thousands of digits lies in several slices."""
    start = len(body[:at].rstrip(_OF_NUMBERS))
    return start, start + len(body[start:]) - len(body[start:].lstrip(_OF_NUMBERS))


def is_kept(number: bytes) -> bool:
    """Whether a number of JSON (RFC 8259, section 6) has the same value once it is parsed. What is none is kept."""
    text = number.decode()
    try:
        if not _FRACTIONAL.search(number):
            return text != "-0" and len(text) <= len(str(SMALLEST)) and SMALLEST <= int(text) <= LARGEST
        parsed = repr(float(text)) if len(text) <= LONGEST_NUMBER else ""
        return parsed == text or (parsed != "" and Decimal(parsed) == Decimal(text))
    except ValueError:
        return True
    except ArithmeticError:  # an exponent beyond what even Decimal knows
        return False


def _slices(body: bytes | bytearray) -> Iterator[tuple[int, list[bytes], int]]:
    """Where each slice begins, what stands between its quotes, and 1 if it begins inside of a text, else 0.

    No slice ends within an escape or a number (but one of thousands of digits). Escapes are replaced by as many bytes.
    """
    start = begins_inside = 0
    while start < len(body):
        piece = bytes(body[start : start + SLICE_BYTES])
        if start + SLICE_BYTES < len(body):
            backslashes = len(piece) - len(piece.rstrip(b"\\"))
            piece = piece.rstrip(_OF_NUMBERS + b"\\") or piece[: len(piece) - backslashes % 2]
        start_of_next = start + len(piece)
        if b"\\" in piece:
            piece = piece.replace(rb"\\", b"__").replace(rb"\"", b"__")
        pieces = piece.split(b'"')
        yield start, pieces, begins_inside
        begins_inside ^= (len(pieces) - 1) & 1
        start = start_of_next
