"""Holds the counting gate to its word: it is silent where nothing changed, and sees what was put in."""

import json
import re
import sys
from operator import methodcaller

import numpy as np
import pytest
import torch

from benchmarks.counts import (
    ACCEPT,
    CALLS,
    CASES,
    COUNTS_PATH,
    KERNELS,
    accept,
    check,
    compare,
    count,
    format_differences,
    main,
)
from fastac import kernels
from fastac.build import worker as composition
from fastac.config import Config
from fastac.envs.adapter import NextStepAdapter
from fastac.envs.sync import SyncEnvs
from fastac.kernels import Program, copy_row
from fastac.kernels.kernel import Kernel
from fastac.learning import learner
from fastac.learning.fused import (
    FusedActor,
    FusedGradient,
)
from fastac.learning.fused import gradient as fused_gradient
from fastac.learning.fused import network as fused_network
from fastac.learning.fused.gradient import CHUNK
from fastac.learning.fused.layers import LinearLayer
from fastac.learning.fused.network import BackwardPass
from fastac.learning.learner import Learner
from fastac.learning.objectives import CategoricalObjective, GaussianObjective
from fastac.learning.update_rules import Adam, RMSprop
from fastac.models import ActorCritic
from fastac.rollout import Collector, EpisodeCounter

STEPS = 4
CONFIG = Config().replace(
    env_id="CartPole-v1",
    vectorization="native",
    num_envs=2,
    num_steps=STEPS,
    hidden_sizes=(8,),
    max_grad_norm=None,
)
PENDULUM = CONFIG.replace(env_id="Pendulum-v1", vectorization="sync")
WORKERS = CONFIG.replace(num_envs=4, workers=2)
AUTOGRAD = CONFIG.replace(core="lstm", lstm_size=8, encoder="a3c_support:make_encoder")
PPO = CONFIG.replace(algo="ppo", num_minibatches=2)


@pytest.fixture(scope="module")
def committed():
    return count(CONFIG)


def changes(before, config=CONFIG):
    return {d.name: d.now - d.committed for d in compare({"case": before}, {"case": count(config)})}


def calls(found):
    """Leave out what is not a call."""
    return {name: n for name, n in found.items() if name.split(": ")[1].split()[0] not in ("ops", "bytes", "reads")}


def before_each(monkeypatch, owner, name, do):
    """Do something more, given the arguments of a method, whenever that is called."""
    method = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: [do(*args), method(*args)][1])


# --- nothing but the program moves a count -------------------------------------------------------


def test_the_same_program_counts_the_same_again(committed):
    assert changes(committed) == {}
    assert changes(committed) == {}


@pytest.mark.parametrize("name", CASES)
def test_counts_depend_neither_on_chance_nor_on_the_number_of_threads(name):
    before = count(CASES[name])
    torch.set_num_threads(2)
    try:
        assert changes(before, CASES[name].replace(seed=1)) == {}
        assert torch.get_num_threads() == 2  # given back
    finally:
        torch.set_num_threads(1)


def test_counting_leaves_the_random_streams_alone():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    count(CONFIG)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


# --- what the hot loop promises ------------------------------------------------------------------


def test_a2c_goes_forward_once_per_row(committed):
    assert calls(committed) == {
        "collect: env steps": STEPS,
        "collect: forwards": STEPS,
        "collect: critic forwards": 1,  # the value of the row after the last
        "collect: dense": 3 * STEPS + 2,  # one hidden layer and two heads; the critic's
        "collect: copy_row": STEPS + 1,  # the values
        "collect: copy_bytes": 2,  # the last row becomes the first
        "other: find_nonfinite": 2,
        "collect: transpose": 3,  # the weights, for acting
        "collect: sample_categorical": STEPS,
        "other: find_episodes": 1,
        "advantages: gae": 1,
        "advantages: exchanges": 1,
        "update: categorical_loss": 1,
        "update: backwards": 1,
        "advantages: weigh_rows": 1,
        "update: copy_row": 1,  # the terms begin at 0
        "update: heads_backward": 1,
        "update: deactivate": 1,
        "update: sum_squares": 1,  # the gradient's norm
        "update: clip_gradient": 1,
        "update: adam_step": 1,
        "update: updates": 1,
    }


