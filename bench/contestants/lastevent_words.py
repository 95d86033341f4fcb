"""Lastevent, with events that are texts and nothing else: what a dialect passes on (bench/dialects.py)."""

from __future__ import annotations

from bench.contestants.lastevent import LasteventSink
from bench.load import stamp


class WordsSink(LasteventSink):
    data = staticmethod(stamp.words_json)


def sink(address: str) -> WordsSink:
    return WordsSink(address)
