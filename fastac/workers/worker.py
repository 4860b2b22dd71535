"""One worker: it owns environments and a model, and alternates between collecting and learning.

In-step training with one worker runs it in this process. Otherwise every process that trains has one `Worker`.
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
    """What a worker reports about itself to another process.

    Attributes:
        description: how its environments are batched.
        rollout_nbytes: memory of its rollout.
        activations_nbytes: its other memory, see `Worker`.
    """

    description: str
    rollout_nbytes: int
    activations_nbytes: int


class Worker:
    """Alternates between collecting and learning.

    Attributes:
        envs: its environments, stepped by `collect`.
        model: the policy; in-step workers train it together.
        reward_normalizer: scales rewards; it holds the running returns of this worker's environments.
        learner: makes the updates and counts them.
        rollout: the rollout buffer.
        activations_nbytes: memory besides the rollout: activations that acting keeps for learning, buffers of the
            update, a minibatch, the rollout's noise, and the episode counter.
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
        """What this worker reports to another process."""
        return WorkerInfo(self.envs.description, self.rollout.nbytes, self.activations_nbytes)

    def collect(self, phases: Phases) -> Episodes:
        """Collect a rollout, check it, and return the episodes that ended in it.

        Raises:
            EnvFailure: an environment failed or returned a number that is not finite.
        """
        if self._mode == "episodes":
            self.restart_episodes()
            self._collected = self._collector.collect_episodes(phases)
        else:
            self._collected = self._collector.collect(phases)
        finished = self._counter.count(self._collected)
        finished.extras = self._collector.take_extras()
        return finished

    def learn(self, done_fraction: float, phases: Phases) -> dict[str, float]:
        """Learn from the collected rollout, together with the group; see `Learner.learn`."""
        rollout, group = self._collected, self._group
        reward = self.reward_normalizer(rollout.reward, rollout.valid, rollout.done, group)
        losses = self.learner.learn(rollout, reward, done_fraction, phases)
        self.model.obs_normalizer.update(rollout.obs[:-1], rollout.valid, group)
        return losses

    def restart_episodes(self) -> None:
        """Begin every environment's next rollout with a reset; discard the partial returns of unfinished episodes."""
        self._collector.restart_episodes()
        self._counter.restart_episodes()
        self.reward_normalizer.restart_episodes()

    def get_state(self, with_envs: bool = True) -> StateTree:
        """Return all but the model and normalisers; `envs` is None if environments cannot be saved or are excluded."""
        return {
            "collector": self._collector.get_state(),
            "learner": self.learner.get_state(),
            "episode_counter": self._counter.get_state(),
            "envs": self.envs.get_state() if with_envs else None,
        }

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; return True if the environments continue too, False if their episodes restart.

        The state of a lost worker has no collector; this worker then keeps its own random streams.
        """
        self.learner.set_state(read_branch(state, "learner"))
        if "collector" in state:
            self._collector.set_state(read_branch(state, "collector"))
            self._counter.set_state(read_branch(state, "episode_counter"))
        if state["envs"] is None or self._is_batched_otherwise(read_branch(state, "envs")):
            self.restart_episodes()
            return False
        self.envs.set_state(read_branch(state, "envs"))
        return True

    def _is_batched_otherwise(self, saved: StateTree) -> bool:
        """Return whether only one of the saved environments and this worker's are compiled.

        With `auto` that depends on the version of fastac and on whether Numba can compile.
        """
        own = self.envs.get_state()
        return own is None or ("compiled" in own) != ("compiled" in saved)

    def get_own_state(self) -> StateTree:
        """Return the state that only this worker has: all but the model and the learner."""
        own = {name: part for name, part in self.get_state().items() if name != "learner"}
        return {"reward_normalizer": self.reward_normalizer.state_dict(), **own}

    def set_whole_state(self, state: StateTree) -> bool:
        """Continue from `get_own_state` merged with the common state; return as `set_state` does."""
        load_module(self.model, read_branch(state, "model"))
        load_module(self.reward_normalizer, read_branch(state, "reward_normalizer"))
        return self.set_state(state)

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()
