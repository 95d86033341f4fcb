"""The benchmarks run: with small numbers, on every part that they need, and every event counted."""

import pytest

from bench.scenario import Options
from bench.suite import SCENARIOS, run
from tests.rig.long import LONG

QUICK = ("catch_up", "memory", "worker")
"""The others take 6 to 17 s each, for their peers above all."""


@pytest.mark.parametrize("name", SCENARIOS if LONG else QUICK)
def test_each_benchmark_runs_and_no_event_is_missing(name: str) -> None:
    tables = run([name], Options(short=True))
    assert [failure for table in tables for failure in table.failures] == []
    assert all(table.rows for table in tables)
