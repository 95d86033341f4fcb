"""python -m worker.standin: the stand-in by itself, on a port of loopback."""

from __future__ import annotations

import argparse
import signal
from typing import Any, NoReturn

from worker.standin.server import listen, server, url


def _leave(_signal: int, _frame: Any) -> NoReturn:
    raise SystemExit(0)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="worker.standin", description="A loopback server that stands in for a model provider."
    )
    parser.add_argument("--port", type=_port, default=0, help="0 picks a free port")
    try:
        listener = listen(parser.parse_args().port)
    except OSError as error:
        parser.exit(1, f"{parser.prog}: cannot listen: {error.strerror}\n")
    # uvicorn takes these signals over, shuts down, then raises the signal again for whoever had it before: us.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    print(f"The stand-in (no model) is listening at {url(listener)}", flush=True)
    server().run([listener])


main()
