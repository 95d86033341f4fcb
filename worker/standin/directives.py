"""What a message asks of the stand-in, between double brackets, as in `[[tokens=200 rate=50 cut_at=120]]`.

What is unknown or malformed in there is ignored, and so is what a provider's wire has no form for:

    tokens=60 rate=30    that many text deltas, so many a second (0: as fast as it can)
    ttft_ms=300          silence before the first of them
    thinking=N           N thinking deltas in a block of their own before the text
    citations=N          the text ends with N citations, of its first N words
    json=1               the text is JSON_TEXT, in pieces, instead of words
    tools=N              N tool calls after the text; not once the request ends in what a tool said
    parallel=1           two tool calls at least, whose argument pieces alternate where the wire can
    call_ids=0           tool calls have no ids (Gemini before 3, older servers of the Chat wire)
    ollama=1             as Ollama does it: tool calls come whole, each with index 0; thinking is `reasoning`, not
                         `reasoning_content` (Chat)
    args_piece=N         arguments come in pieces of N characters, not 12
    call=NAME:{…}        a call of this tool of the request's, with these arguments (JSON; without them: what the
                         tool's schema wants, with words of the message). Several are called at once; `then` begins
                         the next turn's, as in [[call=find_order:{"order_id":"A17"} call=now then call=refund]]. When
                         all have their results, the text quotes them
    before=N             a turn that calls them says N words first
    guess=1              a tool that shares words with the message is called, once, if the request has one; then the
                         text quotes its result. So it is without any directive, too
    say=react            the turn is text, as by a model that has no tools: Thought, Action, Action Input, and at the
                         end Final Answer. A user's message that begins with Observation: is a result
    say=tags             likewise: <think>…</think> and <tool>{"name": …, "args": …}</tool>; <tool_result> is a result
    invent=1             behind its Action, say=react goes on with an Observation of its own
    server_tool=ok       a server-side search after the text, and its result (server_tool=error: it failed)
    mcp=1                before the text, the provider calls a tool of an MCP server (Anthropic, Responses)
    stop=refusal         the stop reason to give, in Anthropic's words or the wire's own
    max=1                the answer ends because it has as many tokens as it may
    stop_seq=1           the answer ends at a stop sequence, the request's first, and says which where the wire can
    refuse=1             the answer is a refusal, in the wire's own way
    pause=K              the first K requests of a turn are paused after a server-side search (Anthropic); the next
                         one goes on with the words behind
    cached=N             N more input tokens, which came from the cache
    overload=K           the first K requests with this very message get 529, or 503 where the API has no 529 (with
                         status=S: get S)
    code=C               the code in the error of those (OpenAI), as in status=429 code=insufficient_quota
    status=S             every request gets HTTP status S (400 to 599; or 200, though the body is not a stream)
    retry_after=S        the retry-after header of those, in seconds (retry_date=S: as an HTTP date, S from now)

and the faults. N counts the text deltas sent before it happens:

    error_at=N           the event of an error (overloaded_error; error=api_error names another)
    flat_error=1         that event as OpenAI's reference shows it, not as it comes (Responses)
    cut_at=N             the connection is dropped in the middle of the body
    end_at=N             the body ends properly, but without what marks an answer's end
    stall_at=N           silence, without pings, until the client goes away (stall_ms=M: for so long; then the
                         answer continues)
    garbage_at=N         a data line that is not JSON; the answer then continues
    pings=1              keep-alives and nothing else, until the client goes away
    hold=1               the answer is complete, its end included, but the body does not end
    surrogate_at=N       the next text delta ends in half of a UTF-16 surrogate pair

and what is right, or the client's to refuse, but seldom met:

    line_end=cr          lines end in CR (line_end=crlf: in CRLF; line_end=torn: in CRLF, its halves in two writes)
    piece=N              the body is written N bytes at a time
    gzip=1               the body is compressed, whatever the client accepts

    cut_times=K, error_times=K    cut_at, error_at break only the first K attempts at this very message; the next one
                                  is whole, and after it the count begins anew
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Directives:
    tokens: int = 60
    rate: float = 30.0
    ttft_ms: int = 300
    thinking: int = 0
    citations: int = 0
    json: int = 0
    tools: int = 0
    parallel: int = 0
    call_ids: int = 1
    ollama: int = 0
    args_piece: int = 12
    plan: tuple[tuple[tuple[str, str | None], ...], ...] = ()
    """Each turn's calls: the tool, and its arguments as JSON."""
    before: int = 0
    guess: int = 0
    say: str = ""
    invent: int = 0
    server_tool: str = ""
    mcp: int = 0
    stop: str = ""
    max: int = 0
    stop_seq: int = 0
    refuse: int = 0
    pause: int = 0
    cached: int = 0
    overload: int | None = None
    status: int | None = None
    code: str = ""
    retry_after: int | None = None
    retry_date: int | None = None
    hold: int = 0
    error: str = "overloaded_error"
    flat_error: int = 0
    error_at: int | None = None
    error_times: int | None = None
    cut_at: int | None = None
    cut_times: int | None = None
    end_at: int | None = None
    stall_at: int | None = None
    stall_ms: int | None = None
    garbage_at: int | None = None
    surrogate_at: int | None = None
    pings: int = 0
    line_end: str = ""
    piece: int = 0
    gzip: int = 0
    is_given: bool = field(default=False, compare=False)
    """Whether anything was asked, even if it was ignored."""

    def first_fault(self) -> tuple[int, str]:
        """How many text deltas are sent before the first fault, and which it is ("" when none is reached)."""
        asked = {
            "error": self.error_at,
            "cut": self.cut_at,
            "end": self.end_at,
            "stall": self.stall_at,
            "garbage": self.garbage_at,
        }
        reached = [(n, fault) for fault, n in asked.items() if n is not None and n <= self.tokens]
        return min(reached, default=(self.tokens, ""))

    @property
    def calls(self) -> int:
        return max(self.tools, 2 if self.parallel else 0)

    @property
    def times(self) -> int | None:
        """How many attempts are broken; None for all of them."""
        given = [times for times in (self.cut_times, self.error_times) if times is not None]
        return max(given, default=None)

    def after(self, attempts: int) -> Directives:
        """What is asked of the attempt after so many."""
        cut_at = self.cut_at if self.cut_times is None or attempts < self.cut_times else None
        error_at = self.error_at if self.error_times is None or attempts < self.error_times else None
        return replace(self, cut_at=cut_at, error_at=error_at)


