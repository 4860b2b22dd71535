"""The fused network against the same model under autograd: what it acts, values and learns, forwards kept or not."""

import gc
from itertools import islice, product

import numpy as np
import pytest
import torch
from core_support import CPU, differentiate, make_coefs, make_gradient, make_training, weights
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor
from torch.nn import Parameter

from fastac.build import build_head, build_objective, build_sampler
from fastac.config import Config
from fastac.learning.autograd import AutogradGradient
from fastac.learning.fused import FusedActor, FusedNetwork, StagedActor, StagedGradient, is_fusable
from fastac.learning.fused import gradient as fused_gradient
from fastac.learning.fused import network as network_module
from fastac.learning.losses import clipped_surrogate, policy_gradient
from fastac.learning.objectives import PlainObjective
from fastac.learning.optimizer import LocalOptimizer
from fastac.learning.update_rules import Adam
from fastac.models import ActorCritic, IdentityCore, MLPEncoder, NoObsNormalizer, ObsNormalizer, Trunk
from fastac.rollout import FlatMinibatches, ModelActor, Rollout

OBS_SIZE, NUM_STEPS, NUM_ENVS = 3, 7, 5
SPACES = {
    "discrete": Discrete(4),
    "multi": MultiDiscrete([2, 3]),
    "box": Box(-1.0, 1.0, (2,), np.float32),
}
NETS = [
    ((8, 8), "tanh", True),
    ((40, 36), "relu", False),
    ((9,), "elu", True),
    ((), "relu", False),
    ((6, 34, 4), "elu", False),
    ((8, 33), "gelu", True),
    (((40, 33), ()), "tanh", False),  # the actor's sizes, the critic's
    (((8,), (9, 5)), "silu", False),
]
A2C = make_coefs(1.0 / 23.0, 0.0, 1.0, 0.5, 0.01, 0.1)
PPO = make_coefs(1.0 / 23.0, 0.3, 1.7, 0.4, 0.02, 0.1)


def make_model(space, hidden, activation, shared, normalizes=False, **settings):
    torch.manual_seed(1)
    trunks = []
    own = hidden and isinstance(hidden[0], tuple)
    for sizes in hidden if own else [hidden] * (1 if shared else 2):
        encoder = MLPEncoder(OBS_SIZE, sizes, activation)
        trunks.append(Trunk(encoder, IdentityCore(encoder.output_size)))
    head = build_head(space, trunks[0].core.output_size, Config().replace(**settings).model)
    normalizer = NoObsNormalizer()
    if normalizes:
        normalizer = ObsNormalizer((OBS_SIZE,))
        normalizer.moments.mean.copy_(torch.tensor([0.3, -1.0, 2.0]))
        normalizer.moments.var.copy_(torch.tensor([0.5, 2.0, 1.0]))
    model = ActorCritic(trunks, head, normalizer)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        head.layer.weight.mul_(50.0)
    return model


def make_rollout(space):
    discrete = not isinstance(space, Box)
    dtype = torch.int64 if discrete else torch.float32
    rollout = Rollout.allocate(NUM_STEPS, NUM_ENVS, (OBS_SIZE,), space.shape, dtype, 0)
    rng = torch.Generator().manual_seed(3)
    rollout.obs.copy_(torch.randn(rollout.obs.shape, generator=rng))
    rollout.advantage.copy_(torch.randn(rollout.advantage.shape, generator=rng))
    rollout.return_.copy_(torch.randn(rollout.return_.shape, generator=rng))
    rollout.valid.copy_(torch.rand(rollout.valid.shape, generator=rng) < 0.7)
    return rollout


def act(actor):
    actor.begin()
    for t in range(NUM_STEPS):
        actor.act(t)
    actor.value(NUM_STEPS)


def act_fused(model, rollout, keep_activations=True):
    LocalOptimizer(model, Adam(1e-5), None)  # flattens the parameters
    network = FusedNetwork(model)
    generator = torch.Generator().manual_seed(0)
    actor = FusedActor(network, build_sampler(model.head, NUM_ENVS), rollout, generator, keep_activations)
    act(actor)
    return network, actor


