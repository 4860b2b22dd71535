"""A3C training as the process that watches the workers sees it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastac.contract import Asynchrony, Report, StateTree, VecEnv, read_branch
from fastac.learning.optimizer import FlatParameters
from fastac.models import ActorCritic, RewardScaler, load_module
from fastac.rollout import Rollout
from fastac.workers.async_workers import AsyncWorkers
from fastac.workers.hogwild_trainer import HogwildTrainer
from fastac.workers.shared_counters import SharedCounters
from fastac.workers.statistics import copy_statistics, find_moments
from fastac.workers.worker import WorkerInfo


@dataclass(slots=True)
class HogwildTraining:
    """A3C training as the process that watches the workers sees it; see `Training`."""

    envs: VecEnv
    model: ActorCritic
    trainer: HogwildTrainer
    rollouts: list[Rollout]
    info: WorkerInfo
    _reward_normalizer: RewardScaler
    _param: Tensor  # flat parameters of `model`
    _shared: FlatParameters
    _counters: SharedCounters
    _workers: AsyncWorkers

    @property
    def asynchrony(self) -> Asynchrony:
        """How the workers have interleaved."""
        return self.trainer.asynchrony

    @property
    def waiting(self) -> list[float]:
        """Empty: no worker waits for another."""
        return []

    def action_std(self) -> float | None:
        """See `ActorCritic.action_std`; computed with the current shared parameters."""
        if self.model.action_std() is None:
            return None
        self._param.copy_(self._shared.param)
        return self.model.action_std()

    def pause(self) -> Report | None:
        """See `Training`; the model is that of the shared parameters then."""
        report = self.trainer.pause()
        self._copy_model()
        return report

    def _copy_model(self) -> None:
        self._param.copy_(self._shared.param)
        copy_statistics(self._counters, self.model, self._reward_normalizer)

    def begin_with(self, model: StateTree, reward_moments: StateTree) -> None:
        """See `Training`."""
        state = self.get_state()
        normalizer = {**read_branch(state, "reward_normalizer"), **reward_moments}
        self.set_state({**state, "model": model, "reward_normalizer": normalizer})

    def get_state(self) -> StateTree:
        """Return a copy of the shared state; it excludes the workers' episodes.

        The copy is consistent if the workers have stopped. While they learn, the parameters may include an update
        that the statistics lack, or the reverse. The copy is taken without the lock: a worker hanging inside it would
        block us for ever.
        """
        trainer = self.trainer.get_state()
        updates = trainer["updates"]
        assert isinstance(updates, int)
        optimizer = self._shared.get_state(updates)
        self._copy_model()
        return {
            "model": {name: value.clone() for name, value in self.model.state_dict().items()},
            "reward_normalizer": {name: value.clone() for name, value in self._reward_normalizer.state_dict().items()},
            "trainer": {**trainer, "learner": {"optimizer": optimizer, "updates": updates}},
        }

    def get_shards(self) -> StateTree:
        """Return nothing: these workers belong to one host."""
        return {}

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; call it before the workers begin. Return False: all episodes restart."""
        load_module(self.model, read_branch(state, "model"))
        load_module(self._reward_normalizer, read_branch(state, "reward_normalizer"))
        trainer = read_branch(state, "trainer")
        self._shared.param.copy_(self._param)
        self._shared.set_state(read_branch(read_branch(trainer, "learner"), "optimizer"))
        for name, moments in find_moments(self.model, self._reward_normalizer).items():
            statistics = self._counters.statistics[name].view()
            statistics[:] = 0.0
            statistics[0, self._counters.versions[name].view()[0, 0]] = moments.dump()
        self.trainer.set_state(trainer)
        return False

    def rest(self) -> bool:
        """Return False: no worker waits for commands, and the next training loop starts new workers."""
        return False

    def drop_workers(self) -> None:
        """End the workers."""
        self._workers.close()

    def close(self) -> None:
        """End the workers."""
        self._workers.close()
