"""The benchmarks: `make bench`, or `python -m bench NAME …`. Each prints what it measured.

suite.py          which there are, in order; report.py writes what they found as docs/BENCHMARKS.md
relay.py …        a scenario a file
against.py        a commit beside the work tree, in turn; tree.py lays out the code that each runs
contestants/      Lastevent and who runs beside it, each as a *side*: running, its streams made
load/             publishers, viewers and a provider: processes whose CPU is not counted
delivery.py       publishing to viewers that are connected, timed; meter.py says what it cost
generating.py     a worker under a load (loads.py), timed and metered
"""
