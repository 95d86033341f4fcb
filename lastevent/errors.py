"""Everything that can go wrong, for those who write agents.

Exception
├── ToolError          what a tool raises: its message reaches the model
│   └── CallFailed     a call did not work out; `code` says why
├── InvalidValue       a value is not what its type asks for
└── AppError           the app itself cannot be run: said at its import
BaseException
└── AgentBlocked       this code held the event loop up; raised right within it
"""

from __future__ import annotations

import os
import traceback

_MAX_TYPE, _MAX_PLACES = 100, 10

MAX_TOLD = 64 * 1024
"""Characters of an exception's text or traceback: more than a line takes must not keep a failure from being told."""

MAX_PLACES = 8


class ToolError(Exception):
    """A tool failed, and its message may be read by the model. Of any other exception the model reads the type alone.

    `retry`: try twice more, with the same idempotency key, before the model hears of it.
    """

    def __init__(self, message: str, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


class CallFailed(ToolError):
    """A call of a tool, a step or another agent did not work out.

    `code`: failed, timeout, result_too_large, outcome_unknown (it was begun before a worker was lost, and nobody knows
    how it ended), not_approved, too_many_calls, or what the worker said. It is the same, and raised at the same place,
    when the run is taken over: the journal has it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class InvalidValue(Exception):
    """Says where and why, never what was there."""


class AppError(Exception):
    pass


class AgentBlocked(BaseException):
    """The code held the event loop up for LASTEVENT_AGENT_BLOCKED_S seconds, and every other run of this process.

    A BaseException, since `except Exception` around a slow call must not keep it going.
    """


def type_of(error: BaseException) -> str:
    """End users read it."""
    return type(error).__name__[:_MAX_TYPE]


def text_of(error: BaseException) -> str:
    try:
        return str(error)[:MAX_TOLD]
    except Exception:  # its own __str__ is broken
        return type_of(error)


def place_of(error: BaseException) -> str:
    """Its type, and where in the app it was raised, innermost last: all of it that belongs into a log."""
    ours, here = os.path.dirname(__file__) + os.sep, os.getcwd() + os.sep
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    places = [
        f"{code.co_filename.removeprefix(here)}:{line} in {code.co_name}"
        for code, line in frames
        if not code.co_filename.startswith(ours)
    ]
    return ", ".join([type(error).__name__, *places[-MAX_PLACES:]])


def trace_of(error: BaseException) -> str:
    """The last characters: a recursion without end is told by its innermost frames."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))[-MAX_TOLD:]


def places_of(error: BaseException) -> str:
    """Its type and where it was raised, without its words."""
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_PLACES:]
    return ", ".join([type_of(error), *(f"{one.filename}:{one.lineno} in {one.name}" for one in reversed(frames))])
