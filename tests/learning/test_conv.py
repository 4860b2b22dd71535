"""Image encoders: what they compute, by torch's own functions; and fused, against the same model under autograd."""

import gc
from itertools import islice

import gymnasium as gym
import numpy as np
import pytest
import torch
from core_support import CPU, differentiate, make_coefs, make_gradient, make_training, weights
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from fastac.build import Streams, build, build_envs, build_objective, build_sampler
from fastac.build.network import build_model
from fastac.config import Config, ModelConfig
from fastac.learning.autograd import AutogradGradient
from fastac.learning.fused import FusedActor, FusedNetwork, StagedActor, StagedGradient, is_fusable
from fastac.learning.fused import gradient as fused_gradient
from fastac.learning.losses import clipped_surrogate, policy_gradient
from fastac.learning.objectives import PlainObjective
from fastac.learning.optimizer import LocalOptimizer, flat_size, flatten
from fastac.learning.update_rules import Adam
from fastac.models import (
    ActorCritic,
    CategoricalHead,
    ConvEncoder,
    IdentityCore,
    ImageNormalizer,
    LSTMCore,
    MLPEncoder,
    NoObsNormalizer,
    Trunk,
    is_planar,
)
from fastac.rollout import FlatMinibatches, ModelActor, Rollout

NUM_STEPS, NUM_ENVS, NUM_ACTIONS = 4, 3, 4
# What a rollout stores, and which net sees it: sides of every parity, planes or channels last, bytes or floats.
CASES = {
    "nature": ("nature", (4, 36, 41), torch.uint8),
    "nature, channels last": ("nature", (37, 36, 3), torch.uint8),
    "a3c": ("a3c", (2, 20, 27), torch.uint8),
    "a3c, floats": ("a3c", (3, 23, 20), torch.float32),
    "minatar": ("minatar", (10, 10, 4), torch.float32),
    "minatar, one plane": ("minatar", (1, 6, 7), torch.uint8),
}
A2C = make_coefs(1.0 / 9.0, 0.0, 1.0, 0.5, 0.01, 0.1)
PPO = make_coefs(1.0 / 9.0, 0.3, 1.7, 0.4, 0.02, 0.1)


def draw(shape, dtype, seed):
    rng = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=rng)
    return torch.randn(shape, generator=rng)


def scale_of(dtype):
    return 1.0 / 255.0 if dtype == torch.uint8 else 1.0


def make_normalizer(obs_shape, dtype):
    """Statistics of all sizes."""
    normalizer = ImageNormalizer(obs_shape, is_planar(obs_shape), scale_of(dtype))
    unit, moments = 1.0 / scale_of(dtype), normalizer.moments
    random = torch.Generator().manual_seed(2)
    moments.mean.copy_(unit * torch.rand(moments.mean.shape, generator=random))
    moments.var.copy_((unit * (0.2 + torch.rand(moments.var.shape, generator=random))) ** 2)
    return normalizer


def make_model(net, obs_shape, dtype, shared=True, normalizes=False):
    torch.manual_seed(1)
    normalizer = make_normalizer(obs_shape, dtype) if normalizes else NoObsNormalizer()
    trunks = []
    for _ in range(1 if shared else 2):
        encoder = ConvEncoder(obs_shape, net, 1.0 if normalizes else scale_of(dtype))
        trunks.append(Trunk(encoder, IdentityCore(encoder.output_size)))
    model = ActorCritic(trunks, CategoricalHead(encoder.output_size, NUM_ACTIONS), normalizer)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
        model.head.layer.weight.mul_(10.0 if normalizes else 50.0)
    return model


def make_rollout(obs_shape, dtype, frame_stack=1):
    rollout = Rollout.allocate(
        NUM_STEPS, NUM_ENVS, obs_shape, (), torch.int64, 0, obs_dtype=dtype, frame_stack=frame_stack
    )
    rollout.obs.copy_(draw(rollout.obs.shape, dtype, 3))
    rng = torch.Generator().manual_seed(4)
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


