"""A run whose workers are in step: A2C, PPO and REINFORCE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from fastac.learning.optimizer import Apply, LocalApply, SharedApply, flat_size
from fastac.build.environments import EnvFactory, Streams, build_envs, worker_seeds
from fastac.build.network import EncoderFactory, build_model, load_module
from fastac.build.shares import worker_share
from fastac.build.worker import WorkerParts, build_rule, build_worker, check_device
from fastac.config import Config
from fastac.contract import Alone, Group, StateTree, VecEnv, read_branch
from fastac.models import ActorCritic, RewardScaler
from fastac.rollout import Rollout
from fastac.workers import WORKER_TIMEOUT_S, Crew, GroupMemory, MakeMember, NoCrew, SharedGroup, SyncTrainer


@dataclass(slots=True)
class SyncParts:
    """A run whose workers are in step, seen from the first of them, which is this process; see `Parts`."""

    envs: VecEnv
    model: ActorCritic
    rollout: Rollout
    activations_nbytes: int
    reward_normalizer: RewardScaler
    trainer: SyncTrainer
    crew: Crew | NoCrew
    asynchrony: None = None

    @property
    def description(self) -> str:
        """How the environments are batched."""
        return self.envs.description

    @property
    def rollout_nbytes(self) -> int:
        """Memory of a worker's rollout."""
        return self.rollout.nbytes

    def action_std(self) -> float | None:
        """See `ActorCritic.action_std`."""
        return self.model.action_std()

    def get_state(self) -> StateTree:
        """Everything that training continues from."""
        workers = self.crew.get_states()
        # Where the workers' environments are lost nobody's episodes go on, and these may be what failed.
        trainer = self.trainer.get_state(with_envs=workers is not None)
        return {
            "model": self.model.state_dict(),
            "reward_normalizer": self.reward_normalizer.state_dict(),
            "trainer": trainer,
            "workers": {str(rank): state for rank, state in enumerate(workers or [], start=1)},
        }

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; return whether the environments continue too."""
        trainer, saved = read_branch(state, "trainer"), read_branch(state, "workers")
        common = {"model": state["model"], "learner": trainer["learner"]}
        lost = {"envs": None, "reward_normalizer": state["reward_normalizer"]}
        self.crew.set_states(
            [
                {**common, **(read_branch(saved, str(rank)) if str(rank) in saved else lost)}
                for rank in range(1, self.crew.group.size)
            ]
        )
        load_module(self.model, read_branch(state, "model"))
        load_module(self.reward_normalizer, read_branch(state, "reward_normalizer"))
        return self.trainer.set_state(trainer)

    def rest(self) -> bool:
        """End the workers; return whether there were any."""
        return self.crew.rest()

    def drop_workers(self) -> None:
        """Give up the environments, and the workers, who are in the middle of an iteration."""
        self.crew.close()

    def close(self) -> None:
        """End the workers and close the environments."""
        self.crew.close()
        self.envs.close()


def _make_member(
    share: Config,
    env_seed: np.random.SeedSequence,
    action_seed: int,
    env_factory: EnvFactory | None,
    encoder: EncoderFactory | None,
    group: Group,
) -> WorkerParts:
    """Build a worker's part in its own process."""
    return _build_own(share, build_envs(share.env, env_seed, env_factory), action_seed, encoder, group)


def _build_own(
    config: Config, envs: VecEnv, action_seed: int, encoder: EncoderFactory | None, group: Group
) -> WorkerParts:
    """Build a worker's part around a model of its own, whose parameters are everybody's."""
    model = build_model(config.model, envs, Streams.spawn(config.run.seed).model, encoder)
    model = model.to(check_device(config.run.device))
    rule, max_norm = build_rule(config.optim), config.optim.max_grad_norm
    apply: Apply = (
        SharedApply(model, rule, max_norm, group, group.vectors, group.grads)
        if isinstance(group, SharedGroup)
        else LocalApply(model, rule, max_norm)
    )
    return build_worker(config, envs, model, apply, action_seed, group)


def _build_first(
    config: Config, share: Config, envs: VecEnv, makes: list[MakeMember], encoder: EncoderFactory | None
) -> SyncParts:
    """Start the other workers, and build the first one's part while they build theirs."""
    streams = Streams.spawn(config.run.seed)
    model = build_model(share.model, envs, streams.model, encoder)
    memory = allocate_memory(share, len(makes) + 1, model, envs)
    crew = Crew(makes, memory, share.env.start_timeout_s, share.env.env_timeout_s or WORKER_TIMEOUT_S)
    try:
        own = _build_own(share, envs, streams.actions, encoder, crew.group)
        crew.wait_ready()
    except BaseException:
        crew.close()
        raise
    return _to_parts(config, own, crew)


def allocate_memory(share: Config, size: int, model: ActorCritic, envs: VecEnv) -> GroupMemory:
    """Allocate what `size` workers share, of which each has such a share of the run and such a model."""
    # The largest thing that is exchanged: observations' statistics, or a few numbers.
    statistics = 8 * (2 * int(np.prod(envs.single_observation_space.shape or ())) + 1)
    return GroupMemory.allocate(
        size, max(statistics, 64), share.batch_size, flat_size(model), build_rule(share.optim).slots
    )


def build(config: Config, envs: VecEnv, encoder: EncoderFactory | None = None) -> SyncParts:
    """Assemble a run with one worker around its environments.

    Args:
        config: what to build.
        envs: from `build_envs`; stepped by the trainer.
        encoder: builds a custom encoder in place of the configured layers.

    Raises:
        ValueError: a device that is not there, or an encoder that does not fit.
    """
    own = _build_own(config, envs, Streams.spawn(config.run.seed).actions, encoder, Alone())
    return _to_parts(config, own, NoCrew())


def _to_parts(config: Config, own: WorkerParts, crew: Crew | NoCrew) -> SyncParts:
    trainer = SyncTrainer(config.run.total_env_steps, own.envs.frame_skip, own.pair, crew)
    return SyncParts(own.envs, own.model, own.rollout, own.activations_nbytes, own.reward_normalizer, trainer, crew)


def assemble_sync(
    config: Config,
    seed: np.random.SeedSequence,
    env_factory: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
) -> SyncParts:
    """Assemble a run whose workers are in step; see `assemble`."""
    workers = config.run.workers
    assert isinstance(workers, int), "resolve_workers first"
    if workers == 1:
        return _closing(build_envs(config.env, seed, env_factory), lambda envs: build(config, envs, encoder))
    share, seeds = worker_share(config, env_factory), worker_seeds(config, seed)
    makes: list[MakeMember] = [
        partial(_make_member, share, env_seed, action_seed, env_factory, encoder) for env_seed, action_seed in seeds[1:]
    ]
    envs = build_envs(share.env, seeds[0][0], env_factory)
    return _closing(envs, lambda envs: _build_first(config, share, envs, makes, encoder))


def _closing(envs: VecEnv, build_around: Callable[[VecEnv], SyncParts]) -> SyncParts:
    try:
        return build_around(envs)
    except BaseException:
        envs.close()
        raise
