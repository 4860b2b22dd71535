"""Evaluation in raw reward, by greedy or sampled actions, without bias to short episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fastac import memory
from fastac.build.environments import to_int
from fastac.config import ActionChoice
from fastac.contract import EnvFailure, ObsArray, Policy, StepRow, VecEnv
from fastac.envs import observation_dtype

_MAX_LENGTH = 1_000_000  # several times any time limit: a game of Atari, stepped frame by frame, is cut after 108,000
_NO_ENV = 2**31  # of a seed's children, one that is no environment's


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Finished episodes of one evaluation.

    Attributes:
        returns: `[episodes]`, raw.
        lengths: `[episodes]`, in env steps.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]

    @property
    def mean_return(self) -> float:
        """Mean raw return."""
        return float(self.returns.mean())

    @property
    def std_return(self) -> float:
        """Standard deviation over episodes."""
        return float(self.returns.std())

    @property
    def mean_length(self) -> float:
        """Mean length in env steps."""
        return float(self.lengths.mean())


class _Slots:
    """One row of step results, outside any rollout."""

    def __init__(self, envs: VecEnv) -> None:
        shape, num = envs.single_observation_space.shape, envs.num_envs
        assert shape is not None
        self.obs: ObsArray = memory.lines((num, *shape), observation_dtype(envs.single_observation_space))
        self.start = np.zeros(num, dtype=np.bool_)
        self.row = StepRow(
            obs=self.obs,
            start=self.start,
            reward=np.zeros(num, dtype=np.float32),
            terminated=np.zeros(num, dtype=np.bool_),
            truncated=np.zeros(num, dtype=np.bool_),
            valid=np.zeros(num, dtype=np.bool_),
            life_lost=np.zeros(num, dtype=np.bool_),
        )


def action_noise(actions: ActionChoice, seed: np.random.SeedSequence) -> Generator | None:
    """Return what `evaluate` samples from, a stream apart from those of environments built from `seed`; or None."""
    if actions == "greedy":
        return None
    child = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, _NO_ENV))
    return Generator().manual_seed(to_int(child))


def evaluate(
    policy: Policy,
    envs: VecEnv,
    episodes: int,
    device: torch.device,
    noise: Generator | None = None,
    tell: Callable[[], None] | None = None,
) -> Evaluation:
    """Play `episodes` episodes from fresh resets.

    Every env is assigned its number of episodes beforehand and all of them count: stopping at the
    first so many that finish would favour short ones.

    Args:
        policy: on `device`.
        envs: whose rows are whole observations, and whose episodes whole games.
        episodes: how many in all.
        device: where `policy` is.
        noise: drives sampled actions (CPU); None takes the most likely ones.
        tell: called after every step, for who wants to know that it goes on.

    Raises:
        EnvFailure: an environment failed, or its episode does not end.
    """
    num = envs.num_envs
    quota = np.full(num, episodes // num)
    quota[: episodes % num] += 1
    slots = _Slots(envs)
    envs.reset(slots.obs, slots.start)
    state = policy.initial_state(num)
    obs, start = torch.from_numpy(slots.obs), torch.from_numpy(slots.start)
    returns: list[float] = []
    lengths: list[int] = []
    total, length = np.zeros(num), np.zeros(num, dtype=np.int64)  # [N], of the episode so far
    while quota.any():
        action, state = _choose(policy, obs.to(device), state, start.to(device), noise)
        envs.step(action.cpu().numpy(), slots.row)
        _check_row(slots.row, length, quota)
        if tell is not None:
            tell()
        total += slots.row.reward
        length += slots.row.valid
        done = slots.row.terminated | slots.row.truncated
        if not done.any():
            continue
        for n in np.flatnonzero(done & (quota > 0)):
            returns.append(float(total[n]))
            lengths.append(int(length[n]))
        quota -= done & (quota > 0)
        total[done], length[done] = 0.0, 0
    return Evaluation(np.array(returns), np.array(lengths))


def _choose(
    policy: Policy, obs: Tensor, state: Tensor, start: Tensor, noise: Generator | None
) -> tuple[Tensor, Tensor]:
    """Return actions `[N, *action_shape]` and the next recurrent state."""
    if noise is None:
        return policy.greedy(obs, state, start)
    act = policy.act(obs, state, start, policy.draw_noise((len(obs),), noise).to(obs.device))
    return act.action, act.state


def _check_row(row: StepRow, length: NDArray[np.int64], quota: NDArray[np.int64]) -> None:
    """Raise EnvFailure for what is not finite and for an episode that does not end."""
    finite = np.isfinite(row.reward)  # [N]
    if row.obs.dtype.kind == "f":
        finite &= np.isfinite(row.obs).reshape(len(quota), -1).all(axis=1)
    if not finite.all():
        n = int(np.flatnonzero(~finite)[0])
        raise EnvFailure(f"env {n} returned an observation or reward that is not finite in step {length[n] + 1}")
    endless = np.flatnonzero((length >= _MAX_LENGTH) & (quota > 0))
    if endless.size:
        raise EnvFailure(
            f"env {endless[0]} has played {_MAX_LENGTH} steps of an episode without an end (give it a time limit: "
            "max_frames for an Atari game, elsewhere such as max_episode_steps where it is registered)"
        )
