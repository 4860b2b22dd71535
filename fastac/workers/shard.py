"""One shard: some of a run's environments, and everything that only they have.

A run has S shards, fixed for its life. Whoever holds a shard collects the same rollouts from it, so results do not
depend on how shards are spread over processes. Shards meet only in sums that are taken in their order.
"""

from __future__ import annotations

import re

from fastac.config import CollectMode
from fastac.contract import EnvFailure, Episodes, Phases, StateTree, VecEnv, read_branch
from fastac.models import RewardScaler, load_module
from fastac.rollout import Collector, EpisodeCounter

_ENV = re.compile(r"\benv (\d+)")  # how a message of `EnvFailure` names the environment


class Shard:
    """Collects from its environments.

    Attributes:
        envs: stepped by `collect`.
        reward_normalizer: scales rewards; it holds the running returns of these environments.
        rollout: the rollout buffer.
        collected: the part of it that the last `collect` has filled.
    """

    def __init__(
        self,
        mode: CollectMode,
        envs: VecEnv,
        collector: Collector,
        reward_normalizer: RewardScaler,
        first_env: int = 0,
    ) -> None:
        """Take the parts, see `fastac.build`; `first_env` is the number of its first environment in the run."""
        self.envs, self.reward_normalizer = envs, reward_normalizer
        self._mode, self._collector, self._first_env = mode, collector, first_env
        self.rollout = self.collected = collector.rollout
        self._counter = EpisodeCounter(self.rollout.num_steps, self.rollout.num_envs)

    @property
    def counter_nbytes(self) -> int:
        """Memory of the episode counter."""
        return self._counter.nbytes

    def collect(self, phases: Phases) -> Episodes:
        """Collect a rollout, check it, and return the episodes that ended in it.

        Raises:
            EnvFailure: an environment failed or returned a number that is not finite.
        """
        try:
            return self._collect(phases)
        except EnvFailure as error:
            told = _ENV.sub(lambda found: f"env {self._first_env + int(found[1])}", str(error), count=1)
            raise EnvFailure(told) from error.__cause__ or error

    def _collect(self, phases: Phases) -> Episodes:
        if self._mode == "episodes":
            self.restart_episodes()
            self.collected = self._collector.collect_episodes(phases)
        else:
            self.collected = self._collector.collect(phases)
        finished = self._counter.count(self.collected)
        finished.extras = self._collector.take_extras()
        return finished

    def restart_episodes(self) -> None:
        """Begin every environment's next rollout with a reset; discard the partial returns of unfinished episodes."""
        self._collector.restart_episodes()
        self._counter.restart_episodes()
        self.reward_normalizer.restart_episodes()

    def get_state(self, with_envs: bool = True) -> StateTree:
        """Return its own state; `envs` is None if environments cannot be saved or are excluded."""
        return {
            "reward_normalizer": self.reward_normalizer.state_dict(),
            "collector": self._collector.get_state(),
            "episode_counter": self._counter.get_state(),
            "envs": self.envs.get_state() if with_envs else None,
        }

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; return True if the environments continue too, False if their episodes restart.

        The state of a lost worker's shard has no collector; this shard then keeps its own random streams.
        """
        load_module(self.reward_normalizer, read_branch(state, "reward_normalizer"))
        if "collector" in state:
            self._collector.set_state(read_branch(state, "collector"))
            self._counter.set_state(read_branch(state, "episode_counter"))
        if state["envs"] is None or self._is_batched_otherwise(read_branch(state, "envs")):
            self.restart_episodes()
            return False
        self.envs.set_state(read_branch(state, "envs"))
        return True

    def _is_batched_otherwise(self, saved: StateTree) -> bool:
        """Return whether only one of the saved environments and this shard's are compiled.

        With `auto` that depends on the version of fastac and on whether Numba can compile.
        """
        own = self.envs.get_state()
        return own is None or ("compiled" in own) != ("compiled" in saved)
