"""Fused networks with a recurrent core against the same model under autograd, from one row to whole runs."""

from itertools import islice

import numpy as np
import pytest
import torch
from core_support import CPU, differentiate, make_coefs, make_gradient, make_training, weights
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

from fastac.build import build_head, build_objective, build_sampler
from fastac.config import Config
from fastac.learning.autograd import AutogradGradient
from fastac.learning.fused import FusedActor, FusedNetwork, is_fusable
from fastac.learning.losses import clipped_surrogate, policy_gradient
from fastac.learning.objectives import PlainObjective
from fastac.learning.optimizer import LocalOptimizer
from fastac.learning.update_rules import Adam
from fastac.models import ActorCritic, GRUCore, LSTMCore, MLPEncoder, NoObsNormalizer, ObsNormalizer, Trunk
from fastac.rollout import ModelActor, Rollout, SequenceMinibatches
from fastac.runs.player import FusedPlayer, ModulePlayer

OBS_SIZE = 3
SPACES = {"discrete": Discrete(4), "box": Box(-1.0, 1.0, (2,), np.float32)}
CORES = {"lstm": LSTMCore, "gru": GRUCore}
A2C = make_coefs(1.0 / 23.0, 0.0, 1.0, 0.5, 0.01, 0.1)
PPO = make_coefs(1.0 / 23.0, 0.3, 1.7, 0.4, 0.02, 0.1)
both_cores = pytest.mark.parametrize("core", CORES)
shapes = given(
    core=st.sampled_from(list(CORES)),
    space=st.sampled_from(list(SPACES)),
    shared=st.booleans(),
    normalizes=st.booleans(),
    hidden=st.sampled_from([(), (6,), (8, 5)]),
    units=st.sampled_from([1, 5, 8]),
    steps=st.integers(1, 6),
    envs=st.integers(1, 6),
    starts=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**32 - 1),
)


def make_model(core, space="discrete", shared=True, normalizes=False, hidden=(6,), units=5, seed=0):
    torch.manual_seed(seed)
    encoders = [MLPEncoder(OBS_SIZE, hidden, "tanh") for _ in range(1 if shared else 2)]
    trunks = [Trunk(encoder, CORES[core](encoder.output_size, units)) for encoder in encoders]
    normalizer = ObsNormalizer((OBS_SIZE,)) if normalizes else NoObsNormalizer()
    if normalizes:
        normalizer.moments.mean.copy_(torch.tensor([0.3, -1.0, 2.0]))
        normalizer.moments.var.copy_(torch.tensor([0.5, 2.0, 1.0]))
    model = ActorCritic(trunks, build_head(SPACES[space], units, Config().model), normalizer)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    LocalOptimizer(model, Adam(1e-5), None)  # flattens the parameters
    assert is_fusable(model)
    return model


def make_rollout(model, space, steps, envs, starts=0.0, seed=0):
    dtype = torch.float32 if space == "box" else torch.int64
    rollout = Rollout.allocate(steps, envs, (OBS_SIZE,), SPACES[space].shape, dtype, model.state_size)
    rng = torch.Generator().manual_seed(seed)
    for part in (rollout.obs, rollout.advantage, rollout.return_):
        part.copy_(torch.randn(part.shape, generator=rng))
    rollout.valid.copy_(torch.rand(rollout.valid.shape, generator=rng) < 0.7)
    rollout.start.copy_(torch.rand(rollout.start.shape, generator=rng) < starts)
    return rollout


def make_fused(model, rollout, keep=True):
    sampler = build_sampler(model.head, rollout.num_envs)
    return FusedActor(FusedNetwork(model), sampler, rollout, torch.Generator().manual_seed(0), keep)


def make_plain(model, rollout):
    return ModelActor(model, rollout, torch.Generator().manual_seed(0), CPU)


def act(actor, rollout):
    actor.begin()
    for t in range(rollout.num_steps):
        actor.act(t)
    actor.value(rollout.num_steps)


