"""A run whose workers wait for nobody: A3C."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from fastac.learning.optimizer import HogwildApply, Vectors, flatten
from fastac.build.environments import (
    EnvFactory,
    Streams,
    again_seeds,
    build_envs,
    build_evaluation_envs,
    evaluation_seed,
    worker_seeds,
)
from fastac.build.network import EncoderFactory, build_model, load_module
from fastac.build.shares import worker_share
from fastac.build.worker import WorkerParts, build_reward_normalizer, build_rule, build_worker
from fastac.config import Config
from fastac.contract import Asynchrony, StateTree, VecEnv, read_branch
from fastac.models import (
    ActorCritic,
    ObsNormalizer,
    RewardNormalizer,
    RewardScaler,
    RunningMoments,
    merge_moments,
)
from fastac.processes import ProcessLock
from fastac.workers import (
    BeatingEnvs,
    Board,
    BoardRow,
    Facts,
    HogwildTrainer,
    MakeHogwildWorker,
    Pair,
    WorkerPool,
    pool_all,
)


@dataclass(slots=True)
class HogwildParts:
    """The assembled run, seen from the process that watches the workers; see `Parts`."""

    envs: VecEnv
    model: ActorCritic
    trainer: HogwildTrainer
    rollout: None
    _reward_normalizer: RewardScaler
    _param: Tensor  # the model's
    _shared: Vectors
    _board: Board
    _pool: WorkerPool
    _facts: Facts

    @property
    def description(self) -> str:
        """How a worker's environments are batched."""
        return self._facts.description

    @property
    def rollout_nbytes(self) -> int:
        """Memory of a worker's rollout."""
        return self._facts.rollout_nbytes

    @property
    def activations_nbytes(self) -> int:
        """Memory of a worker besides it."""
        return self._facts.activations_nbytes

    @property
    def asynchrony(self) -> Asynchrony:
        """How the workers have interleaved."""
        return self.trainer.asynchrony

    def action_std(self) -> float | None:
        """See `ActorCritic.action_std`; of the parameters that workers share."""
        if self.model.action_std() is None:
            return None
        self._param.copy_(self._shared.param)
        return self.model.action_std()

    def get_state(self) -> StateTree:
        """Copy what is shared, as a worker would at this moment; workers' episodes are not in it.

        When workers have stopped all is of one moment. While they learn, parameters may have seen an update
        that the statistics have not, or the other way round; nobody waits for this process to look, which
        a worker that hangs under the lock would make for ever.
        """
        trainer = self.trainer.get_state()
        updates = trainer["updates"]
        assert isinstance(updates, int)
        apply = self._shared.get_state(updates)
        self._param.copy_(self._shared.param)
        _copy_statistics(self._board, self.model, self._reward_normalizer)
        return {
            "model": {name: value.clone() for name, value in self.model.state_dict().items()},
            "reward_normalizer": {name: value.clone() for name, value in self._reward_normalizer.state_dict().items()},
            "trainer": {**trainer, "learner": {"apply": apply, "updates": updates}},
        }

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`, before workers begin; their episodes begin anew, so it returns False."""
        load_module(self.model, read_branch(state, "model"))
        load_module(self._reward_normalizer, read_branch(state, "reward_normalizer"))
        trainer = read_branch(state, "trainer")
        self._shared.param.copy_(self._param)
        self._shared.set_state(read_branch(read_branch(trainer, "learner"), "apply"))
        for name, moments in _find_moments(self.model, self._reward_normalizer).items():
            statistics = self._board.statistics[name].view()
            statistics[:] = 0.0
            statistics[0, self._board.versions[name].view()[0, 0]] = moments.dump()
        self.trainer.set_state(trainer)
        return False

    def rest(self) -> bool:
        """Return False: workers end with every loop, and begin with every one."""
        return False

    def drop_workers(self) -> None:
        """End the workers."""
        self._pool.close()

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


@dataclass(slots=True)
class HogwildWorkerParts:
    """What an A3C worker runs in its process; see `HogwildWorker`."""

    pair: Pair
    _worker: WorkerParts
    _apply: HogwildApply
    _board: Board

    def facts(self) -> Facts:
        """See `WorkerParts`."""
        return self._worker.facts()

    def begin(self) -> None:
        """Take over the parameters and statistics that there are by now."""
        self._apply.copy()
        _copy_statistics(self._board, self._worker.model, self._worker.reward_normalizer)

    def close(self) -> None:
        """Close the environments."""
        self._worker.close()


def assemble_hogwild(
    config: Config,
    seed: np.random.SeedSequence,
    env_factory: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
) -> HogwildParts:
    """Assemble a run whose workers wait for nobody; see `assemble`."""
    share, seeds = worker_share(config, env_factory), worker_seeds(config, seed)

    def make(worker: int, replaced: int) -> MakeHogwildWorker:
        """Describe a worker's part; one that takes another's place has streams of its own."""
        streams = again_seeds(seed, replaced) if replaced else seeds[worker]
        return partial(_make_worker, share, *streams, env_factory, encoder)

    # Only looked at, since a policy is of spaces; of some simulators no other can be open beside a worker's.
    envs = build_evaluation_envs(config.env, 1, evaluation_seed(config.run.seed, 0), env_factory)
    envs.close()
    return _assemble_around(config, share, envs, make, encoder)


def _assemble_around(
    config: Config,
    share: Config,
    envs: VecEnv,
    make: Callable[[int, int], MakeHogwildWorker],
    encoder: EncoderFactory | None,
) -> HogwildParts:
    """Start the workers, and build what this process has of the run."""
    assert isinstance(config.run.workers, int), "resolve_workers first"
    model = build_model(config.model, envs, Streams.spawn(config.run.seed).model, encoder)
    param, _ = flatten(model)
    reward_normalizer = build_reward_normalizer(share)
    widths = {name: moments.mean.numel() for name, moments in _find_moments(model, reward_normalizer).items()}
    board = Board.allocate(config.run.workers, param.numel(), build_rule(config.optim).slots, widths)
    shared = board.vectors()
    shared.param.copy_(param)
    lock = ProcessLock() if config.run.lock else nullcontext()
    pool = WorkerPool(
        board,
        make,
        lock,
        config.run.total_env_steps,
        config.run.max_restarts,
        config.env.start_timeout_s,
        config.env.env_timeout_s,
    )
    return HogwildParts(
        envs=envs,
        model=model,
        trainer=HogwildTrainer(config.run.total_env_steps, envs.frame_skip, board, pool),
        rollout=None,
        _reward_normalizer=reward_normalizer,
        _param=param,
        _shared=shared,
        _board=board,
        _pool=pool,
        _facts=pool.wait_ready(),
    )


def _make_worker(
    share: Config,
    env_seed: np.random.SeedSequence,
    action_seed: int,
    env_factory: EnvFactory | None,
    encoder: EncoderFactory | None,
    board: Board,
    row: BoardRow,
    lock: AbstractContextManager[object],
) -> HogwildWorkerParts:
    """Build a worker's part in its own process."""
    envs = BeatingEnvs(build_envs(share.env, env_seed, env_factory), row)
    # From the run's seed, for what an encoder has besides parameters; those are copied over.
    model = build_model(share.model, envs, Streams.spawn(share.run.seed).model, encoder)
    apply = HogwildApply(model, build_rule(share.optim), share.optim.max_grad_norm, board.vectors(), row, lock)
    worker = build_worker(share, envs, model, apply, action_seed, row)
    return HogwildWorkerParts(worker.pair, worker, apply, board)


def _find_moments(model: ActorCritic, reward_normalizer: RewardScaler) -> dict[str, RunningMoments]:
    """Return the running statistics that there are, under the names that a group knows them by."""
    normalizers = {"obs": model.obs_normalizer, "reward": reward_normalizer}
    return {
        name: normalizer.moments
        for name, normalizer in normalizers.items()
        if isinstance(normalizer, ObsNormalizer | RewardNormalizer)
    }


def _copy_statistics(board: Board, model: ActorCritic, reward_normalizer: RewardScaler) -> None:
    """Let the normalisers know what all workers have seen so far."""
    for name, moments in _find_moments(model, reward_normalizer).items():
        pooled = pool_all(board.statistics[name].view(), board.versions[name].view()[:, 0], merge_moments)
        if pooled[0]:  # else they are as they begin
            moments.load(pooled)
