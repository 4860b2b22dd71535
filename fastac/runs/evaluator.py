"""Where a run's evaluations are played: in environments of their own, while training waits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastac.build import (
    EnvFactory,
    build_evaluation_envs,
    evaluation_seed,
    evaluation_width,
    is_batched,
    is_seeded_when_built,
)
from fastac.config import Config, is_atari
from fastac.contract import EnvFailure, Policy, VecEnv
from fastac.runs.evaluate import Evaluation, Tell, action_noise, evaluate
from fastac.runs.player import Player, make_player
from fastac.workers import Training


@dataclass(frozen=True, slots=True)
class Request:
    """Specifies an evaluation.

    Attributes:
        env_steps: training steps of the policy; the seed of the environments depends on them.
        episodes: number of episodes.
        most: maximum number of episodes while the mean return reaches the goal.
        goal: a mean return, or None.
        max_steps: step limit of an episode.
        budget: environment steps; add episodes, up to `most`, as long as they fit at the mean length so far.
    """

    env_steps: int
    episodes: int
    most: int
    goal: float | None
    max_steps: int
    budget: int = 0


class Stage:
    """The evaluation environments and their player: built on first use, then kept."""

    def __init__(
        self, config: Config, policy: Policy, env_factory: EnvFactory | None, own: VecEnv | None = None
    ) -> None:
        """Store the arguments; `own` are existing environments for all evaluations, instead of new ones."""
        self._config, self._policy, self._env_factory, self._own = config, policy, env_factory, own
        self._sets: dict[int, tuple[VecEnv, Player]] = {}  # by number of environments

    def play(self, request: Request, tell: Tell | None = None) -> Evaluation:
        """Play an evaluation.

        Raises:
            EnvFailure: an environment failed.
        """
        seed = evaluation_seed(self._config.run.seed, request.env_steps)
        noise = action_noise(self._config.run.eval_actions, seed)
        try:
            # Another object, since spawning from a SeedSequence changes it.
            own = evaluation_seed(self._config.run.seed, request.env_steps)
            envs, player = self._set(self._side_by_side(request), own)
            envs.reseed(seed)
            return evaluate(
                player,
                envs,
                request.episodes,
                noise,
                request.max_steps,
                request.goal,
                request.most,
                tell,
                request.budget,
            )
        except EnvFailure as error:
            where = f"in the evaluation after {request.env_steps} environment steps"
            raise EnvFailure(f"{str(error).removesuffix('.')}, {where}") from error

    def _side_by_side(self, request: Request) -> int:
        """Return for how many episodes to build environments: a few more in a batch cost next to nothing."""
        may_go_on = request.goal is not None and is_batched(self._config.env, self._env_factory)
        return request.most if may_go_on else request.episodes

    def _set(self, episodes: int, seed: np.random.SeedSequence) -> tuple[VecEnv, Player]:
        config, factory = self._config, self._env_factory
        width = self._own.num_envs if self._own is not None else evaluation_width(config.env, episodes, factory)
        if self._own is None and is_seeded_when_built(config.env, factory):
            self._close_built()  # it cannot be reseeded
        if width not in self._sets:
            if not is_batched(config.env, factory):
                self._close_built()  # unbatched environments hold processes, windows or emulators
            envs = self._own or build_evaluation_envs(config.env, width, seed, factory, config.num_workers)
            self._sets[width] = envs, make_player(self._policy, width, torch.device(config.run.device))
        return self._sets[width]

    def _close_built(self) -> None:
        while self._sets:
            _, (envs, _) = self._sets.popitem()
            if envs is not self._own:
                envs.close()

    def close(self) -> None:
        """Close what was built; safe to call twice."""
        self._close_built()


def open_stage(config: Config, training: Training, env_factory: EnvFactory | None) -> Stage:
    """Return the stage for a run's policy.

    Nothing is built before the first evaluation. If the only evaluation is at the end of the run, it is played in the
    training environments, provided their rows are whole observations and their episodes whole games.
    """
    at_end = config.run.eval_every == 0
    own = training.envs if at_end and plays_where_it_trains(config) else None
    return Stage(config, training.model, env_factory, own)


def plays_where_it_trains(config: Config) -> bool:
    """Return whether a last evaluation can be played in the training environments."""
    return not config.algo.has_async_workers and not is_atari(config.env.env_id)
