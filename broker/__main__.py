"""python -m broker: the same as the command `lastevent`."""

import sys

from broker.process.first_process import heed_signals
from broker.process.imports import imports_outside_gc

heed_signals()


def main() -> None:
    from broker.command.version import ASKED_BY, print_version

    if sys.argv[1:] in ASKED_BY:
        print_version()
        return
    with imports_outside_gc():
        from broker.command import cli
    cli.main()


if __name__ == "__main__":
    main()
