"""Checks of observations against their space, and descriptions of exceptions."""

from __future__ import annotations

import numpy as np

from fastac.contract import EnvFailure, ObsArray
from fastac.envs.spaces import ArraySpace


def describe(error: BaseException) -> str:
    """Return an exception's type and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def make_failure(error: Exception, who: str, when: str) -> EnvFailure:
    """Return the failure to raise after an environment raised `error`, or returned what is described by it."""
    if isinstance(error, EnvFailure):
        return EnvFailure(f"{who}: {error}.")
    return EnvFailure(f"{who} raised {describe(error)} {when}.")


def check_obs(obs: ObsArray, shape: tuple[int, ...], space: ArraySpace, who: str) -> ObsArray:
    """Return `obs` as an array after checking it; NumPy would silently broadcast a wrong shape and truncate floats.

    Raises:
        EnvFailure: not an array, another shape, or a dtype that does not fit the space.
    """
    try:
        obs = np.asarray(obs)  # costs 50 ns for an array
    except ValueError as error:  # lists of different lengths
        raise EnvFailure(f"{who} returned an observation that is no array ({describe(error)}).") from error
    if obs.shape != shape:
        raise EnvFailure(f"{who} returned an observation of shape {obs.shape}, expected {shape}.")
    if obs.dtype != space.dtype and not np.can_cast(obs.dtype, np.dtype(space.dtype), casting="same_kind"):
        raise EnvFailure(f"{who} returned an observation of dtype {obs.dtype}, expected {space.dtype}.")
    return obs