@pytest.mark.parametrize("keep_activations", [True, False])
@pytest.mark.parametrize("normalizes", [False, True])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("hidden", "activation", "shared"), NETS)
def test_it_acts_and_values_as_the_model_does(hidden, activation, shared, space, normalizes, keep_activations):
    model = make_model(SPACES[space], hidden, activation, shared, normalizes)
    theirs, ours = make_rollout(SPACES[space]), make_rollout(SPACES[space])
    act(ModelActor(model, theirs, torch.Generator().manual_seed(0), CPU))
    network, actor = act_fused(model, ours, keep_activations)
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.log_prob, theirs.log_prob, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.action, theirs.action, rtol=1e-4, atol=1e-5)
    assert ours.value.std() > 0.1 and ours.log_prob.std() > 0.01
    act(StagedActor(network, build_sampler(model.head, NUM_ENVS), ours, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.log_prob, theirs.log_prob, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.action, theirs.action, rtol=1e-4, atol=1e-5)
    final = torch.randn(NUM_ENVS, OBS_SIZE)
    none, start = torch.zeros(NUM_ENVS, 0), torch.zeros(NUM_ENVS, dtype=torch.bool)
    torch.testing.assert_close(actor.value_of(final), model.value(final, none, start), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep_activations", [True, False])
@pytest.mark.parametrize("normalizes", [False, True])
@pytest.mark.parametrize("space", SPACES)
def test_environments_act_in_chunks_with_the_same_bits(space, normalizes, keep_activations, monkeypatch):
    model = make_model(SPACES[space], (64, 64), "tanh", False, normalizes)
    whole, chunked = make_rollout(SPACES[space]), make_rollout(SPACES[space])
    final = torch.randn(NUM_ENVS, OBS_SIZE)
    _, actor = act_fused(model, whole, keep_activations)
    activations = [tensor.clone() for tensor in actor.activations.tensors]
    values = actor.value_of(final).clone()
    monkeypatch.setattr(fused_gradient, "CHUNK", 3)
    _, actor = act_fused(model, chunked, keep_activations)
    for name in ("value", "log_prob", "action"):
        assert torch.equal(getattr(chunked, name), getattr(whole, name)), name
    assert torch.equal(actor.value_of(final), values)
    assert len(actor._chunks) == 2 and whole.value.std() > 0.1  # 3 and 2 of 5
    if keep_activations:
        assert all(map(torch.equal, actor.activations.tensors, activations))
    else:  # one chunk after the other, in the same memory
        assert actor.activations.value.numel() == 3


def test_masked_environments_act_in_chunks_with_the_same_bits(monkeypatch):
    rollouts = []
    for chunk in (1024, 4):
        monkeypatch.setattr(fused_gradient, "CHUNK", chunk)
        training = make_training(env_id="masked_envs:Masked", num_envs=6, num_steps=16, hidden_sizes=(8,))
        list(islice(training.trainer.run(), 1))
        rollouts.append(training.rollouts[0])
        training.close()
    whole, chunked = rollouts
    for name in ("obs", "action", "log_prob", "value"):
        assert torch.equal(getattr(chunked, name), getattr(whole, name)), name
    assert 0.1 < whole.obs[..., -5:].mean() < 0.9  # masks of 5 actions; an illegal one raises


@pytest.mark.parametrize("keep_activations", [True, False])
def test_a_rollout_is_acted_with_the_statistics_of_its_beginning(keep_activations):
    space = SPACES["discrete"]
    model, ours = make_model(space, (8, 8), "tanh", False, normalizes=True), make_rollout(space)
    _, actor = act_fused(model, ours, keep_activations)
    before = ours.value.clone()
    model.obs_normalizer.moments.mean.add_(1.0)
    model.obs_normalizer.moments.var.mul_(2.0)
    act(actor)
    theirs = make_rollout(space)
    act(ModelActor(model, theirs, torch.Generator().manual_seed(0), CPU))
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-4, atol=1e-5)
    assert (ours.value - before).abs().max() > 0.1


def gradient_of(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def half_of(*pairs):
    """Return all combinations of pairs; in the half that is not slow, three of them meet in every way."""
    combinations = [tuple(zip(*chosen, strict=True)) for chosen in product(*map(enumerate, pairs))]
    return [pytest.param(*row, marks=[pytest.mark.slow] * (sum(places) % 2)) for places, row in combinations]


@pytest.mark.parametrize(
    ("normalizes", "coefs", "chunk", "cache_bytes"),  # no bytes: the first layer is left out of what is kept
    half_of((False, True), (A2C, PPO), (4, 1024), (0, 2**20)),
)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("net", NETS)
def test_its_gradients_are_autograds(net, space, normalizes, coefs, chunk, cache_bytes, monkeypatch):
    monkeypatch.setattr(fused_gradient, "CHUNK", chunk)
    monkeypatch.setattr(network_module, "_CACHE_BYTES", cache_bytes)
    model, rollout = make_model(SPACES[space], *net, normalizes), make_rollout(SPACES[space])
    network, actor = act_fused(model, rollout)
    rollout.log_prob.add_(0.3 * torch.randn(rollout.log_prob.shape, generator=torch.Generator().manual_seed(9)))
    (batch,) = FlatMinibatches(1, torch.Generator()).split(rollout)
    loss = policy_gradient if coefs is A2C else clipped_surrogate
    results = []
    objective = build_objective(model.head, loss)
    for gradient, is_fresh in (
        (AutogradGradient(model, PlainObjective(model.head, loss), CPU), False),
        (AutogradGradient(model, build_objective(model.head, loss), CPU), False),
        (make_gradient(network, objective, None, NUM_STEPS * NUM_ENVS), True),
        (make_gradient(network, objective, actor.activations, NUM_STEPS * NUM_ENVS), True),
        (make_gradient(network, objective, actor.activations, NUM_STEPS * NUM_ENVS), False),
        (StagedGradient(network, objective, batch), False),
    ):
        for p in model.parameters():
            p.grad.fill_(torch.nan)  # whatever was there, it is written
        terms = differentiate(gradient, batch, coefs, is_fresh)
        results.append((terms, gradient_of(model)))
    (terms, expected), *others = results
    assert expected.abs().max() > 1e-2
    for their_terms, found in others:
        torch.testing.assert_close(their_terms, terms, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("coefs", [A2C, PPO], ids=["a2c", "ppo"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", ["dependent", "binary"])
def test_heads_without_a_kernel_of_their_own_learn_as_under_autograd(kind, net, coefs):
    space, settings = {
        "dependent": (Box(-1.0, 1.0, (2,), np.float32), {"dependent_std": True, "log_std_init": -0.5}),
        "binary": (MultiBinary(3), {}),
    }[kind]
    model, ours, theirs = make_model(space, *net, **settings), make_rollout(space), make_rollout(space)
    with torch.no_grad():
        model.head.layer.weight.mul_(0.1)  # or some log-probs are large
    act(ModelActor(model, theirs, torch.Generator().manual_seed(0), CPU))
    network, actor = act_fused(model, ours)
    for name in ("value", "log_prob", "action"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-4)
    ours.log_prob.add_(0.3 * torch.randn(ours.log_prob.shape, generator=torch.Generator().manual_seed(9)))
    (batch,) = FlatMinibatches(1, torch.Generator()).split(ours)
    loss = policy_gradient if coefs is A2C else clipped_surrogate
    objective = build_objective(model.head, loss)
    results = []
    for gradient in (
        AutogradGradient(model, build_objective(model.head, loss), CPU),
        make_gradient(network, objective, actor.activations, NUM_STEPS * NUM_ENVS),
        StagedGradient(network, objective, batch),
    ):
        for p in model.parameters():
            p.grad.fill_(torch.nan)
        terms = differentiate(gradient, batch, coefs, True)
        results.append((terms, gradient_of(model)))
    (terms, expected), *others = results
    rows = model.head.layer.weight.grad
    assert rows.abs().amax(dim=1).min() > 1e-5  # of means and deviations alike
    for their_terms, found in others:
        torch.testing.assert_close(their_terms, terms, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("net", [((130, 130), "tanh", False), ((130, 130), "relu", True), ((6,), "elu", True)])
def test_gradients_of_large_layers_and_heads_by_the_library_are_autograds(net, monkeypatch):
    monkeypatch.setitem(SPACES, "many", Discrete(70))
    for cache_bytes in (0, 2**20):
        test_its_gradients_are_autograds(net, "many", False, PPO, 4, cache_bytes, monkeypatch)


def test_kept_activations_are_used_only_while_they_are_fresh():
    model, rollout = make_model(SPACES["discrete"], (8,), "tanh", True), make_rollout(SPACES["discrete"])
    network, actor = act_fused(model, rollout)
    objective = build_objective(model.head, policy_gradient)
    gradient = make_gradient(network, objective, actor.activations, NUM_STEPS * NUM_ENVS)
    (batch,) = FlatMinibatches(1, torch.Generator()).split(rollout)
    found = {}
    for is_fresh in (True, False):
        if not is_fresh:
            with torch.no_grad():
                model.value_head.bias.add_(1.0)  # as an update would
        found[is_fresh] = differentiate(gradient, batch, A2C, is_fresh)[1].item()
    assert found[False] == pytest.approx(value_loss(model, rollout), rel=1e-4)
    assert found[True] != pytest.approx(found[False], rel=1e-2)


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_after_an_update_nothing_of_the_old_weights_is_left(cache_bytes, monkeypatch):
    monkeypatch.setattr(network_module, "_CACHE_BYTES", cache_bytes)
    model, rollout = make_model(SPACES["discrete"], (8, 8), "tanh", True), make_rollout(SPACES["discrete"])
    network, actor = act_fused(model, rollout)
    assert actor.activations.left_out == (cache_bytes == 0)
    objective = build_objective(model.head, clipped_surrogate)
    gradients = [
        AutogradGradient(model, PlainObjective(model.head, clipped_surrogate), CPU),
        make_gradient(network, objective, actor.activations, NUM_STEPS * NUM_ENVS),
    ]
    (batch,) = FlatMinibatches(1, torch.Generator()).split(rollout)
    for _ in range(2):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
        found = []
        for gradient in gradients:
            differentiate(gradient, batch, PPO, False)
            found.append(gradient_of(model))
        torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=2e-5)


def test_batches_of_other_lengths_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(fused_gradient, "CHUNK", 12)
    model, rollout = make_model(SPACES["discrete"], (8,), "tanh", True), make_rollout(SPACES["discrete"])
    network, actor = act_fused(model, rollout)
    (batch,) = FlatMinibatches(1, torch.Generator()).split(rollout)
    objective, rows = build_objective(model.head, policy_gradient), NUM_STEPS * NUM_ENVS
    gradient = make_gradient(network, objective, actor.activations, rows)
    for length in [*range(1, rows + 1), *range(rows, 0, -3)]:
        for is_fresh in (True, False):
            found = []
            for one in (gradient, make_gradient(network, objective, actor.activations, rows)):
                terms = differentiate(one, batch.rows(0, length), A2C, is_fresh)
                found.append((terms, gradient_of(model)))
            assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def value_loss(model, rollout):
    none = torch.zeros(NUM_ENVS, 0)
    value = model.value(rollout.obs[:-1], none, rollout.start[:-1])
    return float(((value - rollout.return_).square() * rollout.valid).sum() * A2C.weights[0])


RUNS = {
    "a2c": {"num_steps": 9},
    "ppo": {"algo": "ppo", "num_steps": 9, "num_epochs": 3, "normalize_advantage": True},
    "episodes": {"collect": "episodes", "num_steps": 60, "gae_lambda": 1.0},
    "normalised": {"num_steps": 9, "normalize_obs": True, "shared_trunk": False, "activation": "tanh"},
    "ppo, wide": {"algo": "ppo", "num_steps": 150, "num_epochs": 3, "hidden_sizes": (256, 256)},
}
RECURRENT = {
    "lstm": {"num_steps": 9, "core": "lstm", "lstm_size": 8},
    "lstm ppo": {"num_steps": 9, "core": "lstm", "lstm_size": 8, "algo": "ppo", "num_epochs": 3},
    "lstm episodes": {"num_steps": 60, "core": "lstm", "lstm_size": 8, "collect": "episodes", "gae_lambda": 1.0},
    "lstm normalised": {"num_steps": 9, "core": "lstm", "lstm_size": 8, "normalize_obs": True, "shared_trunk": False},
}


@pytest.mark.parametrize("settings", (RUNS | RECURRENT).values(), ids=RUNS | RECURRENT)
def test_a_run_learns_the_same_whether_forwards_are_kept_or_made_again(settings):
    ends = []
    for reuse in (True, False):
        narrow = {"num_envs": 4, "hidden_sizes": (16, 16), "learning_rate": 1e-3}
        training = make_training(**(narrow | settings), reuse_forward=reuse)
        reports = list(islice(training.trainer.run(), 5))
        ends.append((weights(training), reports[-1].env_steps))
        training.close()
    assert ends[0][1] == ends[1][1]
    for name, value in ends[0][0].items():
        torch.testing.assert_close(value, ends[1][0][name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_run_learns_what_autograd_would_have_learned(monkeypatch):
    settings = {"num_envs": 4, "num_steps": 9, "learning_rate": 1e-3, "algo": "ppo", "num_epochs": 2}
    ends = []
    for fuses in (True, False):
        monkeypatch.setattr("fastac.build.engine.is_fusable", lambda model, fuses=fuses: fuses)
        training = make_training(**settings)
        list(islice(training.trainer.run(), 5))
        ends.append(weights(training))
        training.close()
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_what_has_an_encoder_of_its_own_is_not_fused():
    encoder = MLPEncoder(OBS_SIZE, (6,), "tanh")
    head = build_head(SPACES["discrete"], 6, Config().model)
    assert is_fusable(ActorCritic([Trunk(encoder, IdentityCore(6))], head, NoObsNormalizer()))
    own = torch.nn.Linear(OBS_SIZE, 6)
    assert not is_fusable(ActorCritic([Trunk(own, IdentityCore(6))], head, NoObsNormalizer()))


@pytest.fixture
def held_bytes():
    """A function that returns the bytes of all tensors that are new since the test began."""
    gc.freeze()  # what there was before is neither searched nor counted

    def count():
        gc.collect()
        storages = [found.untyped_storage() for found in gc.get_objects() if type(found) in (Tensor, Parameter)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    yield count
    gc.unfreeze()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reuse_forward": False},
        {"hidden_sizes": (256, 256)},  # the first layer is left out
        {"normalize_obs": True, "shared_trunk": False},
        {"algo": "ppo", "num_epochs": 2},
        {"algo": "ppo", "num_epochs": 2, "num_minibatches": 4},
        {"core": "lstm", "lstm_size": 32},
        {"core": "gru", "lstm_size": 32, "algo": "ppo", "num_epochs": 2, "num_minibatches": 4},
    ],
)
@pytest.mark.parametrize("chunk", [1024, 50])  # environments act at once, or in three chunks
def test_a_run_holds_the_memory_that_it_states_and_no_second_copy(settings, chunk, held_bytes, monkeypatch):
    monkeypatch.setattr(fused_gradient, "CHUNK", chunk)
    training = make_training(**({"num_envs": 128, "num_steps": 16, "hidden_sizes": (64, 64)} | settings))
    list(islice(training.trainer.run(), 3))
    held = held_bytes()
    stated = training.rollouts[0].nbytes + training.info.activations_nbytes
    weights = sum(p.nbytes for p in training.model.parameters())  # and their gradients, three slots, and a copy to act
    assert stated <= held <= 1.02 * stated + 6 * weights + 2**15
    training.close()


# --- CUDA ----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the captured graphs are not tested here")
@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_run_on_cuda_learns_what_one_on_the_cpu_does(settings):
    # Updates come between the replays, so a graph that had kept the weights it was captured with would show.
    ends = []
    for device in ("cpu", "cuda"):
        narrow = {"num_envs": 4, "hidden_sizes": (16, 16), "learning_rate": 1e-3}
        training = make_training(**(narrow | settings), device=device)
        list(islice(training.trainer.run(), 5))
        ends.append({name: value.cpu() for name, value in weights(training).items()})
        training.close()
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-3, atol=1e-4, msg=name)
