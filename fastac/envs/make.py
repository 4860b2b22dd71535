"""Building the environments of a run: by id, with the cheapest way to batch them, or around a given batch."""

from __future__ import annotations

import importlib
import os
import pickle
import time
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from statistics import median

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv

from fastac.config import EnvConfig, is_atari
from fastac.contract import EnvFailure, VecEnv
from fastac.envs.adapter import wrap
from fastac.envs.atari import AtariEnvs, FilmedGame, draw_seeds
from fastac.envs.failure import describe
from fastac.envs.flatten import FlatBox, FlattenedBatch, flatten_env
from fastac.envs.process import ProcessEnvs
from fastac.envs.robots import spare_warnings
from fastac.envs.seeds import spawn_seeds, to_seed
from fastac.envs.spaces import ArraySpace, SquashedBox, check_spaces, needs_flattening
from fastac.envs.state import BatchedEnv, SingleEnv
from fastac.envs.sync import SyncEnvs
from fastac.install import INSTALL, Extra
from fastac.processes import count_cores

# A step in another process costs a wake-up and two copies, about 100 us on a busy machine; below this
# cost of one environment's step, doing them one after the other here is as fast.
_PROCESS_WORTH_US = 300.0
_TRIAL_STEPS = 50
_TRIAL_S = 0.05

# From so many on, a step of the id's own batch costs less than single environments one after the other, where
# `auto` has the choice: CartPole's batch takes 40 us for one and for five of them, a single one 7 us.
_LEAST_NATIVE = 6

# The families of Gymnasium that need something installed.
_EXTRAS: tuple[Extra, ...] = ("box2d", "mujoco")


def make_vec(
    config: EnvConfig,
    seed: np.random.SeedSequence,
    num_envs: int | None = None,
    render_mode: str | None = None,
    whole_stacks: bool = False,
    least_processes: int = 1,
) -> VecEnv:
    """Build the environments that `config` names, batched as it asks.

    Args:
        config: which environments, and how they are batched.
        seed: the parent of every environment's random stream.
        num_envs: how many, in place of the configured number.
        render_mode: Gymnasium's; environments that render are always batched by `SyncEnvs`, which
            has a `render` method. Atari games have `film_game` instead.
        whole_stacks: where an observation is a stack of frames, write all of them and not only the newest:
            `frame_stack` is 1 then, which is what does not keep rows wants.
        least_processes: for environments in processes, also where there are fewer cores.

    Raises:
        ValueError: an unknown id, a missing package, a space or a vectorization that does not go.
        EnvFailure: an environment could not be built, or raised when tried.
    """
    num_envs = config.num_envs if num_envs is None else num_envs
    spec = _find_spec(config.env_id)
    if is_atari(config.env_id):
        if render_mode is not None:
            raise ValueError(f"render_mode is {render_mode!r}, expected None: {config.env_id} is filmed by film_game.")
        return _make_atari(config, _find_game(spec), draw_seeds(seed, num_envs), whole_stacks)
    if render_mode is None and picks_native(config, num_envs):
        return _make_native(config, seed, num_envs)
    seeds = spawn_seeds(seed, num_envs)
    build = partial(_make_single, spec, config.squash_actions)
    spare_warnings(spec)
    trial = _make_trial(config.env_id)
    try:
        check_spaces(trial.observation_space, trial.action_space)
        trial = _fit(trial, config.squash_actions)
        if render_mode is not None:
            return SyncEnvs(partial(build, render_mode=render_mode), seeds, f"sync (renders {render_mode})")
        choice = _choose(config, spec, trial, min(max(count_cores(), least_processes), num_envs))
        description = choice.description + _describe_flat(trial.observation_space)
        if choice.processes:
            return ProcessEnvs(build, trial, seeds, choice.processes, description)
        return SyncEnvs(build, seeds, description)
    finally:
        trial.close()


def has_native(env_id: str) -> bool:
    """Return whether an id has a batched environment of its own.

    Raises:
        ValueError: an unknown id.
    """
    return _find_spec(env_id).vector_entry_point is not None


