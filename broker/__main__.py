"""python -m broker: the same as the command `lastevent`."""

from broker.process.first_process import heed_signals
from broker.process.imports import imports_outside_gc

heed_signals()

with imports_outside_gc():
    from broker.command.cli import main

if __name__ == "__main__":
    main()
