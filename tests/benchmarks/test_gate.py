"""Holds the speed gate to its word, with numbers and packages made up: no test here depends on how fast anything is."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace

import pytest

from benchmarks.gate import __main__ as cli
from benchmarks.gate import compare, promises, selftest, trees, trend
from benchmarks.gate.compare import CONFIRM, MARGINS, Comparison, DriverError, Measured, judge, order
from benchmarks.gate.trees import InputError, NoBaseError, resolve_base
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


# Which revision is the base


class Repo:
    def __init__(self, root):
        self.root = root
        root.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *words):
        who = {f"GIT_{role}_{key}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        command = ["git", "-C", str(self.root), "-c", "commit.gpgsign=false", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | who).stdout.strip()

    def write(self, text, name="code.py"):
        (self.root / "fastac").mkdir(exist_ok=True)
        (self.root / "fastac" / name).write_text(text)

    def commit(self, text):
        self.write(text)
        self.git("add", ".")
        self.git("commit", "-q", "-m", text)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repo(tmp_path):
    return Repo(tmp_path / "repo")


def test_on_main_the_base_is_the_commit_before(repo):
    before = repo.commit("a")
    repo.commit("b")
    assert resolve_base(repo.root).commit == before


def test_on_main_uncommitted_changes_are_compared_with_their_commit(repo):
    repo.commit("a")
    head = repo.commit("b")
    repo.write("c")
    assert resolve_base(repo.root).commit == head


def test_on_main_changes_outside_the_package_do_not_count(repo):
    before = repo.commit("a")
    repo.commit("b")
    (repo.root / "README.md").write_text("")
    assert resolve_base(repo.root).commit == before


@pytest.mark.parametrize("dirty", [False, True])
def test_on_a_branch_the_base_is_where_it_left_main(repo, dirty):
    fork = repo.commit("a")
    repo.git("checkout", "-q", "-b", "branch")
    repo.commit("b")
    repo.commit("c")
    repo.git("checkout", "-q", "main")
    repo.commit("d")
    repo.git("checkout", "-q", "branch")
    if dirty:
        repo.write("e")
    assert resolve_base(repo.root).commit == fork


def test_a_branch_without_commits_and_a_detached_head_are_like_main(repo):
    before = repo.commit("a")
    repo.commit("b")
    repo.git("checkout", "-q", "-b", "branch")
    assert resolve_base(repo.root).commit == before
    repo.git("checkout", "-q", "--detach")
    assert resolve_base(repo.root).commit == before


def test_the_remote_main_counts_where_there_is_no_local_one(repo, tmp_path):
    fork = repo.commit("a")
    repo.git("checkout", "-q", "-b", "branch")
    repo.commit("b")
    repo.git("clone", "-q", "--branch", "branch", ".", str(tmp_path / "clone"))
    assert resolve_base(tmp_path / "clone").commit == fork


def test_a_named_revision_overrides(repo):
    first = repo.commit("a")
    repo.git("tag", "old")
    repo.commit("b")
    repo.commit("c")
    assert resolve_base(repo.root, "old").commit == resolve_base(repo.root, "HEAD~2").commit == first


@pytest.mark.parametrize("revision", ["nowhere", "HEAD~1", "--all", ""])
def test_a_revision_that_is_not_there_is_bad_input(repo, revision):
    repo.commit("a")
    with pytest.raises(InputError, match="which names no commit"):
        resolve_base(repo.root, revision)


def test_one_commit_has_no_base(repo):
    head = repo.commit("a")
    with pytest.raises(NoBaseError, match=r"no commit before HEAD.*--unshallow.*BASE=rev"):
        resolve_base(repo.root)
    repo.write("b")
    assert resolve_base(repo.root).commit == head


def test_a_shallow_clone_has_no_base(repo, tmp_path):
    repo.commit("a")
    repo.commit("b")
    repo.git("clone", "-q", "--depth", "1", f"file://{repo.root}", str(tmp_path / "clone"))
    with pytest.raises(NoBaseError, match="--unshallow"):
        resolve_base(tmp_path / "clone")


def test_a_branch_that_shares_nothing_with_main_has_no_base(repo):
    repo.commit("a")
    repo.git("checkout", "-q", "--orphan", "branch")
    repo.commit("b")
    with pytest.raises(NoBaseError, match="does not reach back"):
        resolve_base(repo.root)


def test_no_checkout_has_no_base(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(NoBaseError, match="no git checkout"):
        resolve_base(tmp_path)


# The trees


def test_a_revision_is_exported_as_it_was_and_the_working_tree_as_it_is(repo, tmp_path):
    old = repo.commit("old")
    repo.commit("new")
    repo.write("changed")
    repo.write("untracked", "more.py")
    repo.write("compiled", "__pycache__")
    trees.export_revision(repo.root, old, tmp_path / "old")
    trees.export_working_tree(repo.root, tmp_path / "now")
    assert read(tmp_path / "old" / "fastac") == {"code.py": "old"}
    assert read(tmp_path / "now" / "fastac") == {"code.py": "changed", "more.py": "untracked"}
    assert read(repo.root / "fastac")["code.py"] == "changed"  # exporting checks nothing out


def read(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_revision_without_the_package_is_bad_input(repo, tmp_path):
    (repo.root / "README.md").write_text("")
    repo.git("add", ".")
    repo.git("commit", "-q", "-m", "no package")
    with pytest.raises(InputError, match="holds no fastac/"):
        trees.export_revision(repo.root, "HEAD", tmp_path)


def test_the_methods_that_are_timed_and_slowed_exist():
    for module, owner, method in trees._METHODS.values():
        assert callable(getattr(getattr(import_module(module), owner), method))


_CONFIG = """
class Config:
    env = None
    def replace(self, env_id, learning_rate, total_env_steps, size):
        self.size = size
        return self
