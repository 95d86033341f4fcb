"""python -m broker: the same as the command `lastevent`."""

from broker.process.imports import imports_that_stay

with imports_that_stay():
    from broker.command.cli import main

if __name__ == "__main__":
    main()
