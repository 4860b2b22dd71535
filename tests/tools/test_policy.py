"""TrainedPolicy: forms, action spaces, memory, sampling."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from masked_envs import Masked
from torch import nn

from fastac.build import build_model
from fastac.config import ModelConfig
from fastac.envs.rows import FlatBox, Reading
from fastac.envs.spaces import SquashedBox
from fastac.tools.policy import TrainedPolicy

OBS_SPACE = Box(-1.0, 1.0, (3,), np.float32)
OBS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)  # [N, 3]
LSTM = ModelConfig(core="lstm", lstm_size=8, hidden_sizes=(8,))


SMALL = ModelConfig(hidden_sizes=(8,))


def make_policy(action_space, config=SMALL, seed=0, encoder=None, obs_space=OBS_SPACE) -> TrainedPolicy:
    spaces = SimpleNamespace(single_observation_space=obs_space, single_action_space=action_space)
    model = build_model(config, spaces, seed=1, encoder=encoder)
    with torch.no_grad():  # first weights make all actions alike
        model.head.layer.weight.mul_(300.0)
    return TrainedPolicy(model, obs_space, action_space, seed)


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize(
    ("space", "batch_shape"),
    [
        (Discrete(3), (5,)),
        (Discrete(3, start=-7), (5,)),
        (MultiDiscrete([2, 4], start=[5, -1]), (5, 2)),
        (MultiBinary(3), (5, 3)),
        (SquashedBox(Box(np.float32([-0.1, 0.0]), np.float32([0.1, 0.5]))), (5, 2)),
        (Box(np.float32([-0.1, 0.0]), np.float32([0.1, 0.5])), (5, 2)),
        (Box(-0.2, 0.2, (1,), np.float64), (5, 1)),
    ],
    ids=str,
)
def test_actions_lie_in_the_space_alone_and_batched(space, batch_shape, greedy):
    policy = make_policy(space)
    batch = policy.act(OBS, greedy=greedy)
    assert batch.shape == batch_shape
    assert all(space.contains(action) for action in batch)
    single = policy.act(OBS[0], greedy=greedy)
    assert space.contains(single)
    assert single.dtype == batch.dtype == space.dtype


def test_a_batch_acts_like_its_rows():
    for space in (Discrete(3, start=2), Box(-1.0, 1.0, (2,), np.float32)):
        policy = make_policy(space)
        np.testing.assert_allclose(policy.act(OBS), [policy.act(obs) for obs in OBS], rtol=1e-5)
        np.testing.assert_allclose(policy.value(OBS), [policy.value(obs) for obs in OBS], rtol=1e-5)


def test_greedy_takes_the_most_likely_action_and_shifts_it():
    policy = make_policy(Discrete(3, start=10))
    obs = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    state, start = policy.model.initial_state(200), torch.ones(200, dtype=torch.bool)
    logits, values, _ = policy.model(torch.from_numpy(obs), state, start)
    expected = logits.argmax(dim=-1).numpy() + 10
    assert len(set(expected)) > 1
    np.testing.assert_array_equal(policy.act(obs), expected)
    np.testing.assert_allclose(policy.value(obs), values.detach().numpy(), rtol=1e-6)
    assert isinstance(policy.value(obs[0]), float)


def test_a_sample_is_clipped_to_the_box():
    policy = make_policy(Box(-0.01, 0.01, (1,), np.float32))
    sampled = np.concatenate([policy.act(OBS, greedy=False) for _ in range(10)])
    assert sampled.min() == np.float32(-0.01)  # the deviation is 1
    assert sampled.max() == np.float32(0.01)


def test_an_action_is_squashed_into_the_box():
    box = Box(np.float32([-2.0]), np.float32([4.0]))
    clipped, squashed = (make_policy(space) for space in (box, SquashedBox(box)))
    means = make_policy(Box(-np.inf, np.inf, (1,), np.float32)).act(OBS)
    np.testing.assert_allclose(squashed.act(OBS), 1.0 + 3.0 * np.tanh(means), rtol=1e-5)
    np.testing.assert_array_equal(clipped.act(OBS), np.clip(means, -2.0, 4.0))


DICT = Dict(goal=Box(-9.0, 9.0, (2, 2), np.float32), step=Tuple((Discrete(3, start=1), MultiBinary(2))))
GOALS = np.random.default_rng(2).normal(size=(4, 2, 2)).astype(np.float32)  # [N, 2, 2]
STEPS, BITS = np.array([1, 3, 2, 1]), np.array([[0, 1], [1, 1], [0, 0], [1, 0]], np.int8)  # [N], [N, 2]


@pytest.mark.parametrize("config", [SMALL, LSTM], ids=["plain", "lstm"])
def test_a_dict_comes_as_the_environment_gives_it_alone_and_batched(config):
    policy = make_policy(Box(-100.0, 100.0, (1,), np.float32), config, obs_space=FlatBox(DICT))
    assert policy.observation_space == DICT
    rows = [{"goal": GOALS[n], "step": (STEPS[n], BITS[n])} for n in range(4)]
    assert all(DICT.contains(row) for row in rows)
    batch = policy.act({"goal": GOALS, "step": (STEPS, BITS)})
    assert batch.shape == (4, 1) and len(np.unique(batch)) == 4
    singles, values = [], []
    for row in rows:
        policy.reset()
        values.append(policy.value(row))
        singles.append(policy.act(row))
    np.testing.assert_allclose(singles, batch, rtol=1e-5)
    policy.reset()
    np.testing.assert_allclose(values, policy.value({"goal": GOALS, "step": (STEPS, BITS)}), rtol=1e-5)
    plain = make_policy(policy.action_space, config, obs_space=Box(-9.0, 9.0, (9,), np.float32))
    flat = np.concatenate([GOALS.reshape(4, 4), np.eye(3)[STEPS - 1], BITS], axis=1)
    np.testing.assert_allclose(plain.act(flat), batch, rtol=1e-5)


def test_a_counted_observation_is_a_number_or_an_array_of_them():
    policy = make_policy(Box(-100.0, 100.0, (1,), np.float32), obs_space=FlatBox(Discrete(4)))
    batch = policy.act(np.array([3, 0, 2]))
    assert len(np.unique(batch)) == 3
    np.testing.assert_allclose([policy.act(3), policy.act(np.int64(0)), policy.act(2)], batch, rtol=1e-5)
    with pytest.raises(ValueError, match=r"the observation holds a number outside of the \[4\] from \[0\] on"):
        policy.act(4)


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(9), "is a ndarray, expected a dict of goal, step"),
        ({"goal": GOALS[0]}, "has no 'step'"),
        ({"goal": GOALS, "step": (STEPS[:3], BITS[:3])}, "not batches of one size"),
        (
            {"goal": GOALS[:, 0], "step": (STEPS, BITS)},
            r"\['goal'\] has shape \[4, 2\], expected \[2, 2\]",
        ),
    ],
)
def test_another_dict_is_refused_in_a_sentence(obs, message):
    policy = make_policy(Discrete(3), obs_space=FlatBox(DICT))
    for call in (policy.act, policy.value):
        with pytest.raises(ValueError, match=message):
            call(obs)


def test_samples_follow_the_seed_and_not_the_global_stream():
    def sample(seed):
        policy = make_policy(Discrete(3), ModelConfig(hidden_sizes=()), seed)
        with torch.no_grad():
            policy.model.head.layer.weight.zero_()  # uniform
        return [int(policy.act(OBS[0], greedy=False)) for _ in range(300)]

    before = torch.get_rng_state()
    first = sample(0)
    assert torch.equal(before, torch.get_rng_state())
    assert first == sample(0) != sample(1)
    assert np.bincount(first).min() > 70  # of 100 expected; more than four deviations away


def test_memory_carries_over_until_reset():
    policy = make_policy(Box(-100.0, 100.0, (1,), np.float32), LSTM)
    first, second = policy.act(OBS[0]), policy.act(OBS[0])
    assert first != second
    policy.reset()
    assert policy.act(OBS[0]) == first
    assert policy.act(OBS[0]) == second


def test_memory_is_that_of_the_models_sequence():
    policy = make_policy(Box(-100.0, 100.0, (1,), np.float32), LSTM)
    start = torch.tensor([[True]] + [[False]] * 4)
    model = policy.model
    means, values, _ = model(torch.from_numpy(OBS[:, None]), model.initial_state(1), start)  # [T, 1, 1], [T, 1]
    for t, obs in enumerate(OBS):
        np.testing.assert_allclose(policy.value(obs), values[t, 0].item(), rtol=1e-5)
        np.testing.assert_allclose(policy.act(obs), means[t, 0].detach().numpy(), rtol=1e-5)


def test_value_leaves_the_memory_alone():
    policy, other = (make_policy(Box(-100.0, 100.0, (1,), np.float32), LSTM) for _ in range(2))
    policy.act(OBS[0])
    other.act(OBS[0])
    policy.value(OBS[1])
    policy.value(OBS)  # of another size
    assert policy.act(OBS[2]) == other.act(OBS[2])


def test_another_batch_size_begins_anew():
    policy = make_policy(Box(-100.0, 100.0, (1,), np.float32), LSTM)
    first = policy.act(OBS)
    policy.act(OBS[:2])
    np.testing.assert_array_equal(policy.act(OBS), first)


FREE = Box(-100.0, 100.0, (1,), np.float32)


@pytest.mark.parametrize("told", ["observation", "info"])
def test_a_masked_loop_over_a_vector_env_takes_legal_actions_only(told):
    """After an end the mask allows nothing, and nobody acts."""
    envs = gym.vector.SyncVectorEnv([lambda: Masked(told)] * 3)
    row = FlatBox(envs.single_observation_space, Reading(mask_source=told, mask_size=5))
    policy = make_policy(envs.single_action_space, obs_space=row)
    obs, info = envs.reset(seed=0)
    for _ in range(20):
        action = policy.act(obs, action_mask=None if told == "observation" else info["action_mask"])
        obs, _, _, _, info = envs.step(action)  # an illegal one raises
    envs.close()
    single, info = Masked(told).reset(seed=0)
    nothing = {**single, "action_mask": np.zeros(5)} if told == "observation" else single
    with pytest.raises(ValueError, match="the action mask of the environment allows no action"):
        policy.act(nothing, action_mask=None if told == "observation" else np.zeros(5))


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_start_resets_the_memory_of_single_environments(core):
    policy = make_policy(FREE, ModelConfig(core=core, lstm_size=8, hidden_sizes=(8,)))
    first = policy.act(OBS)
    start = np.array([False, True, False, True, False])
    np.testing.assert_array_equal(policy.value(OBS, start=start)[start], policy.value(OBS, start=np.ones(5))[start])
    second = policy.act(OBS, start=start)
    np.testing.assert_array_equal(second[start], first[start])
    assert (second[~start] != first[~start]).all()
    policy.reset()
    alone = policy.act(OBS[0])
    assert policy.act(OBS[0], start=True) == alone != policy.act(OBS[0], start=False)


def test_a_loop_over_a_vector_env_acts_as_single_loops_do():
    """Gymnasium's own mode, NEXT_STEP: the first observation of an episode comes a step after the end."""
    policy = make_policy(Discrete(2), LSTM, obs_space=Box(-np.inf, np.inf, (4,), np.float32))
    envs = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    obs, _ = envs.reset(seed=0)
    start, over, steps = np.ones(3, bool), np.zeros(3, bool), [[] for _ in range(3)]
    for _ in range(60):
        action = policy.act(obs, start=start)
        for n in range(3):
            steps[n].append((obs[n], start[n], action[n]))
        obs, _, terminated, truncated, _ = envs.step(action)
        start, over = over, terminated | truncated
    envs.close()
    assert sum(begins for _, begins, _ in steps[0]) > 1
    for rows in steps:
        for seen, begins, action in rows:
            if begins:
                policy.reset()
            assert policy.act(seen) == action


