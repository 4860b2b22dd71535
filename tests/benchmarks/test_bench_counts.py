"""Holds the counting gate to its word: it is silent where nothing changed, and sees what was put in."""

import json
from operator import methodcaller

import numpy as np
import pytest
import torch

from benchmarks.counts import ACCEPT, CASES, COUNTS_PATH, accept, check, compare, count, format_differences
from fastac import learner
from fastac.config import Config
from fastac.envs.adapter import NextStepAdapter
from fastac.learner import Learner
from fastac.models import ActorCritic
from fastac.rollout import Collector

STEPS = 4
CONFIG = Config().replace(env_id="CartPole-v1", num_envs=2, num_steps=STEPS, hidden_sizes=(8,))


@pytest.fixture(scope="module")
def committed():
    return count(CONFIG)


def changes(committed):
    return {d.name: d.now - d.committed for d in compare({"case": committed}, {"case": count(CONFIG)})}


def test_the_same_program_counts_the_same_again(committed):
    assert changes(committed) == {}
    assert changes(committed) == {}


def test_counts_do_not_depend_on_the_number_of_threads(committed):
    torch.set_num_threads(2)
    try:
        assert changes(committed) == {}
        assert torch.get_num_threads() == 2  # given back
    finally:
        torch.set_num_threads(1)


def test_what_one_iteration_does(committed):
    assert committed["collect: env steps"] == STEPS
    assert committed["collect: forwards"] == STEPS + 1  # and the value of the last row
    assert committed["update: forwards"] == committed["update: updates"] == committed["advantages: kernel calls"] == 1
    assert "collect: env resets" not in committed  # a warm rollout goes on


def test_an_op_more_in_the_model(committed, monkeypatch):
    forward = ActorCritic.forward
    monkeypatch.setattr(ActorCritic, "forward", lambda self, obs, *rest: forward(self, obs.neg(), *rest))
    found = changes(committed)
    assert found["collect: ops per step"] == 1
    assert found["collect: ops"] == STEPS + 1
    assert found["collect: bytes"] == (STEPS + 1) * 2 * 4 * 4  # [2, 4] float32 each
    assert found["update: ops per update"] == 1


def test_an_op_more_around_the_steps(committed, monkeypatch):
    collect = Collector.collect
    monkeypatch.setattr(Collector, "collect", lambda self, phases: [torch.zeros(3), collect(self, phases)][1])
    assert changes(committed) == {"collect: ops": 1, "collect: bytes": 12}


def test_a_forward_more(committed, monkeypatch):
    value = ActorCritic.value
    monkeypatch.setattr(ActorCritic, "value", lambda *args: [value(*args), value(*args)][1])
    found = changes(committed)
    assert found["collect: forwards"] == 1
    assert "collect: ops per step" not in found


def test_an_env_step_more(committed, monkeypatch):
    step = NextStepAdapter.step
    monkeypatch.setattr(NextStepAdapter, "step", lambda *args: [step(*args), step(*args)][1])
    assert changes(committed)["collect: env steps"] == STEPS


def test_a_reset_more(committed, monkeypatch):
    begin = Collector.collect

    def collect(self, phases):
        self.restart_episodes()
        return begin(self, phases)

    monkeypatch.setattr(Collector, "collect", collect)
    assert changes(committed)["collect: env resets"] == 1


@pytest.mark.parametrize("read", [bool, float, int, methodcaller("item"), methodcaller("tolist"), methodcaller("cpu")])
def test_a_read_more(committed, monkeypatch, read):
    evaluate = ActorCritic.evaluate

    def evaluate_and_read(*args):
        result = evaluate(*args)
        read(result[0].detach().sum())
        return result

    monkeypatch.setattr(ActorCritic, "evaluate", evaluate_and_read)
    assert changes(committed)["update: reads"] == 1


def test_a_kernel_call_more(committed, monkeypatch):
    learn = Learner.learn
    floats, flags = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool)

    def estimate_and_learn(*args):
        learner.gae(floats, torch.zeros(2, 1), flags, flags, 1.0, 1.0, floats.clone(), floats.clone())
        return learn(*args)

    monkeypatch.setattr(Learner, "learn", estimate_and_learn)
    assert changes(committed)["advantages: kernel calls"] == 1


def test_fewer_fail_too_and_are_called_better(committed, capsys, tmp_path):
    path = tmp_path / "counts.json"
    accept(path, {"small": CONFIG})
    assert check(path, {"small": CONFIG}) == 0
    file = json.loads(path.read_text())
    file["counts"]["small"]["update: bytes"] += 5
    file["counts"]["small"]["collect: forwards"] -= 2
    file["torch"] = "0.1"
    path.write_text(json.dumps(file))
    capsys.readouterr()
    assert check(path, {"small": CONFIG}) == 1
    told = capsys.readouterr().err
    size, forwards = committed["update: bytes"], committed["collect: forwards"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("|")]
    assert cells[2:] == [
        ["small: collect: forwards", str(forwards - 2), str(forwards), "more"],
        ["small: update: bytes", f"{size + 5:,}", f"{size:,}", "fewer: better, accept it"],
    ]
    assert ACCEPT in told and "make bench-accept" in ACCEPT
    assert "counts.json is of torch 0.1" in told


def test_a_configuration_on_one_side_only_is_a_difference():
    found = compare({"old": {"update: ops": 3}}, {"new": {"update: ops": 4}})
    assert [(d.case, d.committed, d.now) for d in found] == [("new", 0, 4), ("old", 3, 0)]
    assert "new: update: ops" in format_differences(found)


def test_without_the_file_it_says_how_to_make_it(tmp_path, capsys):
    assert check(tmp_path / "counts.json", {}) == 1
    assert "make bench-accept" in capsys.readouterr().err


def test_the_committed_file_is_of_the_listed_configurations():
    assert list(json.loads(COUNTS_PATH.read_text())["counts"]) == list(CASES)


def test_counting_leaves_the_random_streams_alone():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    count(CONFIG)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
