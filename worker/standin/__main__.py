"""python -m worker.standin: the stand-in by itself, on a port of loopback."""

from worker.standin.server import main

main()