def gradient_of(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@shapes
@settings(max_examples=30)
def test_it_acts_values_and_remembers_as_the_model_does(
    core, space, shared, normalizes, hidden, units, steps, envs, starts, seed
):
    model = make_model(core, space, shared, normalizes, hidden, units, seed)
    rollouts = [make_rollout(model, space, steps, envs, starts, seed) for _ in range(3)]
    final = torch.randn(envs, OBS_SIZE)
    actors = [
        make_plain(model, rollouts[0]),
        make_fused(model, rollouts[1], keep=False),
        make_fused(model, rollouts[2]),
    ]
    for _ in range(2):  # the state carries over
        found = []
        for actor, rollout in zip(actors, rollouts, strict=True):
            act(actor, rollout)
            named = {name: getattr(rollout, name).clone() for name in ("action", "value", "log_prob", "state")}
            found.append({**named, "after": actor.get_state()["state"], "final": actor.value_of(final).clone()})
        for name, value in found[0].items():
            for other in found[1:]:
                torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2e-5, msg=name)
    assert rollouts[0].state.any()
    for actor in actors:
        actor.forget()
        assert not actor.get_state()["state"].any()


@shapes
@settings(max_examples=30)
def test_its_gradients_are_autograds(core, space, shared, normalizes, hidden, units, steps, envs, starts, seed):
    model = make_model(core, space, shared, normalizes, hidden, units, seed)
    rollout = make_rollout(model, space, steps, envs, starts, seed)
    actor = make_fused(model, rollout)
    for _ in range(2):  # the second rollout begins with a state
        act(actor, rollout)
    rollout.log_prob.add_(0.2 * torch.randn(rollout.log_prob.shape))
    for coefs, loss in ((A2C, policy_gradient), (PPO, clipped_surrogate)):
        objective = build_objective(model.head, loss)
        plain = AutogradGradient(model, PlainObjective(model.head, loss), CPU)
        network, rows = FusedNetwork(model), steps * envs
        kept = make_gradient(network, objective, actor.activations, rows)
        again = make_gradient(network, objective, None, rows)
        for num in {1, 2, envs} if envs > 1 else {1}:  # unequal ones where `envs` is odd
            for batch in SequenceMinibatches(num, torch.Generator().manual_seed(seed % 99)).split(rollout):
                results = []
                for gradient in (plain, again, *([kept] if num == 1 else [])):
                    for p in model.parameters():
                        p.grad.fill_(torch.nan)  # whatever was there, it is written
                    terms = differentiate(gradient, batch, coefs, is_fresh=True)
                    results.append((terms, gradient_of(model)))
                (terms, expected), *others = results
                for their_terms, found in others:
                    torch.testing.assert_close(their_terms, terms, rtol=1e-3, atol=1e-4)
                    scale = 1.0 + expected.abs().max().item()
                    torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-5 * scale)


RUNS = {
    "a2c": {},
    "a2c, normalised, two trunks": {"normalize_obs": True, "shared_trunk": False},
    "a2c, two workers' rows": {"env_id": "Pendulum-v1", "hidden_sizes": ()},
    "ppo": {"algo": "ppo", "num_epochs": 3, "normalize_advantage": True},
    "ppo, minibatches": {"algo": "ppo", "num_epochs": 2, "num_minibatches": 2, "normalize_obs": True},
    "reinforce": {"algo": "reinforce", "collect": "episodes", "num_steps": 60, "gae_lambda": 1.0},
}


@both_cores
@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_what_autograd_would_have_learned(name, core, monkeypatch):
    changes = {"num_envs": 4, "num_steps": 9, "learning_rate": 1e-3, "hidden_sizes": (16,), "core": core}
    ends = []
    for fuses in (True, False):
        monkeypatch.setattr("fastac.build.engine.is_fusable", lambda model, fuses=fuses: fuses)
        training = make_training(**(changes | {"lstm_size": 8} | RUNS[name]))
        list(islice(training.trainer.run(), 4))
        ends.append(weights(training))
        training.close()
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], rtol=1e-3, atol=1e-5, msg=key)


@both_cores
def test_the_state_and_the_stream_go_on_bit_for_bit(core):
    model = make_model(core, shared=False)
    rollouts = [make_rollout(model, "discrete", 4, 3, 0.3) for _ in range(2)]
    first, second = (make_fused(model, rollout) for rollout in rollouts)
    act(first, rollouts[0])
    second.set_state(first.get_state())
    for actor, rollout in zip((first, second), rollouts, strict=True):
        act(actor, rollout)
    for name in ("action", "value", "log_prob", "state"):
        assert torch.equal(getattr(rollouts[0], name), getattr(rollouts[1], name)), name
    with pytest.raises(ValueError, match="'state' in the saved state"):
        second.set_state({**first.get_state(), "state": torch.zeros(3, 1)})