@pytest.mark.parametrize("steps", [8, 16, 17])
def test_without_reuse_there_is_a_forward_more_per_chunk(steps):
    config = CONFIG.replace(num_envs=CHUNK // 8, num_steps=steps)
    chunks = -(-steps // 8)
    reused = count(config)
    assert reused["collect: forwards"] == steps
    assert reused["update: backwards"] == chunks
    assert "update: forwards" not in reused
    more = {"update: forwards": chunks, "update: dense": 3 * chunks, "update: transpose": 3}
    assert calls(changes(reused, config.replace(reuse_forward=False))) == more


def test_the_graphs_of_an_lstm_are_reused_too():
    reused = count(AUTOGRAD)
    assert reused["collect: forwards"] == STEPS + 1
    assert reused["update: backwards"] == 1
    assert "update: forwards" not in reused
    assert calls(changes(reused, AUTOGRAD.replace(reuse_forward=False))) == {"update: forwards": 1}


def test_ppo_reuses_the_forward_in_its_first_epoch():
    found = count(PPO.replace(num_minibatches=1, num_epochs=4))
    assert (found["update: updates"], found["update: backwards"], found["update: forwards"]) == (4, 4, 3)
    found = count(PPO.replace(num_minibatches=2, num_epochs=4))
    assert (found["update: updates"], found["update: backwards"], found["update: forwards"]) == (8, 8, 8)


def test_collecting_allocates_the_noise_and_nothing_else(committed):
    noise = STEPS * 2 * 4  # [4, 2] float32
    assert committed["collect: bytes"] == noise
    assert "collect: reads" not in committed
    assert "update: bytes" not in committed
    assert "update: reads" not in committed


def test_a_worker_of_several_meets_the_others_at_every_step_too(committed):
    assert calls(changes(committed, WORKERS)) == {
        "update: exchanges": 1,  # of the terms, when all gradients are there
        "update: sum_squares": -1,  # with the sum
        "update: sum_gradients": 1,
        "update: copy_row": 1,  # of the gradient, to where the others read it
    }


# --- whatever is put in is seen ------------------------------------------------------------------


def test_an_op_more_in_the_model(committed, monkeypatch):
    before_each(monkeypatch, FusedActor, "act", lambda self, t: self._rollout.observation(t).neg())
    size = 2 * 4 * 4  # [2, 4] float32
    assert changes(committed) == {
        "collect: ops": STEPS,
        "collect: ops per step": 1,
        "collect: bytes": STEPS * size,
    }


def test_an_op_more_in_a_model_under_autograd(monkeypatch):
    before = count(AUTOGRAD)
    before_each(monkeypatch, ActorCritic, "forward", lambda _, obs, *rest: obs.neg())
    found = changes(before, AUTOGRAD)
    assert (found["collect: ops"], found["collect: ops per step"]) == (STEPS + 1, 1)


def test_an_op_more_around_the_steps(committed, monkeypatch):
    before_each(monkeypatch, Collector, "collect", lambda *_: torch.zeros(3).fill_(1.0))
    assert changes(committed) == {"collect: ops": 2, "collect: bytes": 12}


def test_an_op_more_in_the_update(committed, monkeypatch):
    before_each(monkeypatch, Learner, "_update", lambda self, *_: self._metrics.neg_())
    assert changes(committed) == {"update: ops per update": 1}


def test_an_allocation_more_with_no_op_more(committed, monkeypatch):
    act = FusedActor.act
    monkeypatch.setattr(FusedActor, "act", lambda self, t: [self._rollout.observation(t).view(-1, 4), act(self, t)][1])
    viewed = count(CONFIG)
    monkeypatch.setattr(FusedActor, "act", lambda self, t: [self._rollout.observation(t).clone(), act(self, t)][1])
    assert changes(viewed) == {"collect: bytes": STEPS * 2 * 4 * 4}


@pytest.mark.parametrize(
    ("owner", "method", "name", "number", "config"),
    [
        (FusedActor, "act", "collect: forwards", STEPS, CONFIG),
        (FusedActor, "value", "collect: critic forwards", 1, CONFIG),
        (ActorCritic, "value", "collect: forwards", 1, AUTOGRAD),
        (NextStepAdapter, "step", "collect: env steps", STEPS, CONFIG),
        (SyncEnvs, "step", "collect: env steps", STEPS * 2, PENDULUM),
        (FusedActor, "act", "collect: sample_categorical", STEPS, CONFIG),
        (EpisodeCounter, "count", "other: find_episodes", 1, CONFIG),
        (Learner, "_estimate", "advantages: gae", 1, CONFIG),
        (Learner, "_look_ahead", "update: batch_moments", 2, PPO),
    ],
)
def test_a_call_more(monkeypatch, owner, method, name, number, config):
    before = count(config)
    before_each(monkeypatch, owner, method, getattr(owner, method))
    assert changes(before, config)[name] == number


@pytest.mark.parametrize(
    ("owner", "name", "config"),
    [
        (CategoricalObjective, "update: categorical_loss", CONFIG),
        (GaussianObjective, "update: gaussian_loss", PENDULUM),
        (FusedGradient, "update: backwards", CONFIG),
        (Adam, "update: adam_step", CONFIG),
        (RMSprop, "update: rmsprop_step", CONFIG.replace(optimizer="rmsprop")),
    ],
)
def test_a_call_more_in_a_program(monkeypatch, owner, name, config):
    before, prepare = count(config), owner.prepare

    def prepare_twice(*args):
        ops = prepare(*args), prepare(*args)
        return ops[0] + ops[1] if isinstance(ops[0], list) else Program.join(ops)

    monkeypatch.setattr(owner, "prepare", prepare_twice)
    assert changes(before, config)[name] == 1


def test_a_backward_more_under_autograd(monkeypatch):
    before = count(AUTOGRAD)
    zero = torch.zeros(1, requires_grad=True)
    before_each(monkeypatch, Learner, "_update", lambda *_: zero.sum().backward())
    assert calls(changes(before, AUTOGRAD)) == {"update: backwards": 1}


def test_a_reset_more(committed, monkeypatch):
    before_each(monkeypatch, Collector, "collect", lambda self, _: self.restart_episodes())
    assert changes(committed)["collect: env resets"] == 1


def test_resets_of_single_environments(monkeypatch):
    before = count(PENDULUM)
    before_each(monkeypatch, Collector, "collect", lambda self, _: self.restart_episodes())
    assert changes(before, PENDULUM)["collect: env resets"] == 2


def test_compiled_environments_within_a_program_are_counted(monkeypatch):
    """A program made up that steps nothing, in place of compiled environments."""
    one = torch.zeros(1)
    monkeypatch.setattr(NextStepAdapter, "prepare_step", lambda *_: copy_row.prepare(one, one), raising=False)
    monkeypatch.setattr(NextStepAdapter, "check", lambda _: None, raising=False)
    found = count(CONFIG)
    assert found["collect: env steps"] == found["collect: forwards"] == found["collect: sample_categorical"] == STEPS
    assert found["collect: copy_row"] == 2 * STEPS + 1
    assert not any("other compiled calls" in name for name in found)


def test_an_exchange_more(committed, monkeypatch):
    before = count(WORKERS)
    before_each(monkeypatch, Learner, "_update", lambda self, *_: self._group.gather(np.zeros((1, 1))))
    assert calls(changes(before, WORKERS)) == {"update: exchanges": 1}


@pytest.mark.parametrize("read", [bool, float, int, methodcaller("item"), methodcaller("tolist"), methodcaller("cpu")])
def test_a_read_more(committed, monkeypatch, read):
    one = torch.ones(())
    before_each(monkeypatch, Learner, "_update", lambda *_: read(one))
    assert changes(committed)["update: reads"] == 1


# --- a counter that no longer counts is an error -------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name"),
    [(LinearLayer, "forward"), (BackwardPass, "prepare_backward"), (Learner, "_estimate"), (Kernel, "prepare")],
)
def test_a_watched_name_that_is_gone(monkeypatch, owner, name):
    monkeypatch.delattr(owner, name)
    with pytest.raises(AttributeError, match=name):
        count(CONFIG)


@pytest.mark.parametrize(
    ("module", "name", "method", "uncounted"),
    [
        (fused_network, "LinearLayer", "forward", "collect: forwards"),
        (fused_gradient, "BackwardPass", "prepare_backward", "update: backwards"),
        (composition, "Collector", "collect", "collect: env steps"),
        (composition, "Learner", "learn", "update: *_loss"),
    ],
)
def test_a_watched_method_that_is_called_no_more(monkeypatch, module, name, method, uncounted):
    """The program calls a subclass of its own: where the watch is put, nothing comes by."""
    owner = getattr(module, name)
    monkeypatch.setattr(module, name, type(name, (owner,), {method: getattr(owner, method)}))
    with pytest.raises(RuntimeError, match=re.escape(f"counted no '{uncounted}'")):
        count(CONFIG)


def test_a_watched_kernel_that_is_called_no_more(monkeypatch):
    monkeypatch.setattr(learner.gae, "prepare", learner.gae.prepare)  # bound before the watch is put
    with pytest.raises(RuntimeError, match="counted no 'advantages: gae'"):
        count(CONFIG)


def test_every_watched_call_comes_by_in_some_case():
    found = json.loads(COUNTS_PATH.read_text())["counts"]
    counted = {name.split(": ")[1] for counts in found.values() for name in counts}
    watched = {*KERNELS, *(what for _, _, what in CALLS), "exchanges"}
    of_evaluations = {"greedy_categorical", "note_episodes"}
    assert watched - counted == {"env resets"} | of_evaluations  # a warm rollout goes on


# --- the file and the verdict --------------------------------------------------------------------


def test_fewer_fail_too_and_are_called_better(committed, capsys, tmp_path):
    path = tmp_path / "counts.json"
    accept(path, {"small": CONFIG})
    assert check(path, {"small": CONFIG}) == 0
    file = json.loads(path.read_text())
    file["counts"]["small"]["collect: bytes"] += 5
    file["counts"]["small"]["collect: forwards"] -= 2
    file["torch"] = "0.1"
    path.write_text(json.dumps(file))
    capsys.readouterr()
    assert check(path, {"small": CONFIG}) == 1
    told = capsys.readouterr().err
    size, forwards = committed["collect: bytes"], committed["collect: forwards"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("|")]
    assert cells[2:] == [
        ["small: collect: bytes", f"{size + 5:,}", f"{size:,}", "fewer: better, accept it"],
        ["small: collect: forwards", str(forwards - 2), str(forwards), "more"],
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


def test_the_slower_kernels_are_not_taken_for_the_program(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "cache_folder", lambda: None)
    monkeypatch.setattr(sys, "argv", ["counts", "--accept"])
    before = COUNTS_PATH.read_bytes()
    assert main() == 1
    assert "compiled kernels" in capsys.readouterr().err
    assert COUNTS_PATH.read_bytes() == before


def test_the_committed_file_is_of_the_listed_configurations():
    assert list(json.loads(COUNTS_PATH.read_text())["counts"]) == list(CASES)
