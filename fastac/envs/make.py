"""Builds the environments of a run from an id, a class or a function, with the cheapest way of batching."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, VectorEnv
from gymnasium.wrappers import PassiveEnvChecker

from fastac.config import EnvConfig, is_atari
from fastac.contract import EnvFailure, ObsArray, VecEnv
from fastac.cpu import count_cores
from fastac.envs.adapter import wrap
from fastac.envs.atari import AtariEnvs, FilmedGame
from fastac.envs.cautions import SEEDLESS, find_cautions, ignores_seeds
from fastac.envs.compiled import CompiledEnv, CompiledVectorEnv, renders_nothing
from fastac.envs.failure import describe, make_failure
from fastac.envs.flatten import FlattenedBatch, flatten_env, to_first_row
from fastac.envs.mistakes import blame
from fastac.envs.offers import find_compiled, picks_compiled, picks_native
from fastac.envs.pool import make_pool, read_spaces
from fastac.envs.process import Build, ProcessEnvs
from fastac.envs.reading import read_batch, read_single
from fastac.envs.robots import quiet_mujoco_warnings
from fastac.envs.rows import FlatBox, Reading, check_observation_space
from fastac.envs.seeds import draw_batch_seed, draw_seeds
from fastac.envs.source import EnvFunction, Given, Source, find_source, takes
from fastac.envs.spaces import ArraySpace, SquashedBox, needs_flattening
from fastac.envs.state import BatchedEnv, SingleEnv
from fastac.envs.sync import SyncEnvs
from fastac.envs.trial import choose_processes
from fastac.envs.wrappers import wrap_single
from fastac.install import INSTALL, Extra
from fastac.pickling import UnsendableError
from fastac.processes import ANSWER_TIMEOUT_S

# Gymnasium's families of environments that need an extra package.
_EXTRAS: tuple[Extra, ...] = ("box2d", "mujoco")


def make_vec(
    config: EnvConfig,
    seed: np.random.SeedSequence,
    num_envs: int | None = None,
    render_mode: str | None = None,
    whole_stacks: bool = False,
    least_processes: int = 1,
    given: Given | None = None,
    why_sync: str = "as asked",
) -> VecEnv:
    """Build the environments of `config`, batched as configured; trial environments are closed before this returns.

    Args:
        config: which environments, and how they are batched.
        seed: the parent of every environment's random stream.
        num_envs: overrides the configured number.
        render_mode: Gymnasium's; environments that render are always batched by `SyncEnvs`, which
            has a `render` method. Atari games use `film_game` instead.
        whole_stacks: if observations are stacks of frames, write all frames and not only the newest; `frame_stack`
            is then 1. For callers that do not keep rows.
        least_processes: allow at least this many processes, even with fewer cores.
        given: the source named in `config`, if available: a class, a function or a spec.
        why_sync: the logged reason if `config` has vectorization sync.

    Raises:
        ValueError: an unknown id, a missing package, an unsupported space or vectorization, or a function that
            returned an object of the wrong type.
        EnvFailure: an environment could not be built, or raised when tried.
    """
    num_envs = config.num_envs if num_envs is None else num_envs
    if config.vectorization == "envpool":
        _check_unrendered(config, render_mode)
        return _make_pool(config, seed, num_envs)
    source = find_source(config, given)
    if isinstance(source, EnvSpec) and is_atari(config.env_id):
        if render_mode is not None:
            raise ValueError(f"render_mode is {render_mode!r}, expected None: {config.env_id} is filmed by film_game.")
        return _make_atari(config, _find_game(source), draw_seeds(seed, num_envs), whole_stacks)
    if isinstance(source, EnvFunction) and source.is_batch:
        _check_unrendered(config, render_mode)
        return _make_batch(config, source, seed, num_envs)
    if render_mode is None and picks_compiled(config, source):
        return _make_compiled(config, source, seed, num_envs)
    if render_mode is None and picks_native(config, source, num_envs):
        return _make_native(config, source, seed, num_envs)
    processes = min(max(count_cores(), least_processes), num_envs)
    return _make_singles(config, source, draw_seeds(seed, num_envs), render_mode, processes, why_sync)


def make_single(config: EnvConfig, render_mode: str | None = None, given: Given | None = None) -> SingleEnv:
    """Build one environment without fastac's wrappers, for example to film it; Gymnasium's own instead of EnvPool's.

    Raises:
        ValueError: an unknown id, a missing package, or an environment that only comes in batches, or renders nothing.
        EnvFailure: it could not be built.
    """
    if config.vectorization == "envpool":
        config = replace(config, vectorization="auto", env_threads=None)
    source = find_source(config, given)
    if isinstance(source, EnvFunction) and source.is_batch:
        _check_unrendered(config, render_mode)
    if render_mode is not None and isinstance(source, EnvSpec) and renders_nothing(source):
        raise ValueError(f"{config.env_id} cannot be filmed: it is a compiled environment, which renders nothing.")
    if isinstance(source, EnvSpec):
        quiet_mujoco_warnings(source)
    try:
        return _build_raw(config, source, render_mode)
    except Exception as error:
        raise _explain(config.env_id, source, error) from error


def _check_unrendered(config: EnvConfig, render_mode: str | None) -> None:
    if render_mode is not None:
        raise ValueError(f"{config.env_id} builds batches of environments, and only a single one can be rendered.")


def film_game(config: EnvConfig) -> FilmedGame:
    """Build one Atari game with the protocol of `config`; it is played to its end and renders in colour.

    Raises:
        ValueError: an unknown id, or a missing package.
        EnvFailure: it could not be built.
    """
    spec = find_source(config)
    assert isinstance(spec, EnvSpec)
    game = _find_game(spec)
    try:
        return FilmedGame(config, game)
    except Exception as error:
        raise _explain(config.env_id, spec, error) from error


def adapt(env: BatchedEnv, seed: np.random.SeedSequence, squashes: bool = False) -> VecEnv:
    """Adapt any Gymnasium vector environment to the step contract; closing the result closes `env`.

    Args:
        env: in any autoreset mode; observations that are neither vectors nor images are flattened.
        seed: the parent of its random streams.
        squashes: squash actions into the action space, instead of clipping them.

    Raises:
        ValueError: an unsupported space, or no autoreset mode in the metadata.
    """
    return _put_behind(EnvConfig(squash_actions=squashes), env, seed, "given")


def _put_behind(
    config: EnvConfig,
    env: BatchedEnv,
    seed: np.random.SeedSequence,
    kind: str,
    has_seed: bool = False,
    cautions: tuple[str, ...] = (),
) -> VecEnv:
    if isinstance(env.unwrapped, AsyncVectorEnv) and not env.unwrapped.shared_memory:
        raise ValueError(
            "the env is an AsyncVectorEnv(shared_memory=False), which resets twice: use shared_memory=True."
        )
    if ignores_seeds(env):
        read_spaces(env)
        cautions += () if has_seed else (SEEDLESS,)
    squashes = config.squash_actions
    if type(env) is CompiledVectorEnv:
        return _adapt_compiled(env.env, env.num_envs, seed, env.name, squashes)
    batch_seed = draw_batch_seed(seed, env.num_envs)
    reading, first = read_batch(config, env, batch_seed)
    cautions += find_cautions(env)
    first_obs = None if first is None else first[0]
    if needs_flattening(env.single_observation_space, reading):
        env = flattened = FlattenedBatch(env, FlatBox(env.single_observation_space, reading))
        first_obs = None if first is None else _flatten_first(flattened, *first)
    description = f"{kind} ({type(env.unwrapped).__name__}){_describe_flat(env.single_observation_space)}"
    return wrap(env, batch_seed, description, squashes, cautions, first_obs)


def _flatten_first(env: FlattenedBatch, obs: ObsArray, infos: dict[str, object]) -> ObsArray:
    try:
        return env.to_first_rows(obs, infos)
    except Exception as error:
        raise make_failure(error, f"the vector env ({type(env.unwrapped).__name__})", "in reset") from error


def _describe_flat(space: ArraySpace) -> str:
    if not isinstance(space, FlatBox):
        return ""
    mask = f", with masks of {space.reading.mask_size} actions" if space.reading.mask_size else ""
    images = sum(part.kind == "image" for part in space.parts)
    if images:
        return f", observations of {len(space.parts)} keys, {images} of them images{mask}"
    return f", observations flattened to {space.num_inputs} numbers{mask}"


def make_batch(config: EnvConfig, seed: np.random.SeedSequence, num_envs: int, given: Given | None) -> BatchedEnv:
    """Build the batch of an environment that `comes_batched`, without fastac's wrappers, for example to examine it.

    Raises:
        ValueError: an unknown id, a missing package, or a function that returned something else.
        EnvFailure: it could not be built.
    """
    if config.vectorization == "envpool":
        return make_pool(config, num_envs, draw_batch_seed(seed, num_envs)).env
    source = find_source(config, given)
    assert isinstance(source, EnvFunction) and source.is_batch
    return _build_batch(config, source, seed, num_envs)


def _make_batch(config: EnvConfig, source: EnvFunction, seed: np.random.SeedSequence, num_envs: int) -> VecEnv:
    """Call the user's batch function, and adapt its result to the step contract."""
    env = _build_batch(config, source, seed, num_envs)
    try:
        return _put_behind(config, env, seed, "given", source.takes_seed)
    except BaseException:
        env.close()
        raise


