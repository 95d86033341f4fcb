"""A Gemini answer's parts, as the next turn sends them back."""

from __future__ import annotations

from typing import Any

from broker.log.turn import literal


class Turn:
    """The parts that the next turn sends back: texts without a signature are joined, signed ones stay as they were."""

    def __init__(self) -> None:
        self._parts: list[dict[str, Any]] = []
        self._open: tuple[str, dict[str, Any]] | None = None  # the part that grows: its kind, its reference

    def add_text(self, kind: str, characters: int) -> None:
        if self._open is None or self._open[0] != kind:
            self._begin(kind, {})
        assert self._open is not None
        self._open[1]["characters"] += characters

    def begin_signed(self, kind: str, part: dict[str, Any]) -> None:
        self._begin(kind, {key: literal(value) for key, value in part.items() if key not in ("text", "thought")})
        if not part["text"]:
            self._parts[-1]["text"] = ""

    def close(self) -> None:
        self._open = None

    def add(self, part: dict[str, Any]) -> None:
        self._open = None
        self._parts.append(part)

    def drop(self, part: dict[str, Any]) -> None:
        self._parts = [one for one in self._parts if one is not part]

    def text_begins_at(self, index: int) -> int | None:
        """In characters of the answer's text, that of a part of these. None: it has no text that viewers see."""
        if index >= len(self._parts) or _reference(self._parts[index]) != "text":
            return None
        before = [part for part in self._parts[:index] if _reference(part) == "text"]
        return sum(int(part["text"]["characters"]) for part in before)

    def native(self) -> list[dict[str, Any]] | None:
        is_one_text = len(self._parts) == 1 and self._parts[0].keys() == {"text"}
        return None if is_one_text or not self._parts else self._parts

    def _begin(self, kind: str, others: dict[str, Any]) -> None:
        is_text = kind == "text_delta"
        reference = {"$lastevent": "text" if is_text else "thinking", "characters": 0}
        self._parts.append({"text": reference, **({} if is_text else {"thought": True}), **others})
        self._open = kind, reference


def _reference(part: dict[str, Any]) -> Any:
    text = part.get("text")
    return text.get("$lastevent") if isinstance(text, dict) else None
