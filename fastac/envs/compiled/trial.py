"""Plays a declared environment in plain Python, where mistakes are found, with their file and line."""

from __future__ import annotations

import numbers
import traceback

import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from fastac.envs.compiled.declaration import CompiledEnv, EnvFunction, place_of, plain, shorten
from fastac.envs.failure import describe

_STEPS = 300
_EPISODE = 60  # an environment without an end is reset after this many steps, to see more of its beginnings


def try_env(env: CompiledEnv, name: str) -> None:
    """Play some hundred random steps.

    Raises:
        ValueError: a function raised, returned something of another kind, or left something unwritten.
    """
    rng = np.random.default_rng(0)
    state = np.full(env.state_size, np.nan)
    age = 0
    for step in range(_STEPS):
        if step == 0 or age == _EPISODE:
            age = 0
            call(env.reset, name, rng.random(env.reset_draws), state)
            _check_state(env.reset, name, state)
        else:
            draws = (rng.random(env.step_draws),) if env.step_draws else ()
            ends = read_step(env, name, call(env.step, name, state, _draw_action(env, rng), *draws))[1]
            age = _EPISODE if ends else age + 1
        observe(env, name, state)


def call(function: EnvFunction, name: str, *arguments: object) -> object:
    """Call a user's function in plain Python.

    Raises:
        ValueError: it raised; the sentence names file and line.
    """
    try:
        with np.errstate(all="ignore"):  # compiled code does not warn either
            returned: object = plain(function)(*arguments)
    except Exception as error:
        inside = f"{plain(function).__name__}, {_place_in(error)}"
        raise ValueError(f"{name} raised {describe(error)} in {inside}.") from error
    return returned


def read_step(env: CompiledEnv, name: str, returned: object) -> tuple[float, bool]:
    """Return reward and flag.

    Raises:
        ValueError: `step` returned something else, or a reward that is not finite.
    """
    where = f"{name}'s step, {place_of(env.step)},"
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ValueError(f"{where} returned {returned!r:.80}, expected (reward, terminated).")
    reward, terminated = returned
    if not isinstance(reward, numbers.Real | np.bool_) or not np.isfinite(float(reward)):
        raise ValueError(f"{where} returned the reward {reward!r:.80}, expected a finite number.")
    if not isinstance(terminated, bool | np.bool_):
        raise ValueError(f"{where} returned terminated {terminated!r:.80}, expected True or False.")
    return float(reward), bool(terminated)


def observe(env: CompiledEnv, name: str, state: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the observation `[D]` of a state.

    Raises:
        ValueError: it is not in the observation space, or not all of it was written.
    """
    out = np.full(env.obs_size, np.nan, np.float32)
    call(env.observe, name, state, out)
    if not env.observation_space.contains(out):
        hint = ", or leaves a part of out unwritten" if np.isnan(out).any() else ""
        raise ValueError(
            f"{name}'s observe, {place_of(env.observe)}, wrote {out}, which is not in {env.observation_space}{hint}."
        )
    return out


def _check_state(function: EnvFunction, name: str, state: NDArray[np.float64]) -> None:
    if np.isnan(state).any():
        raise ValueError(
            f"{name}'s reset, {place_of(function)}, wrote the state {state}, expected a number in each of its "
            f"{len(state)} places."
        )


def _draw_action(env: CompiledEnv, rng: np.random.Generator) -> np.int64 | NDArray[np.float32]:
    space = env.action_space
    if isinstance(space, Discrete):
        return np.int64(rng.integers(space.start, space.start + space.n))
    low, high = np.maximum(space.low, -10.0), np.minimum(space.high, 10.0)
    return np.clip(rng.uniform(low, np.maximum(low, high)), space.low, space.high).astype(np.float32)


def _place_in(error: Exception) -> str:
    """Return `file:line` of the user's line that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename != __file__]
    last = (own or list(frames))[-1]
    return f"{shorten(last.filename)}:{last.lineno}"