# --- what an encoder computes --------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("leading", [(5,), (2, 3), ()])
def test_an_encoder_is_convolutions_and_a_linear_layer_over_rows_of_pixels(case, leading):
    net, obs_shape, dtype = CASES[case]
    encoder, obs = ConvEncoder(obs_shape, net, scale_of(dtype)), draw((*leading, *obs_shape), dtype, 0)
    x = obs.reshape(-1, *obs_shape).double() * scale_of(dtype)
    x = x if obs_shape[0] < obs_shape[2] else x.movedim(-1, 1)
    strides = {"nature": (4, 2, 1), "a3c": (4, 2), "minatar": (1,)}[net]
    for conv, stride in zip(encoder.convs, strides, strict=True):
        x = F.conv2d(x, conv.weight.double(), conv.bias.double(), stride).relu()
    x = x.movedim(1, -1).flatten(1)  # [M, h * w * C]
    x = F.linear(x, encoder.linear.weight.double(), encoder.linear.bias.double()).relu()
    features = encoder(obs)
    assert features.shape == (*leading, {"nature": 512, "a3c": 256, "minatar": 128}[net])
    torch.testing.assert_close(features.double(), x.view(features.shape), rtol=1e-4, atol=1e-5)
    assert features.std() > 0.01


@pytest.mark.parametrize(
    ("net", "sizes"),
    [
        ("nature", [4 * 64 * 32, 16 * 32 * 64, 9 * 64 * 64, 7 * 7 * 64 * 512]),
        ("a3c", [4 * 64 * 16, 16 * 16 * 32, 9 * 9 * 32 * 256]),
    ],
)
def test_the_nets_are_those_of_the_papers(net, sizes):
    encoder = ConvEncoder((4, 84, 84), net, 1.0)
    assert [p.numel() for name, p in encoder.named_parameters() if name.endswith("weight")] == sizes
    for layer in (*encoder.convs, encoder.linear):
        rows = layer.weight.detach().flatten(1)
        gram = rows @ rows.t() if len(rows) <= rows.shape[1] else rows.t() @ rows
        torch.testing.assert_close(gram, 2.0 * torch.eye(len(gram)), rtol=0.0, atol=1e-4)
        assert not layer.bias.any()


@pytest.mark.parametrize(("net", "least"), [("nature", 36), ("a3c", 20), ("minatar", 3)])
def test_images_may_be_as_small_as_leaves_a_pixel_and_no_smaller(net, least):
    ConvEncoder((2, least, least), net, 1.0)(torch.zeros(1, 2, least, least))
    with pytest.raises(ValueError, match=rf"images of {least} x {least - 1} pixels, expected at least {least} x"):
        ConvEncoder((least, least - 1, 1), net, 1.0)


