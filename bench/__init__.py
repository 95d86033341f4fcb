"""The benchmarks: `make bench`, or `python -m bench NAME …`. Each prints what it measured and on what."""