def _build_batch(config: EnvConfig, source: EnvFunction, seed: np.random.SeedSequence, num_envs: int) -> BatchedEnv:
    if config.wrappers:
        raise ValueError(
            f"wrappers is {config.wrappers}, expected none: {config.env_id} builds batches of environments, so wrap "
            "them in it."
        )
    kwargs = dict(config.env_kwargs)
    if source.takes_seed:
        kwargs["seed"] = draw_batch_seed(seed, num_envs)
    try:
        env = source.make(num_envs=num_envs, **kwargs) if source.takes_number else source.make(num_envs, **kwargs)
    except Exception as error:
        raise _explain(config.env_id, source, error) from error
    try:
        if not isinstance(env, VectorEnv):
            raise ValueError(
                f"{config.env_id} was called with num_envs = {num_envs} and returned {env!r}, expected a "
                "gymnasium.vector.VectorEnv: a function of a single environment takes no argument that has no default."
            )
        if env.num_envs != num_envs:
            raise ValueError(f"{config.env_id} returned {env.num_envs} envs, expected num_envs = {num_envs}.")
        return env
    except BaseException:
        if isinstance(env, VectorEnv | gym.Env):
            env.close()
        raise


def _make_pool(config: EnvConfig, seed: np.random.SeedSequence, num_envs: int) -> VecEnv:
    """Build EnvPool's batch, which is seeded only now."""
    pool = make_pool(config, num_envs, draw_batch_seed(seed, num_envs))
    kind = f"envpool, {pool.threads} thread{'s' * (pool.threads > 1)}"
    try:
        return _put_behind(config, pool.env, seed, kind, has_seed=True, cautions=pool.cautions)
    except BaseException:
        pool.env.close()
        raise


