"""Learning with action masks: the same by hand, by autograd and by kernels; and what masks are for."""

from itertools import islice

import numpy as np
import pytest
import torch
from core_support import CPU, make_training, weights
from masked_envs import ACTIONS

from fastac.build import engine
from fastac.config import EnvConfig
from fastac.envs import make_vec
from fastac.envs.masks import count_choices
from fastac.learning.fused import FusedNetwork
from fastac.runs import player
from fastac.runs.evaluate import evaluate
from fastac.runs.player import FusedPlayer, make_player

SMALL = {"num_envs": 8, "num_steps": 6, "hidden_sizes": (8,), "vectorization": "sync", "total_env_steps": 10**9}
PPO = {"algo": "ppo", "num_epochs": 2, "num_minibatches": 2, "normalize_advantage": True}
LSTM = {"core": "lstm", "lstm_size": 8}
CASES = {
    "discrete": {},
    "several, normalised": {"env_kwargs": {"kind": "several"}, "normalize_obs": True},
    "bits, ppo": {"env_kwargs": {"kind": "bits"}, **PPO},
    "key, separate, lstm, ppo": {"env_id": "masked_envs:MaskedByKey", "shared_trunk": False, **LSTM, **PPO},
    "method, lstm, normalised": {"env_id": "masked_envs:MaskedByMethod", "normalize_obs": True, **LSTM},
}


def make(**settings):
    return make_training(**({"env_id": "masked_envs:Masked"} | SMALL | settings))


def train(training, iterations):
    return [report.losses for report in islice(training.trainer.run(), iterations)]


@pytest.mark.parametrize("case", CASES)
def test_kernels_learn_what_autograd_does(case, monkeypatch):
    fused = make(**CASES[case])
    monkeypatch.setattr(engine, "is_fusable", lambda model: False)
    plain = make(**CASES[case])
    losses = [train(training, 6) for training in (fused, plain)]
    for ours, theirs in zip(*losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4, nan_ok=True)
    for name, value in weights(fused).items():
        torch.testing.assert_close(value, weights(plain)[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ACTIONS)
def test_log_probs_and_entropies_are_those_among_legal_actions(kind):
    training = make(env_kwargs={"kind": kind})
    model, choices = training.model, count_choices(ACTIONS[kind])
    train(training, 1)
    (rollout,) = training.rollouts
    rows = rollout.obs[:-1].flatten(0, 1)
    params, _, _ = model(rows, model.initial_state(len(rows)), torch.zeros(len(rows), dtype=torch.bool))
    logits = model.head(model.trunks[0].encoder(rows[:, : -sum(choices)]))
    params, logits = params.detach(), logits.detach()
    action = rollout.action.flatten(0, 1).view(len(rows), -1)
    log_prob, entropy = model.head.log_prob_entropy(params, rollout.action.flatten(0, 1))
    for n, mask in enumerate(rows[:, -sum(choices) :].bool()):
        found, total = 0.0, 0.0
        for part, legal, chosen in zip(logits[n].split(choices), mask.split(choices), action[n], strict=True):
            distribution = torch.distributions.Categorical(logits=part[legal].double())
            found += distribution.log_prob(legal.cumsum(0)[chosen] - 1)
            total += distribution.entropy()
        assert log_prob[n].item() == pytest.approx(float(found), abs=1e-4)
        assert entropy[n].item() == pytest.approx(float(total), abs=1e-4)


@pytest.mark.parametrize("settings", [{}, LSTM, {"env_kwargs": {"kind": "several"}}], ids=str)
def test_an_evaluation_takes_legal_actions_only(settings):
    training = make(**settings)
    envs = make_vec(EnvConfig("masked_envs:Masked", 5, "sync", env_kwargs=settings.get("env_kwargs", {})), SEED)
    for noise in (None, torch.Generator().manual_seed(0)):
        ours = make_player(training.model, 5, CPU)
        assert isinstance(ours, FusedPlayer)
        theirs = player.ModulePlayer(training.model, 5, CPU)
        returns = [evaluate(who, envs, 20, noise).returns for who in (ours, theirs)]
        assert all(0.0 <= number <= 4.0 for number in np.concatenate(returns))  # others raise


SEED = np.random.SeedSequence(7)


def test_a_network_with_masks_is_fused_and_reads_no_mask():
    training = make(normalize_obs=True)
    network = FusedNetwork(training.model)
    assert (network.num_inputs, training.model.mask_size) == (2, 5)
    train(training, 3)
    assert training.model.obs_normalizer.moments.mean.shape == (2,)


@pytest.mark.parametrize(("kind", "algo"), [("discrete", PPO), ("several", {}), ("bits", {})])
def test_the_last_legal_action_is_found_although_nothing_shows_it(algo, kind):
    """Only the mask tells which action pays: of legal ones the last, for which logits that ascend are enough."""
    settings = {"env_kwargs": {"kind": kind}, "learning_rate": 0.02, "gamma": 0.5, "total_env_steps": 6_000, **algo}
    training = make(**settings)
    for _ in training.trainer.run():
        pass
    envs = make_vec(EnvConfig("masked_envs:Masked", 10, "sync", env_kwargs={"kind": kind}), SEED)
    assert evaluate(make_player(training.model, 10, CPU), envs, 100).mean_return == pytest.approx(4.0, abs=0.2)
