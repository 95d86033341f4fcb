"""Loads of a worker by their names, when a measurement begins and ends, and what it says of a worker without room."""

import pytest

from bench.__main__ import main
from bench.contestants.lastevent_worker import evenly
from bench.contestants.naive_worker import delay_ms
from bench.generating import Moment, Sample, is_time, middle
from bench.load.deltas import Timings
from bench.loads import Load, load
from bench.scenario import Options
from bench.suite import PAIRED
from bench.worker import LOADS, busy

NOW_NS = 1_763_747_408_123_456_789
SAMPLE = Sample(3000.0, {}, commits_an_event=1.0, delays_ms=[], busy=0.5, lost=0, missing=0)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("100x30", Load(100, 30)),
        ("20xmax", Load(20, 0)),
        ("400x5+tls", Load(400, 5, tls=True)),
        ("9x9+agent", Load(9, 9, wire="agent")),
    ],
)
def test_a_load_is_named_by_its_generations_their_pace_and_tls(name: str, meant: Load) -> None:
    assert load(name) == meant
    assert meant.name == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["worker", "--loads", "100x30,many"], "'many' is no load: write generations x deltas a second each"),
        (["relay", "worker", "--loads", "100x30"], "--loads is for whole_way, worker alone: name them"),
    ],
)
def test_loads_that_mean_nothing_are_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_beside_a_commit_each_chosen_load_is_a_comparison_of_its_own() -> None:
    chosen = Options(loads=[load("100x30"), load("100x30+tls")])
    titles = [pairing.title.split(":")[0] for name in ("worker", "whole_way") for pairing in PAIRED[name](chosen)]
    assert titles == ["worker 100x30", "worker 100x30+tls", "whole_way 100x30", "whole_way 100x30+tls"]


@pytest.mark.parametrize("short", [False, True])
def test_a_paced_generation_takes_longer_than_the_measurement_and_the_beginning_of_all(short: bool) -> None:
    for paced in (of for of in LOADS if of.rate):
        begin_s = 1 if short else 6 * paced.generations / 400  # of 400, measured
        assert paced.deltas(short=short) / paced.rate >= begin_s + paced.measured_s(short=short)


@pytest.mark.parametrize(
    ("counts", "it_is"),
    [
        ([2, 90], False),  # the first has 88 deltas, the other none
        ([3, 90], True),
        ([2, 103], True),  # a full worker: the first would end before the other runs
    ],
)
def test_the_measured_time_begins_when_all_run_or_when_the_first_can_wait_no_longer(
    counts: list[int], it_is: bool
) -> None:
    assert is_time(Moment(counts, 0.0, {}, 0), first_delta=3, at_most=100) is it_is


def test_without_a_pace_the_middle_of_what_is_written_is_measured() -> None:
    moments = [_moment(events) for events in (0, 100, 250, 301, 500, 750)]
    assert middle(moments, wanted=1000) == (moments[3], moments[5])
    sudden = [_moment(events) for events in (0, 900)]
    assert middle(sudden, wanted=1000) == (sudden[0], sudden[1])


def _moment(events: int) -> Moment:
    return Moment([events], 0.0, {}, 0)


@pytest.mark.parametrize(
    ("name", "per_s", "share", "cell"),
    [
        ("100x30", 3000, 0.5, "50%"),
        ("100x30", 2980, 0.91, "91%, full"),
        ("100x30", 2800, 0.7, "70%, full"),  # something else holds it back: its figures say as little
        ("100xmax", 20_000, 1.0, "100%"),  # it is meant to be
    ],
)
def test_a_worker_without_room_is_marked_as_full(name: str, per_s: float, share: float, cell: str) -> None:
    assert busy(load(name), SAMPLE._replace(events_per_s=per_s, busy=share)) == cell


def test_what_did_not_arrive_fails_the_run() -> None:
    assert SAMPLE.failures == []
    assert SAMPLE._replace(lost=2, missing=3).failures == [
        "2 events are not in the log",
        "3 deltas did not come out",
    ]


def test_a_delta_is_timed_by_its_stamp_also_where_reads_tear_it() -> None:
    timings = Timings()
    came = b'data: {"text":"~%d"}\n\nid: 5\ndata: {"text":"~%d"}\n\n' % (NOW_NS - 2_000_000, NOW_NS - 7_000_000)
    rest = b""
    for at in range(len(came)):
        rest = timings.take(rest + came[at : at + 1], NOW_NS)
    assert (timings.seen, timings.delays_us, rest) == (2, [2000, 7000], b"")


def test_an_entrys_own_time_is_what_times_a_naive_workers_delta() -> None:
    entry_id, fields = b"1763747408130-0", {b"data": b'{"text": "~%d"}' % NOW_NS}
    assert delay_ms(entry_id, fields) == pytest.approx(130.5 - 123.456789)


def test_the_streams_that_are_timed_are_spread_over_all() -> None:
    sids = [f"{n}" for n in range(100)]
    assert evenly(sids, 12) == sids[::9]
    assert evenly(sids[:5], 12) == sids[:5]