_COUNTS = (
    "tokens ttft_ms thinking citations json tools parallel call_ids ollama before guess invent mcp max stop_seq refuse "
    "pause cached overload retry_after retry_date hold flat_error stall_ms cut_times error_times pings piece gzip"
)
_PLACES = "error_at cut_at end_at stall_at garbage_at surrogate_at"
_SHAPES = {
    **dict.fromkeys(f"{_COUNTS} {_PLACES}".split(), (r"[0-9]{1,9}", int)),
    "rate": (r"[0-9]{1,7}(\.[0-9]{1,3})?", float),
    "status": (r"200|[45][0-9]{2}", int),
    "args_piece": (r"[1-9][0-9]{0,8}", int),
    "say": (r"react|tags", str),
    "server_tool": (r"ok|error", str),
    "stop": (r"[a-z_]{1,64}", str),
    "error": (r"[a-z_]{1,64}", str),
    "code": (r"[a-z_]{1,64}", str),
    "line_end": (r"lf|cr|crlf|torn", str),
}

THEN = "then"
_CALL = re.compile(r"call=([\w.-]{1,128})(?::(?={))?", re.ASCII)
_BLANKS = re.compile(r"[\s,]*")
_PART = re.compile(r"[^\[\]\s,]+")
_JSON = json.JSONDecoder()

_Part = str | tuple[str, str | None]
"""A directive's text; or a call."""


def read_directives(message: str) -> Directives:
    asked: dict[str, Any] = {}
    turns: list[list[tuple[str, str | None]]] = [[]]
    found = [parts for _, _, parts in _brackets(message)]
    for part in (part for parts in found for part in parts):
        if isinstance(part, tuple):
            turns[-1].append(part)
            continue
        if part == THEN:
            turns.append([])
        name, _, value = part.partition("=")
        shape, read = _SHAPES.get(name, ("", str))
        if shape and re.fullmatch(shape, value):
            asked[name] = read(value)
    plan = tuple(tuple(calls) for calls in turns if calls)
    return Directives(**asked, plan=plan, is_given=bool(found))


def without_directives(message: str) -> str:
    kept, behind = [], 0
    for start, end, _ in _brackets(message):
        kept.append(message[behind:start])
        behind = end
    return " ".join([*kept, message[behind:]])


def _brackets(message: str) -> Iterator[tuple[int, int, list[_Part]]]:
    """Where the double brackets begin and end, and what stands in them. Others may stand only in a call's JSON."""
    at = message.find("[[")
    while at >= 0:
        if read := _read_brackets(message, at + 2):
            yield at, *read
        at = message.find("[[", read[0] if read else at + 1)


def _read_brackets(message: str, at: int) -> tuple[int, list[_Part]] | None:
    parts: list[_Part] = []
    while True:
        blanks = _BLANKS.match(message, at)
        at = blanks.end() if blanks else at
        if message.startswith("]]", at):
            return at + 2, parts
        if call := _CALL.match(message, at):
            args, at = _read_args(message, call.end())
            parts.append((call[1], args))
        elif part := _PART.match(message, at):
            at = part.end()
            parts.append(part[0])
        else:
            return None


def _read_args(message: str, at: int) -> tuple[str | None, int]:
    """What stands there as JSON, and where it ends; None if nothing does."""
    if not message.startswith("{", at):
        return None, at
    try:
        _, end = _JSON.raw_decode(message, at)
        return orjson.dumps(orjson.loads(message[at:end])).decode(), end
    except (ValueError, TypeError, RecursionError):
        return None, at