def picks_native(config: EnvConfig, num_envs: int) -> bool:
    """Return whether so many environments are batched by the id's own batched environment.

    Raises:
        ValueError: an unknown id, or one without such a batch where that is asked for.
    """
    offered = has_native(config.env_id)
    if config.vectorization == "native" and not offered:
        raise ValueError(f"vectorization is 'native' but {config.env_id} has no batched version: use auto or sync.")
    least = 1 if is_atari(config.env_id) else _LEAST_NATIVE
    return offered and (config.vectorization == "native" or (config.vectorization == "auto" and num_envs >= least))


def film_game(config: EnvConfig) -> FilmedGame:
    """Build one Atari game under the protocol of `config`, which is played to its end and renders its colours.

    Raises:
        ValueError: an unknown id, or a missing package.
        EnvFailure: it could not be built.
    """
    game = _find_game(_find_spec(config.env_id))
    try:
        return FilmedGame(config, game)
    except Exception as error:
        raise _explain(config.env_id, error) from error


def adapt(env: BatchedEnv, seed: np.random.SeedSequence, squashes: bool = False) -> VecEnv:
    """Put any Gymnasium vector environment behind the step contract; closing it closes `env`.

    Args:
        env: in any autoreset mode; observations that are neither vectors nor images are flattened.
        seed: the parent of its random streams.
        squashes: squash actions into the action space, instead of clipping them.

    Raises:
        ValueError: a space that is not supported, or no autoreset mode in the metadata.
    """
    if isinstance(env.unwrapped, AsyncVectorEnv) and not env.unwrapped.shared_memory:
        raise ValueError(
            "the env is an AsyncVectorEnv(shared_memory=False), which resets twice: use shared_memory=True."
        )
    return _put_behind(env, seed, "given", squashes)


def _put_behind(env: BatchedEnv, seed: np.random.SeedSequence, kind: str, squashes: bool) -> VecEnv:
    check_spaces(env.single_observation_space, env.single_action_space)
    if needs_flattening(env.single_observation_space):
        env = FlattenedBatch(env)
    description = f"{kind} ({type(env.unwrapped).__name__}){_describe_flat(env.single_observation_space)}"
    return wrap(env, to_seed(seed.spawn(1)[0]), description, squashes)


def _describe_flat(space: ArraySpace) -> str:
    return f", observations flattened to {space.shape[0]} numbers" if isinstance(space, FlatBox) else ""


def _make_single(spec: EnvSpec, squashes: bool, render_mode: str | None = None) -> SingleEnv:
    """Build one environment and `_fit` it; it is what workers are sent to do."""
    spare_warnings(spec)  # again, as this may be another process
    # There are environments that take no render_mode, not even None.
    env: SingleEnv = (
        gym.make(spec, disable_env_checker=True)
        if render_mode is None
        else gym.make(spec, disable_env_checker=True, render_mode=render_mode)
    )
    return _fit(env, squashes)


def _fit(env: SingleEnv, squashes: bool) -> SingleEnv:
    """Return an environment of supported spaces as it is learned in: its observations flat, its actions squashed.

    Raises:
        ValueError: `squashes`, and the action space cannot be squashed into.
    """
    if needs_flattening(env.observation_space):
        env = flatten_env(env)
    if squashes:
        env.action_space = SquashedBox(env.action_space)
    return env


def _make_native(config: EnvConfig, seed: np.random.SeedSequence, num_envs: int) -> VecEnv:
    try:
        env = gym.make_vec(config.env_id, num_envs=num_envs, vectorization_mode="vector_entry_point")
    except Exception as error:
        raise _explain(config.env_id, error) from error
    try:
        return _put_behind(env, seed, "native", config.squash_actions)
    except ValueError:
        env.close()
        raise


def _make_atari(config: EnvConfig, game: str, seeds: list[int], whole_stacks: bool) -> AtariEnvs:
    threads = min(config.env_threads or count_cores(), len(seeds), os.cpu_count() or 1)
    try:
        return AtariEnvs(config, game, seeds, threads, whole_stacks)
    except Exception as error:
        raise _explain(config.env_id, error) from error


