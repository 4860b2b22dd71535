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
from fastac.contract import EnvFailure, StepRow, VecEnv
from fastac.envs import observation_dtype
from fastac.kernels import Program, note_episodes
from fastac.kernels.episodes import BROKEN, CUT, FOUND, OVER, PLAYING, STEPS
from fastac.rollout.collector import CompiledEnvs
from fastac.runs.player import Player

# Episode limit if nothing else sets one: several times the time limit of any known environment.
MOST_STEPS = 1_000_000
_NO_ENV = 2**31  # index of a child seed that no environment uses
_MORE = 3  # if the mean reaches the goal, check it again over this multiple of the episodes

_BLOCK = 64  # steps of compiled environments at a time, a few milliseconds

# Called after every step, or block of steps, with the episodes played so far, and the total number of episodes.
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


class _Round:
    """Counts the episodes of one round: every env plays its share, unless one of its episodes is cut.

    Attributes:
        take: takes the step in the row; a `Program` if it is compiled.
        playing: `[N]`, the envs that still play.
        noted: `[N]`, the envs whose episode was counted in the last step.
        counts: see `note_episodes`.
    """

    def __init__(self, row: StepRow, quota: Tensor, max_steps: int) -> None:
        """Bind the row and the quota `[N]` of episodes, which `take` lowers."""
        num, most = len(quota), int(quota.sum())
        self._counts = torch.zeros(6, dtype=torch.int64)
        self._length = torch.zeros(num, dtype=torch.int64)
        self._returns, self._lengths = torch.zeros(most, dtype=torch.float64), torch.zeros(most, dtype=torch.int64)
        playing, noted = quota > 0, torch.zeros(num, dtype=torch.bool)
        self.playing, self.noted, self.counts = playing.numpy(), noted.numpy(), self._counts.numpy()
        # Images are whole numbers, and so finite.
        obs = torch.from_numpy(row.obs).reshape(num, -1) if row.obs.dtype == np.float32 else torch.empty(num, 0)
        self.counts[PLAYING] = self.playing.sum()
        self.take = note_episodes.prepare(
            obs,
            torch.from_numpy(row.reward),
            torch.from_numpy(row.valid),
            torch.from_numpy(row.terminated),
            torch.from_numpy(row.truncated),
            torch.from_numpy(row.life_lost),
            max_steps,
            torch.zeros(num, dtype=torch.float64),
            self._length,
            quota,
            playing,
            noted,
            self._returns,
            self._lengths,
            self._counts,
        )

    def repeat(self, program: Program, times: int) -> None:
        """Run a program that takes a step, up to `times` times, until the round is over."""
        program.repeat(times, self._counts)

    def episodes(self, begin: int) -> tuple[list[float], list[int]]:
        """Return the returns and lengths of the episodes so far, from the `begin`-th one on."""
        new = slice(begin, int(self.counts[FOUND]))
        return self._returns[new].tolist(), self._lengths[new].tolist()

    def check(self) -> None:
        """Raise EnvFailure, naming the env, if an observation or reward is not finite."""
        if self.counts[BROKEN]:
            n = int(self.counts[BROKEN]) - 1
            step = int(self._length[n]) + 1
            raise EnvFailure(f"env {n} returned an observation or reward that is not finite in step {step}")


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
        share, rest = divmod(episodes, self._envs.num_envs)
        quota, most = torch.full((self._envs.num_envs,), share), self.num + episodes  # [N]
        quota[:rest] += 1
        while quota.any():  # repeats only after cut episodes, whose environments need a reset
            self._play_round(quota, (lambda: tell(self.num, most)) if tell is not None else lambda: None)

    def _play_round(self, quota: Tensor, tell: Callable[[], None]) -> None:
        """Play until every env has played its share, or one of its episodes was cut."""
        self._envs.reset(self._row.obs, self._row.start)
        self._player.begin()
        games, before = _Round(self._row, quota, self._max_steps), self.num
        play = self._choose_way(games)
        while not games.counts[OVER]:
            play()
            games.check()
            if before + games.counts[FOUND] > self.num:
                returns, lengths = games.episodes(self.num - before)
                self._returns += returns
                self._lengths += lengths
            tell()
        self._cut += int(games.counts[CUT])
        self._calls += int(games.counts[STEPS])

    def _choose_way(self, games: _Round) -> Callable[[], None]:
        """Return what plays on: many steps as one program, if all of it is compiled, or else one step.

        Both make the same calls, until the same step.
        """
        envs, acts = self._envs, self._player.prepare(self._obs) if self._noise is None else None
        if acts is None or not isinstance(envs, CompiledEnvs) or not isinstance(games.take, Program):
            return self._make_step(games)
        act, action = acts
        step = Program.join([act, envs.prepare_step(action, self._row), games.take])

        def play_block() -> None:
            games.repeat(step, _BLOCK)
            envs.check()

        return play_block

    def _make_step(self, games: _Round) -> Callable[[], None]:
        """Return what plays one step."""
        envs, awake = self._envs, self._envs.num_envs

        def play_step() -> None:
            nonlocal awake
            if games.counts[PLAYING] < awake:
                envs.rest(~games.playing)
                awake = int(games.counts[PLAYING])
            envs.step(self._player.act(self._obs, self._start, self._noise), self._row)
            games.take()
            told = envs.extras.get("is_success")  # [N], NaN for envs that did not report it
            if told is not None:
                self._successes += told[games.noted & ~np.isnan(told)].tolist()

        return play_step
