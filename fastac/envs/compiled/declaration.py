"""What a user writes of a compiled environment: three functions of arrays, two spaces and a few sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

State: TypeAlias = NDArray[np.float64]  # [S]; draws have this type too
Floats: TypeAlias = NDArray[np.float32]  # an observation [D], or a Box's action [A]

# In plain Python, or compiled by the user with `numba.njit`. Their arguments are arrays of float64 (draws, state),
# float32 (out, the action of a Box) and numbers.
EnvFunction: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class CompiledEnv:
    """An environment as three functions that Numba compiles.

    Attributes:
        reset: `reset(draws, state)` begins an episode: it writes all of `state` `[state_size]` float64. `draws`
            `[reset_draws]` are uniform in [0, 1).
        step: `step(state, action)` changes `state` in place and returns `(reward, terminated)`. The action is an int of
            a Discrete space, or a float32 vector `[A]` of a Box. With `step_draws`, it is
            `step(state, action, draws)`, with new draws `[step_draws]` in every step.
        observe: `observe(state, out)` writes the observation into all of `out` `[D]` float32.
        state_size: number of float64 that hold everything that changes.
        observation_space: a float32 Box of one dimension.
        action_space: a Discrete, or a float32 Box of one dimension.
        reset_draws: random numbers for each reset.
        step_draws: random numbers for each step.
        max_episode_steps: an episode is truncated after this many steps; None: never.
    """

    reset: EnvFunction
    step: EnvFunction
    observe: EnvFunction
    state_size: int
    observation_space: Box
    action_space: Discrete | Box
    reset_draws: int = 0
    step_draws: int = 0
    max_episode_steps: int | None = None

    def __post_init__(self) -> None:
        """Check the declaration.

        Raises:
            ValueError: a size, space or function that is not of this kind.
        """
        for name, least in (("state_size", 1), ("reset_draws", 0), ("step_draws", 0)):
            _check_size(name, getattr(self, name), least)
        if self.max_episode_steps is not None:
            _check_size("max_episode_steps", self.max_episode_steps, 1)
        _check_box("observation_space", self.observation_space, "a float32 Box of one dimension")
        if not isinstance(self.action_space, Discrete):
            _check_box("action_space", self.action_space, "a Discrete or a float32 Box of one dimension")
        _check_function("reset", self.reset, ("draws", "state"))
        _check_function("step", self.step, ("state", "action", "draws") if self.step_draws else ("state", "action"))
        _check_function("observe", self.observe, ("state", "out"))

    @property
    def obs_size(self) -> int:
        """D, the size of an observation."""
        return self.observation_space.shape[0]

    @property
    def action_size(self) -> int:
        """A, the size of a Box's action; 0 for a Discrete."""
        return 0 if isinstance(self.action_space, Discrete) else self.action_space.shape[0]


def plain(function: EnvFunction) -> EnvFunction:
    """Return the Python function, also of one that the user has compiled with `numba.njit`."""
    inner: EnvFunction = getattr(function, "py_func", function)
    return inner


def place_of(function: EnvFunction) -> str:
    """Return `file:line` of a function."""
    code = plain(function).__code__
    return f"{shorten(code.co_filename)}:{code.co_firstlineno}"


def shorten(path: str) -> str:
    """Return a path relative to the working directory if it is inside."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except (OSError, ValueError):
        return path


def _check_size(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}.")


def _check_box(name: str, space: object, expected: str) -> None:
    if not isinstance(space, Box) or len(space.shape) != 1 or space.dtype != np.float32 or not space.shape[0]:
        raise ValueError(f"{name} is {space}, expected {expected}.")


def _check_function(name: str, function: object, expected: tuple[str, ...]) -> None:
    inner = getattr(function, "py_func", function)
    if not inspect.isfunction(inner):
        raise ValueError(f"{name} is {function!r}, expected a function of {', '.join(expected)}.")
    try:
        inspect.signature(inner).bind(*expected)
    except TypeError as error:
        raise ValueError(
            f"{name} is {inner.__name__}{inspect.signature(inner)} at {place_of(inner)}, expected a function of "
            f"{', '.join(expected)}."
        ) from error