def test_flattened_parameters_keep_their_values_and_their_order_in_memory():
    model = make_model("a3c", (4, 24, 24), torch.uint8)
    encoder = model.trunks[0].encoder
    before = {name: (p.detach().clone(), p.stride()) for name, p in model.named_parameters()}
    vector, grad = flatten(model)
    assert encoder.convs[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert encoder.linear.weight.t().is_contiguous() and not encoder.linear.weight.is_contiguous()
    for name, p in model.named_parameters():
        value, stride = before[name]
        assert torch.equal(p, value) and p.stride() == p.grad.stride() == stride
        assert p.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
        assert p.data_ptr() % 64 == p.grad.data_ptr() % 64 == 0
    assert flat_size(model) == vector.numel() == grad.numel()
    vector.copy_(torch.arange(len(vector)))  # every parameter has elements of its own
    params = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert params.unique().numel() == params.numel()


# --- which encoder ------------------------------------------------------------------------------


class Envs:
    """Spaces, which is all that a model is built from."""

    def __init__(self, low, high, shape, dtype):
        self.single_observation_space = Box(low, high, shape, dtype)
        self.single_action_space = Discrete(NUM_ACTIONS)


ATARI, SMALL = Envs(0, 255, (4, 84, 84), np.uint8), Envs(0, 1, (10, 10, 4), np.bool_)
VECTOR = Envs(-1.0, 1.0, (3,), np.float32)


def built_encoder(envs, **settings):
    return build_model(ModelConfig(**settings), envs).trunks[0].encoder


def test_the_encoder_is_by_the_observation_or_as_asked():
    assert built_encoder(ATARI).output_size == 512
    assert built_encoder(ATARI, encoder="a3c").output_size == 256
    assert built_encoder(SMALL).output_size == 128
    assert isinstance(built_encoder(VECTOR), MLPEncoder)
    assert isinstance(built_encoder(VECTOR, encoder="mlp"), MLPEncoder)


def test_bytes_are_scaled_and_nothing_else():
    assert built_encoder(ATARI).scale == 1.0 / 255.0
    for envs in (SMALL, Envs(0, 1, (36, 36, 3), np.uint8), Envs(0.0, 255.0, (36, 36, 3), np.float32)):
        assert built_encoder(envs).scale == 1.0


@pytest.mark.parametrize(
    ("envs", "settings", "says"),
    [
        (ATARI, {"encoder": "mlp"}, r"encoder is 'mlp', expected nature, a3c, .* images \[4, 84, 84\]"),
        (VECTOR, {"encoder": "nature"}, r"encoder is 'nature', expected 'mlp' or 'auto': .* vectors of 3 numbers"),
        (SMALL, {"encoder": "nature"}, "images of 10 x 10 pixels, expected at least 36 x 36 for the encoder nature"),
    ],
)
def test_what_does_not_fit_is_refused(envs, settings, says):
    with pytest.raises(ValueError, match=says):
        build_model(ModelConfig(**settings), envs)


def test_standardised_images_are_scaled_by_their_statistics_alone():
    model = build_model(ModelConfig(normalize_obs=True, pixel_scale=0.1), ATARI)
    assert type(model.obs_normalizer) is ImageNormalizer and model.trunks[0].encoder.scale == 1.0
    assert model.obs_normalizer.moments.mean.shape == (84, 84)
    assert model.obs_normalizer.moments.var.unique().item() == pytest.approx(100.0)
    assert build_model(ModelConfig(normalize_obs=True), SMALL).obs_normalizer.moments.mean.shape == (10, 10, 4)


def test_an_encoder_of_ones_own_sees_standardised_images():
    seen = []

    class Own(torch.nn.Module):
        def forward(self, obs):
            seen.append(obs)
            return obs.float().flatten(1)[:, :5]

    model = build_model(ModelConfig(normalize_obs=True, hidden_sizes=()), ATARI, encoder=lambda space: Own())
    obs = torch.full((2, 4, 84, 84), 255, dtype=torch.uint8)
    model(obs, torch.zeros(2, 0), torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(seen[-1], torch.ones(2, 4, 84, 84), rtol=1e-3, atol=0.0)


def test_an_encoder_that_scales_standardised_images_is_left_to_autograd():
    config = ModelConfig(normalize_obs=True)
    for scale in (1.0, 1.0 / 255.0):
        model = build_model(config, ATARI, encoder=lambda space, s=scale: ConvEncoder(space.shape, "a3c", s))
        assert is_fusable(model) == (scale == 1.0)


def test_an_encoder_of_ones_own_is_shown_what_will_be_stored():
    seen = []

    class Own(torch.nn.Module):
        def forward(self, obs):
            seen.append((obs.dtype, obs.shape))
            return obs.float().flatten(1)[:, :5]

    for envs in (ATARI, SMALL, VECTOR):
        build_model(ModelConfig(hidden_sizes=()), envs, encoder=lambda space: Own())
    assert seen == [(torch.uint8, (2, 4, 84, 84)), (torch.float32, (2, 10, 10, 4)), (torch.float32, (2, 3))]


def test_a_network_of_linear_layers_begins_as_it_always_did():
    config = ModelConfig(hidden_sizes=(5,), shared_trunk=False)
    model = build_model(config, VECTOR, seed=7)
    torch.manual_seed(7)
    trunks = [Trunk(MLPEncoder(3, (5,), config.activation), IdentityCore(5)) for _ in range(2)]
    expected = ActorCritic(trunks, CategoricalHead(5, NUM_ACTIONS), NoObsNormalizer())
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


# --- fused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalizes", [False, True])
@pytest.mark.parametrize("keep_activations", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_it_acts_and_values_as_the_model_does(case, shared, keep_activations, normalizes):
    net, obs_shape, dtype = CASES[case]
    model = make_model(net, obs_shape, dtype, shared, normalizes)
    theirs, ours = make_rollout(obs_shape, dtype), make_rollout(obs_shape, dtype)
    act(ModelActor(model, theirs, torch.Generator().manual_seed(0), CPU))
    network, actor = act_fused(model, ours, keep_activations)
    staged = StagedActor(network, build_sampler(model.head, NUM_ENVS), ours, torch.Generator().manual_seed(0))
    final = draw((NUM_ENVS, *obs_shape), dtype, 5)
    value = model.value(final, torch.zeros(NUM_ENVS, 0), torch.zeros(NUM_ENVS, dtype=torch.bool))
    for each in (actor, staged):
        if each is staged:
            ours.value.zero_()
            act(staged)
        torch.testing.assert_close(ours.value, theirs.value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.log_prob, theirs.log_prob, rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.action, theirs.action)
        torch.testing.assert_close(each.value_of(final), value, rtol=1e-4, atol=1e-5)
    assert ours.value.std() > 0.01 and ours.log_prob.std() > 0.01


def gradients(model, gradient, batch, coefs, is_fresh):
    for p in model.parameters():
        p.grad.fill_(torch.nan)  # whatever was there, it is written
    terms = differentiate(gradient, batch, coefs, is_fresh)
    return terms, {name: p.grad.clone() for name, p in model.named_parameters()}


def check_gradients(model, network, activations, rollout, coefs):
    """Hold every way to the gradient to autograd's."""
    rollout.log_prob.add_(0.3 * torch.randn(rollout.log_prob.shape, generator=torch.Generator().manual_seed(9)))
    (batch,) = FlatMinibatches(1, torch.Generator()).split(rollout)
    loss = policy_gradient if coefs is A2C else clipped_surrogate
    objective, rows = build_objective(model.head, loss), NUM_STEPS * NUM_ENVS
    plain = AutogradGradient(model, PlainObjective(model.head, loss), CPU)
    terms, expected = gradients(model, plain, batch, coefs, False)
    for gradient, is_fresh in (
        (AutogradGradient(model, build_objective(model.head, loss), CPU), False),
        (make_gradient(network, objective, None, rows), True),
        (make_gradient(network, objective, activations, rows), True),
        (make_gradient(network, objective, activations, rows), False),
        (make_gradient(network, objective, activations, rows, goes_forward=False), True),
        (StagedGradient(network, objective, batch), False),
    ):
        their_terms, found = gradients(model, gradient, batch, coefs, is_fresh)
        torch.testing.assert_close(their_terms, terms, rtol=1e-4, atol=1e-5)
        for name, grad in expected.items():
            assert grad.abs().max() > 1e-4, name
            tolerance = 1e-4 * grad.abs().max().item()
            torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("normalizes", [False, True])
@pytest.mark.parametrize("chunk", [2, 5, 1024])  # 12 rows; 3 environments act in chunks of 2, too
@pytest.mark.parametrize("coefs", [A2C, PPO], ids=["a2c", "ppo"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_its_gradients_are_autograds(case, shared, coefs, chunk, normalizes, monkeypatch):
    monkeypatch.setattr(fused_gradient, "chunk_rows", lambda network, rows: min(chunk, rows))
    net, obs_shape, dtype = CASES[case]
    model, rollout = make_model(net, obs_shape, dtype, shared, normalizes), make_rollout(obs_shape, dtype)
    network, actor = act_fused(model, rollout)
    check_gradients(model, network, actor.activations, rollout, coefs)


@pytest.mark.parametrize("chunk", [2, 5])  # of 3 environments, and of 12 rows
@pytest.mark.parametrize("normalizes", [False, True])
def test_stacks_built_in_one_place_are_seen_as_they_were(normalizes, chunk, monkeypatch):
    monkeypatch.setattr(fused_gradient, "CHUNK", chunk)
    model, frame = make_model("a3c", (4, 20, 22), torch.uint8, normalizes=normalizes), (20, 22)
    theirs, ours = (make_rollout(frame, torch.uint8, frame_stack=4) for _ in range(2))
    act(ModelActor(model, theirs, torch.Generator().manual_seed(0), CPU))
    network, actor = act_fused(model, ours)
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.action, theirs.action) and ours.value.std() > 0.01
    check_gradients(model, network, actor.activations, ours, A2C)


def test_after_an_update_nothing_of_the_old_weights_is_left():
    net, obs_shape, dtype = CASES["nature"]
    model, rollout = make_model(net, obs_shape, dtype), make_rollout(obs_shape, dtype)
    network, actor = act_fused(model, rollout)
    before = rollout.value.clone()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
    act(actor)
    theirs = make_rollout(obs_shape, dtype)
    act(ModelActor(model, theirs, torch.Generator().manual_seed(0), CPU))
    torch.testing.assert_close(rollout.value, theirs.value, rtol=1e-4, atol=1e-4)
    assert (rollout.value - before).abs().max() > 0.01
    check_gradients(model, network, actor.activations, rollout, A2C)


@pytest.mark.parametrize(("rows", "cut"), [(1, 1), (80, 80), (128, 128), (129, 65), (300, 100)])
def test_rows_are_cut_into_as_few_passes_as_can_be_and_alike(rows, cut, monkeypatch):
    model = make_model("minatar", (6, 6, 1), torch.float32)
    flatten(model)
    network = FusedNetwork(model)
    monkeypatch.setattr(fused_gradient, "CHUNK", 128)
    assert fused_gradient.chunk_rows(network, rows) == cut
    monkeypatch.setattr(fused_gradient, "CHUNK", 1024)
    monkeypatch.setattr(fused_gradient, "_CHUNK_BYTES", 128 * 4 * (36 + 256 + 128))  # image, convolution, linear
    assert fused_gradient.chunk_rows(network, rows) == cut
    monkeypatch.setattr(fused_gradient, "_CHUNK_BYTES", 10)  # less than a row
    assert fused_gradient.chunk_rows(network, rows) == 1


def test_small_images_are_no_layer_to_leave_out():
    model = make_model("minatar", (4, 4, 4), torch.float32)
    flatten(model)
    assert not FusedNetwork(model).leaves_first_out(10**6)


def test_a_conv_net_is_fused_with_and_without_memory():
    model = make_model("minatar", (6, 6, 1), torch.float32)
    assert is_fusable(model)
    trunk = Trunk(model.trunks[0].encoder, LSTMCore(128, 6))
    assert is_fusable(ActorCritic([trunk], CategoricalHead(6, NUM_ACTIONS), NoObsNormalizer()))


# --- runs ---------------------------------------------------------------------------------------


class Lights(gym.Env):
    """Shows noise with one light, and rewards the action that says in which quarter it is."""

    observation_space = Box(0, 255, (12, 10, 3), np.uint8)
    action_space = Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self._show(), {}

    def step(self, action):
        reward = float(action == self._quarter)
        self._steps += 1
        return self._show(), reward, self._steps == 7, False, {}

    def _show(self):
        self._quarter = int(self.np_random.integers(4))
        image = self.np_random.integers(0, 60, (12, 10, 3), dtype=np.uint8)
        row, column = divmod(self._quarter, 2)
        image[6 * row : 6 * row + 6, 5 * column : 5 * column + 5] += 150
        return image


def build_lights(**settings):
    config = Config().replace(**({"num_envs": 4, "num_steps": 6, "learning_rate": 1e-3} | settings))
    envs = build_envs(
        config.env,
        Streams.spawn(0).env,
        lambda num: SyncVectorEnv([Lights] * num, autoreset_mode=AutoresetMode.NEXT_STEP),
    )
    return build(config, envs)


def ends(training, iterations=4):
    list(islice(training.trainer.run(), iterations))
    found = weights(training)
    training.close()
    return found


RUNS = {
    "a2c": {},
    "ppo": {"algo": "ppo", "num_epochs": 2, "num_minibatches": 2},
    "ppo, one batch": {"algo": "ppo", "num_epochs": 2, "shared_trunk": False},
    "lstm": {"core": "lstm", "lstm_size": 8},
    "lstm ppo": {"core": "lstm", "lstm_size": 8, "algo": "ppo", "num_epochs": 2},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_run_learns_the_same_whether_forwards_are_kept_or_made_again(settings):
    kept, again = (ends(build_lights(**settings, reuse_forward=reuse)) for reuse in (True, False))
    for name, value in kept.items():
        torch.testing.assert_close(value, again[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("core", ["identity", "gru"])
def test_a_run_learns_what_autograd_would_have_learned(core, monkeypatch):
    found = []
    for fuses in (True, False):
        monkeypatch.setattr("fastac.build.engine.is_fusable", lambda model, fuses=fuses: fuses)
        found.append(ends(build_lights(algo="ppo", num_epochs=2, core=core, lstm_size=8)))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_run_learns_to_see():
    training = build_lights(num_envs=16, num_steps=8)
    rewards = [
        training.rollouts[0].reward[training.rollouts[0].valid].mean().item()
        for _ in islice(training.trainer.run(), 80)
    ]
    training.close()
    assert np.mean(rewards[:3]) < 0.4 < 0.8 < np.mean(rewards[-5:])  # of 1; by chance 0.25


def held_bytes():
    gc.collect()
    storages = [found.untyped_storage() for found in gc.get_objects() if type(found) in (Tensor, Parameter)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("settings", [{}, {"reuse_forward": False}, {"algo": "ppo", "num_epochs": 2}])
def test_a_run_holds_the_memory_that_it_states_and_no_second_copy(settings):
    make_training().close()  # what is made once
    before = held_bytes()
    training = build_lights(**({"num_envs": 16, "num_steps": 8} | settings))
    list(islice(training.trainer.run(), 2))
    held = held_bytes() - before
    stated = training.rollouts[0].nbytes + training.info.activations_nbytes
    params = sum(p.nbytes for p in training.model.parameters())  # and their gradients, two slots
    assert stated <= held <= 1.02 * stated + 4 * params + 2**15
    training.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the captured graphs are not tested here")
@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_run_on_cuda_learns_what_one_on_the_cpu_does(settings, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # else convolutions keep 10 bits of 23
    expected, found = (ends(build_lights(**settings, device=device)) for device in ("cpu", "cuda"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-3, atol=1e-4, msg=name)