def _make_native(config: EnvConfig, source: Source, seed: np.random.SeedSequence, num_envs: int) -> VecEnv:
    assert isinstance(source, EnvSpec)
    kwargs: dict[str, Any] = {**config.env_kwargs}  # arguments of gym.make_vec or of the environment
    try:
        env = gym.make_vec(source, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)
    except Exception as error:
        raise _explain(config.env_id, source, error) from error
    try:
        return _put_behind(config, env, seed, "native")
    except BaseException:
        env.close()
        raise


def _make_compiled(config: EnvConfig, source: Source, seed: np.random.SeedSequence, num_envs: int) -> VecEnv:
    env = find_compiled(config, source)
    assert env is not None and isinstance(source, EnvSpec)
    check_observation_space(env.observation_space, Reading(config.drop_keys, config.critic_keys))
    return _adapt_compiled(env, num_envs, seed, source.id, config.squash_actions)


def _adapt_compiled(env: CompiledEnv, num_envs: int, seed: np.random.SeedSequence, name: str, squashes: bool) -> VecEnv:
    from fastac.envs.compiled.adapter import CompiledEnvs  # imports Numba and the kernels

    return CompiledEnvs(env, num_envs, seed, name, squashes)


def _make_singles(
    config: EnvConfig, source: Source, seeds: list[int], render_mode: str | None, processes: int, why_sync: str
) -> VecEnv:
    """Build single environments, batched in this process or in at most `processes` processes."""
    if isinstance(source, EnvSpec):
        quiet_mujoco_warnings(source)
    trial = _make_trial(config, source)
    try:
        reading, first = read_single(config, trial, seeds[0])
        fitted = _fit(trial, config.squash_actions, reading)
        build = partial(_make_single, config, source, reading)
        if render_mode is not None:
            trial.close()
            return SyncEnvs(partial(build, render_mode=render_mode), seeds, f"sync (renders {render_mode})")
        choice = choose_processes(config, fitted, len(seeds), processes, why_sync)
    except BaseException:
        trial.close()
        raise
    description = choice.description + _describe_flat(fitted.observation_space)
    if not choice.is_tried:
        try:
            first_obs = None if first is None else to_first_row(fitted, *first)
        except Exception as error:
            raise blame(error, "reset", fitted, "env 0", "in reset") from error
        return SyncEnvs(build, seeds, description, first=_without_checker(fitted), first_obs=first_obs)
    trial.close()  # some simulators allow only one open environment
    if not choice.processes:
        return SyncEnvs(build, seeds, description)
    return _start_processes(config, build, fitted, seeds, choice.processes, description)


