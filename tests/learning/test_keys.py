"""Dict observations: an encoder per image, one for all vectors, keys of the critic, statistics of numbers."""

from itertools import islice

import numpy as np
import pytest
import torch
from core_support import CPU, make_training
from dict_envs import SIDE, Bytes
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Text

from fastac import memory
from fastac.build import build_model
from fastac.config import Config, EnvConfig
from fastac.envs import make_vec
from fastac.envs.rows import FlatBox, Reading
from fastac.envs.saved_spaces import Spaces
from fastac.learning.fused import Activations, FusedNetwork, is_fusable
from fastac.learning.fused.network import ForwardPass
from fastac.learning.optimizer import LocalOptimizer
from fastac.learning.update_rules import Adam
from fastac.models import ConvEncoder, KeyedEncoder, MLPEncoder
from fastac.runs.evaluate import evaluate
from fastac.runs.player import make_player

PIXELS = SIDE * SIDE * 3
SETTINGS = {
    "env_id": "dict_envs:Signs",
    "drop_keys": ("mission",),
    "num_envs": 16,
    "num_steps": 4,
    "hidden_sizes": (16,),
    "vectorization": "sync",
    "learning_rate": 0.01,
    "gamma": 0.5,
}


def read(space, *, drop=(), critic=()):
    return FlatBox(space, Reading(drop_keys=drop, critic_keys=critic))


def test_columns_by_hand():
    space = Dict(image=Box(0, 255, (3, 3, 1), np.uint8), z=Box(-1, 1, (2,)), a=Dict(b=Discrete(3), c=MultiBinary(2)))
    flat = read(space, critic=("a/b",))
    found = [(part.leaf.key, part.kind, part.begin, part.end, part.is_critics) for part in flat.parts]
    assert found == [
        ("z", "numbers", 0, 2, False),
        ("a/c", "categories", 2, 4, False),
        ("a/b", "categories", 4, 7, True),
        ("image", "image", 7, 16, False),
    ]
    obs = {"image": np.arange(9, dtype=np.uint8).reshape(3, 3, 1), "z": [0.5, -0.5], "a": {"b": 1, "c": [1, 0]}}
    assert flat.flatten(obs).tolist() == [0.5, -0.5, 1, 0, 0, 1, 0, *range(9)]
    assert read(space, drop=("image", "a")).shape == (2,)


@pytest.mark.parametrize(("drop", "dtype"), [(("z",), np.uint8), ((), np.float32)])
def test_rows_are_bytes_if_that_loses_nothing(drop, dtype):
    space = Dict(image=Box(0, 255, (3, 3, 1), np.uint8), z=Box(-1, 1, (2,)), b=Discrete(3))
    assert read(space, drop=drop).dtype == dtype


def make_model(space, **settings):
    return build_model(Config().replace(**settings).model, Spaces(space, Discrete(2)))


def test_an_encoder_for_each_image_and_one_for_the_rest():
    space = Dict(x=Box(-1, 1, (2,)), near=Box(0, 255, (36, 36, 3), np.uint8), far=Box(0, 1, (3, 5, 5)), y=Discrete(4))
    model = make_model(read(space), hidden_sizes=(8,))
    encoder = model.trunks[0].encoder
    assert isinstance(encoder, KeyedEncoder)
    assert [type(part) for part in encoder.encoders] == [MLPEncoder, ConvEncoder, ConvEncoder]
    assert [part.scale for part in encoder.encoders[1:]] == [pytest.approx(1 / 255), 1.0]
    assert model.trunks[0].core.output_size == 8 + 512 + 128
    obs = torch.rand(7, 3, read(space).shape[0])
    features = encoder(obs)
    assert features.shape == (7, 3, 648)
    image = obs[..., 6 : 6 + 36 * 36 * 3].unflatten(-1, (36, 36, 3))
    torch.testing.assert_close(features[..., 8:520], encoder.encoders[1](image))
    torch.testing.assert_close(features[..., :8], encoder.encoders[0](obs[..., :6]))


def test_images_have_no_statistics():
    space = Dict(x=Box(-9, 9, (2,)), image=Box(0, 255, (3, 3, 1), np.uint8), y=Discrete(2))
    normalizer = make_model(read(space), normalize_obs=True).obs_normalizer
    normalizer.moments.mean.copy_(torch.tensor([1.0, 2.0, 0.0, 0.5]))
    normalizer.moments.var.copy_(torch.tensor([4.0, 1.0, 1.0, 0.25]))
    obs = torch.tensor([3.0, -99.0, 0.0, 1.0, *range(200, 209)])
    expected = torch.tensor([1.0, -10.0, 0.0, 1.0, *range(200, 209)])
    torch.testing.assert_close(normalizer(obs.expand(5, -1)), expected.expand(5, -1))


