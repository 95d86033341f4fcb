"""Clients that others wrote, unmodified and in their newest versions, through a proxy that cuts their connections.

`cutter.py` is the proxy, `recipes.py` takes docs/CLIENTS.md apart, `programs.py` runs clients of one language in one
process. `python -m tests.clients` (`make clients`) is the long form, with the languages that compile for minutes.
"""