def _start_processes(
    config: EnvConfig, build: Build, sample: SingleEnv, seeds: list[int], processes: int, description: str
) -> VecEnv:
    """Start the environments in processes; if that fails and was chosen by `auto`, step them in this process."""
    timeout_s = config.env_timeout_s or ANSWER_TIMEOUT_S
    try:
        return ProcessEnvs(build, sample, seeds, processes, description, config.start_timeout_s, timeout_s)
    except (ValueError, EnvFailure) as error:
        if config.vectorization != "auto":
            raise
        why = error.reason if isinstance(error, UnsendableError) else str(error).removesuffix(".")
    description = "sync (other processes cannot have them)" + _describe_flat(sample.observation_space)
    return SyncEnvs(build, seeds, description, cautions=(f"the environments are stepped in this process: {why}",))


def _make_single(config: EnvConfig, source: Source, reading: Reading, render_mode: str | None = None) -> SingleEnv:
    """Build one environment and `_fit` it; workers run this."""
    if isinstance(source, EnvSpec):
        quiet_mujoco_warnings(source)  # again, since this may be another process
    return _fit(_build_raw(config, source, render_mode), config.squash_actions, reading)


def _build_raw(config: EnvConfig, source: Source, render_mode: str | None, is_checked: bool = False) -> SingleEnv:
    """Build one environment with the user's wrappers, without fastac's.

    Raises:
        ValueError: a function returned something else, or as `wrap_single`.
        Exception: raised by the function, the environment or a wrapper.
    """
    return wrap_single(_build_bare(config, source, render_mode, is_checked), config)


