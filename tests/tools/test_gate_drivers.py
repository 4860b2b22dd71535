"""The processes in which the gate runs both trees, with packages made up."""

import json
import logging
import os
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from gate_support import BUILD, CONFIG, write_packages

from fastac.tools.gate import driver, measure, sides
from fastac.tools.gate.measure import MARGINS, Effort
from fastac.tools.gate.sides import DriverError, Side, Tree

WORKLOADS = {"one": {"size": 1}, "two": {"size": 2}}
ONE = {"one": {"size": 1}}
SHORT = Effort((2,))
PLAN = measure.plan_slices


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(measure, "plan_slices", lambda iteration_s: (4, 1))


@pytest.fixture
def make_tree(tmp_path, monkeypatch):
    """Return a function that writes a package with the few names that the driver uses; each iteration is logged."""
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    return lambda name, **changed: Tree(write_packages(tmp_path / name, **changed))


def test_each_side_runs_its_own_tree_and_in_turn(make_tree, tmp_path):
    measured = measure.measure(make_tree("base"), make_tree("head"), ONE, SHORT)
    assert measured.skipped == {}
    assert [(c.workload, c.part) for c in measured.comparisons] == [("one", part) for part in MARGINS]
    assert all(c.base_s > 0.0 and c.head_s > 0.0 and c.pairs == 2 for c in measured.comparisons)
    turns = (tmp_path / "log").read_text().split()[-8:]
    assert turns == ["base", "head", "head", "base", "head", "base", "base", "head"]


def test_memory_is_compared(make_tree):
    larger = make_tree("head", build=BUILD.replace("100 * config.size", "110 * config.size"))
    found = {m.what: m for m in measure.measure(make_tree("base"), larger, WORKLOADS, SHORT).memory}
    assert (found["rollout, two"].base, found["rollout, two"].head) == (220, 240)
    assert found["rollout, two"].more and found["rollout, one"].more
    assert not found["peak"].more  # a few bytes are noise


def test_a_process_that_holds_more_is_seen(make_tree):
    base = make_tree("base", build="held = bytearray(b'x') * 2**26\n" + BUILD)
    head = make_tree("larger", build="held = bytearray(b'x') * 2**27\n" + BUILD)
    (peak,) = (m for m in measure.measure(base, head, ONE, SHORT).memory if m.what == "peak")
    if peak.base == 0:
        pytest.skip("the system does not tell a process's memory")
    assert peak.head - peak.base == pytest.approx(2**26, rel=0.1) and peak.more


def test_the_same_code_has_the_same_digest_and_other_code_another(make_tree):
    other = make_tree("other", config=CONFIG.replace("size, learning_rate\n", "size, 2 * learning_rate\n"))
    digests = []
    for tree in (make_tree("base"), make_tree("head"), other):
        with Side(tree, {}) as side:
            side.wait()
            digests.append(side.train({"size": 3, "learning_rate": 0.5}, 2))
            assert side.train({"unknown": 3, "size": "x"}, 2) is None
    assert digests[0] == digests[1] != digests[2]


def test_a_driver_refuses_a_package_from_elsewhere(make_tree):
    intended, other = make_tree("intended"), make_tree("other")
    spec = {"tree": str(intended.folder), "modules": ["fastac"], "workloads": ONE}
    command = [sys.executable, "-P", str(sides._DRIVER), json.dumps(spec)]
    env = os.environ | {"PYTHONPATH": str(other.folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)
    (failure,) = json.loads(done.stdout).values()
    assert "fastac is imported from" in failure and f"expected a file below {intended.folder}" in failure


_OLD_CONFIG = CONFIG.replace("self.size,", "assert size == 1, 'two is not known'; self.size,")


def test_what_the_base_does_not_run_is_skipped(make_tree):
    measured = measure.measure(make_tree("base", config=_OLD_CONFIG), make_tree("head"), WORKLOADS, SHORT)
    assert measured.skipped == {"two": "AssertionError: two is not known"}
    assert {c.workload for c in measured.comparisons} == {"one"}
    assert {m.what for m in measured.memory} == {"peak", "rollout, one"}


def test_what_head_does_not_run_is_an_error(make_tree):
    with pytest.raises(DriverError, match="does not run two: AssertionError: two is not known"):
        measure.measure(make_tree("base"), make_tree("head", config=_OLD_CONFIG), WORKLOADS, SHORT)


def test_a_base_that_cannot_be_imported_leaves_nothing_to_compare(make_tree):
    measured = measure.measure(make_tree("base", learner="import nowhere"), make_tree("head"), WORKLOADS, SHORT)
    assert measured.comparisons == [] and not measured.passed
    assert measured.skipped == dict.fromkeys(WORKLOADS, "ModuleNotFoundError: No module named 'nowhere'")


def test_a_method_that_is_never_called_is_not_timed_as_nothing(make_tree):
    unused = make_tree("head", build=BUILD.replace("learner.learn()", "pass"))
    with pytest.raises(DriverError, match="the update is not where it is timed"):
        measure.measure(make_tree("base"), unused, ONE, SHORT)


def test_a_process_that_ends_is_an_error(make_tree):
    with Side(make_tree("tree"), ONE) as side:
        side.wait()
        assert side.time("one", 1)["update"] > 0.0
        side._process.kill()
        side._process.wait()
        with pytest.raises(DriverError, match="asked for time one ended"):
            side.time("one", 1)


def test_an_interpreter_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DriverError, match="python is '/nowhere', which cannot be started: No such file"):
        Side(Tree(tmp_path, python="/nowhere"), ONE)


