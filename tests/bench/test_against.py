"""--against: a commit and the work tree measured in turn, each from its own code, and nothing left behind."""

from pathlib import Path

import pytest

from bench import tree
from bench.__main__ import main
from bench.against import Ratio, pair, ratio_of
from bench.memory import memory_paired
from bench.scenario import Measured, Options, Pairing
from bench.suite import PAIRED, SCENARIOS
from bench.tree import REPOSITORY, CannotPair, Sides, Tree, beside

SIDES = Sides(Tree(Path("/then"), "abc1234"), Tree(Path("/now"), "now"), [])


def test_a_ratio_is_the_median_of_the_rounds_own_ratios_and_has_its_spread() -> None:
    # The machine is slower from round to round, by far more than the sides differ.
    assert ratio_of(then=[10, 20, 40], now=[11, 20, 36]) == Ratio(1.0, 0.9, 1.1)


@pytest.mark.parametrize(("then", "now"), [([0.0, 2.0], [1.0, 2.0]), ([-3.0], [2.0]), ([1.0], [float("inf")])])
def test_where_a_round_has_no_ratio_none_is_given(then: list[float], now: list[float]) -> None:
    assert ratio_of(then, now) is None


def test_the_sides_take_turns_in_going_first() -> None:
    order = []

    def measure(side: Tree) -> Measured:
        order.append(side.name)
        return Measured({"ms": len(order)})

    table = pair(Pairing("nothing", measure), SIDES, Options(rounds=3))
    assert order == ["abc1234", "now", "now", "abc1234", "abc1234", "now"]
    assert table.columns == ("", "abc1234", "now", "now/abc1234", "least", "greatest")
    assert table.rows == [["ms", "4.00", "3.00", "1.200", "0.750", "2.000"]]  # of 1, 4, 5 and 2, 3, 6


def test_what_fails_on_a_side_fails_the_run_by_its_name() -> None:
    table = pair(Pairing("nothing", lambda _: Measured({}, ["an event is lost"])), SIDES, Options(rounds=1))
    assert table.failures == ["abc1234: an event is lost", "now: an event is lost"]


def test_what_must_be_known_of_a_side_is_noted_once() -> None:
    table = pair(Pairing("nothing", lambda _: Measured({}, notes=["it is full"])), SIDES, Options(rounds=2))
    assert table.notes[1:] == ["abc1234: it is full", "now: it is full"]


def test_a_copy_holds_its_commits_product_and_this_work_trees_bench_and_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tree, "_compile", lambda *_: None)
    meters = (REPOSITORY / "bench" / "meter.py").read_bytes()
    folders: list[Path] = []

    def look_and_press_ctrl_c() -> None:
        with beside("HEAD") as sides:
            folders.extend(side.folder for side in (sides.then, sides.now))
            for folder in folders:
                assert (folder / "broker" / "__main__.py").is_file()
                assert (folder / "worker" / "__main__.py").is_file()
                assert (folder / "bench" / "meter.py").read_bytes() == meters
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look_and_press_ctrl_c()
    assert [folder.exists() for folder in folders] == [False, False]


def test_a_tree_whose_processes_would_run_other_code_is_refused(tmp_path: Path) -> None:
    tree._copy("bench", tmp_path)  # and no product: Python finds the installed one
    with pytest.raises(CannotPair, match=r"would run .*broker/__init__.py, which is not its own code"):
        tree._check(Tree(tmp_path, "abc1234"))


def test_a_commit_without_what_the_bench_needs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "SINK", "bench/contestants/nowhere.py")
    with pytest.raises(CannotPair, match=r"lacks what this bench needs .*nowhere\.py"), beside("HEAD"):
        pass


def test_an_unknown_commit_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fanout", "--against", "no-such-commit"]) == 2
    output = capsys.readouterr()
    assert "there is no commit 'no-such-commit' here" in output.err
    assert (output.out, output.err.count("\n")) == ("", 1)


def test_a_benchmark_that_cannot_be_paired_is_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["relay", "parts", "--against", "HEAD"])
    assert ended.value.code == 2
    assert "--against cannot measure parts; it can measure relay, fanout" in capsys.readouterr().err


def test_all_that_can_be_paired_are_benchmarks() -> None:
    assert {"relay", "fanout", "memory", "first_token", "worker", "whole_way"} <= set(PAIRED) <= set(SCENARIOS)


def test_a_commit_is_measured_beside_the_work_tree(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PAIRED, "memory", lambda options: memory_paired(options)[:1])  # the half of it is enough here
    assert main(["memory", "--short", "--against", "HEAD"]) == 0
    output = capfd.readouterr()
    [row] = [line.split() for line in output.out.splitlines() if "after, MB" in line]
    then_mb, now_mb, ratio, least, greatest = map(float, row[-5:])
    assert ratio == least == greatest == pytest.approx(now_mb / then_mb, rel=0.02)
