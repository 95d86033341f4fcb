"""python -m bench [NAME …]: run benchmarks, all of them by default."""

from __future__ import annotations

import os
import platform
import sys

from bench import first_token

BENCHMARKS = {"first_token": first_token.run}


def main() -> int:
    names = sys.argv[1:] or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}")
    for name in names:
        BENCHMARKS[name]()
    return 0


sys.exit(main())
