"""Thinking and calls in tags: <think>…</think> and <tool>{"name": …, "args" or "arguments": {…}}</tool>, in any case.

Tags do not nest: in thinking only its own end counts, so a call in there is a thought of one. A tag that is not closed
lasts to the end. One that is closed without having been opened is left out: the templates of some models open it in the
prompt, and then the thinking is shown as text. `</tool>` within a JSON string is a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from broker.log.event import TEXT_DELTA, THINKING_DELTA
from worker.agents.acting import Call, Transform, unfenced
from worker.providers.reading import parse

THINKING_TAGS = frozenset({"think", "thinking", "thought", "reasoning"})
CALL_TAGS = frozenset({"tool", "tool_call", "function_call"})


class Tags(Transform):
    def __init__(self, names: Iterable[str], tools: Mapping[str, Mapping[str, Any]], turn: int = 0) -> None:
        """Raises ValueError for a name that says neither thinking nor a call."""
        super().__init__(tools, turn)
        self._names = [name.lower() for name in names]
        for name in self._names:
            if name not in THINKING_TAGS | CALL_TAGS:
                known = ", ".join(sorted(THINKING_TAGS | CALL_TAGS))
                raise ValueError(f"tags: {name[:80]!r} is none of {known}.")
        self._outside = _Markers([f"<{slash}{name}>" for name in self._names for slash in ("", "/")])
        self._ends = {name: _Markers([f"</{name}>"]) for name in self._names}
        self._inside = ""
        self._body = _Body()

    def instructions(self, tools: Iterable[tuple[str, str]]) -> str:
        tag = next((name for name in self._names if name in CALL_TAGS), None)
        listed = "\n".join(self._described(name, description) for name, description in tools)
        if tag is None or not listed:
            return ""
        form = f'<{tag}>{{"name": "…", "arguments": {{…}}}}</{tag}>'
        return f"You have these tools:\n{listed}\nTo call one, write {form} and wait for its result."

    def _described(self, name: str, description: str) -> str:
        return orjson.dumps({"name": name, "description": description, "parameters": self._tools.get(name)}).decode()

    def observation(self, results: Sequence[tuple[Call, str]]) -> str:
        tag = next((name for name in self._names if name in CALL_TAGS), "tool")
        return "\n".join(
            f"<{tag}_result>{orjson.dumps({'name': call.name, 'result': result}).decode()}</{tag}_result>"
            for call, result in results
        )

    def _step(self) -> bool:
        markers = self._ends[self._inside] if self._inside else self._outside
        found = markers.search(self._pending)
        if found is None:
            held = markers.held(self._pending)
            self._put(self._pending[: len(self._pending) - held])
            self._pending = self._pending[len(self._pending) - held :]
            return False
        self._put(self._pending[: found.start()])
        self._pending = self._pending[found.end() :]
        if self._inside in CALL_TAGS and self._body.is_in_string:
            self._put(found[0])
        else:
            self._meet(found[0].lower().strip("<>"))
        return True

    def _meet(self, tag: str) -> None:
        if self._inside in CALL_TAGS:
            self._read_call()
        self._inside = "" if tag.startswith("/") else tag
        self._body = _Body()
        self._is_fresh = self._inside != "" or TEXT_DELTA not in self._shown

    def _put(self, text: str) -> None:
        if self._inside in CALL_TAGS:
            self._body.add(text)
        else:
            self._show(THINKING_DELTA if self._inside else TEXT_DELTA, text)

    def _close(self, is_whole: bool) -> None:
        if self._inside not in CALL_TAGS:
            return
        if is_whole:
            self._read_call()
        else:
            self._note("unfinished_call", self._body.text, "The model was cut off.")

    def _read_call(self) -> None:
        body = self._body.text
        try:
            name, args = _named_call(body)
        except ValueError:
            form = '{"name": "…", "arguments": {…}}'
            self._add_fault(body, f"This call was not run: it is no JSON object of the form {form}.")
        else:
            self._add_call(name, args)


class _Markers:
    """Texts to look for, in any case."""

    def __init__(self, markers: Sequence[str]) -> None:
        self._markers = markers
        self._pattern = re.compile("|".join(map(re.escape, markers)), re.IGNORECASE | re.ASCII)
        self._longest = max(map(len, markers), default=0)

    def search(self, text: str) -> re.Match[str] | None:
        return self._pattern.search(text) if self._markers else None

    def held(self, text: str) -> int:
        """How many characters at the end may be the beginning of one."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-length:].lower()
            if any(marker.startswith(end) for marker in self._markers):
                return length
        return 0


class _Body:
    """A call while it is said."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.is_in_string = False
        self._is_escaped = False
        self._is_broken = False

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def add(self, piece: str) -> None:
        self._pieces.append(piece)
        for character in "" if self._is_broken else piece:
            if self._is_escaped:
                self._is_escaped = False
            elif character == '"':
                self.is_in_string = not self.is_in_string
            elif character == "\\":
                self._is_escaped = self.is_in_string
            elif character == "\n" and self.is_in_string:
                # No JSON, then: the next end is its end, and a string that was not closed takes no more of the answer.
                self._is_broken, self.is_in_string = True, False
                return


def _named_call(body: str) -> tuple[str, dict[str, Any]]:
    """Raises ValueError."""
    said = parse(unfenced(body).encode())
    if not isinstance(said, dict) or not isinstance(name := said.get("name"), str) or not name:
        raise ValueError("no call")
    args = next((said[key] for key in ("args", "arguments", "parameters") if key in said), None)
    if isinstance(args, str):  # JSON within JSON, as OpenAI has it
        args = parse(args.encode()) if args.strip() else None
    if args is None or isinstance(args, dict):
        return name, args or {}
    raise ValueError("no arguments")