def test_decide_says_all_and_leaves_the_memory_alone():
    policy, other = make_policy(FREE, LSTM), make_policy(FREE, LSTM)
    policy.act(OBS[0])
    first = policy.decide(OBS[0])
    second = policy.decide(OBS[1], first.state, start=False)
    assert isinstance(first.value, float) and first.state.shape == (16,) and list(first.params) == ["mean", "log_std"]
    assert other.act(OBS[0]) == first.action == first.params["mean"] and other.value(OBS[1]) == second.value
    assert other.act(OBS[1]) == second.action == policy.act(OBS[1])
    batch = policy.decide(OBS, np.tile(first.state, (5, 1)), start=[True, False, True, True, True])
    np.testing.assert_allclose(batch.action[1], second.action, rtol=1e-5)
    np.testing.assert_allclose(batch.action[0], first.action, rtol=1e-5)
    assert batch.value.shape == (5,) and batch.params["log_std"].shape == (5, 1)
    assert policy.decide(OBS[0], greedy=False).action != first.action
    logits = make_policy(Discrete(3)).decide(OBS).params["logits"]
    assert logits.shape == (5, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda policy: policy.act(OBS, start=[True]), r"start has shape \[1\], expected \[5\]"),
        (lambda policy: policy.value(OBS[0], start=[True, False]), r"start has shape \[2\], expected \[1\]"),
        (lambda policy: policy.decide(OBS, np.zeros(16)), r"the state has shape \[16\], expected \[5, 16\]"),
        (lambda policy: policy.decide(OBS[0], np.zeros((1, 16))), r"the state has shape \[1, 16\], expected \[16\]"),
    ],
)
def test_a_memory_of_another_shape_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_policy(FREE, LSTM))