def _build_bare(config: EnvConfig, source: Source, render_mode: str | None, is_checked: bool) -> SingleEnv:
    kwargs: dict[str, Any] = {**config.env_kwargs}  # arguments of gym.make or of the environment
    if isinstance(source, EnvSpec):
        if not is_checked:
            kwargs["disable_env_checker"] = True
        if render_mode is not None:  # some environments do not accept render_mode, not even None
            kwargs["render_mode"] = render_mode
        # Building by id makes Gymnasium warn about an outdated version; done only for the trial.
        is_registered = is_checked and gym.registry.get(source.id) is source
        made: SingleEnv = gym.make(source.id if is_registered else source, **kwargs)
        return made
    if render_mode is not None and takes(source.make, "render_mode"):
        kwargs["render_mode"] = render_mode
    env = source.make(**kwargs)
    if isinstance(env, gym.Env) and not isinstance(env, VectorEnv):  # EnvPool's environments are both
        return env
    hint = ": give the function a parameter num_envs" if isinstance(env, VectorEnv) else ""
    raise ValueError(
        f"{config.env_id} was called for one environment and returned {env!r}, expected a gymnasium.Env{hint}."
    )


def _fit(env: SingleEnv, squashes: bool, reading: Reading) -> SingleEnv:
    """Flatten the observations of an environment with supported spaces, and mark its actions for squashing.

    Raises:
        ValueError: `squashes`, and the action space cannot be squashed into.
    """
    if needs_flattening(env.observation_space, reading):
        env = flatten_env(env, FlatBox(env.observation_space, reading))
    if squashes:
        env.action_space = SquashedBox(env.action_space)
    return env


def _make_trial(config: EnvConfig, source: Source) -> SingleEnv:
    """Build a trial environment, with Gymnasium's checks and warnings, so that they appear once."""
    try:
        env = _build_raw(config, source, None, is_checked=True)
        return env if isinstance(source, EnvSpec) else PassiveEnvChecker(env)
    except Exception as error:
        raise _explain(config.env_id, source, error) from error


def _without_checker(env: SingleEnv) -> SingleEnv:
    """Remove Gymnasium's checker from the wrappers: it has checked the spaces, and would cost time in every step."""
    if isinstance(env, PassiveEnvChecker):
        return env.env
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer.env, PassiveEnvChecker):
            layer.env = layer.env.env
        layer = layer.env
    return env


def _make_atari(config: EnvConfig, game: str, seeds: list[int], whole_stacks: bool) -> AtariEnvs:
    threads = min(config.env_threads or count_cores(), len(seeds), os.cpu_count() or 1)
    try:
        return AtariEnvs(config, game, seeds, threads, whole_stacks)
    except Exception as error:
        raise _explain(config.env_id, find_source(config), error) from error


def _find_game(spec: EnvSpec) -> str:
    """Return ALE's name of a registered game."""
    game = spec.kwargs.get("game")
    if not isinstance(game, str):
        raise ValueError(f"env_id is {spec.id!r}, which is registered without a game of ALE: name it another way.")
    return game


def _explain(env_id: str, source: Source, error: Exception) -> Exception:
    """Return the error to raise if an environment could not be built."""
    if isinstance(error, ValueError) and str(error).startswith(env_id):
        return error  # raised in this module, or about a wrapper
    if isinstance(error, EnvFailure):
        return EnvFailure(str(error))  # a wrapper raised; a new one, since an error must not be its own cause
    if isinstance(error, (gym.error.DependencyNotInstalled, ImportError)):
        entry_point = str(source.entry_point) if isinstance(source, EnvSpec) else ""
        hints = [INSTALL[extra] for extra in _EXTRAS if f".{extra}" in entry_point]
        hint = hints[0] if hints else "install what it names"
        return ValueError(f"{env_id} needs a package that is not installed ({describe(error)}): {hint}.")
    return EnvFailure(f"{env_id} could not be built ({describe(error)}).")
