"""What a process of ours writes to its log: on standard error, and never what users, models or operators keep secret.

One JSON object a line (lines.py); plain text on a terminal, and from commands, whose lines are for people.

LASTEVENT_LOG_LEVEL is of our own loggers. A library's lines say at debug what it was given: prompts, filters, headers;
so from libraries come warnings and errors only, whatever level they or their own variables set, unless
LASTEVENT_LOG_LIBRARIES asks for them.

A traceback names the exceptions and shows the code, but not what they say: that may be a command with its arguments, a
row, a key that was not found, an address with its password.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any

OURS = ("broker", "worker", "lastevent")

_ABOUT_CODE = (AttributeError, ImportError, ModuleNotFoundError, NameError, NotImplementedError, UnboundLocalError)
"""What these say is about names in code. (TypeError is none: `unhashable type`, but also any library's own words.)"""

logger = logging.getLogger(__name__)


LASTING_S = 60.0
"""Of the lines with the same `lasting` (errors.py), whichever parts of a process write them, one in so long is let
through."""


def _nothing() -> Mapping[str, str]:
    return {}


ABOUT: ContextVar[Callable[[], Mapping[str, str]]] = ContextVar("about", default=_nothing)
"""What the current task serves or runs, as fields of a line (lines.py). Called only when a line is written: setting it
is all that it costs."""


def set_up_logs(process: str, level: str = "warning", *, libraries: bool = False, for_people: bool = False) -> None:
    """`process` is named in each line. `libraries`: they write at this level, too. `for_people`: plain text, also where
    standard error is no terminal. May be called again: the last call holds.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_plain(process) if for_people or sys.stderr.isatty() else _json(process))
    if not libraries:
        handler.addFilter(_is_ours_or_a_warning)
    handler.addFilter(_OnceAMinute())
    root_level = _number(level) if libraries else max(logging.WARNING, _number(level))
    logging.basicConfig(level=root_level, handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(_number(level))
    sys.excepthook = _log_the_end
    threading.excepthook = _log_the_end_of_a_thread
    if libraries:
        logger.warning(
            "LASTEVENT_LOG_LIBRARIES is on, at the level %s: libraries write what they are given, at debug prompts, "
            "answers, users' names, addresses, keys and tokens. Keep this log from others, and delete it afterwards",
            level,
        )


def _plain(process: str) -> logging.Formatter:
    return _Formatter(f"%(asctime)s {process} %(levelname)s %(message)s")


def _json(process: str) -> logging.Formatter:
    from broker.process.lines import json_lines  # 20 ms, which a command need not spend

    return json_lines(process, about=lambda: ABOUT.get()(), is_ours=_is_ours, told=_in_words_of_code)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _is_ours_or_a_warning(entry: logging.LogRecord) -> bool:
    """At the handler, since a library may set its own logger's level at any time (the SDK does, by ANTHROPIC_LOG)."""
    return entry.levelno >= logging.WARNING or _is_ours(entry.name)


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in OURS


class _OnceAMinute(logging.Filter):
    """What lasts is said when it begins, and then from time to time: each loop meets it again and again."""

    def __init__(self) -> None:
        super().__init__()
        self._said_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        # What exports traces says of each batch that nobody took it.
        lasting = record.name if record.name.startswith("opentelemetry.") else getattr(record, "lasting", None)
        if lasting is None:
            return True
        now_s = time.monotonic()
        if now_s - self._said_s.get(lasting, -LASTING_S) < LASTING_S:
            return False
        self._said_s[lasting] = now_s
        return True


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:
        return _in_words_of_code(ei[1]) if ei[1] else ""


def _in_words_of_code(error: BaseException) -> str:
    return "\n".join(_told(error, set()))


def _told(error: BaseException, seen: set[int]) -> Iterator[str]:
    """A traceback without words, causes first, as Python orders them."""
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _told(before, seen)
        yield "  which led to:"
    if error.__traceback__:
        yield "Traceback (most recent call last):"
        yield "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    yield _name(error)
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield "  of which one is:"
            yield from _told(one, seen)


def _name(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if kind in _ABOUT_CODE:
        return f"{name}: {error}"
    return f"{name} (errno {error.errno})" if isinstance(error, OSError) and error.errno else name


def _log_the_end(kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, tb)
    else:
        logger.critical("this process ends because of a bug", exc_info=(kind, error, tb))


def _log_the_end_of_a_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not issubclass(ended.exc_type, SystemExit):
        logger.error("a thread ended because of a bug", exc_info=(ended.exc_type, ended.exc_value, ended.exc_traceback))