def test_threads_share_a_policy_and_no_memory():
    policy = make_policy(FREE, LSTM)
    expected = [[float(policy.act(obs)[0]) for obs in OBS[::way]] for way in (1, -1) if policy.reset() is None]
    turns = threading.Barrier(2)

    def play(way):
        policy.reset()
        actions = []
        for obs in OBS[::way]:
            turns.wait()
            actions.append(float(policy.act(obs)[0]))
        return actions

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(play, (1, -1))) == expected


def test_a_deep_copy_goes_on_by_itself():
    policy = make_policy(FREE, LSTM)
    policy.act(OBS[0], greedy=False)
    copied = copy.deepcopy(policy)
    assert copied.model is not policy.model
    theirs = [copied.act(obs, greedy=False) for obs in OBS]
    assert [policy.act(obs, greedy=False) for obs in OBS] == theirs
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(copied.act, OBS[0]).result() == make_policy(FREE, LSTM).act(OBS[0])


def test_any_array_like_is_taken_and_none_is_written():
    policy = make_policy(Discrete(3))
    expected = policy.act(OBS)
    frozen = OBS.astype(np.float64)
    frozen.flags.writeable = False
    for obs in (frozen, OBS.tolist(), OBS[::-1].copy()[::-1], np.asfortranarray(OBS), torch.from_numpy(OBS)):
        np.testing.assert_array_equal(policy.act(obs), expected)


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(4), r"shape \[4\], expected \[3\], or \[N, 3\]"),
        (np.zeros((3, 4)), r"shape \[3, 4\]"),
        (np.zeros((1, 1, 3)), r"shape \[1, 1, 3\]"),
        (1.0, r"shape \[\]"),
        ([[0.0, 0.0, 0.0], [0.0]], "not an array of numbers"),
        ("abc", "not an array of numbers"),
        (None, "shape|not an array of numbers"),
    ],
)
def test_another_shape_is_refused_in_a_sentence(obs, message):
    policy = make_policy(Discrete(3))
    for call in (policy.act, policy.value):
        with pytest.raises(ValueError, match=message):
            call(obs)