"""
_BUILD = """
import os, sys
from types import SimpleNamespace
from fastac.learning.learner import Learner
from fastac.rollout import Collector
def build_envs(config, seed):
    pass
def build(config, envs):
    def run():
        collector, learner = Collector(), Learner()
        print("a line that is not an answer")
        while True:
            with open(os.environ["FAKE_LOG"], "a") as log:
                log.write(__file__.split(os.sep)[-3] + "\\n")
            collector.collect(config)
            learner.learn()
            yield None
    return SimpleNamespace(trainer=SimpleNamespace(run=run))
"""
_ROLLOUT = """
class Collector:
    def collect(self, config):
        return sum(range(1000 * config.size))
"""
_LEARNER = """
class Learner:
    def learn(self):
        return sum(range(1000))
"""


@pytest.fixture
def make_tree(tmp_path, monkeypatch):
    """Return a function that writes a package with the few names that the driver uses; each iteration is logged."""
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))

    def make(name, **changed):
        modules = {"__init__": "", "config": _CONFIG, "build": _BUILD, "rollout": _ROLLOUT, "learner": _LEARNER}
        package = tmp_path / name / "fastac"
        (package / "learning").mkdir(parents=True)
        (package / "learning" / "__init__.py").touch()
        # In place of the real one, which takes seconds to import.
        (tmp_path / name / "torch.py").write_text("def set_num_threads(number):\n    assert number == 1\n")
        for module, text in (modules | changed).items():
            (package / ("learning/learner.py" if module == "learner" else f"{module}.py")).write_text(text)
        return tmp_path / name

    return make


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
def test_a_slowdown_takes_a_share_of_the_calls_own_time(make_tree, part):
    """On a clock that only work and looking at it move: 100 s of work must take 120 s, of that part alone."""
    work = "import __main__\nclass {}:\n    def {}(self, *given):\n        return __main__.work()\n"
    package = {"rollout": work.format("Collector", "collect"), "learner": work.format("Learner", "learn")}
    tree = make_tree("tree", **package)
    trees.inject_slowdown(tree, part, 0.2)
    for other, (module, owner, method) in trees._METHODS.items():
        script = _STEPPED.format(module=module, owner=owner, method=method)
        command = [sys.executable, "-P", "-c", script]
        env = os.environ | {"PYTHONPATH": str(tree)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
        result, seconds = done.stdout.split()
        assert result == "result"
        assert float(seconds) == pytest.approx(120.0 if other == part else 100.0, abs=0.1)


# The processes


def test_each_side_runs_its_own_tree_and_in_turn(make_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_SLICE_S", 0.0)  # one iteration each
    base, head = make_tree("base"), make_tree("head")
    measured = compare.compare(base, head, {"one": {"size": 1}}, 4)
    assert measured.skipped == {}
    assert [(c.workload, c.part) for c in measured.comparisons] == [("one", part) for part in MARGINS]
    assert all(len(c.base_s) == len(c.head_s) == 4 for c in measured.comparisons)
    assert all(seconds > 0.0 for c in measured.comparisons for seconds in c.base_s + c.head_s)
    turns = (tmp_path / "log").read_text().split()[-8:]
    assert turns == ["base", "head", "head", "base", "head", "base", "base", "head"]


def test_a_driver_refuses_a_package_from_elsewhere(make_tree):
    intended, other = make_tree("intended"), make_tree("other")
    command = [sys.executable, "-P", str(compare._DRIVER), str(intended), "{}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(other)})
    assert done.returncode == 1 and done.stdout == ""
    assert f"measuring {other}, expected {intended}" in done.stderr


_OLD_CONFIG = _CONFIG.replace("self.size = size", "assert size == 1, 'two is not known'; self.size = size")


def test_what_the_base_does_not_run_is_skipped(make_tree):
    measured = compare.compare(make_tree("base", config=_OLD_CONFIG), make_tree("head"), WORKLOADS, 2)
    assert measured.skipped == {"two": "AssertionError: two is not known"}
    assert {c.workload for c in measured.comparisons} == {"one"}


def test_what_head_does_not_run_is_an_error(make_tree):
    with pytest.raises(DriverError, match="does not run two: AssertionError: two is not known"):
        compare.compare(make_tree("base"), make_tree("head", config=_OLD_CONFIG), WORKLOADS, 2)


def test_a_base_that_cannot_be_imported_leaves_nothing_to_compare(make_tree, capfd):
    measured = compare.compare(make_tree("base", learner="import nowhere"), make_tree("head"), WORKLOADS, 2)
    assert measured.comparisons == [] and set(measured.skipped) == set(WORKLOADS)
    assert "No module named 'nowhere'" in capfd.readouterr().err


def test_a_method_that_is_never_called_is_not_timed_as_nothing(make_tree):
    unused = make_tree("head", build=_BUILD.replace("learner.learn()", "pass"))
    with pytest.raises(DriverError, match="the update is not where it is timed"):
        compare.compare(make_tree("base"), unused, {"one": {"size": 1}}, 2)


def test_a_process_that_ends_is_an_error(make_tree):
    with compare.Side(make_tree("tree"), {"one": {"size": 1}}) as side:
        side.wait()
        assert side.run("one", 1)["update"] > 0.0
        side._process.kill()
        side._process.wait()
        with pytest.raises(DriverError, match="measured one ended"):
            side.run("one", 1)


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
