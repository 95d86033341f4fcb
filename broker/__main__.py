"""python -m broker: the same as the command `lastevent`."""

from broker.cli import main

main()