def test_a_custom_encoders_dropout_is_off_and_no_gradient_is_kept():
    policy = make_policy(
        Box(-100.0, 100.0, (1,), np.float32), encoder=lambda _: nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5))
    )
    np.testing.assert_array_equal(policy.act(OBS), policy.act(OBS))
    assert policy._memory.state is not None and not policy._memory.state.requires_grad


IMAGES = Box(0, 255, (2, 5, 4), np.uint8)
PICTURES = np.random.default_rng(0).integers(0, 256, (6, 2, 5, 4)).astype(np.uint8)  # [N, S, H, W]


class Looks(nn.Module):
    """A linear layer over pixels, which takes nothing but bytes."""

    def __init__(self, space: Box) -> None:
        super().__init__()
        self.layer = nn.Linear(int(np.prod(space.shape)), 8)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        assert obs.dtype == torch.uint8
        return self.layer(obs.flatten(-3) / 255.0)


def test_bytes_of_a_row_are_whole_numbers() -> None:
    space = Dict(image=Box(0, 255, (8, 8, 3), np.uint8), kind=Discrete(2))
    policy = make_policy(Discrete(3), SMALL, obs_space=FlatBox(space))
    obs = {"image": np.full((8, 8, 3), 7), "kind": 1}
    policy.act(obs)
    for wrong in (0.7, 300, -1):
        with pytest.raises(ValueError, match=rf"the observation holds {wrong}.*expected images of whole numbers"):
            policy.act({**obs, "image": np.full((8, 8, 3), wrong)})
    with pytest.raises(ValueError, match="action_mask is given, expected None: the policy was trained without"):
        policy.act(obs, action_mask=np.ones(3))


