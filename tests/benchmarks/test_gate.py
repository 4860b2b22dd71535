"""Holds the gate of this repository to its word, with numbers and packages made up: nothing here is timed."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from gate_support import BUILD, write_packages

from benchmarks.gate import __main__ as cli
from benchmarks.gate import arithmetic, compare, declarations, promises, selftest, trees, trend
from benchmarks.gate.promises import CONFIRM
from benchmarks.peers.settings import Task
from fastac.tools.gate.measure import FULL, MARGINS, QUICK, Measured, Memory
from fastac.tools.gate.sides import DriverError
from fastac.tools.gate.statistics import Comparison
from fastac.tools.gate.trees import Base, NoBaseError, resolve_base


def comparison(head=1.0, workload="one", part="update"):
    return Comparison(workload, part, 1.0, head, head, head - 0.01, head + 0.01, MARGINS[part], 4)


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
    monkeypatch.setattr(cli, "resolve_base", lambda root, revision, watched: Base("0" * 40, "made up"))
    monkeypatch.setattr(cli, "exported", exported)
    declared = {"base": {}, "head": {}}
    monkeypatch.setattr(declarations, "read_base", lambda kind, commit: declared["base"].get(kind, {}))
    monkeypatch.setattr(declarations, "read", lambda kind: declared["head"].get(kind, {}))
    monkeypatch.setattr(declarations, "write", lambda kind, entries: declared["head"].update({kind: entries}))
    asked = []

    def run(*argv, head=1.0, fast=6.0, skipped=None, changed=(), peak=1000):
        def measure(base, head_tree, effort, workloads=compare.WORKLOADS):
            asked.append((effort, list(workloads)))
            names = [name for name in workloads if name not in (skipped or {})]
            found = [comparison(head, name, part) for name in names for part in MARGINS]
            return Measured(found, [Memory("peak", 1000, peak)], skipped or {})

        same = [name for name in arithmetic.RUNS if name not in changed]
        monkeypatch.setattr(arithmetic, "compare", lambda base, head_tree: arithmetic.Found(same, list(changed), []))
        monkeypatch.setattr(compare, "compare", measure)
        monkeypatch.setattr(promises, "check_promises", lambda: [promises.Kept(promise(5.0), fast, 1.0)])
        asked.clear()
        return cli.main(argv)

    run.asked, run.declared = asked, declared
    return run


@contextmanager
def exported(base):
    yield Path("base"), Path("head")


ALL = list(compare.WORKLOADS)
RUN = next(iter(arithmetic.RUNS))


def test_equal_trees_and_kept_promises_pass(gate, capsys):
    assert gate() == 0
    assert gate.asked == [(FULL, ALL)]
    told, progress = capsys.readouterr()
    assert progress == "comparing the bits of 5 runs\nmeasuring what the README promises\n"
    assert "against 000000000000 (made up)" in told and "The bits of 5 of 5 runs are the base's." in told
    assert told.endswith("Passed.\n")


def test_quick_takes_fewer_processes(gate):
    assert gate("--quick") == 0
    assert gate.asked == [(QUICK, ALL)] and QUICK.stages[-1] < FULL.stages[-1]


def test_slower_fails(gate, capsys):
    assert gate(head=1.2) == 1
    told = capsys.readouterr().out
    assert f"{compare.A2C_64}: update takes 20.0% more than in the base, margin 2.5%." in told and "FAILED." in told


def test_a_broken_promise_fails(gate, capsys):
    assert gate(fast=4.0) == 1
    assert "promise: 4.0 is below the floor." in capsys.readouterr().out


def test_a_workload_that_the_base_lacks_is_named_and_none_left_fails(gate, capsys):
    assert gate(skipped={compare.A2C_64: "ValueError: old"}) == 0
    assert f"{compare.A2C_64} is not compared, the base does not run it: ValueError: old" in capsys.readouterr().out
    assert gate(skipped=dict.fromkeys(compare.WORKLOADS, "ValueError: old")) == 1
    assert "Nothing could be compared" in capsys.readouterr().out


def test_without_a_base_the_promises_decide(gate, monkeypatch, capsys):
    def none(root, revision, watched):
        raise NoBaseError("nothing there")

    monkeypatch.setattr(cli, "resolve_base", none)
    assert gate() == 0
    assert gate.asked == []
    assert "Not compared with an earlier revision: nothing there." in capsys.readouterr().out
    assert gate(fast=4.0) == 1
    assert gate("declare") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "nothing there."


def test_a_wrong_base_is_bad_input(gate, monkeypatch, capsys):
    monkeypatch.setattr(cli, "resolve_base", resolve_base)
    assert gate("--base", "no-such-revision") == 2
    assert gate.asked == []
    assert capsys.readouterr().err.startswith("base is 'no-such-revision', which names no commit")


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


# Other bits and more memory, declared or not


def test_other_bits_fail_until_they_are_declared(gate, capsys):
    assert gate(changed=[RUN]) == 1
    assert f"{RUN}: other bits, undeclared." in capsys.readouterr().out
    assert gate("declare", changed=[RUN]) == 2
    assert f"{RUN} changed, so say why" in capsys.readouterr().err
    assert gate.declared["head"] == {}
    assert gate("declare", "--reason", "heads in one pass", changed=[RUN]) == 0
    assert gate.declared["head"]["arithmetic"][RUN] == {"version": 1, "reason": "heads in one pass"}
    assert gate(changed=[RUN]) == 0
    assert f"{RUN}: other bits, as declared: heads in one pass" in capsys.readouterr().out
    gate.declared["base"] = dict(gate.declared["head"])  # the next commit's base
    assert gate() == 0
    assert gate(changed=[RUN]) == 1
    assert gate("declare", "--reason", "again", changed=[RUN]) == 0
    assert gate.declared["head"]["arithmetic"][RUN] == {"version": 2, "reason": "again"}


def test_more_memory_fails_until_it_is_declared(gate, capsys):
    assert gate(peak=2**22) == 1
    told = capsys.readouterr().out
    assert (
        "peak takes 4,194,304 bytes, 1,000 in the base, margin 5%." in told and "peak: more memory, undeclared" in told
    )
    assert gate("declare", "--reason", "an LSTM", peak=2**22) == 0
    assert gate(peak=2**22) == 0


def test_declaring_twice_is_declaring_once(gate):
    gate.declared["base"] = {"arithmetic": {RUN: {"version": 4, "reason": "before"}}}
    for _ in range(2):
        assert gate("declare", "--reason", "now", changed=[RUN]) == 0
        assert gate.declared["head"]["arithmetic"][RUN] == {"version": 5, "reason": "now"}
    assert gate("declare") == 0  # the change was taken back
    assert gate.declared["head"]["arithmetic"][RUN] == {"version": 4, "reason": "before"}


def test_declarations_are_kept_in_the_file_beside_the_counts(tmp_path):
    path = tmp_path / "counts.json"
    assert declarations.read("memory", path) == {}
    path.write_text('{"torch": "2", "counts": {"a": 1}}')
    assert declarations.read("memory", path) == {}
    declarations.write("memory", {"peak": {"version": 1, "reason": "r"}}, path)
    assert declarations.read("memory", path) == {"peak": {"version": 1, "reason": "r"}}
    assert json.loads(path.read_text())["counts"] == {"a": 1}


def test_the_declarations_of_a_base_are_those_of_its_file(tmp_path):
    assert declarations.read_base("arithmetic", "HEAD", tmp_path) == {}  # no checkout, and no such file
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "counts.json").write_text('{"counts": {}, "arithmetic": {"a": {"version": 3}}}')
    who = {f"GIT_{role}_{key}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    for words in (["init", "-q"], ["add", "."], ["-c", "commit.gpgsign=false", "commit", "-q", "-m", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, env=os.environ | who)
    assert declarations.read_base("arithmetic", "HEAD", tmp_path) == {"a": {"version": 3}}
    assert declarations.read_base("memory", "HEAD", tmp_path) == {}


def test_bits_are_compared_run_by_run(tmp_path, monkeypatch):
    """The base has other arithmetic for large runs, and no size 4."""
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    other = "[config.rate * config.size * (1 if config.size < 3 else 1 + 2**-52) / (config.size != 4)]"
    base = write_packages(tmp_path / "base", build=BUILD.replace("[config.rate * config.size]", other))
    head = write_packages(tmp_path / "head")
    runs = {f"size {size}": {"size": size} for size in (1, 2, 3, 4)}
    assert arithmetic.compare(base, head, runs) == (["size 1", "size 2"], ["size 3"], ["size 4"])
    with pytest.raises(DriverError, match="does not run size 4"):
        arithmetic.compare(head, base, runs)


# The trend


def test_each_run_adds_a_line(gate, tmp_path):
    gate(head=0.5)
    gate(head=1.2)
    lines = [json.loads(line) for line in (tmp_path / "trend.jsonl").read_text().splitlines()]
    assert [line["passed"] for line in lines] == [True, False]
    assert all({"date", "machine", "pairs", "rates"} <= set(line) for line in lines)
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
    monkeypatch.setattr(selftest, "export_head", lambda tree: None)
    monkeypatch.setattr(selftest, "inject_slowdown", lambda tree, part, share: injected.append((part, share)))
    monkeypatch.setattr(selftest, "RESULT_PATH", tmp_path / "gate.json")
    assert gate("selftest", "--aa", "3", "--slow", "2") == 1  # slowdowns are not seen
    assert injected == [("update", 0.1), ("collector", 0.1), ("update", 0.06), ("collector", 0.06)]
    one = (QUICK, [compare.A2C_64])
    assert sorted(gate.asked, key=str) == sorted([*[(QUICK, ALL)] * 3, *[one] * 4], key=str)
    file = json.loads((tmp_path / "gate.json").read_text())
    slowed = [f"{part} slowed by {share}%" for share in (6, 10) for part in ("collector", "update")]
    assert sorted(run["case"] for run in file["runs"]) == sorted([*["A against A"] * 3, *slowed])
    assert {"machine", "pairs", "margins"} <= set(file)
    told = capsys.readouterr().out
    assert "A against A passes 3 of 3 times, in 4 pairs of processes (median; the most 4)." in told
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in told.splitlines()]
    assert all([name, "0 of 1"] in rows for name in slowed)


EQUAL, TENTH, SIXTH = (next(case for case in selftest.CASES if case.share == share) for share in (0.0, 0.10, 0.06))


def run_of(case, *failed):
    return selftest.Run(case, not failed, 4, list(failed), {part: {"one": 1.0} for part in MARGINS}, 0.05)


def test_a_slowdown_counts_as_seen_only_in_its_own_part():
    assert run_of(TENTH, "iteration", "update").as_expected
    assert not run_of(TENTH, "collector").as_expected
    assert run_of(EQUAL).as_expected and not run_of(EQUAL, "wall").as_expected


def test_it_is_worth_something_with_all_but_a_fifth_of_the_small_slowdowns():
    runs = [run_of(EQUAL), run_of(TENTH, "update"), *[run_of(SIXTH, "update")] * 4]
    assert selftest.is_worth([*runs, run_of(SIXTH)])
    assert not selftest.is_worth([*runs, run_of(SIXTH), run_of(SIXTH)])
    assert not selftest.is_worth([*runs, run_of(TENTH)])
    assert not selftest.is_worth([*runs, run_of(EQUAL, "wall")])


_STEPPED = """
import time
now = 0.0
def process_time():
    global now
    now += 0.001
    return now
