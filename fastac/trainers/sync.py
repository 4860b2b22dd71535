"""The synchronous trainer: collect, learn, report, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from time import perf_counter

from fastac.config import Config
from fastac.contract import (
    EnvFailure,
    ObsStatistics,
    Phases,
    Report,
    RewardScaling,
    StateTree,
    VecEnv,
    read_branch,
    read_number,
)
from fastac.learner import Learner
from fastac.rollout import Collector, EpisodeCounter, Rollout


class SyncTrainer:
    """Runs a collector and a learner in turn and reports every iteration.

    Attributes:
        iteration: iterations so far.
        env_steps: valid transitions so far.
    """

    def __init__(
        self,
        config: Config,
        envs: VecEnv,
        collector: Collector,
        learner: Learner,
        obs_statistics: ObsStatistics,
        reward_scaling: RewardScaling,
    ) -> None:
        """Take the parts; see `fastac.build`."""
        self._config, self._envs = config, envs
        self._collector, self._learner = collector, learner
        self._obs_statistics, self._reward_scaling = obs_statistics, reward_scaling
        self._episode_counter = EpisodeCounter(config.env.num_envs)
        self.iteration = self._episodes = self.env_steps = 0
        self._phases = Phases()
        self._train_wall_s = 0.0

    def run(self) -> Iterator[Report]:
        """Yield one report per iteration until the budget of environment steps is spent.

        The time that the consumer keeps a report is not training time. Between two reports the state
        is consistent: that is when to save it.

        Raises:
            EnvFailure: an environment failed or returned something not finite.
            NonFiniteError: a loss or gradient is not finite; parameters are the last good ones.
        """
        while self.env_steps < self._config.run.total_env_steps:
            begin = perf_counter()
            rollout = self._collect()
            reward = self._reward_scaling(rollout.reward, rollout.valid, rollout.done)
            done_fraction = self.env_steps / self._config.run.total_env_steps
            losses = self._learner.learn(rollout, reward, done_fraction, self._phases)
            self._obs_statistics.update(rollout.obs[:-1], rollout.valid)
            finished = self._episode_counter.count(rollout)
            self.iteration += 1
            self._episodes += len(finished)
            self.env_steps += int(rollout.valid.sum())
            self._train_wall_s += perf_counter() - begin
            yield Report(
                iteration=self.iteration,
                env_steps=self.env_steps,
                frames=self.env_steps * self._envs.frame_skip,
                updates=self._learner.updates,
                episodes=self._episodes,
                finished=finished,
                train_wall_s=self._train_wall_s,
                phases=self._timed_phases(),
                losses=losses,
            )

    def _collect(self) -> Rollout:
        try:
            if self._config.algo.collect == "episodes":
                self._restart_episodes()
                rollout = self._collector.collect_episodes(self._phases)
            else:
                rollout = self._collector.collect(self._phases)
            rollout.check_finite()
        except EnvFailure as error:
            where = f"in iteration {self.iteration + 1}, after {self.env_steps} environment steps"
            raise EnvFailure(f"{str(error).removesuffix('.')}, {where}") from error
        return rollout

    def _restart_episodes(self) -> None:
        """Begin every env's next rollout from a reset, and forget what the episodes so far added up to."""
        self._collector.restart_episodes()
        self._episode_counter.restart_episodes()
        self._reward_scaling.restart_episodes()

    def _timed_phases(self) -> Phases:
        known = self._phases.env_s + self._phases.act_s + self._phases.advantage_s + self._phases.update_s
        return replace(self._phases, other_s=self._train_wall_s - known)

    def get_state(self) -> StateTree:
        """Everything but the model and the normalisers; `envs` is None where envs cannot be captured."""
        return {
            "collector": self._collector.get_state(),
            "learner": self._learner.get_state(),
            "episode_counter": self._episode_counter.get_state(),
            "envs": self._envs.get_state(),
            "phases": asdict(self._phases),
            "train_wall_s": self._train_wall_s,
            "iteration": self.iteration,
            "episodes": self._episodes,
            "env_steps": self.env_steps,
        }

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; return whether the environments continue too, or begin episodes anew."""
        self._collector.set_state(read_branch(state, "collector"))
        self._learner.set_state(read_branch(state, "learner"))
        self._episode_counter.set_state(read_branch(state, "episode_counter"))
        phases = read_branch(state, "phases")
        self._phases = Phases(**{name: read_number(phases, name) for name in phases})
        self._train_wall_s = read_number(state, "train_wall_s")
        self.iteration = int(read_number(state, "iteration"))
        self._episodes = int(read_number(state, "episodes"))
        self.env_steps = int(read_number(state, "env_steps"))
        if state["envs"] is None:
            self._restart_episodes()
            return False
        self._envs.set_state(read_branch(state, "envs"))
        return True
