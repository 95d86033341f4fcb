"""The steps that change a stream: one Lua script each (scripts/), and what their answers mean."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any

from broker.errors import (
    AppendGap,
    LasteventError,
    LeaseHeld,
    LogHealing,
    StreamClosed,
    StreamLimit,
    StreamNotFound,
    StreamRunning,
    WriterSuperseded,
)


class Script:
    """A Lua step with the prelude in front, called by its digest."""

    def __init__(self, name: str) -> None:
        folder = resources.files("broker.log.scripts")
        self.text = folder.joinpath("prelude.lua").read_text() + folder.joinpath(f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


CREATE, CLAIM, APPEND = Script("create"), Script("claim"), Script("append")
RESTORE, RELEASE, SEIZE = Script("restore"), Script("release"), Script("seize")
ARCHIVED, ERASE = Script("archived"), Script("erase")


def typed(answer: Any) -> list[Any] | LasteventError:
    if isinstance(answer, Exception):
        raise answer
    match answer:
        case [b"OK", *_]:
            return answer  # type: ignore[no-any-return]  # redis-py's answers are untyped
        case [b"NOT_FOUND"]:
            return StreamNotFound("There is no stream of that id.")
        case [b"CLOSED"]:
            return StreamClosed("The stream has its terminal event; nothing follows it.")
        case [b"SUPERSEDED"]:
            return WriterSuperseded("Another writer holds the pen now; stop writing.")
        case [b"GAP", tail]:
            return AppendGap(tail)
        case [b"LIMIT"]:
            return StreamLimit("The stream holds as many events or bytes as one may.")
        case [b"HELD", until_ms]:
            return LeaseHeld(until_ms)
        case [b"RUNNING"]:
            return StreamRunning("The stream is still running. Cancel it first, or wait for its end.")
        case [b"HEALING", wait_ms]:
            return LogHealing(wait_ms / 1000)
        case [b"NEW_SERVER", server]:
            return NewServer(server.decode())
    raise AssertionError(f"a script gave an answer that log.py does not know: {answer[:1]!r}")


class NewServer(LasteventError):
    """The step met a server that this process has not met: it has to say since when that one is in use."""

    def __init__(self, server: str) -> None:
        super().__init__("Redis runs on another server than before.")
        self.server = server


def decoded(flat: list[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