# What is counted, with the real torch


def count(work, folder="/nowhere"):
    counts = {f"{own}{name}": 0 for own in ("", "own ") for name in ("operators", "copies", "item() calls")}
    with driver.make_counter(counts, folder):
        work()
    return list(counts.values())


@pytest.mark.parametrize(
    ("work", "operators", "copies", "reads"),
    [
        (lambda x: x + 1, 1, 0, 0),
        (lambda x: x.clone(), 1, 1, 0),
        (lambda x: x.double(), 1, 1, 0),
        (lambda x: x.copy_(x), 1, 1, 0),
        (lambda x: x[0].item(), 2, 0, 1),
        (lambda x: bool(x.sum() > 0), 3, 0, 1),
    ],
)
def test_operators_copies_and_reads_are_counted(work, operators, copies, reads):
    assert count(partial(work, torch.zeros(2))) == [operators, copies, reads, 0, 0, 0]
    # The same, called from a file below the folder.
    assert count(partial(work, torch.zeros(2)), os.path.dirname(__file__)) == [operators, copies, reads] * 2


def test_the_backward_pass_is_counted():
    weight = torch.ones(2, requires_grad=True)
    assert count(lambda: (weight * 2).sum().backward())[0] > 3


# Stages


@pytest.mark.parametrize(
    ("iteration_s", "planned"), [(0.001, (12, 25)), (0.025, (12, 1)), (0.2, (4, 1)), (0.05, (8, 1)), (3.0, (4, 1))]
)
def test_slices_are_as_many_as_the_time_of_a_build_holds(iteration_s, planned):
    assert PLAN(iteration_s) == planned


class Sides:
    """In place of processes: HEAD takes so many times as long, by workload."""

    def __init__(self, monkeypatch, **factors):
        self.started, self.factors = [], factors
        monkeypatch.setattr(measure, "Side", self.start)

    def start(self, tree, workloads):
        self.started.append((tree, list(workloads)))
        return FakeSide(self.factors if tree == "head" else {})


CORES = []


class FakeSide:
    def __init__(self, factors):
        self.failures, self._factors = {}, factors

    def wait(self):
        pass

    def time(self, workload, iterations):
        return dict.fromkeys(MARGINS, self._factors.get(workload, 1.0))

    def rebuild(self, workload):
        pass

    def keep_to(self, core):
        CORES.append(core)

    def memory(self):
        return {}

    def __enter__(self):
        return self

    def __exit__(self, *given):
        pass


def test_what_does_not_seem_slower_is_measured_in_few_processes(monkeypatch):
    sides = Sides(monkeypatch, one=1.01)
    monkeypatch.setattr(measure, "find_cores", lambda: [3, 7])
    CORES.clear()
    assert measure.measure("base", "head", WORKLOADS, Effort((2, 3, 5))).passed
    assert CORES == [3, 3, 7, 7], "both processes of a pair use one core"
    assert sides.started == [(tree, ["one", "two"]) for _ in range(2) for tree in ("base", "head")]


def test_what_seems_slower_is_measured_in_more_and_fails_by_all_of_them(monkeypatch, caplog):
    sides = Sides(monkeypatch, two=1.06)
    caplog.set_level(logging.INFO, "fastac")
    measured = measure.measure("base", "head", WORKLOADS, Effort((2, 3, 5)))
    assert [names for _, names in sides.started] == [["one", "two"]] * 4 + [["two"]] * 6
    assert {(c.workload, c.part) for c in measured.slower} == {("two", p) for p in MARGINS if p != "wall"}
    assert {(c.workload, c.pairs) for c in measured.comparisons} == {("one", 2), ("two", 5)}
    told = [("1 of 2", "one, two"), ("2 of 2", "one, two"), ("3 of 3", "two"), ("4 of 5", "two"), ("5 of 5", "two")]
    for (pairs, names), text in zip(told, caplog.messages, strict=True):
        assert re.fullmatch(rf"measured in {pairs} pairs of processes, after \d+ s: {names}", text)


def test_when_time_is_up_the_last_stage_is_not_begun(monkeypatch):
    sides = Sides(monkeypatch, two=1.06)
    measured = measure.measure("base", "head", WORKLOADS, Effort((2, 3, 5), seconds=0.0))
    assert len(sides.started) == 6 and {c.pairs for c in measured.slower} == {3}


def test_turns_are_a_b_b_a_then_b_a_a_b():
    assert measure.order(4) == [0, 1, 1, 0, 1, 0, 0, 1]
    turns = measure.order(40)
    assert len(turns) == 80 and sum(turns) == 40
    # The nth slice of one side is next to the nth of the other, so they pair in time.
    assert all({turns[i], turns[i + 1]} == {0, 1} for i in range(0, 80, 2))