@dataclass(frozen=True, slots=True)
class _Choice:
    """How single environments are batched: in how many processes (0: in this one), and why."""

    processes: int
    description: str


def _choose(config: EnvConfig, spec: EnvSpec, trial: SingleEnv, processes: int) -> _Choice:
    if config.vectorization == "process":
        return _Choice(processes, f"process (as asked, {processes} workers)")
    if config.vectorization == "sync":
        return _Choice(0, "sync (as asked)")
    cost_us = _measure_step_us(config.env_id, trial)
    why = f"one step of {config.env_id} takes {cost_us:.0f} us"
    if cost_us > _PROCESS_WORTH_US and processes > 1 and _is_picklable(spec):
        return _Choice(processes, f"process ({why}, {processes} workers)")
    return _Choice(0, f"sync ({why})")


def _is_picklable(spec: EnvSpec) -> bool:
    try:
        pickle.dumps(spec)
    except Exception:  # pickling runs foreign code, which may raise anything
        return False
    return True


def _measure_step_us(env_id: str, trial: SingleEnv) -> float:
    """Return the median cost of a random step, which a first step's lazy imports do not disturb."""
    costs_s: list[float] = []
    trial.action_space.seed(0)
    try:
        trial.reset(seed=0)
        began_s = time.perf_counter()
        while len(costs_s) < _TRIAL_STEPS and time.perf_counter() - began_s < _TRIAL_S:
            action = trial.action_space.sample()
            step_began_s = time.perf_counter()
            _, _, terminated, truncated, _ = trial.step(action)
            costs_s.append(time.perf_counter() - step_began_s)
            if terminated or truncated:
                trial.reset()
    except Exception as error:
        raise EnvFailure(f"{env_id} raised {describe(error)} when it was tried.") from error
    return median(costs_s) * 1e6


def _find_spec(env_id: str) -> EnvSpec:
    """Return the registered spec; `module:id` imports the module first.

    Raises:
        ValueError: no such module or id; the sentence names the nearest ids.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # foreign code, which may raise anything
            raise ValueError(f"env_id is {env_id!r}, but {module!r} cannot be imported ({describe(error)}).") from error
    if is_atari(name):
        _register_atari(env_id)
    spec = gym.registry.get(name)
    if spec is not None:
        return spec
    near = get_close_matches(name, gym.registry, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "expected a registered id, or module:id."
    raise ValueError(f"env_id is {env_id!r}, which Gymnasium does not know: {hint}")


def _register_atari(env_id: str) -> None:
    """Import ale-py, which registers its games with Gymnasium."""
    try:
        importlib.import_module("ale_py.vector_env")
    except ImportError as error:
        raise ValueError(
            f"env_id is {env_id!r}, which needs a package ({describe(error)}): {INSTALL['atari']}."
        ) from error


def _find_game(spec: EnvSpec) -> str:
    """Return ALE's name of a registered game."""
    game = spec.kwargs.get("game")
    if not isinstance(game, str):
        raise ValueError(f"env_id is {spec.id!r}, which is registered without a game of ALE: name it another way.")
    return game


def _make_trial(env_id: str) -> SingleEnv:
    """Build one environment to look at, with Gymnasium's checks and warnings, so that they come once."""
    try:
        env: SingleEnv = gym.make(env_id)
    except Exception as error:
        raise _explain(env_id, error) from error
    return env


def _explain(env_id: str, error: Exception) -> Exception:
    """Return the error to raise where an environment could not be built."""
    if isinstance(error, (gym.error.DependencyNotInstalled, ImportError)):
        entry_point = str(_find_spec(env_id).entry_point)
        hints = [INSTALL[extra] for extra in _EXTRAS if f".{extra}" in entry_point]
        hint = hints[0] if hints else "install what it names"
        return ValueError(f"{env_id} needs a package that is not installed ({describe(error)}): {hint}.")
    return EnvFailure(f"{env_id} could not be built ({describe(error)}).")
