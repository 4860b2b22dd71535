"""Holds the speed gate to its word, with numbers and packages made up: no test here depends on how fast anything is."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from benchmarks.gate import __main__ as cli
from benchmarks.gate import compare, promises, selftest, trees, trend
from benchmarks.gate.compare import CONFIRM, MARGINS, Comparison, DriverError, Measured, judge, order
from benchmarks.gate.trees import NoBaseError, resolve_base
from benchmarks.peers.settings import Task

WORKLOADS = {"one": {"size": 1}, "two": {"size": 2}}


# Order and verdict


def test_turns_are_a_b_b_a_then_b_a_a_b():
    assert order(4) == [0, 1, 1, 0, 1, 0, 0, 1]
    turns = order(40)
    assert len(turns) == 80 and sum(turns) == 40
    # The nth slice of one side is next to the nth of the other, so they pair in time.
    assert all({turns[i], turns[i + 1]} == {0, 1} for i in range(0, 80, 2))


def comparison(head=1.0, workload="one", part="update", base=(1.0, 1.1, 1.2, 1.3)):
    return Comparison(workload, part, list(base), [head * seconds for seconds in base])


@pytest.mark.parametrize("part", MARGINS)
def test_a_part_is_slower_beyond_its_margin_only(part):
    margin = MARGINS[part]
    assert comparison(1.0 + margin + 0.01, part=part).slower
    assert not comparison(1.0 + margin - 0.01, part=part).slower
    assert not comparison(0.5, part=part).slower


def test_the_ratio_is_the_smaller_of_both_estimates():
    burst = Comparison("one", "update", [1.0] * 4, [1.0, 3.0, 3.0, 3.0])  # one slice got through unharmed
    assert burst.ratio == 1.0
    lucky = Comparison("one", "update", [0.5, 1.0, 1.0, 1.0], [1.0] * 4)  # one slice of the base was quick
    assert lucky.ratio == 1.0
    assert comparison(1.2).ratio == pytest.approx(1.2)


def test_one_lucky_slice_hides_nothing():
    assert Comparison("one", "update", [1.0] * 40, [1.2] * 38 + [0.5] * 2).slower
    assert compare.fast([float(second) for second in range(40, 0, -1)]) == 5.0


class Measurements:
    """Hands out what is to be measured, and remembers what was asked."""

    def __init__(self, *results):
        self.results, self.asked = list(results), []

    def __call__(self, workloads, slices):
        self.asked.append((list(workloads), slices))
        return Measured(self.results.pop(0), {})


def test_what_is_not_slower_is_measured_once():
    measure = Measurements([comparison(1.05), comparison(1.0, "two")])
    assert judge(measure, 8, WORKLOADS).passed
    assert measure.asked == [(["one", "two"], 8)]


def test_what_is_slower_twice_fails_and_only_that_is_measured_again():
    measure = Measurements([comparison(1.2), comparison(1.0, "two")], [comparison(1.15)])
    verdict = judge(measure, 8, WORKLOADS)
    assert not verdict.passed
    assert [(c.workload, c.part) for c in verdict.slower] == [("one", "update")]
    assert measure.asked == [(["one", "two"], 8), (["one"], 8 * CONFIRM)]


@pytest.mark.parametrize("again", [comparison(1.05), comparison(1.2, part="collector")])
def test_what_is_slower_only_once_passes(again):
    verdict = judge(Measurements([comparison(1.2)], [again]), 8, WORKLOADS)
    assert verdict.passed and verdict.slower == []


def test_nothing_comparable_fails():
    assert not judge(lambda workloads, slices: Measured([], {"one": "no such setting"}), 8, WORKLOADS).passed


# The promises


def promise(floor, sides=None):
    return promises.Promise("promise", "fast", "slow", floor, sides)


def test_a_promise_is_measured_again_and_longer_where_it_seems_broken(monkeypatch):
    asked = []

    def measure(given, slices):
        asked.append(slices)
        return promises.Kept(given, 6.0 if len(asked) > 1 else 3.0, 1.0)

    monkeypatch.setattr(promises, "_measure", measure)
    kept, broken = promises.check_promises((promise(5.0), promise(7.0)))
    assert kept.holds and kept.ratio == 6.0 and not broken.holds
    assert asked == [promises.SLICES, CONFIRM * promises.SLICES] * 2


def test_a_promise_is_the_ratio_of_the_best_rates(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(promises, "process_time", lambda: clock.now)
    monkeypatch.setattr(promises, "_SLICE_S", 2.0)

    def side(seconds, steps):
        turns = iter(seconds)

        def work():
            clock.now += next(turns)
            return steps

        return nullcontext(Task(work))

    # The first call of each is not looked at; then the fast side takes two calls to fill a slice.
    fast = side([8.0, 1.0, 1.0, *[0.5] * 2, *[1.0] * 6], 10)
    slow = side([0.125, 4.0, 2.0, 4.0, 4.0, 4.0], 8)
    kept = promises._measure(promise(1.0, lambda: (fast, slow)), 4)
    assert (kept.fast_rate, kept.slow_rate, kept.ratio) == (20.0, 4.0, 5.0)


@pytest.mark.parametrize("given", promises.PROMISES, ids=lambda given: given.fast)
def test_both_sides_of_each_promise_work(given):
    for side in given.sides():
        with side as task:
            assert task() > 0


# The command line


@pytest.fixture
def gate(monkeypatch, tmp_path):
    """Return a function that runs the command line with measurements made up; its trend is `tmp_path/trend.jsonl`."""
    monkeypatch.setattr(trend, "TREND_PATH", tmp_path / "trend.jsonl")
    monkeypatch.setattr(trend, "PICTURE_PATH", tmp_path / "trend.png")
    monkeypatch.setattr(cli, "resolve_base", lambda root, revision: trees.Base("0" * 40, "made up"))
    monkeypatch.setattr(cli, "export_revision", lambda *given: None)
    monkeypatch.setattr(cli, "export_working_tree", lambda *given: None)
    asked = []

    def run(*argv, head=1.0, fast=6.0, skipped=None):
        def measure(base, head_tree, workloads, slices):
            asked.append(slices)
            names = [name for name in workloads if name not in (skipped or {})]
            found = [comparison(head, name, part) for name in names for part in MARGINS]
            return Measured(found, skipped or {})

        monkeypatch.setattr(compare, "compare", measure)
        monkeypatch.setattr(promises, "check_promises", lambda: [promises.Kept(promise(5.0), fast, 1.0)])
        asked.clear()
        return cli.main(argv)

    run.asked = asked
    return run


def test_equal_trees_and_kept_promises_pass(gate, capsys):
    assert gate() == 0
    assert gate.asked == [cli.SLICES]
    told = capsys.readouterr().out
    assert "against 000000000000 (made up)" in told and "Passed." in told


def test_quick_takes_fewer_slices(gate):
    assert gate("--quick") == 0
    assert gate.asked == [cli.QUICK_SLICES] and cli.QUICK_SLICES < cli.SLICES


def test_slower_fails(gate, capsys):
    assert gate(head=1.2) == 1
    assert gate.asked == [cli.SLICES, CONFIRM * cli.SLICES]
    told = capsys.readouterr().out
    assert f"{compare.A2C_64}: update takes 20% more than in the base, margin 10%." in told and "FAILED." in told


def test_a_broken_promise_fails(gate, capsys):
    assert gate(fast=4.0) == 1
    assert "promise: 4.0 is below the floor." in capsys.readouterr().out


def test_a_workload_that_the_base_lacks_is_named_and_none_left_fails(gate, capsys):
    assert gate(skipped={compare.A2C_64: "ValueError: old"}) == 0
    assert f"{compare.A2C_64} is not compared, the base does not run it: ValueError: old" in capsys.readouterr().out
    assert gate(skipped=dict.fromkeys(compare.WORKLOADS, "ValueError: old")) == 1
    assert "Nothing could be compared" in capsys.readouterr().out


def test_without_a_base_the_promises_decide(gate, monkeypatch, capsys):
    def none(root, revision):
        raise NoBaseError("nothing there")

    monkeypatch.setattr(cli, "resolve_base", none)
    assert gate() == 0
    assert gate.asked == []
    assert "Not compared with an earlier revision: nothing there." in capsys.readouterr().out
    assert gate(fast=4.0) == 1


def test_a_wrong_base_is_bad_input(gate, monkeypatch, capsys):
    monkeypatch.setattr(cli, "resolve_base", lambda root, revision: resolve_base(root, revision))
    assert gate("--base", "no-such-revision") == 2
    assert gate.asked == []
    assert capsys.readouterr().err.startswith("BASE is 'no-such-revision', which names no commit")


def test_a_tree_that_does_not_run_fails(gate, monkeypatch, capsys):
    def fail(*given):
        raise DriverError("This working tree does not run.")

    monkeypatch.setattr(cli, "compare_with", fail)
    assert gate() == 1
    assert capsys.readouterr().err == "This working tree does not run.\nFAILED.\n"


def test_a_package_from_elsewhere_is_bad_input(gate, monkeypatch, capsys):
    monkeypatch.setattr(cli.fastac, "__file__", "/elsewhere/fastac/__init__.py")
    assert gate() == 2
    assert "`import fastac` finds /elsewhere" in capsys.readouterr().err


def test_without_stable_baselines3_it_says_how_to_get_it(gate, monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert gate() == 2
    assert "make install" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--bas", "HEAD"], ["unknown"], ["selftest", "--aa", "0"], ["selftest", "--slow", "x"]]
)
def test_bad_flags_are_bad_input(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 2


# The trend


def test_each_run_adds_a_line(gate, tmp_path):
    gate(head=0.5)
    gate(head=1.2)
    lines = [json.loads(line) for line in (tmp_path / "trend.jsonl").read_text().splitlines()]
    assert [line["passed"] for line in lines] == [True, False]
    assert all({"date", "machine", "slices", "rates"} <= set(line) for line in lines)
    assert lines[0]["machine"]["cpu"] and "commit" in lines[0]["machine"]
    assert lines[0]["rates"][compare.A2C_64] == 64 * 16 / 0.5
    assert lines[0]["rates"]["fast"] == 6 and lines[0]["rates"]["slow"] == 1


def series(*rates):
    return list(enumerate(map(float, rates)))


def test_a_series_falls_where_a_whole_group_is_below():
    assert trend.falls(series(*[100] * 5, *[94] * 5)) == [9]
    assert trend.falls(series(*[100] * 5, *[94] * 4)) == []  # too few to tell
    assert trend.falls(series(*[100] * 5, *[94] * 4, 96)) == []  # one of them is not 5 % below
    assert trend.falls(series(*[100] * 4, 97, *[94] * 5)) == []  # nor below the lowest before
    assert trend.falls(series(*[100] * 5, *[94] * 7)) == [9, 10, 11]  # for as long as it is down
    assert trend.falls(series(*[90] * 5, *[100] * 5)) == []
    assert trend.falls(series(*(100 - step for step in range(14)))) == [13]  # a drift adds up


def write_runs(path, cpu, rates):
    with path.open("a") as file:
        for rate in rates:
            file.write(json.dumps({"machine": {"cpu": cpu}, "rates": {"train": rate}}) + "\n")


def test_machines_are_told_apart_and_the_picture_drawn(gate, tmp_path, capsys):
    write_runs(tmp_path / "trend.jsonl", "slow", [50] * 6)
    write_runs(tmp_path / "trend.jsonl", "quick", [100] * 5 + [90] * 5)
    assert trend.read(tmp_path / "trend.jsonl")["train"]["slow"] == [(index, 50.0) for index in range(6)]
    assert gate("trend") == 0
    assert (tmp_path / "trend.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert "train has fallen on quick" in told and "on slow" not in told


@pytest.mark.parametrize(
    "line", ["{", "3", "{}", '{"rates": {"a": 1}}', '{"machine": {"cpu": "c"}, "rates": {"a": []}}']
)
def test_a_line_that_is_no_run_is_bad_input(gate, tmp_path, capsys, line):
    write_runs(tmp_path / "trend.jsonl", "cpu", [1])
    with (tmp_path / "trend.jsonl").open("a") as file:
        file.write(line)
    assert gate("trend") == 2
    assert "line 2 of" in capsys.readouterr().err


def test_a_trend_without_runs_is_bad_input(gate, capsys):
    assert gate("trend") == 2
    assert "make bench-check" in capsys.readouterr().err


# The test of the gate


def test_the_selftest_runs_each_case_as_often_as_asked_and_writes_it_down(gate, monkeypatch, tmp_path, capsys):
    injected = []
    monkeypatch.setattr(selftest, "export_working_tree", lambda root, tree: None)
    monkeypatch.setattr(
        selftest, "inject_slowdown", lambda tree, part, share: injected.append((tree.name, part, share))
    )
    monkeypatch.setattr(selftest, "RESULT_PATH", tmp_path / "gate.json")
    assert gate("selftest", "--aa", "3", "--slow", "2") == 1  # slowdowns are not seen
    assert injected == [("update", "update", 0.2), ("collector", "collector", 0.2)]
    assert gate.asked == [cli.QUICK_SLICES] * 7
    file = json.loads((tmp_path / "gate.json").read_text())
    assert [run["slowed"] for run in file["runs"]] == [None, "update", "collector"] * 2 + [None]
    assert {"machine", "slices", "margins", "slowdown"} <= set(file)
    told = capsys.readouterr().out
    assert "A against A passes 3 of 3 times; 0 were measured twice." in told
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in told.splitlines()]
    assert ["update slowed by 20%", "0 of 2"] in rows and ["collector slowed by 20%", "0 of 2"] in rows


def test_a_slowdown_counts_as_seen_only_in_its_own_part():
    ratios = {part: {"one": 1.2} for part in MARGINS}
    assert selftest.Run("update", False, True, ["iteration", "update"], ratios).as_expected
    assert not selftest.Run("update", False, True, ["collector"], ratios).as_expected
    assert selftest.Run(None, True, True, [], ratios).as_expected
    assert not selftest.Run(None, False, True, ["wall"], ratios).as_expected
