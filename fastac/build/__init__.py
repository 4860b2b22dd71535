"""The composition root: a config becomes environments, a model and a trainer; the only registry."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias, get_args

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv

from fastac import presets
from fastac.apply import Adam, LocalApply, RMSprop, Rule
from fastac.build.engine import build_engine, build_fused_objective, build_objective, build_sampler
from fastac.build.network import EncoderFactory, build_head, build_model, load_module, single_thread
from fastac.config import AlgoName, Config, ConfigValue, EnvConfig, OptimConfig
from fastac.contract import Alone, Group, StateTree, VecEnv, read_branch
from fastac.envs import adapt, has_native, make_vec
from fastac.learner import Learner
from fastac.models import ActorCritic, NoRewardNormalizer, RewardNormalizer
from fastac.processes import count_physical_cores
from fastac.rollout import Collector, FlatMinibatches, Rollout, SequenceMinibatches
from fastac.trainers import Crew, GroupMemory, MakeMember, NoCrew, Pair, SyncTrainer

__all__ = [
    "EncoderFactory",
    "EnvFactory",
    "Parts",
    "Streams",
    "WorkerParts",
    "allocate_rollout",
    "assemble",
    "build",
    "build_engine",
    "build_envs",
    "build_evaluation_envs",
    "build_fused_objective",
    "build_head",
    "build_model",
    "build_objective",
    "build_rule",
    "build_sampler",
    "check_device",
    "default_config",
    "evaluation_seed",
    "load_module",
    "resolve_workers",
    "restart_seed",
    "single_thread",
    "worker_share",
]

# Builds the run's own vector environments: called with how many it should hold.
EnvFactory: TypeAlias = Callable[[int], "VectorEnv[np.ndarray, np.ndarray, np.ndarray]"]

# Evaluations play each env's share of episodes side by side; without a batched version, an env more
# costs its construction, and a step costs the same one after the other.
_EVAL_ENVS_NATIVE = 128
_EVAL_ENVS = 16

# The fewest environments per worker for which `--workers auto` takes another worker. A batch steps 32
# environments in as much time as 64: two workers gain 16 % at 64 in all and 46 % at 256, on cores that nobody
# else wants; else those in step wait for the slowest, and below this they may lose more than that.
_LEAST_BATCHED_SHARE = 128
_LEAST_SHARE = 2


@dataclass(frozen=True, slots=True)
class Streams:
    """The random streams of a run; no two runs, and no two purposes in one, share any."""

    model: int
    actions: int
    env: np.random.SeedSequence

    @classmethod
    def spawn(cls, seed: int) -> Streams:
        """Derive them from the run's seed."""
        model, actions, env = np.random.SeedSequence(seed).spawn(3)
        return cls(_to_int(model), _to_int(actions), env)


def evaluation_seed(seed: int, env_steps: int) -> np.random.SeedSequence:
    """Return the stream of the evaluation after `env_steps`: the same whether the run was resumed or not."""
    return np.random.SeedSequence(seed, spawn_key=(3, env_steps))


def restart_seed(seed: int, env_steps: int) -> np.random.SeedSequence:
    """Return the stream of environments that begin anew because their state could not be saved."""
    return np.random.SeedSequence(seed, spawn_key=(4, env_steps))


def _to_int(seed: np.random.SeedSequence) -> int:
    return int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1))  # torch takes 63 bits and a sign