def test_kept_activations_are_not_used_after_an_update():
    model = make_model("lstm")
    rollout = make_rollout(model, "discrete", 5, 4)
    actor = make_fused(model, rollout)
    act(actor, rollout)
    objective = build_objective(model.head, clipped_surrogate)
    gradient = make_gradient(FusedNetwork(model), objective, actor.activations, 20)
    plain = AutogradGradient(model, PlainObjective(model.head, clipped_surrogate), CPU)
    (batch,) = SequenceMinibatches(1, torch.Generator()).split(rollout)
    for is_fresh in (True, False):
        found = []
        for each in (plain, gradient):
            differentiate(each, batch, PPO, is_fresh)
            found.append(gradient_of(model))
        torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=2e-5)
        with torch.no_grad():  # as an update would
            for p in model.parameters():
                p.mul_(1.3)


@both_cores
def test_a_player_remembers_as_the_module_does(core):
    model = make_model(core, shared=False, normalizes=True)
    players = FusedPlayer(model, 4), ModulePlayer(model, 4, CPU)
    obs, start = torch.empty(4, OBS_SIZE), torch.tensor([True, False, False, True])
    for noise in (None, 7):
        for _ in range(2):  # begin forgets
            streams = [None if noise is None else torch.Generator().manual_seed(noise) for _ in players]
            for player in players:
                player.begin()
            torch.manual_seed(3)
            for t in range(12):
                obs.normal_()
                ours, theirs = (p.act(obs, start.roll(t), s) for p, s in zip(players, streams, strict=True))
                assert np.array_equal(ours, theirs)


@both_cores
def test_a_changed_core_is_not_fused(core):
    def changed(change):
        model = make_model(core)
        change(model.trunks[0].core)
        return is_fusable(model)

    assert changed(lambda core: None)
    assert not changed(lambda core: setattr(core, "__class__", type("Own", (type(core),), {})))
    assert not changed(lambda core: core.cell.register_forward_hook(lambda *_: None))
    assert not changed(lambda core: setattr(core, "cell", torch.nn.RNNCell(6, 5)))
    assert not changed(lambda core: core.cell.bias_hh.requires_grad_(False))
    assert not changed(lambda core: setattr(core, "_step", None) or setattr(core, "forward", lambda *_: None))
    other = make_model(core, shared=False)
    other.trunks[1].core = CORES["gru" if core == "lstm" else "lstm"](6, 5)
    assert not is_fusable(other)


@pytest.mark.parametrize("sizes", [(10, 4), (7, 7), (6, 2)])
def test_minibatches_are_the_envs_sequences_in_kept_memory(sizes):
    envs, num = sizes
    rollout = Rollout.allocate(3, envs, (2,), (), torch.int64, 5)
    rollout.log_prob.copy_(torch.arange(3.0 * envs).view(3, envs))
    rollout.obs.copy_(torch.arange(4.0 * envs).view(4, envs, 1) + torch.tensor([0.0, 0.5]))
    rollout.state.copy_(torch.arange(float(envs)).unsqueeze(-1).expand(-1, 5))
    minibatches, places = SequenceMinibatches(num, torch.Generator().manual_seed(0)), set()
    for _ in range(3):
        seen = []
        for batch in minibatches.split(rollout):
            index = batch.state[:, 0].long()
            seen += index.tolist()
            places.add(batch.obs.data_ptr())
            assert all(getattr(batch, name).is_contiguous() for name in ("obs", "action", "start", "state"))
            assert torch.equal(batch.log_prob, rollout.log_prob[:, index])
            assert torch.equal(batch.obs, rollout.obs[:3, index])
            assert torch.equal(batch.flat().obs, rollout.obs[:3, index].flatten(0, 1))
        assert sorted(seen) == list(range(envs))
        assert len(batch.state) == envs - (num - 1) * -(-envs // num) or envs % num == 0
    assert len(places) == 1