def make_image_policy() -> TrainedPolicy:
    spaces = SimpleNamespace(single_observation_space=IMAGES, single_action_space=Box(-9.0, 9.0, (1,), np.float32))
    return TrainedPolicy(build_model(SMALL, spaces, seed=1, encoder=Looks), IMAGES, spaces.single_action_space)


def test_images_come_as_they_are_alone_and_batched():
    policy = make_image_policy()
    batch, values = policy.act(PICTURES), policy.value(PICTURES)
    assert len(np.unique(batch)) == 6
    np.testing.assert_allclose(batch, [policy.act(picture) for picture in PICTURES], atol=1e-6)
    np.testing.assert_allclose(values, [policy.value(picture) for picture in PICTURES], atol=1e-6)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, list])
def test_images_may_be_held_by_other_numbers(kind):
    policy = make_image_policy()
    given = PICTURES.tolist() if kind is list else PICTURES.astype(kind)
    np.testing.assert_array_equal(policy.act(given), policy.act(PICTURES))


@pytest.mark.parametrize("number", [0.5, -1.0, 256.0, np.nan, np.inf, -3, 1000])
def test_images_of_other_numbers_are_refused(number):
    picture = PICTURES[0].astype(type(number))
    picture[1, 2, 3] = number
    policy = make_image_policy()
    for call in (policy.act, policy.value):
        with pytest.raises(ValueError, match=rf"holds {number}, expected an image of whole numbers from 0 to 255"):
            call(picture)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_the_gpu_acts_like_one_on_the_cpu():
    policy = make_policy(Discrete(3), LSTM)
    expected = policy.act(OBS)
    policy.model.to("cuda")
    policy.reset()
    np.testing.assert_array_equal(policy.act(OBS), expected)
    assert policy.act(OBS, greedy=False).shape == (5,)
