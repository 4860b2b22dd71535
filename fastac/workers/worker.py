"""One worker: it owns shards and a model, and alternates between collecting and learning.

In-step training with one worker runs it in this process. Otherwise every process that trains has one `Worker`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fastac.contract import Episodes, Group, Phases, StateTree, read_branch
from fastac.learning.learner import Learner
from fastac.models import ActorCritic, RewardNormalizer, load_module
from fastac.rollout import Rollout, join_episodes
from fastac.workers.shard import Shard


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker reports about itself to another process.

    Attributes:
        description: how its environments are batched.
        rollout_nbytes: memory of its rollouts.
        activations_nbytes: its other memory, see `Worker`.
    """

    description: str
    rollout_nbytes: int
    activations_nbytes: int


class Worker:
    """Alternates between collecting and learning.

    Attributes:
        model: the policy; in-step workers train it together.
        shards: its shards.
        learner: makes the updates and counts them.
        activations_nbytes: memory besides the rollouts: activations that acting keeps for learning, buffers of the
            update, minibatches, the rollouts' noise, and the episode counters.
    """

    def __init__(
        self, model: ActorCritic, shards: Sequence[Shard], learner: Learner, group: Group, learning_nbytes: int
    ) -> None:
        """Take the parts; see `fastac.build`. `learning_nbytes` is the memory of acting and learning."""
        self.model, self.shards, self.learner, self._group = model, shards, learner, group
        normalizers = (shard.reward_normalizer for shard in shards)
        self._normalizers = [each for each in normalizers if isinstance(each, RewardNormalizer)]
        self.activations_nbytes = learning_nbytes + sum(shard.counter_nbytes for shard in shards)

    @property
    def info(self) -> WorkerInfo:
        """What this worker reports to another process."""
        rollouts = sum(shard.rollout.nbytes for shard in self.shards)
        return WorkerInfo(self.shards[0].envs.description, rollouts, self.activations_nbytes)

    def collect(self, phases: Phases) -> Episodes:
        """Collect a rollout from each shard, check it, and return the episodes that ended in them.

        Raises:
            EnvFailure: an environment failed or returned a number that is not finite.
        """
        return join_episodes([shard.collect(phases) for shard in self.shards])

    def learn(self, done_fraction: float, phases: Phases) -> dict[str, float]:
        """Learn from the collected rollouts, together with the group; see `Learner.learn`."""
        rollouts = [shard.collected for shard in self.shards]
        losses = self.learner.learn(rollouts, self._scale_rewards(rollouts), done_fraction, phases)
        self.model.obs_normalizer.update([(rollout.obs[:-1], rollout.valid) for rollout in rollouts], self._group)
        self._group.end_iteration()
        return losses

    def _scale_rewards(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """Add the rewards to the statistics, if there are any, and return them scaled."""
        if self._normalizers:
            both = zip(self._normalizers, rollouts, strict=True)
            parts = [normalizer.measure(found.reward, found.valid, found.done) for normalizer, found in both]
            self._normalizers[0].moments.merge("reward", np.stack(parts), self._group)
        return [shard.reward_normalizer(found.reward) for shard, found in zip(self.shards, rollouts, strict=True)]

    def get_shards(self, with_envs: bool = True) -> StateTree:
        """Return the states of its shards, by their numbers; see `Shard.get_state`."""
        numbers = map(str, self._group.shards)
        return {number: shard.get_state(with_envs) for number, shard in zip(numbers, self.shards, strict=True)}

    def set_state(self, state: StateTree) -> bool:
        """Continue from the states of model and learner, and from those of its shards by their numbers.

        Returns:
            True if the environments continue too, False if some of their episodes restart.
        """
        load_module(self.model, read_branch(state, "model"))
        self.learner.set_state(read_branch(state, "learner"))
        saved = read_branch(state, "shards")
        states = [read_branch(saved, str(number)) for number in self._group.shards]
        return all([shard.set_state(each) for shard, each in zip(self.shards, states, strict=True)])

    def close(self) -> None:
        """Close the environments."""
        with ExitStack() as stack:  # all of them, even if one raises
            for shard in self.shards:
                stack.callback(shard.envs.close)
