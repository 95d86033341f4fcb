"""What a Gemini answer is grounded on, as citations."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from worker.providers.gemini_turn import Turn
from worker.providers.provider import ProviderEvent


class Text:
    """Gemini counts a text in bytes of UTF-8, viewers in characters. Of ASCII, which is the same, nothing is kept."""

    def __init__(self) -> None:
        self._bytes = 0
        self._characters = 0
        self._begins: list[int] = []  # in bytes, of each piece that is not ASCII
        self._pieces: list[tuple[int, bytes]] = []  # (where it begins in characters, the piece)

    def add(self, text: str) -> None:
        if text.isascii():
            self._bytes += len(text)
        else:
            encoded = text.encode()
            self._begins.append(self._bytes)
            self._pieces.append((self._characters, encoded))
            self._bytes += len(encoded)
        self._characters += len(text)

    def bytes_before(self, characters: int) -> int:
        """The other way about."""
        low, high = 0, self._bytes
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if (self.characters(middle) or 0) < characters else (low, middle)
        return low

    def characters(self, offset: Any) -> int | None:
        """How many characters the text's first bytes are. None: it has not so many."""
        if type(offset) is not int or not 0 <= offset <= self._bytes:
            return None
        at = bisect_right(self._begins, offset) - 1
        if at < 0:
            return offset
        before, piece = self._pieces[at]
        inside = offset - self._begins[at]
        if inside <= len(piece):
            return before + len(piece[:inside].decode(errors="ignore"))
        return before + len(piece.decode()) + inside - len(piece)


class Grounding:
    def __init__(self) -> None:
        self._sources: list[dict[str, Any]] = []
        self._said: set[tuple[Any, ...]] = set()
        self._has_supports = False

    def citations(self, metadata: dict[str, Any], text: Text, turn: Turn) -> Iterator[ProviderEvent]:
        """Of each passage, each of its sources. Metadata may be said again, and more of it."""
        self._sources = metadata.get("groundingChunks") or self._sources
        for support in metadata.get("groundingSupports") or ():
            segment = support.get("segment") or {}
            start, end = _span(segment, text, turn)
            for index in support.get("groundingChunkIndices") or ():
                if 0 <= index < len(self._sources):
                    self._has_supports = True
                    yield from self._citation(_source(self._sources[index]), segment.get("text"), start, end)

    def sources(self) -> Iterator[ProviderEvent]:
        """All of them, where the provider did not say which passage is from which."""
        if not self._has_supports:
            for source in self._sources:
                yield from self._citation(_source(source), None, None, None)

    def recited(self, metadata: dict[str, Any], text: Text) -> Iterator[ProviderEvent]:
        """The two APIs have a name each for the same."""
        for one in metadata.get("citations") or metadata.get("citationSources") or ():
            start, end = text.characters(one.get("startIndex") or 0), text.characters(one.get("endIndex"))
            yield from self._citation((one.get("uri"), one.get("title")), None, start, end)

    def _citation(
        self, source: tuple[Any, Any], cited: Any, start: int | None, end: int | None
    ) -> Iterator[ProviderEvent]:
        one = (*source, cited, start, end)
        if one not in self._said:
            self._said.add(one)
            yield "citation", dict(zip(("url", "title", "cited_text", "start", "end"), one, strict=True))


def _source(chunk: dict[str, Any]) -> tuple[Any, Any]:
    """(url, title) of web, retrievedContext, maps, image, or what comes."""
    for said in chunk.values():
        if isinstance(said, dict):
            return said.get("uri") or said.get("sourceUri"), said.get("title")
    return None, None


def _span(segment: dict[str, Any], text: Text, turn: Turn) -> tuple[int | None, int | None]:
    """In characters of the answer's text. A segment's bytes count from the beginning of its part."""
    before = 0
    if index := segment.get("partIndex"):
        begins_at = turn.text_begins_at(index)
        if begins_at is None:
            return None, None
        before = text.bytes_before(begins_at)
    start = text.characters(before + (segment.get("startIndex") or 0))
    end = text.characters(before + segment["endIndex"]) if "endIndex" in segment else None
    return (start, end) if end is not None else (None, None)
