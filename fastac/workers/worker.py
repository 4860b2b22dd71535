"""One (collector, learner) pair and its environments: what every worker runs, the first one and only one too."""

from __future__ import annotations

from fastac.config import CollectMode
from fastac.contract import (
    Episodes,
    Group,
    ObsStatistics,
    Phases,
    RewardScaling,
    StateTree,
    VecEnv,
    read_branch,
)
from fastac.learning.learner import Learner
from fastac.rollout import Collector, EpisodeCounter


class Pair:
    """Collects and learns by turns.

    Attributes:
        learner: counts updates.
    """

    def __init__(
        self,
        mode: CollectMode,
        envs: VecEnv,
        collector: Collector,
        learner: Learner,
        obs_statistics: ObsStatistics,
        reward_scaling: RewardScaling,
        group: Group,
    ) -> None:
        """Take the parts; see `fastac.build`."""
        self._mode, self._envs, self._group = mode, envs, group
        self._collector, self.learner = collector, learner
        self._obs_statistics, self._reward_scaling = obs_statistics, reward_scaling
        self._counter = EpisodeCounter(collector.rollout.num_steps, collector.rollout.num_envs)
        self._rollout = collector.rollout

    @property
    def nbytes(self) -> int:
        """Memory of what a rollout's episodes may take."""
        return self._counter.nbytes

    def collect(self, phases: Phases) -> Episodes:
        """Collect a rollout, check it, and return the episodes that ended in it.

        Raises:
            EnvFailure: an environment failed or returned something not finite.
        """
        if self._mode == "episodes":
            self.restart_episodes()
            self._rollout = self._collector.collect_episodes(phases)
        else:
            self._rollout = self._collector.collect(phases)
        self._rollout.check_finite()
        finished = self._counter.count(self._rollout)
        finished.extras = self._collector.take_extras()
        return finished

    def learn(self, done_fraction: float, phases: Phases) -> dict[str, float]:
        """Learn from that rollout, together with the group; see `Learner.learn`."""
        rollout, group = self._rollout, self._group
        reward = self._reward_scaling(rollout.reward, rollout.valid, rollout.done, group)
        losses = self.learner.learn(rollout, reward, done_fraction, phases)
        self._obs_statistics.update(rollout.obs[:-1], rollout.valid, group)
        return losses

    def restart_episodes(self) -> None:
        """Begin every env's next rollout from a reset, and forget what the episodes so far added up to."""
        self._collector.restart_episodes()
        self._counter.restart_episodes()
        self._reward_scaling.restart_episodes()

    def get_state(self, with_envs: bool = True) -> StateTree:
        """Everything but the model and the normalisers; `envs` is None where envs cannot or shall not be captured."""
        return {
            "collector": self._collector.get_state(),
            "learner": self.learner.get_state(),
            "episode_counter": self._counter.get_state(),
            "envs": self._envs.get_state() if with_envs else None,
        }

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; return whether the environments continue too, or begin episodes anew.

        A state without a collector, of a worker that was lost, leaves this one's own streams as they are.
        """
        self.learner.set_state(read_branch(state, "learner"))
        if "collector" in state:
            self._collector.set_state(read_branch(state, "collector"))
            self._counter.set_state(read_branch(state, "episode_counter"))
        if state["envs"] is None:
            self.restart_episodes()
            return False
        self._envs.set_state(read_branch(state, "envs"))
        return True
