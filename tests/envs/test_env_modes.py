"""Every autoreset mode gives the same transitions."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, TypeAlias

import gymnasium as gym
import numpy as np
import pytest
from env_rows import begin, draw_actions, make_row
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from probes import Ending, ToyChain

from fastac.contract import EnvFailure, StepRow, VecEnv
from fastac.envs import adapt
from fastac.envs.sync import SyncEnvs

Transition: TypeAlias = tuple[float, int, float, bool, bool, float]  # ..., the successor or final observation

# Per env: episode lengths and endings. Length 1, ends two and more in a row, all three endings in each
# position, and (over 12 steps) ends on the first and on the last step.
CHAINS: list[tuple[tuple[int, ...], tuple[Ending, ...]]] = [
    ((3, 1, 1, 4), ("terminated", "truncated", "both")),
    ((1,), ("truncated",)),
    ((1,), ("both",)),
    ((1,), ("terminated",)),
    ((12,), ("terminated",)),
    ((12,), ("truncated",)),
    ((2, 1), ("both", "terminated")),
    ((50,), ("terminated",)),
]


def make_chains(mode: AutoresetMode) -> VecEnv:
    builds = [partial(ToyChain, lengths, endings) for lengths, endings in CHAINS]
    return adapt(SyncVectorEnv(builds, copy=False, autoreset_mode=mode), np.random.SeedSequence(0))


def own_chains() -> VecEnv:
    builds = iter([partial(ToyChain, lengths, endings) for lengths, endings in CHAINS])
    return SyncEnvs(lambda: next(builds)(), list(range(len(CHAINS))), "")


def transitions(env: VecEnv, count: int) -> list[list[Transition]]:
    """Return the first `count` valid transitions of every env; the action depends on the observation alone."""
    obs, found = begin(env), [[] for _ in range(env.num_envs)]
    started = np.ones(env.num_envs, np.bool_)
    while min(map(len, found)) < count:
        row = make_row(env)
        action = obs[:, 0].astype(np.int64) % 2
        final = env.step(action, row)
        after = row.obs if final is None else np.where((row.terminated | row.truncated)[:, None], final, row.obs)
        for i in range(env.num_envs):
            if row.valid[i]:
                found[i].append(
                    (
                        float(obs[i, 0]),
                        int(action[i]),
                        float(row.reward[i]),
                        bool(row.terminated[i]),
                        bool(row.truncated[i]),
                        float(after[i, 0]),
                    )
                )
            else:
                assert (row.reward[i], row.terminated[i], row.truncated[i]) == (0.0, False, False)
                assert row.start[i]
            assert not started[i] or obs[i, 0] % 100 == 0, "start must mark first observations"
        obs, started = row.obs, row.start
    return [each[:count] for each in found]


def expected(chain: int, count: int) -> list[Transition]:
    """Work the chain out by hand, from its docstring."""
    lengths, endings = CHAINS[chain]
    found: list[Transition] = []
    episode = 0
    while len(found) < count:
        length, ending = lengths[episode % len(lengths)], endings[episode % len(endings)]
        for t in range(length):
            seen, last = 100 * episode + t, t == length - 1
            reward = float(np.float32(10 * episode + t + 1 + 0.1 * (seen % 2)))
            flags = (last and ending != "truncated", last and ending != "terminated")
            found.append((float(seen), seen % 2, reward, *flags, float(seen + 1)))
        episode += 1
    return found[:count]


@pytest.mark.parametrize("mode", [*AutoresetMode, "own"])
def test_modes_give_the_known_transitions(mode: AutoresetMode | str) -> None:
    env = make_chains(mode) if isinstance(mode, AutoresetMode) else own_chains()
    found = transitions(env, 60)
    for chain, each in enumerate(found):
        assert each == expected(chain, 60), f"chain {chain}"
    env.close()
    env.close()


@pytest.mark.parametrize("own", [False, True])
def test_next_step_rows_are_those_of_the_contract(own: bool) -> None:
    env = own_chains() if own else make_chains(AutoresetMode.NEXT_STEP)
    begin(env)
    done = np.zeros(env.num_envs, np.bool_)
    for action in draw_actions(env, 41):
        row = make_row(env)
        assert env.step(action, row) is None
        np.testing.assert_array_equal(row.valid, ~done)
        np.testing.assert_array_equal(row.start, ~row.valid)
        done = row.terminated | row.truncated
    assert done.any()
    begin(env)  # a reset in the middle forgets what was done
    row = make_row(env)
    env.step(np.zeros(env.num_envs, np.int64), row)
    assert row.valid.all()
    env.close()


def test_next_step_hides_what_an_invalid_step_returns() -> None:
    class Chatty(CartPoleVectorEnv):
        """Ends at every step, and pays on the reset step too."""

        def step(self, action: np.ndarray) -> tuple:
            obs, reward, _, _, infos = super().step(action)
            return obs, reward + 5.0, np.ones(self.num_envs, bool), np.ones(self.num_envs, bool), infos

    env = adapt(Chatty(2), np.random.SeedSequence(0))
    begin(env)
    first, second = make_row(env), make_row(env)
    env.step(np.zeros(2, np.int64), first)
    env.step(np.zeros(2, np.int64), second)
    assert first.valid.all() and first.terminated.all() and (first.reward == 6.0).all()
    assert not (second.valid.any() or second.terminated.any() or second.truncated.any() or second.reward.any())


class Batch(gym.vector.VectorEnv):
    """Three envs that end at step 2, with whatever infos a test wants."""

    def __init__(self, mode: object, infos: dict[str, object] | None = None) -> None:
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self.num_envs = 3
        self.single_observation_space = gym.spaces.Box(-9, 9, (2,), np.float32)
        self.single_action_space = gym.spaces.Discrete(2)
        self.infos = infos or {}
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        return np.zeros((3, 2), np.float32), {}

    def step(self, actions: np.ndarray) -> tuple:
        self.t += 1
        done = np.array([False, True, True]) & (self.t == 2)
        obs = np.full((3, 2), 0 if self.t == 2 else self.t, np.float32)
        return obs, np.ones(3), done, np.zeros(3, bool), self.infos if self.t == 2 else {}


def step_twice(env: VecEnv) -> tuple[np.ndarray | None, StepRow]:
    begin(env)
    assert env.step(np.zeros(3, np.int64), make_row(env)) is None
    row = make_row(env)
    return env.step(np.zeros(3, np.int64), row), row


def test_same_step_takes_one_array_of_finals() -> None:
    final = np.arange(6, dtype=np.float64).reshape(3, 2)
    result, row = step_twice(adapt(Batch(AutoresetMode.SAME_STEP, {"final_obs": final}), np.random.SeedSequence(0)))
    assert result is not None and result.dtype == np.float32
    np.testing.assert_array_equal(result[1:], final[1:])
    np.testing.assert_array_equal(row.start, [False, True, True])
    assert not row.obs.any()


@pytest.mark.parametrize(
    "infos",
    [
        {},
        {"final_obs": np.array([None, np.zeros(2), None], dtype=object)},
        {"final_obs": np.zeros((3, 2)), "_final_obs": np.array([False, True, False])},
    ],
)
def test_same_step_without_final_observation_is_refused(infos: dict[str, object]) -> None:
    with pytest.raises(EnvFailure, match=r"\(Batch\) resets in the same step but gave no .*final_obs.* for env"):
        step_twice(adapt(Batch(AutoresetMode.SAME_STEP, infos), np.random.SeedSequence(0)))


def test_same_step_final_observation_of_wrong_shape_is_refused() -> None:
    finals = np.array([None, np.zeros(1), np.zeros(1)], dtype=object)
    with pytest.raises(EnvFailure, match=r"env 1 returned an observation of shape \(1,\), expected \(2,\)"):
        step_twice(adapt(Batch(AutoresetMode.SAME_STEP, {"final_obs": finals}), np.random.SeedSequence(0)))


@pytest.mark.parametrize("mode", [None, "NextStep"])
def test_unknown_mode_is_refused(mode: object) -> None:
    with pytest.raises(ValueError, match="autoreset_mode"):
        adapt(Batch(mode), np.random.SeedSequence(0))


def test_disabled_env_that_ignores_the_mask_is_refused() -> None:
    class Ignorant(CartPoleVectorEnv):
        metadata: ClassVar = {**CartPoleVectorEnv.metadata, "autoreset_mode": AutoresetMode.DISABLED}

    env = adapt(Ignorant(8), np.random.SeedSequence(0))
    begin(env)
    with pytest.raises(EnvFailure, match="Ignorant resets all environments when asked to reset some"):
        for action in draw_actions(env, 200):
            env.step(action, make_row(env))
