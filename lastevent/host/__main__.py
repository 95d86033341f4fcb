"""python -m lastevent.host --fd N APP: what a worker starts for its app."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from types import TracebackType

from lastevent.errors import AppError, text_of, trace_of
from lastevent.host import app as loading
from lastevent.host import process
from lastevent.host.app import announced, load
from lastevent.host.serving import FINALLY_S, Host
from lastevent.host.watchdog import Watchdog
from lastevent.host.wire import Wire, encoded

DEFAULT_BLOCKED_S = 5.0

_LEAVING_S = 0.5
"""For exit handlers and threads, beyond what the runs have."""


def main() -> int:
    options = _options()
    wire = Wire(process.own(options.fd))
    process.close_in_forks(wire)
    process.keep_standard_streams_apart()
    process.heed_signals(lambda: process.end_within(FINALLY_S + _LEAVING_S))
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        agents = load(options.app)
        hello = {"op": "hello", "protocol": 1, "agents": announced(agents)}
        encoded(hello)
    except BaseException as error:  # also SystemExit: an app that ends its process cannot be run
        wire.send({"op": "failed", "message": _in_short(error), "traceback": _trace(error)})
        wire.finish(FINALLY_S)
        process.end_within(_LEAVING_S)
        return 1
    return asyncio.run(_serve(wire, Host(wire, agents), hello))


async def _serve(wire: Wire, host: Host, hello: dict[str, object]) -> int:
    watchdog = Watchdog(wire, host, float(os.environ.get("LASTEVENT_AGENT_BLOCKED_S") or DEFAULT_BLOCKED_S))
    watchdog.start()
    is_let_go = await host.serve(hello)
    watchdog.stop()
    wire.finish(FINALLY_S)
    process.end_within(_LEAVING_S if not is_let_go else FINALLY_S + _LEAVING_S)
    return 0 if is_let_go else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lastevent.host", description="Started by a worker for its app.")
    parser.add_argument("--fd", type=int, required=True, help="the wire to the worker")
    parser.add_argument("app", help="module or module:attribute")
    return parser.parse_args()


def _in_short(error: BaseException) -> str:
    return text_of(error) if isinstance(error, AppError) else f"{type(error).__name__}: {text_of(error)}"


def _trace(error: BaseException) -> str | None:
    """From the first line of the app's own on. What is wrong with the app by our rules has been said in full."""
    if isinstance(error, AppError):
        return None
    trace: TracebackType | None = error.__traceback__
    while trace is not None and _is_of_the_import(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    told = trace_of(error.with_traceback(trace))
    if isinstance(error, ModuleNotFoundError):
        told += f"The app runs on {sys.executable}; --python names another interpreter.\n"
    return told


def _is_of_the_import(file: str) -> bool:
    return file in (__file__, loading.__file__) or "importlib" in file


if __name__ == "__main__":
    sys.exit(main())
