"""python -m worker.standin: the stand-in by itself, on a port of loopback."""

from __future__ import annotations

import argparse
import signal
from typing import Any, NoReturn

from worker.standin.server import listen, server, url


def _leave(_signal: int, _frame: Any) -> NoReturn:
    raise SystemExit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="worker.standin", description="A loopback server in a model's place.")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
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
