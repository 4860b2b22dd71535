"""One worker: its environments, its model, and how it collects and learns by turns.

A run with one worker has no other process; in every other run each process has one of these.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastac.config import CollectMode
from fastac.contract import Episodes, Group, Phases, StateTree, VecEnv, read_branch
from fastac.learning.learner import Learner
from fastac.models import ActorCritic, RewardScaler, load_module
from fastac.rollout import Collector, EpisodeCounter


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What another process is told of a worker.

    Attributes:
        description: how its environments are batched.
        rollout_nbytes: memory of its rollout.
        activations_nbytes: memory besides it, see `Worker`.
    """

    description: str
    rollout_nbytes: int
    activations_nbytes: int


class Worker:
    """Collects and learns by turns.

    Attributes:
        envs: its environments, stepped by `collect`.
        model: the policy, the same in all workers that are in step.
        reward_normalizer: scales rewards, with this worker's returns so far.
        learner: counts updates.
        rollout: the storage.
        activations_nbytes: memory besides it: what acting leaves behind for learning, the updates' own, a minibatch,
            the rollout's noise and episodes.
    """

    def __init__(
        self,
        mode: CollectMode,
        envs: VecEnv,
        model: ActorCritic,
        collector: Collector,
        learner: Learner,
        reward_normalizer: RewardScaler,
        group: Group,
        learning_nbytes: int,
    ) -> None:
        """Take the parts; see `fastac.build`. `learning_nbytes` is the memory of acting and learning."""
        self.envs, self.model, self.reward_normalizer, self.learner = envs, model, reward_normalizer, learner
        self._mode, self._group, self._collector = mode, group, collector
        self.rollout = self._collected = collector.rollout
        self._counter = EpisodeCounter(self.rollout.num_steps, self.rollout.num_envs)
        self.activations_nbytes = learning_nbytes + self._counter.nbytes

    @property
    def info(self) -> WorkerInfo:
        """What another process is told of it."""
        return WorkerInfo(self.envs.description, self.rollout.nbytes, self.activations_nbytes)

    def collect(self, phases: Phases) -> Episodes:
        """Collect a rollout, check it, and return the episodes that ended in it.

        Raises:
            EnvFailure: an environment failed or returned something not finite.
        """
        if self._mode == "episodes":
            self.restart_episodes()
            self._collected = self._collector.collect_episodes(phases)
        else:
            self._collected = self._collector.collect(phases)
        self._collected.check_finite()
        finished = self._counter.count(self._collected)
        finished.extras = self._collector.take_extras()
        return finished

    def learn(self, done_fraction: float, phases: Phases) -> dict[str, float]:
        """Learn from that rollout, together with the group; see `Learner.learn`."""
        rollout, group = self._collected, self._group
        reward = self.reward_normalizer(rollout.reward, rollout.valid, rollout.done, group)
        losses = self.learner.learn(rollout, reward, done_fraction, phases)
        self.model.obs_normalizer.update(rollout.obs[:-1], rollout.valid, group)
        return losses

    def restart_episodes(self) -> None:
        """Begin every env's next rollout from a reset, and forget what the episodes so far added up to."""
        self._collector.restart_episodes()
        self._counter.restart_episodes()
        self.reward_normalizer.restart_episodes()

    def get_state(self, with_envs: bool = True) -> StateTree:
        """Everything but the model and the normalisers; `envs` is None where envs cannot or shall not be captured."""
        return {
            "collector": self._collector.get_state(),
            "learner": self.learner.get_state(),
            "episode_counter": self._counter.get_state(),
            "envs": self.envs.get_state() if with_envs else None,
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
        self.envs.set_state(read_branch(state, "envs"))
        return True

    def get_own_state(self) -> StateTree:
        """What no other worker has: all but the model and the optimiser."""
        own = {name: part for name, part in self.get_state().items() if name != "learner"}
        return {"reward_normalizer": self.reward_normalizer.state_dict(), **own}

    def set_whole_state(self, state: StateTree) -> bool:
        """Continue from `get_own_state` and what all workers have in common; return as `set_state` does."""
        load_module(self.model, read_branch(state, "model"))
        load_module(self.reward_normalizer, read_branch(state, "reward_normalizer"))
        return self.set_state(state)

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()