@pytest.mark.parametrize("mask_size", [0, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_image_alone_is_seen_as_one_without_a_dict(mask_size, dtype):
    image = Box(0, 255, (5, 6, 2), dtype)
    row = FlatBox(Dict(image=image, text=Text(3)), Reading(("text",), (), "info" if mask_size else None, mask_size))
    models = [make_model(space, normalize_obs=False) for space in (row, image)]
    assert isinstance(models[0].trunks[0].encoder, ConvEncoder) and is_fusable(models[0])
    obs = torch.randint(0, 256, (4, 5, 6, 2)).to(torch.uint8 if dtype == np.uint8 else torch.float32)
    mask = torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0]], dtype=obs.dtype)[:, :mask_size]
    rows = memory.zeros((4, 60 + mask_size), obs.dtype)
    rows.copy_(torch.cat([obs.flatten(1), mask], dim=1))
    start, state = torch.ones(4, dtype=torch.bool), torch.zeros(4, 0)
    params, value, _ = models[0](rows, state, start)
    plain, plain_value, _ = models[1](obs, state, start)
    if mask_size:
        plain = plain.masked_fill(mask == 0, -torch.inf)
    torch.testing.assert_close((params, value), (plain, plain_value))
    LocalOptimizer(models[0], Adam(1e-5), None)  # flattens the parameters
    network = FusedNetwork(models[0])
    found = ForwardPass(network, Activations.for_step(network, 4), 0, 4)
    found.forward(rows)
    torch.testing.assert_close((found.params, found.value), (params.detach(), value.detach()), rtol=1e-4, atol=1e-5)


def test_an_encoder_of_ones_own_reads_all_keys_and_sees_an_image_as_one():
    flat = read(Dict(x=Box(-1, 1, (2,)), state=Box(-1, 1, (3,))), critic=("state",))
    with pytest.raises(ValueError, match=r"critic_keys is \('state',\), expected \(\): .*:Looks, and .*reads all keys"):
        build_model(Config().replace(shared_trunk=False).model, Spaces(flat, Discrete(2)), encoder=Looks)
    row = FlatBox(Box(0, 1, (5, 6, 2)), Reading(mask_source="info", mask_size=2))
    assert build_model(Config().model, Spaces(row, Discrete(2)), encoder=Looks).trunks[0].encoder.seen == (5, 6, 2)


class Looks(torch.nn.Module):
    def __init__(self, space):
        super().__init__()
        self.seen = space.shape

    def forward(self, obs):
        return obs.flatten(-len(self.seen))[..., :3]


def test_the_actor_does_not_read_what_is_the_critics():
    space = Dict(x=Box(-1, 1, (2,)), state=Box(-1, 1, (3,)), image=Box(0, 1, (3, 3, 1)), map=Box(0, 1, (3, 4, 4)))
    flat = read(space, critic=("state", "map"))
    model = make_model(flat, shared_trunk=False, hidden_sizes=(4,))
    one, other = torch.rand(1, flat.shape[0]), torch.rand(1, flat.shape[0])
    for part in flat.parts:
        if not part.is_critics:
            other[:, part.begin : part.end] = one[:, part.begin : part.end]
    state, start = model.initial_state(1), torch.zeros(1, dtype=torch.bool)
    (params, value, _), (other_params, other_value, _) = (model(obs, state, start) for obs in (one, other))
    torch.testing.assert_close(params, other_params, rtol=0, atol=0)
    assert not torch.equal(value, other_value)


@pytest.mark.parametrize(("critic", "core"), [((), "gru"), (("nested",), "identity")], ids=["shared", "asymmetric"])
def test_all_that_is_shown_is_learned_from(critic, core):
    """The best return is the mean of `secret`; the asymmetric critic's value is then exact."""
    training = make_training(
        **SETTINGS,
        critic_keys=critic,
        shared_trunk=not critic,
        core=core,
        lstm_size=16,
        normalize_obs=True,
        total_env_steps=8_000,
    )
    for _ in training.trainer.run():
        pass
    config = EnvConfig("dict_envs:Signs", 10, "sync", drop_keys=("mission",), critic_keys=critic)
    envs = make_vec(config, np.random.SeedSequence(5))
    assert evaluate(make_player(training.model, 10, CPU), envs, 400).mean_return > 0.43
    if critic:
        rollout = training.rollouts[0]
        secret = rollout.obs[:-1, :, [part.end - 1 for part in envs.single_observation_space.parts if part.is_critics]]
        value = rollout.value[:-1][rollout.valid]
        assert (value - secret.squeeze(-1)[rollout.valid]).abs().mean() < 0.2


def test_rows_of_bytes_are_learned_from():
    training = make_training(**SETTINGS | {"env_id": "dict_envs:Bytes"})
    assert training.rollouts[0].obs.dtype == torch.uint8
    assert len(list(islice(training.trainer.run(), 2))) == 2
    envs = make_vec(EnvConfig("x", 3, "sync", drop_keys=("mission",)), np.random.SeedSequence(0), given=Bytes)
    assert envs.description.endswith("observations of 3 keys, 1 of them images")


def test_texts_must_be_dropped_by_key():
    with pytest.raises(ValueError, match=r"the observation's key 'mission' is a Text, .*--drop-keys mission"):
        make_training(**SETTINGS | {"drop_keys": ()})
