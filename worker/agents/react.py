"""ReAct: Thought: …  Action: name  Action Input: {…}  Observation: …  Final Answer: …

At the beginnings of lines, in any case, numbered or not ("Action 2:"), also in bold. And as the ReAct paper has it:
Action 1: Search[what], Action 2: Finish[answer]. What comes before any label is the answer, as is all that follows
`Final Answer:`.

Behind a call only another call counts. A model that goes on with an Observation (or a Thought, or a Final Answer) has
invented the result: there it is cut, and asked no further. LangChain refuses the whole answer then (langchain#20704),
others run what was invented (dspy-go#167).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from broker.log.event import TEXT_DELTA, THINKING_DELTA
from worker.agents.acting import Call, Transform, unfenced
from worker.providers.reading import parse

_LABELS = ("Thought", "Action", "Action Input", "Observation", "Final Answer", "Answer")
# A label, a character each: a line's end, then blanks, stars of bold, the name, a number, stars, a colon.
_BEFORE = [r"[ \t]?"] * 3 + [r"\*?"] * 2
_AFTER = [" ?", r"\d?", r"\d?", " ?", r"\*?", r"\*?", ":"]
_LONGEST_LABEL = 1 + len(_BEFORE) + max(map(len, _LABELS)) + len(_AFTER)


def _beginning(atoms: Sequence[str]) -> str:
    """A pattern of each beginning of what the atoms match in a row."""
    pattern = ""
    for atom in reversed(atoms):
        pattern = f"(?:{atom}{pattern})?"
    return pattern


_LABEL = re.compile(
    rf"\n{''.join(_BEFORE[:3])}(?P<bold>\*{{0,2}})(?P<name>{'|'.join(_LABELS)})"
    rf"{''.join(_AFTER[:4])}(?P<closed>\*{{0,2}}):",
    re.IGNORECASE | re.ASCII,
)
_BEGINNING = re.compile(
    rf"\n(?:{'|'.join(_beginning([*_BEFORE, *label, *_AFTER]) for label in _LABELS)})\Z", re.IGNORECASE | re.ASCII
)
_IN_BRACKETS = re.compile(r"([\w.-]+)\s*\[(.*)\]", re.DOTALL)
_NO_ACTION = frozenset({"", "none", "n/a", "no action"})


class React(Transform):
    stop_sequences = ("\nObservation:",)

    def __init__(self, tools: Mapping[str, Mapping[str, Any]], turn: int = 0) -> None:
        super().__init__(tools, turn)
        self._pending = "\n"  # a label begins a line, and so does the answer
        self._label = ""  # of the part that is being said
        self._stars = 0  # that may still close a bold label
        self._action: list[str] = []
        self._input: list[str] | None = None

    def instructions(self, tools: Iterable[tuple[str, str]]) -> str:
        tools = list(tools)
        if not tools:
            return "Think first, in a line that begins with Thought:. Then give your answer behind Final Answer:."
        listed = "\n".join(self._described(name, description) for name, description in tools)
        return (
            f"You have these tools:\n{listed}\nAnswer in this form:\n"
            "Thought: what to do next\nAction: the name of a tool\nAction Input: a JSON object with its arguments\n"
            "Then stop: you are given the result as Observation:. When you know enough:\n"
            "Thought: I know enough\nFinal Answer: the answer"
        )

    def _described(self, name: str, description: str) -> str:
        schema = orjson.dumps(self._tools.get(name)).decode()
        return f"{name}: {' '.join(description.split())} Arguments: {schema}"

    def observation(self, results: Sequence[tuple[Call, str]]) -> str:
        return "\n".join(f"Observation: {result}" for _, result in results)

    def _step(self) -> bool:
        if self._stars and self._pending:
            self._drop_stars()
        found = None if self._label in ("final answer", "answer") else _LABEL.search(self._pending)
        if found is None:
            held = self._held()
            self._put(self._pending[: len(self._pending) - held])
            self._pending = self._pending[len(self._pending) - held :]
            return False
        self._put(self._pending[: found.start()])
        self._meet(found["name"].lower(), found)
        return True

    def _held(self) -> int:
        if self._label in ("final answer", "answer"):
            return 0
        near = max(len(self._pending) - _LONGEST_LABEL, 0)
        begun = _BEGINNING.search(self._pending, near)
        return len(self._pending) - begun.start() if begun else 0

    def _drop_stars(self) -> None:
        while self._stars and self._pending.startswith("*"):
            self._pending = self._pending[1:]
            self._stars -= 1
        if self._pending:
            self._stars = 0

    def _meet(self, label: str, found: re.Match[str]) -> None:
        if label == "action input" and self._label == "action":
            self._input = []
        else:
            self._read_call()
            if self.calls and not label.startswith("action"):
                self._cut(label, found.start())
                return
            self._input = [] if label == "action input" else None
        self._pending = self._pending[found.end() :]
        self._label = label
        self._stars = len(found["bold"]) - len(found["closed"])
        self._is_fresh = True

    def _cut(self, label: str, at: int) -> None:
        self.is_cut = True
        said, invented = self.said, self._pending[at:]
        self._said = [said[: max(len(said) - len(invented), 0)]]
        self._pending = ""
        self._note("cut", f"{label.title()}:", "The model went on instead of waiting for a result.")

    def _put(self, text: str) -> None:
        if self._label == "action":
            self._action.append(text)
        elif self._label == "action input":
            assert self._input is not None
            self._input.append(text)
        elif self._label in ("thought", "observation"):
            self._show(THINKING_DELTA, text)
        else:
            self._show(TEXT_DELTA, text)

    def _close(self, is_whole: bool) -> None:
        if is_whole or not self._label.startswith("action"):
            self._read_call()
        else:
            self._note("unfinished_call", "".join([*self._action, *(self._input or ())]), "The model was cut off.")
        if is_whole and not self.calls and self._shown == {THINKING_DELTA}:
            self._add_fault(self.said, "Write an Action with its Action Input, or your answer behind Final Answer:.")

    def _read_call(self) -> None:
        """The call that is being said, if one is."""
        if not self._label.startswith("action"):
            return
        action, given = "".join(self._action).strip(), None if self._input is None else "".join(self._input)
        self._action, self._input, self._label = [], None, ""
        name = action.partition("\n")[0].strip(" \t\r`'\"*[]")
        if given is None and (paper := _IN_BRACKETS.fullmatch(action)):
            name, given = paper[1], paper[2]
            if name.lower() == "finish":
                self._is_fresh = True
                self._show(TEXT_DELTA, given)
                return
        if name.lower() in _NO_ACTION:
            if given and given.strip():
                self._add_fault(given, "This call was not run: there is an Action Input, but no Action.")
            return
        try:
            args = self._args(name, unfenced(given or ""))
        except ValueError:
            fault = "This call was not run: its Action Input is not one JSON object."
            self._add_fault(given or "", fault, name)
        else:
            self._add_call(name, args)

    def _args(self, name: str, given: str) -> dict[str, Any]:
        """Raises ValueError."""
        if not given:
            return {}
        if given.startswith("{"):
            return _object(given)
        parameter, is_text = _only_parameter(self._tools.get(name))
        if parameter is None:
            raise ValueError("several parameters")
        if not is_text or given.startswith('"'):
            return {parameter: parse(given.encode())}
        return {parameter: given}


def _object(text: str) -> dict[str, Any]:
    said = parse(text.encode())
    assert isinstance(said, dict), "it begins as an object"
    return said


def _only_parameter(schema: Mapping[str, Any] | None) -> tuple[str | None, bool]:
    """What a plain text is given as, and whether it takes a text. An unknown tool's is `input`: it will not run."""
    if schema is None:
        return "input", True
    properties = schema.get("properties") or {}
    required = schema.get("required") or []
    names = required if len(required) == 1 else list(properties)
    if len(names) != 1:
        return None, False
    return names[0], (properties.get(names[0]) or {}).get("type") == "string"
