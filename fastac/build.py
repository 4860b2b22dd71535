"""The composition root: a config becomes environments, a model and a trainer; the only registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import TypeAlias, get_args

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space
from gymnasium.vector import VectorEnv
from torch import nn

from fastac import presets
from fastac.apply import Adam, LocalApply, RMSprop, Rule
from fastac.config import AlgoName, Config, EnvConfig, ModelConfig, OptimConfig
from fastac.contract import StateTree, VecEnv, read_branch, read_tensor
from fastac.envs import adapt, has_native, make_vec
from fastac.learner import Learner
from fastac.losses import PolicyLoss, clipped_surrogate, policy_gradient
from fastac.models import (
    ActorCritic,
    CategoricalHead,
    GaussianHead,
    Head,
    IdentityCore,
    LSTMCore,
    MLPEncoder,
    MultiCategoricalHead,
    NoObsNormalizer,
    NoRewardNormalizer,
    ObsNormalizer,
    RewardNormalizer,
    Trunk,
)
from fastac.rollout import Collector, FlatMinibatches, Rollout, SequenceMinibatches
from fastac.trainers import SyncTrainer

# Builds the run's own vector environments: called with how many it should hold.
EnvFactory: TypeAlias = Callable[[int], "VectorEnv[np.ndarray, np.ndarray, np.ndarray]"]
# Builds an encoder for observations of a space; the module maps `[..., *obs_shape]` to `[..., D]`.
EncoderFactory: TypeAlias = Callable[["Space[np.ndarray]"], nn.Module]

_LOSSES: dict[AlgoName, PolicyLoss] = {
    "a2c": policy_gradient,
    "reinforce": policy_gradient,
    "ppo": clipped_surrogate,
}

# Evaluations play each env's share of episodes side by side; without a batched version, an env more
# costs its construction, and a step costs the same one after the other.
_EVAL_ENVS_NATIVE = 128
_EVAL_ENVS = 16


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


@contextmanager
def single_thread() -> Iterator[None]:
    """Give torch one thread: faster for small networks, and results do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def evaluation_seed(seed: int, env_steps: int) -> np.random.SeedSequence:
    """Return the stream of the evaluation after `env_steps`: the same whether the run was resumed or not."""
    return np.random.SeedSequence(seed, spawn_key=(3, env_steps))


def restart_seed(seed: int, env_steps: int) -> np.random.SeedSequence:
    """Return the stream of environments that begin anew because their state could not be saved."""
    return np.random.SeedSequence(seed, spawn_key=(4, env_steps))


def _to_int(seed: np.random.SeedSequence) -> int:
    return int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1))  # torch takes 63 bits and a sign


