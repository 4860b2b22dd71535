"""Action masks on their way from environments to rows: three ways to tell them, single and batched, every mode."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from env_rows import begin, make_row
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from masked_envs import Masked, MaskedByKey, MaskedByMethod, Narrow, Stuck

from fastac.config import EnvConfig
from fastac.contract import EnvFailure, VecEnv
from fastac.envs import adapt, make_vec
from fastac.envs.masks import MaskReader, count_choices
from fastac.envs.rows import FlatBox

SOURCES = ["observation", "info", "method"]
KINDS = ["discrete", "several", "bits"]


def single(env=Masked, **settings: object) -> VecEnv:
    config = EnvConfig("masked_envs:Masked", 3, **{"vectorization": "sync", **settings})
    return make_vec(config, np.random.SeedSequence(0), given=env)


def legal(rows: np.ndarray, size: int) -> np.ndarray:
    """Return the masks of rows as the last columns."""
    return rows[:, -size:] != 0


def play(env: VecEnv, steps: int, seed: int = 0) -> list[np.ndarray]:
    """Take random legal actions; the environments raise at others."""
    rng, choices = np.random.default_rng(seed), count_choices(env.single_action_space)
    rows, row = [begin(env).copy()], make_row(env)
    shape = (env.num_envs, *(env.single_action_space.shape or ()))
    for _ in range(steps):
        parts = np.split(legal(rows[-1], sum(choices)), np.cumsum(choices)[:-1], axis=1)
        drawn = [[rng.choice(np.flatnonzero(mask)) for mask in part] for part in parts]
        env.step(np.array(drawn).T.reshape(shape), row)
        rows.append(row.obs.copy())
    return rows


@pytest.mark.parametrize("told", SOURCES)
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_the_last_columns_and_all_ones_at_the_end(told: str, kind: str) -> None:
    env = single(partial(Masked, told, kind))
    space = env.single_observation_space
    assert isinstance(space, FlatBox) and space.reading.mask_source == told
    size = space.reading.mask_size
    assert size == sum(count_choices(env.single_action_space)) and space.shape == (space.num_inputs + size,)
    rows = play(env, 12)
    assert rows[0].shape == (3, space.num_inputs + size)
    assert legal(rows[4], size).all() and not legal(rows[5], size).all()  # the final observation; then a new episode
    assert f"with masks of {size} actions" in env.description


@pytest.mark.parametrize("told", SOURCES)
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_batch_is_the_same_in_every_mode(told: str, mode: AutoresetMode) -> None:
    batch = SyncVectorEnv([partial(Masked, told)] * 3, autoreset_mode=mode)
    rows = play(adapt(batch, np.random.SeedSequence(0)), 11)
    is_next = mode is AutoresetMode.NEXT_STEP
    assert all(legal(row, 5).any(axis=1).all() for row in rows)
    assert legal(rows[4], 5).all() == is_next  # else the first row of the next episode
    if is_next:
        ours = single(partial(Masked, told))
        ours.take_seeds([3, 1, 4])
        theirs = adapt(SyncVectorEnv([partial(Masked, told)] * 3), np.random.SeedSequence(0))
        theirs._seed, theirs._first_obs = [3, 1, 4], None
        for left, right in zip(play(ours, 11), play(theirs, 11), strict=True):
            np.testing.assert_array_equal(left, right)


def test_processes_tell_their_masks_too() -> None:
    for env in (MaskedByMethod, Masked):
        batch = adapt(AsyncVectorEnv([env] * 2), np.random.SeedSequence(0))
        try:
            assert all(legal(row, 5).any(axis=1).all() for row in play(batch, 6))
        finally:
            batch.close()


def test_the_mask_in_an_observation_is_no_part_of_what_is_learned_from() -> None:
    env = single(MaskedByKey)
    assert [part.leaf.key for part in env.single_observation_space.parts] == ["zest", "state"]
    without = single(MaskedByKey, mask_actions=False)
    assert [part.leaf.key for part in without.single_observation_space.parts] == ["action_mask", "zest", "state"]
    assert single(Masked, mask_actions=False).single_observation_space == Box(-1.0, 1.0, (2,), np.float32)


def test_a_mask_that_allows_nothing_is_one_sentence() -> None:
    with pytest.raises(EnvFailure, match=r"env 0: the action mask of the environment allows no action, expected a leg"):
        play(single(Stuck), 3)
    with pytest.raises(EnvFailure, match="the action mask of env 0 allows no action"):
        play(adapt(SyncVectorEnv([Stuck, Masked]), np.random.SeedSequence(0)), 3)


def test_an_environment_that_stops_telling_its_mask_is_one_sentence() -> None:
    class Silent(Masked):
        def step(self, action: object) -> tuple:
            return *super().step(action)[:4], {}

    for env, words in (
        (single(Silent), "env 0: the info has no"),
        (batched(Silent), "the infos have no 'action_mask' of"),
    ):
        with pytest.raises(EnvFailure, match=f"{words}.*expected one after every reset and step"):
            play(env, 1)


def batched(env: type[Masked]) -> VecEnv:
    return adapt(SyncVectorEnv([env, env]), np.random.SeedSequence(0))


def test_a_mask_may_be_a_tuple_of_those_of_its_components() -> None:
    class Parts(MaskedByMethod):
        def __init__(self) -> None:
            super().__init__(kind="several")

        def _mask_now(self) -> tuple[np.ndarray, ...]:
            return tuple(np.split(self.mask.copy(), [3]))

    for env in (single(Parts), batched(Parts)):
        assert all(legal(row, 7).any(axis=1).all() for row in play(env, 6))


def test_a_mask_of_another_size_is_one_sentence() -> None:
    with pytest.raises(EnvFailure, match=r"env 0: the action mask has shape \[4\], expected \[5\]"):
        begin(single(Narrow))


def test_one_component_without_a_choice_is_enough() -> None:
    reader = MaskReader((2, 3))
    assert reader.read((np.array([0, 1]), np.array([1, 0, 0]))).tolist() == [False, True, True, False, False]
    stuck = reader.read([1, 1, 0, 0, 0])
    with pytest.raises(EnvFailure, match="allows no action"):
        reader.complete(stuck, is_over=False)
    assert reader.complete(stuck, is_over=True).all()
    batch = reader.read([[1, 0, 1, 0, 0], [1, 1, 0, 0, 0]], 2)
    completed = reader.complete(batch, np.array([True, True]))
    np.testing.assert_array_equal(completed, [[True, False, True, False, False], [True] * 5])


def test_actions_of_a_box_have_no_mask() -> None:
    class Boxed(Masked):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = Box(-1.0, 1.0, (5,), np.float32)

    assert single(Boxed).single_observation_space == Box(-1.0, 1.0, (2,), np.float32)


def test_taxi_tells_its_mask() -> None:
    newest = max(name for name in gym.registry if name.startswith("Taxi-v"))
    env = make_vec(EnvConfig(newest, 2, "sync"), np.random.SeedSequence(0))
    space = env.single_observation_space
    assert space.original == Discrete(500) and space.reading.mask_source == "info" and space.shape == (506,)
