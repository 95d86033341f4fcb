"""The benchmarks run: with small numbers, on every part that they need, and every event counted."""

from pathlib import Path

import pytest

from bench import report
from bench.contestants.lastevent import LASTEVENT
from bench.relay import CONTESTANTS, RELAY_SHORT, compare
from bench.scenario import Options
from bench.suite import SCENARIOS, run
from bench.tree import REPOSITORY
from tests.rig.long import LONG

QUICK = ("catch_up", "memory", "worker")
"""The others take 6 to 17 s each, for their peers above all."""


@pytest.mark.parametrize("name", SCENARIOS if LONG else QUICK)
def test_each_benchmark_runs_and_no_event_is_missing(name: str) -> None:
    tables = run([name], Options(short=True))
    assert [failure for table in tables for failure in table.failures] == []
    assert all(table.rows for table in tables)


def test_a_peer_that_is_not_installed_is_left_out_by_name_with_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    peers = [contestant for contestant in CONTESTANTS if contestant.lack()]
    assert {peer.name.split(",")[0] for peer in peers} == {"nchan", "Centrifugo", "Mercure", "Durable Streams"}

    table = compare("relay", RELAY_SHORT, [LASTEVENT, *peers], Options(short=True))
    assert [row[0] for row in table.rows] == [LASTEVENT.name]
    for peer in peers:
        assert f"{peer.name} was left out; it needs: {peer.lack()}" in table.notes


def test_the_report_says_how_it_was_measured_in_the_words_of_the_bench() -> None:
    assert (REPOSITORY / "docs" / "BENCHMARKS.md").read_text().startswith(report.HEAD)
