"""The processes in which the speed gate runs both trees, with packages made up."""

import os
import subprocess
import sys

import pytest

from benchmarks.gate import compare, trees
from benchmarks.gate.compare import MARGINS, DriverError

WORKLOADS = {"one": {"size": 1}, "two": {"size": 2}}

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