time.process_time = process_time
import fastac
from {module} import {owner}
def work():
    global now
    now += 100.0
    return "result"
began = now
print({owner}().{method}(), now - began)
"""


@pytest.mark.parametrize("part", trees._METHODS)
def test_a_slowdown_takes_a_share_of_the_calls_own_time(tmp_path, part):
    """On a clock that only work and looking at it move: 100 s of work must take 106 s, of that part alone."""
    work = "import __main__\nclass {}:\n    def {}(self, *given):\n        return __main__.work()\n"
    package = {"rollout": work.format("Collector", "collect"), "learner": work.format("Learner", "learn")}
    tree = write_packages(tmp_path / "tree", **package)
    trees.inject_slowdown(tree, part, 0.06)
    for other, (module, owner, method) in trees._METHODS.items():
        script = _STEPPED.format(module=module, owner=owner, method=method)
        command = [sys.executable, "-P", "-c", script]
        env = os.environ | {"PYTHONPATH": str(tree)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
        result, seconds = done.stdout.split()
        assert result == "result"
        assert float(seconds) == pytest.approx(106.0 if other == part else 100.0, abs=0.1)


def test_the_methods_that_are_timed_and_slowed_exist():
    for module, owner, method in trees._METHODS.values():
        assert callable(getattr(getattr(import_module(module), owner), method))
