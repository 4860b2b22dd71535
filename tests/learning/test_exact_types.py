"""What a user changes about a network or a loss is what is trained: the fast paths take only what they compute."""

import warnings
from itertools import islice
from typing import get_args

import pytest
import torch
from core_support import weights
from gymnasium.spaces import Box, Discrete
from torch import nn
from torch.nn.utils import parametrizations

from fastac.build import Streams, build, build_envs, build_head, build_objective, build_sampler
from fastac.build import engine as engine_module
from fastac.config import ActivationName, Config
from fastac.learning.fused import (
    PlainSampler,
    is_as_written,
    is_fusable,
)
from fastac.learning.losses import clipped_surrogate, policy_gradient
from fastac.learning.objectives import CategoricalObjective, GaussianObjective, PlainObjective
from fastac.models import CategoricalHead, ConvEncoder, GaussianHead, MLPEncoder

SMALL = {"num_envs": 4, "num_steps": 8, "learning_rate": 1e-2}


def mlp(kind=MLPEncoder):
    return kind(4, (8, 8), "tanh")


class Halved(MLPEncoder):
    def forward(self, obs):
        return super().forward(0.5 * obs)


class Normed(MLPEncoder):
    def __init__(self, *args):
        super().__init__(*args)
        self.norm = nn.LayerNorm(8)

    def forward(self, obs):
        return self.norm(super().forward(obs))


class Scaled(nn.Linear):
    def forward(self, x):
        return 2.0 * super().forward(x)


def change(*steps):
    """Return a factory of encoders to which the steps have been done."""

    def make(space=None):
        encoder = mlp()
        for step in steps:
            step(encoder)
        return encoder

    return make


def put(index, layer):
    def step(encoder):
        encoder.layers[index] = layer()

    return step


def approximate_gelu():
    encoder = MLPEncoder(4, (8, 8), "gelu")
    encoder.layers[1] = nn.GELU("tanh")
    return encoder


def own_forward(encoder):
    plain = encoder.forward
    encoder.forward = lambda obs: plain(0.5 * obs)


