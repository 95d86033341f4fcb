"""A line of the log as JSON, for whoever collects it.

t          when: RFC 3339, UTC, ms
level      debug, info, warning, error, critical
event      what happened, for people
process    server, worker, lastevent
stream     the stream's id, of a line about one
request    the request's id (X-Request-Id), while one is served
key        the API key's id, where that request came with one
logger     of a library's line: which one
exception  a traceback without words
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any


@contextmanager
def _without(package: str) -> Iterator[None]:
    """structlog imports rich, if it is there, for coloured tracebacks: 60 ms of CPU of each process, for nothing."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # as the import system says that there is none
    try:
        yield
    finally:
        del sys.modules[package]


with _without("rich"):
    from structlog.processors import JSONRenderer
    from structlog.stdlib import ProcessorFormatter
    from structlog.typing import EventDict, WrappedLogger

ABOUT_A_STREAM = "stream %s"
"""Our lines about a stream begin so."""


def json_lines(
    process: str,
    *,
    about: Callable[[], Mapping[str, str]],
    is_ours: Callable[[str], bool],
    told: Callable[[BaseException], str],
) -> logging.Formatter:
    """`about()`: what is being served or run just now. `is_ours`: of a logger's name. `told`: of an exception."""

    def fields(_: WrappedLogger, level: str, line: EventDict) -> EventDict:
        record: logging.LogRecord = line["_record"]
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said: dict[str, Any] = {
            "t": when.replace("+00:00", "Z"),
            "level": level,
            "event": line["event"],
            "process": process,
            **about(),
        }
        if isinstance(record.msg, str) and record.msg.startswith(ABOUT_A_STREAM) and line["positional_args"]:
            said["stream"] = str(line["positional_args"][0])
        if not is_ours(record.name):
            said["logger"] = record.name
        if "exc_info" in line and line["exc_info"][1] is not None:
            said["exception"] = told(line["exc_info"][1])
        return said

    # In ASCII: a line is JSON whatever the locale, and whatever half characters somebody has sent.
    renderer = JSONRenderer(serializer=lambda said, **_: json.dumps(said, default=str))
    return ProcessorFormatter(processors=[fields, renderer], pass_foreign_args=True)