@dataclass(slots=True)
class Parts:
    """The assembled run."""

    envs: VecEnv
    model: ActorCritic
    rollout: Rollout
    trainer: SyncTrainer
    reward_normalizer: RewardNormalizer | NoRewardNormalizer

    def get_state(self) -> StateTree:
        """Everything that training continues from."""
        return {
            "model": self.model.state_dict(),
            "reward_normalizer": self.reward_normalizer.state_dict(),
            "trainer": self.trainer.get_state(),
        }

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; return whether the environments continue too."""
        load_module(self.model, read_branch(state, "model"))
        load_module(self.reward_normalizer, read_branch(state, "reward_normalizer"))
        return self.trainer.set_state(read_branch(state, "trainer"))


def build(config: Config, envs: VecEnv, encoder: EncoderFactory | None = None) -> Parts:
    """Assemble a run around its environments.

    Args:
        config: what to build.
        envs: from `build_envs`; stepped by the trainer, closed by the caller.
        encoder: builds a custom encoder in place of the configured layers.

    Raises:
        ValueError: a device that is not there, or an encoder that does not fit.
    """
    device = check_device(config.run.device)
    streams = Streams.spawn(config.run.seed)
    model = build_model(config.model, envs, streams.model, encoder).to(device)
    generator = torch.Generator().manual_seed(streams.actions)
    rollout = allocate_rollout(config, envs, model.state_size)
    collector = Collector(envs, model, rollout, generator, device)
    slicing = SequenceMinibatches if config.model.core == "lstm" else FlatMinibatches
    apply = LocalApply(model, build_rule(config.optim), config.optim.max_grad_norm)
    minibatches = slicing(config.algo.num_minibatches, generator)
    learner = Learner(config, model, _LOSSES[config.algo.algo], minibatches, apply, device)
    reward_normalizer = (
        RewardNormalizer(config.env.num_envs, config.algo.gamma)
        if config.model.normalize_reward
        else NoRewardNormalizer()
    )
    trainer = SyncTrainer(config, envs, collector, learner, model.obs_normalizer, reward_normalizer)
    return Parts(envs, model, rollout, trainer, reward_normalizer)


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


def build_model(config: ModelConfig, envs: VecEnv, seed: int = 0, encoder: EncoderFactory | None = None) -> ActorCritic:
    """Build the network for the environments' spaces, initialised from `seed` without touching torch's CPU stream."""
    obs_shape = envs.single_observation_space.shape
    assert obs_shape is not None  # envs/ let only Box through
    with torch.random.fork_rng(devices=[]), single_thread():
        torch.manual_seed(seed)
        make = encoder or (lambda _: MLPEncoder(obs_shape[0], config.hidden_sizes, config.activation))
        trunks = [
            _build_trunk(config, make(envs.single_observation_space), obs_shape)
            for _ in range(1 if config.shared_trunk else 2)
        ]
        head = build_head(envs.single_action_space, trunks[0].core.output_size, config)
        normalizer = ObsNormalizer(obs_shape) if config.normalize_obs else NoObsNormalizer()
        # In evaluation mode for good: with dropout, or statistics of the batch, the forward that learns
        # would differ from the one that acted, and evaluations would change the model.
        return ActorCritic(trunks, head, normalizer).eval()


def _build_trunk(config: ModelConfig, encoder: nn.Module, obs_shape: tuple[int, ...]) -> Trunk:
    features = encoder(torch.zeros(2, *obs_shape))
    if features.dim() != 2 or features.shape[0] != 2:
        raise ValueError(
            f"the encoder maps [2, {', '.join(map(str, obs_shape))}] to {list(features.shape)}, expected [2, D]."
        )
    size = features.shape[1]
    core = LSTMCore(size, config.lstm_size) if config.core == "lstm" else IdentityCore(size)
    return Trunk(encoder, core)


@singledispatch
def build_head(space: object, input_size: int, config: ModelConfig) -> Head:
    """Build the head for an action space.

    Raises:
        ValueError: a space without a head.
    """
    raise ValueError(f"the action space is {space}, expected a Discrete, MultiDiscrete or Box.")


@build_head.register
def _(space: Discrete, input_size: int, config: ModelConfig) -> CategoricalHead:
    return CategoricalHead(input_size, int(space.n))


@build_head.register
def _(space: MultiDiscrete, input_size: int, config: ModelConfig) -> MultiCategoricalHead:
    return MultiCategoricalHead(input_size, tuple(int(n) for n in space.nvec))


@build_head.register
def _(space: Box, input_size: int, config: ModelConfig) -> GaussianHead:
    return GaussianHead(input_size, int(np.prod(space.shape)), config.log_std_init)


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
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {name!r}, which this machine or torch build does not offer: use cpu.") from error
    return device


def load_module(module: nn.Module, state: StateTree) -> None:
    """Load saved tensors.

    Raises:
        ValueError: they are of another network.
    """
    saved = {key: read_tensor(state, key) for key in state}
    try:
        module.load_state_dict(saved)
    except RuntimeError as error:
        raise ValueError(
            "the saved weights do not fit this network: if the run began with an encoder of your own, "
            "resume and load it from Python with the same encoder."
        ) from error