def weight_norm(encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's older form, which many still use
        torch.nn.utils.weight_norm(encoder.layers[0])


def add_parameter(encoder):
    encoder.extra = nn.Parameter(torch.zeros(3))


def freeze(encoder):
    encoder.layers[0].requires_grad_(False)


CHANGES = {
    "a subclass's forward": lambda _=None: mlp(Halved),
    "a subclass's layer": lambda _=None: mlp(Normed),
    "a layer's subclass": change(put(2, lambda: Scaled(8, 8))),
    "a layer without bias": change(put(2, lambda: nn.Linear(8, 8, bias=False))),
    "a layer more": change(lambda e: e.layers.append(nn.LayerNorm(8))),
    "a linear layer more": change(lambda e: e.layers.append(nn.Linear(8, 8))),
    "another activation": change(put(1, nn.ReLU)),
    "another kind of GELU": lambda _=None: approximate_gelu(),
    "a tied layer": change(lambda e: e.layers.extend([e.layers[2], nn.Tanh()])),
    "forward of an instance": change(own_forward),
    "a forward hook": change(lambda e: e.layers[1].register_forward_hook(lambda m, x, y: 0.5 * y)),
    "a forward pre-hook": change(lambda e: e.register_forward_pre_hook(lambda m, x: (0.5 * x[0],))),
    "a backward hook": change(lambda e: e.layers[2].register_full_backward_hook(lambda m, d_in, d_out: (2 * d_in[0],))),
    "a parameter's hook": change(lambda e: e.layers[2].weight.register_hook(lambda d: 2.0 * d)),
    "spectral norm": change(lambda e: parametrizations.spectral_norm(e.layers[0])),
    "weight norm": change(lambda e: parametrizations.weight_norm(e.layers[0])),
    "weight norm by hook": change(weight_norm),
    "a frozen layer": change(freeze),
    "a parameter more": change(add_parameter),
}


class Wrapped(nn.Module):
    """What autograd alone can run."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, obs):
        return self.inner(obs)


def build_with(encoder, **settings):
    config = Config().replace(**(SMALL | settings))
    return build(config, build_envs(config.env, Streams.spawn(config.run.seed).env), encoder)


def train_with(encoder, iterations=3, **settings):
    """Return the parameters before and after a few iterations, in order."""
    training = build_with(encoder, **settings)
    before = [p.detach().clone() for p in training.model.parameters()]
    list(islice(training.trainer.run(), iterations))
    training.close()
    return training.model, before, [p.detach() for p in training.model.parameters()]


A2C, PPO = {}, {"algo": "ppo", "num_epochs": 2, "num_minibatches": 2}
CASES = [(name, A2C) for name in CHANGES] + [(name, PPO) for name in ("a forward hook", "spectral norm")]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_an_encoder_that_was_changed_trains_as_it_is_written(name, settings):
    make = CHANGES[name]
    model, before, after = train_with(lambda space: make(), **settings)
    assert not is_fusable(model)
    for p, was, now in zip(model.parameters(), before, after, strict=True):
        assert torch.equal(was, now) != (p.requires_grad and p.shape != (3,)), "what is used moves, the rest does not"
    *_, expected = train_with(lambda space: Wrapped(make()), **settings)
    for ours, theirs in zip(after, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_fastacs_own_encoders_are_fused():
    activations = [{"activation": name} for name in get_args(ActivationName)]
    sizes = {"shared_trunk": False, "actor_sizes": (8, 6), "critic_sizes": (5,)}
    for settings in ({}, {"shared_trunk": False}, sizes, *activations, {"hidden_sizes": ()}, {"normalize_obs": True}):
        assert is_fusable(build_with(None, **settings).model)
    assert is_fusable(build_with(lambda space: mlp()).model)


def test_actor_and_critic_have_the_sizes_that_are_set():
    settings = {"shared_trunk": False, "hidden_sizes": (7,)}
    for own, expected in (
        ({"actor_sizes": (8, 6)}, [[8, 6], [7]]),
        ({"critic_sizes": ()}, [[7], []]),
        ({"actor_sizes": (3,), "critic_sizes": (9, 2)}, [[3], [9, 2]]),
    ):
        model = build_with(None, **settings, **own).model
        found = [[layer.out_features for layer in t.encoder.layers[::2]] for t in model.trunks]
        assert found == expected
        assert (model.head.layer.in_features, model.value_head.in_features) == tuple(
            sizes[-1] if sizes else 4 for sizes in expected
        )


def test_sizes_of_actor_and_critic_are_refused_where_no_encoder_has_them():
    with pytest.raises(ValueError, match="expected None with shared_trunk True: give --shared-trunk False"):
        Config().replace(actor_sizes=(8,))
    with pytest.raises(ValueError, match="they are sizes of an mlp, and the encoder is"):
        build_with(lambda space: mlp(), shared_trunk=False, critic_sizes=(8,))


def norm_gelu(space=None):
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.SiLU())


class Residual(nn.Module):
    def __init__(self, space=None):
        super().__init__()
        self.first, self.block = nn.Linear(4, 8), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())

    def forward(self, obs):
        x = self.first(obs)
        return x + self.block(x)


@pytest.mark.parametrize("make", [norm_gelu, Residual])
@pytest.mark.parametrize("settings", [{}, {"algo": "ppo", "num_epochs": 2, "num_minibatches": 2}], ids=["a2c", "ppo"])
def test_layer_norm_and_residual_blocks_of_a_users_encoder_train_as_they_are_written(make, settings):
    model, before, after = train_with(make, **settings)
    assert not is_fusable(model)
    *_, expected = train_with(lambda space: Wrapped(make()), **settings)
    for was, ours, theirs in zip(before, after, expected, strict=True):
        assert torch.equal(ours, theirs) and not torch.equal(was, ours)


def test_trunks_that_share_layers_or_differ_are_left_to_autograd():
    one = mlp()
    assert not is_fusable(build_with(lambda space: one, shared_trunk=False).model)
    kinds = iter([MLPEncoder, Halved])
    assert not is_fusable(build_with(lambda space: mlp(next(kinds)), shared_trunk=False).model)


class Inverted(ConvEncoder):
    def forward(self, obs):
        return super().forward(1.0 - obs)


@pytest.mark.parametrize(
    "change_it",
    [
        lambda e: e.convs.append(nn.Conv2d(16, 16, 1)),
        lambda e: setattr(e.convs[0], "dilation", (2, 2)),
        lambda e: e.convs.__setitem__(0, nn.Conv2d(4, 16, 3, padding=1)),
        lambda e: e.convs.__setitem__(0, nn.Conv2d(4, 16, 3, padding_mode="reflect")),
        lambda e: e.linear.register_forward_hook(lambda m, x, y: 2.0 * y),
        lambda e: setattr(e, "__class__", Inverted),
    ],
)
def test_convolutions_are_fused_only_as_they_are_built(change_it):
    training = build_with(None)
    encoder = ConvEncoder((10, 10, 4), "minatar", 1.0)
    training.model.trunks[0].encoder = encoder
    assert is_fusable(training.model)
    change_it(encoder)
    assert not is_fusable(training.model)


def test_a_hook_on_all_modules_is_left_to_autograd():
    model = build_with(None).model
    handle = nn.modules.module.register_module_forward_hook(lambda m, x, y: None)
    try:
        assert not is_fusable(model)
    finally:
        handle.remove()
    assert is_fusable(model)


# --- heads and losses ----------------------------------------------------------------------------


class Cold(CategoricalHead):
    def log_prob_entropy(self, params, action):
        return super().log_prob_entropy(2.0 * params, action)


class Wide(GaussianHead):
    def log_prob_entropy(self, params, action):
        return super().log_prob_entropy(2.0 * params, action)


@pytest.mark.parametrize("loss", [policy_gradient, clipped_surrogate])
def test_kernels_are_for_their_heads_alone(loss):
    config = Config().model
    for space, kernel, other in (
        (Discrete(3), CategoricalObjective, Cold(6, 3)),
        (Box(-1.0, 1.0, (2,)), GaussianObjective, Wide(6, 2, 0.0)),
    ):
        head = build_head(space, 6, config)
        for parameter in head.parameters():
            parameter.grad = torch.zeros_like(parameter)
        assert type(build_objective(head, loss)) is kernel
        for changed in (other, head):
            if changed is head:
                head.log_prob_entropy = other.log_prob_entropy
                assert not is_as_written(head)
            assert type(build_objective(changed, loss)) is PlainObjective
            assert type(build_sampler(changed, 4)) is PlainSampler


def clipped_probability(
    log_prob, entropy, value, old_log_prob, advantage, return_, weight, vf_coef, ent_coef, clip_coef, *of_value
):
    """A loss that no kernel knows; it uses every argument."""
    assert clip_coef == pytest.approx(0.3)
    gain = (log_prob - old_log_prob).clamp(-clip_coef, clip_coef).sinh() * advantage + 0.1 * log_prob.tanh()
    terms = policy_gradient(
        gain,
        entropy,
        value,
        old_log_prob,
        torch.ones_like(gain),
        return_,
        weight,
        vf_coef,
        ent_coef,
        clip_coef,
        *of_value,
    )
    assert isinstance(terms.total, torch.Tensor)
    return terms


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("algo", ["a2c", "ppo"])
def test_a_new_loss_is_what_is_trained_on_both_paths(algo, env_id, monkeypatch):
    settings = {"env_id": env_id, "algo": algo, "clip_coef": 0.3, "vectorization": "sync", "num_envs": 4}
    _, before, usual = train_with(None, **settings)
    monkeypatch.setitem(engine_module._LOSSES, algo, clipped_probability)
    ends = []
    for fuses in (True, False):
        monkeypatch.setattr(engine_module, "is_fusable", lambda model, fuses=fuses: fuses)
        _, _, after = train_with(None, **settings)
        ends.append(after)
    for was, plain, ours, theirs in zip(before, usual, *ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        assert not torch.equal(was, ours) and not torch.equal(plain, ours)


def test_a_loss_that_leaves_the_critic_out_does_not_train_it(monkeypatch):
    def entropy_alone(log_prob, entropy, value, *rest):
        return policy_gradient(0.0 * log_prob, entropy, value.detach(), *rest)

    monkeypatch.setitem(engine_module._LOSSES, "a2c", entropy_alone)
    training = build_with(None, ent_coef=1.0, max_grad_norm=None)
    before = weights(training)
    next(iter(training.trainer.run()))
    changed = {name for name, value in weights(training).items() if not torch.equal(value, before[name])}
    assert "head.layer.weight" in changed and "value_head.weight" not in changed
