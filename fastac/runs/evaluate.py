"""Evaluation in raw reward, by greedy or sampled actions, without bias to short episodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from fastac import memory
from fastac.build.environments import to_int
from fastac.config import ActionChoice
from fastac.contract import BoolArray, EnvFailure, StepRow, VecEnv
from fastac.envs import observation_dtype
from fastac.runs.player import Player

# Episode limit if nothing else sets one: several times the time limit of any known environment.
MOST_STEPS = 1_000_000
_NO_ENV = 2**31  # index of a child seed that no environment uses
_MORE = 3  # if the mean reaches the goal, check it again over this multiple of the episodes

# Called after every step with the episodes played so far, and the total number of episodes.
Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Finished episodes of one evaluation.

    Attributes:
        returns: `[episodes]`, raw.
        lengths: `[episodes]`, in env steps.
        cut: number of episodes cut before they ended; they count with their return so far.
        calls: steps of the whole batch of environments.
        success_rate: share of successes among the episodes whose last info has `is_success`; None if none has.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    cut: int = 0
    calls: int = 0
    success_rate: float | None = None

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.returns)

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


def action_noise(actions: ActionChoice, seed: np.random.SeedSequence) -> Generator | None:
    """Return the generator for `evaluate`, independent of the environments built from `seed`; None if greedy."""
    if actions == "greedy":
        return None
    child = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, _NO_ENV))
    return Generator().manual_seed(to_int(child))


def evaluate(
    player: Player,
    envs: VecEnv,
    episodes: int,
    noise: Generator | None = None,
    max_steps: int = MOST_STEPS,
    goal: float | None = None,
    most: int = 0,
    tell: Tell | None = None,
    budget: int = 0,
) -> Evaluation:
    """Play `episodes` episodes from fresh resets, and more while their mean reaches a goal or the budget lasts.

    Each environment is assigned its number of episodes in advance and all of them count: stopping after the first
    episodes to finish would be biased towards short ones.

    Args:
        player: chooses the actions for all of `envs`.
        envs: rows must be whole observations, and episodes whole games.
        episodes: total number of episodes.
        noise: drives sampled actions (CPU); None takes the most likely ones.
        max_steps: step limit of an episode.
        goal: continue while the mean return reaches it; None: do not continue.
        most: maximum number of episodes.
        tell: see `Tell`; an exception it raises ends the evaluation.
        budget: env steps; continue while more episodes of the mean length so far fit.

    Raises:
        EnvFailure: an environment failed, or returned values that are not finite.
    """
    games = _Games(player, envs, noise, max_steps)
    games.play(episodes, tell)
    while goal is not None and games.num < most and games.mean_return >= goal:
        # In parallel, all episodes take no longer than a few.
        aim = most if envs.num_envs >= most else min(most, _MORE * games.num)
        games.play(aim - games.num, tell)
    more = min(most - games.num, games.affordable(budget))
    if more > 0:
        games.play(more, tell)
    return games.result()


class _Games:
    """The episodes of one evaluation so far."""

    def __init__(self, player: Player, envs: VecEnv, noise: Generator | None, max_steps: int) -> None:
        self._player, self._envs, self._noise, self._max_steps = player, envs, noise, max_steps
        shape, num = envs.single_observation_space.shape, envs.num_envs
        assert shape is not None
        obs = memory.lines((num, *shape), observation_dtype(envs.single_observation_space))
        self._obs, self._start = torch.from_numpy(obs), torch.zeros(num, dtype=torch.bool)
        flags = [np.zeros(num, dtype=np.bool_) for _ in range(4)]
        self._row = StepRow(self._obs.numpy(), self._start.numpy(), np.zeros(num, dtype=np.float32), *flags)
        self._total, self._length = np.zeros(num), np.zeros(num, dtype=np.int64)  # [N], of the current episode
        self._returns: list[float] = []
        self._lengths: list[int] = []
        self._successes: list[float] = []
        self._cut = self._calls = 0

    @property
    def num(self) -> int:
        """Episodes so far."""
        return len(self._returns)

    @property
    def mean_return(self) -> float:
        """Mean return of the episodes so far."""
        return sum(self._returns) / self.num

    def affordable(self, budget: int) -> int:
        """Return how many more episodes of the mean length fit in the rest of `budget`."""
        spent = sum(self._lengths)
        return int((budget - spent) * self.num / max(spent, 1))

    def result(self) -> Evaluation:
        """Return the episodes as an evaluation."""
        told = self._successes
        success_rate = sum(told) / len(told) if told else None
        return Evaluation(np.array(self._returns), np.array(self._lengths), self._cut, self._calls, success_rate)

    def play(self, episodes: int, tell: Tell | None) -> None:
        """Play `episodes` more episodes, starting with a reset of all environments."""
        quota, most = np.full(self._envs.num_envs, episodes // self._envs.num_envs), self.num + episodes  # [N]
        quota[: episodes % self._envs.num_envs] += 1
        while quota.any():  # repeats only after cut episodes, whose environments need a reset
            self._play_round(quota, (lambda: tell(self.num, most)) if tell is not None else lambda: None)

    def _play_round(self, quota: NDArray[np.int64], tell: Callable[[], None]) -> None:
        """Play until every env has played its share, or one of its episodes was cut."""
        row, max_steps = self._row, self._max_steps
        self._envs.reset(row.obs, row.start)
        self._player.begin()
        self._total.fill(0.0)
        self._length.fill(0)
        playing, ended = quota > 0, np.zeros(len(quota), dtype=np.bool_)  # [N]
        steps, awake = 0, len(quota)
        while left := int(np.count_nonzero(playing)):
            if left < awake:
                self._envs.rest(~playing)
                awake = left
            self._envs.step(self._player.act(self._obs, self._start, self._noise), row)
            steps += 1
            self._check_finite()
            self._total += row.reward
            self._length += row.valid
            np.greater(row.terminated, row.life_lost, out=ended)  # a lost life does not end the game
            np.logical_or(ended, row.truncated, out=ended)
            if ended.any():
                self._note(ended & playing, quota)
                self._total[ended], self._length[ended] = 0.0, 0
                playing &= quota > 0
            if steps >= max_steps:
                over = playing & (self._length >= max_steps)
                self._cut += self._note(over, quota)
                playing &= ~over
            tell()
        self._calls += steps

    def _note(self, which: BoolArray, quota: NDArray[np.int64]) -> int:
        """Record the finished episodes of the envs in `which`; return their number."""
        self._returns += self._total[which].tolist()
        self._lengths += self._length[which].tolist()
        told = self._envs.extras.get("is_success")  # [N], NaN for envs that did not report it
        if told is not None:
            self._successes += told[which & ~np.isnan(told)].tolist()
        quota -= which
        return int(which.sum())

    def _check_finite(self) -> None:
        """Raise EnvFailure, naming the env, if an observation or reward is not finite."""
        row = self._row
        # One sum is enough in the usual case: NaN and inf propagate through it.
        if math.isfinite(row.reward.sum()) and (row.obs.dtype.kind != "f" or math.isfinite(row.obs.sum())):
            return
        finite = np.isfinite(row.reward)  # [N]
        if row.obs.dtype.kind == "f":
            finite &= np.isfinite(row.obs).reshape(len(finite), -1).all(axis=1)
        if not finite.all():
            n = int(np.flatnonzero(~finite)[0])
            step = self._length[n] + 1
            raise EnvFailure(f"env {n} returned an observation or reward that is not finite in step {step}")
