"""Builds environments, model, workers and trainer from a Config; entry point: `assemble`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast, get_args

import numpy as np
from gymnasium.spaces import Box

from fastac import presets
from fastac.build.engine import build_objective, build_sampler
from fastac.build.environments import (
    EnvFactory,
    Streams,
    build_envs,
    build_evaluation_envs,
    evaluation_seed,
    evaluation_width,
    is_batched,
    is_seeded_when_built,
    restart_seed,
)
from fastac.build.hogwild import assemble_hogwild
from fastac.build.network import (
    EncoderFactory,
    build_head,
    build_model,
    name_encoder,
    torch_threads,
)
from fastac.build.shares import (
    apply_settings,
    most_workers,
    resolve_shards,
    resolve_workers,
    shard_config,
    shorten_rollout,
    step_alone_s,
)
from fastac.build.sync import assemble_sync, build
from fastac.build.worker import allocate_rollout, build_rule
from fastac.config import AlgoName, Config, ConfigValue, EnvConfig, is_atari, with_home
from fastac.envs import has_native, name_env, shows_image, take_env
from fastac.envs.saved_spaces import Spaces, load_spaces, save_spaces
from fastac.presets import describe_untuned
from fastac.workers import Hosts, Training

__all__ = [
    "EncoderFactory",
    "EnvFactory",
    "Spaces",
    "Streams",
    "Training",
    "allocate_rollout",
    "apply_settings",
    "assemble",
    "build",
    "build_envs",
    "build_evaluation_envs",
    "build_head",
    "build_model",
    "build_objective",
    "build_rule",
    "build_sampler",
    "default_config",
    "describe_untuned",
    "evaluation_seed",
    "evaluation_width",
    "is_batched",
    "is_seeded_when_built",
    "load_spaces",
    "most_workers",
    "name_encoder",
    "name_env",
    "resolve_shards",
    "resolve_workers",
    "restart_seed",
    "save_spaces",
    "shard_config",
    "shorten_rollout",
    "step_alone_s",
    "take_env",
    "torch_threads",
]


def assemble(
    config: Config,
    seed: np.random.SeedSequence,
    env_factory: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    hosts: Hosts | None = None,
) -> Training:
    """Assemble a run: its environments, workers and trainer.

    Args:
        config: the configuration after `resolve_workers` ('auto' replaced by numbers).
        seed: SeedSequence; parent of all env streams and of other workers' action streams.
        env_factory: the user's environments, instead of those named in `config`.
        encoder: builds a custom encoder instead of the configured layers.
        hosts: the other hosts of the run, if it has any; this one then gets its part of the shards.

    Raises:
        ValueError: as `build_envs` and `build`.
        EnvFailure: an environment could not be built.
        WorkerFailure: a worker could not be started.
    """
    if config.algo.has_async_workers:
        assert hosts is None, "a3c's workers share the memory of one machine"
        return assemble_hogwild(config, seed, env_factory, encoder)
    return assemble_sync(config, seed, env_factory, encoder, hosts)


def default_config(
    env_id: str,
    algo: str | None,
    preset: str | None,
    factory: EnvFactory | None = None,
    given: Mapping[str, ConfigValue] | None = None,
) -> Config:
    """Return the preset for an environment and algorithm, or else defaults for its kind of action space.

    Args:
        env_id: name of the environment.
        algo: name of an algorithm; None: a2c, or the preset's algorithm.
        preset: name of a preset; None: the algorithm's preset.
        factory: the environment's factory, if its name is not enough.
        given: settings by name; those of the environments decide what their spaces are.

    Raises:
        ValueError: unknown algorithm, preset or environment, or the preset is for another algorithm.
    """
    if algo not in (None, *get_args(AlgoName)):
        raise ValueError(f"algo is {algo!r}, expected one of {', '.join(get_args(AlgoName))}.")
    env_id = with_home(env_id)
    found = presets.find(env_id, preset or algo or "a2c")
    if found is not None:
        if algo not in (None, found.algo.algo):
            raise ValueError(f"algo is {algo!r}, but the preset {preset!r} is for {found.algo.algo}: name one of them.")
        return found
    if preset is not None:
        known = presets.names(env_id)
        if not known:
            raise ValueError(f"preset is {preset!r}, expected none: there is no preset for {env_id}, so leave it out.")
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(known)} for {env_id}.")
    name = cast(AlgoName, algo or "a2c")
    if is_atari(env_id):
        has_native(EnvConfig(env_id))  # raises for an unknown game
        return presets.default(env_id, name, "image")
    return presets.default(env_id, name, _find_kind(env_id, factory, given or {}))


# Settings on which the spaces of an environment depend.
_SPACES = ("env_kwargs", "wrappers", "mask_actions", "drop_keys", "critic_keys")


def _find_kind(env_id: str, factory: EnvFactory | None, given: Mapping[str, ConfigValue]) -> presets.Kind:
    """Build one environment, and return which defaults fit its spaces."""
    chosen = {name: given[name] for name in _SPACES if given.get(name) is not None}
    vectorization = "envpool" if given.get("vectorization") == "envpool" else "sync"  # it has ids of its own
    one = Config().replace(env_id=env_id, num_envs=1, vectorization=vectorization, shared_trunk=False, **chosen)
    envs = build_envs(one.env, np.random.SeedSequence(0), factory)
    try:
        if shows_image(envs.single_observation_space):
            return "image"
        return "continuous" if isinstance(envs.single_action_space, Box) else "discrete"
    finally:
        envs.close()