@dataclass(slots=True)
class WorkerParts:
    """What every worker has: its environments, its copy of the model, and the pair that runs them.

    Attributes:
        envs: stepped by the pair.
        model: the policy, equal in all workers.
        rollout: the storage.
        activations_nbytes: memory besides it: what acting leaves behind for learning, the updates' own, a
            minibatch, the rollout's noise and episodes.
        reward_normalizer: with this worker's returns so far.
        pair: collects and learns.
    """

    envs: VecEnv
    model: ActorCritic
    rollout: Rollout
    activations_nbytes: int
    reward_normalizer: RewardNormalizer | NoRewardNormalizer
    pair: Pair

    def get_state(self) -> StateTree:
        """What is this worker's own."""
        own = {name: part for name, part in self.pair.get_state().items() if name != "learner"}
        return {"reward_normalizer": self.reward_normalizer.state_dict(), **own}

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state` and what is everybody's; return whether the environments continue too."""
        load_module(self.model, read_branch(state, "model"))
        load_module(self.reward_normalizer, read_branch(state, "reward_normalizer"))
        return self.pair.set_state(state)

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


@dataclass(slots=True)
class Parts:
    """The assembled run, seen from the first worker; see `WorkerParts`."""

    envs: VecEnv
    model: ActorCritic
    rollout: Rollout
    activations_nbytes: int
    reward_normalizer: RewardNormalizer | NoRewardNormalizer
    trainer: SyncTrainer
    crew: Crew | NoCrew

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

    def close(self) -> None:
        """End the workers and close the environments."""
        self.crew.close()
        self.envs.close()


def assemble(
    config: Config,
    seed: np.random.SeedSequence,
    env_factory: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
) -> Parts:
    """Assemble a run, its environments and its other workers.

    Args:
        config: what to build.
        seed: the parent of the environments' streams, and of the other workers' actions.
        env_factory: the user's own environments, in place of those that `config` names.
        encoder: builds a custom encoder in place of the configured layers.

    Raises:
        ValueError: as `build_envs` and `build`.
        EnvFailure: an environment could not be built.
        WorkerFailure: a worker could not be started.
    """
    workers = config.run.workers
    assert isinstance(workers, int), "resolve_workers first"
    if workers == 1:
        return _closing(build_envs(config.env, seed, env_factory), lambda envs: build(config, envs, encoder))
    share, seeds = worker_share(config, env_factory), [child.spawn(2) for child in seed.spawn(workers)]
    makes: list[MakeMember] = [
        partial(_make_member, share, env_seed, _to_int(action_seed), env_factory, encoder)
        for env_seed, action_seed in seeds[1:]
    ]
    envs = build_envs(share.env, seeds[0][0], env_factory)
    return _closing(envs, lambda envs: _build_first(config, share, envs, makes, encoder))


def _closing(envs: VecEnv, build_around: Callable[[VecEnv], Parts]) -> Parts:
    try:
        return build_around(envs)
    except BaseException:
        envs.close()
        raise


def worker_share(config: Config, env_factory: EnvFactory | None) -> Config:
    """Return the configuration of one worker's share, the run's own where it has one worker."""
    workers = config.run.workers
    assert isinstance(workers, int), "resolve_workers first"
    if workers == 1:
        return config
    changes: dict[str, ConfigValue] = {"num_envs": config.env.num_envs // workers, "workers": 1}
    if config.env.vectorization == "auto" and not _is_batched(config.env, env_factory):
        changes["vectorization"] = "sync"  # a worker has a core to itself: more processes would only share it
    return config.replace(**changes)


def _is_batched(config: EnvConfig, env_factory: EnvFactory | None) -> bool:
    return env_factory is not None or has_native(config.env_id)


def _make_member(
    share: Config,
    env_seed: np.random.SeedSequence,
    action_seed: int,
    env_factory: EnvFactory | None,
    encoder: EncoderFactory | None,
    group: Group,
) -> WorkerParts:
    """Build a worker's part in its own process."""
    envs = build_envs(share.env, env_seed, env_factory)
    return _build_worker(share, envs, action_seed, encoder, group)


def _build_first(
    config: Config, share: Config, envs: VecEnv, makes: list[MakeMember], encoder: EncoderFactory | None
) -> Parts:
    """Start the other workers, and build the first one's part while they build theirs."""
    streams = Streams.spawn(config.run.seed)
    size = len(makes) + 1
    model = build_model(share.model, envs, streams.model, encoder)
    memory = GroupMemory.allocate(size, _slot_bytes(model, envs), share.batch_size)
    crew = Crew(makes, memory)
    try:
        own = _build_worker(share, envs, streams.actions, encoder, crew.group)
        crew.wait_ready()
    except BaseException:
        crew.close()
        raise
    return _to_parts(config, own, crew)


def _slot_bytes(model: ActorCritic, envs: VecEnv) -> int:
    """Return the size of the largest thing that workers exchange: the gradient, or observations' statistics."""
    gradient = sum(p.numel() * p.element_size() for p in model.parameters())
    statistics = 8 * (2 * int(np.prod(envs.single_observation_space.shape or ())) + 1)
    return max(gradient, statistics, 64)


def build(config: Config, envs: VecEnv, encoder: EncoderFactory | None = None) -> Parts:
    """Assemble a run with one worker around its environments.

    Args:
        config: what to build.
        envs: from `build_envs`; stepped by the trainer.
        encoder: builds a custom encoder in place of the configured layers.

    Raises:
        ValueError: a device that is not there, or an encoder that does not fit.
    """
    own = _build_worker(config, envs, Streams.spawn(config.run.seed).actions, encoder, Alone())
    return _to_parts(config, own, NoCrew())


def _to_parts(config: Config, own: WorkerParts, crew: Crew | NoCrew) -> Parts:
    trainer = SyncTrainer(config.run.total_env_steps, own.envs.frame_skip, own.pair, crew)
    return Parts(own.envs, own.model, own.rollout, own.activations_nbytes, own.reward_normalizer, trainer, crew)


def _build_worker(
    config: Config, envs: VecEnv, action_seed: int, encoder: EncoderFactory | None, group: Group
) -> WorkerParts:
    """Build one worker's part, out of its share of the configuration."""
    device = check_device(config.run.device)
    model = build_model(config.model, envs, Streams.spawn(config.run.seed).model, encoder).to(device)
    generator = torch.Generator().manual_seed(action_seed)
    rollout = allocate_rollout(config, envs, model.state_size)
    apply = LocalApply(model, build_rule(config.optim), config.optim.max_grad_norm, group)
    actor, gradient, nbytes = build_engine(config, model, rollout, generator, device)
    slicing = SequenceMinibatches if config.model.core == "lstm" else FlatMinibatches
    minibatches = slicing(config.algo.num_minibatches, generator)
    learner = Learner(config, gradient, minibatches, apply, group)
    reward_normalizer = (
        RewardNormalizer(config.env.num_envs, config.algo.gamma)
        if config.model.normalize_reward
        else NoRewardNormalizer()
    )
    collector = Collector(envs, actor, rollout)
    pair = Pair(config.algo.collect, envs, collector, learner, model.obs_normalizer, reward_normalizer, group)
    nbytes += minibatches.nbytes(rollout) + pair.nbytes
    return WorkerParts(envs, model, rollout, nbytes, reward_normalizer, pair)


def resolve_workers(config: Config, env_factory: EnvFactory | None = None) -> Config:
    """Put a number where `workers` is auto: one per physical core, or one where more would not pay."""
    if config.run.workers != "auto":
        return config
    least = _LEAST_BATCHED_SHARE if _is_batched(config.env, env_factory) else _LEAST_SHARE
    most = count_physical_cores() if config.run.device == "cpu" else 1
    for workers in range(most, 1, -1):
        if config.env.num_envs // workers >= least:
            with suppress(ValueError):  # what does not divide
                return config.replace(workers=workers)
    return config.replace(workers=1)


def default_config(env_id: str, algo: str | None, preset: str | None, factory: EnvFactory | None = None) -> Config:
    """Return the preset for an environment and algorithm, or else defaults by its kind of action space.

    Raises:
        ValueError: an unknown algorithm, preset or environment, or a preset of another algorithm.
    """
    if algo not in (None, *get_args(AlgoName)):
        raise ValueError(f"algo is {algo!r}, expected one of {', '.join(get_args(AlgoName))}.")
    found = presets.find(env_id, preset or algo or "a2c")
    if found is not None:
        if algo not in (None, found.algo.algo):
            raise ValueError(f"algo is {algo!r}, but the preset {preset!r} is for {found.algo.algo}: name one of them.")
        return found
    if preset is not None:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(presets.names(env_id))} for {env_id}.")
    envs = build_envs(EnvConfig(env_id, 1, "sync"), np.random.SeedSequence(0), factory)
    try:
        continuous = isinstance(envs.single_action_space, Box)
    finally:
        envs.close()
    return presets.default(env_id, algo or "a2c", "continuous" if continuous else "discrete")


def build_envs(config: EnvConfig, seed: np.random.SeedSequence, factory: EnvFactory | None = None) -> VecEnv:
    """Build the environments by id, or around what the user's factory returns.

    Raises:
        ValueError: unknown id, unsupported space, or a factory that returned another number of envs.
    """
    if factory is None:
        return make_vec(config, seed)
    env = factory(config.num_envs)
    if not isinstance(env, VectorEnv):
        raise ValueError(f"the env function returned {env!r}, expected a gymnasium.vector.VectorEnv.")
    if env.num_envs != config.num_envs:
        raise ValueError(f"the env factory returned {env.num_envs} envs, expected num_envs = {config.num_envs}.")
    return adapt(env, seed)


def build_evaluation_envs(
    config: EnvConfig, episodes: int, seed: np.random.SeedSequence, factory: EnvFactory | None = None
) -> VecEnv:
    """Build environments for one evaluation of so many episodes: batched where that is native, else few.

    Raises:
        ValueError: as `build_envs`.
    """
    if factory is not None:
        return build_envs(replace(config, num_envs=min(episodes, config.num_envs)), seed, factory)
    native = has_native(config.env_id) and config.vectorization in ("auto", "native")
    num_envs = min(episodes, _EVAL_ENVS_NATIVE if native else _EVAL_ENVS)
    return make_vec(EnvConfig(config.env_id, num_envs, "native" if native else "sync"), seed)


def build_rule(config: OptimConfig) -> Rule:
    """Build the optimiser's rule."""
    if config.optimizer == "adam":
        return Adam(config.optimizer_eps)
    return RMSprop(config.optimizer_eps, tensorflow=config.optimizer == "rmsprop_tf")


def allocate_rollout(config: Config, envs: VecEnv, state_size: int) -> Rollout:
    """Allocate the run's one rollout."""
    action_space = envs.single_action_space
    assert envs.single_observation_space.shape is not None and action_space.shape is not None
    return Rollout.allocate(
        config.algo.num_steps,
        config.env.num_envs,
        envs.single_observation_space.shape,
        action_space.shape,
        torch.float32 if isinstance(action_space, Box) else torch.int64,
        state_size,
        pin=config.run.device != "cpu",
    )


def check_device(name: str) -> torch.device:
    """Return the device.

    Raises:
        ValueError: no such device on this machine.
    """
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"devices of type {device.type} are not supported")
        device = torch.zeros(1, device=device).device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # kernels and captured graphs go where the current device is
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {name!r}, which this machine or torch build does not offer: use cpu.") from error
    return device
