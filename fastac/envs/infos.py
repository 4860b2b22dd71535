"""Reads the numbers that environments report in `info` at the end of an episode, such as `is_success`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fastac.contract import MAX_EXTRAS, BoolArray, Extras

NOTHING: Extras = {}
_MAX_KEY_BYTES = 64
_GYMNASIUMS = frozenset({"final_obs", "final_info", "final_observation"})  # what its vector environments add
ENVPOOLS = frozenset({"env_id", "elapsed_step"})  # what EnvPool adds


class InfoReader:
    """Reads numbers for the first `MAX_EXTRAS` keys that it finds, and ignores everything else in an info."""

    def __init__(self, num_envs: int, ignored: frozenset[str] = frozenset()) -> None:
        """Read infos of `num_envs` environments, without the keys `ignored`."""
        self._num_envs, self._ignored = num_envs, _GYMNASIUMS | ignored
        self._keys: set[str] = set()

    def read(self, infos: Mapping[int, object]) -> Extras:
        """Read the last infos of single environments, by index."""
        found: dict[str, NDArray[np.float64]] = {}
        for index, info in infos.items():
            for key, value in info.items() if isinstance(info, Mapping) else ():
                number = _to_number(value)
                if number is not None and self._knows(key):
                    found.setdefault(key, np.full(self._num_envs, np.nan))[index] = number
        return found

    def read_batch(self, infos: Mapping[str, object], ended: BoolArray) -> Extras:
        """Read the infos of a vector environment in a step in which the episodes `ended` `[N]`.

        A vector environment has an array `[N]` per key, and an array `_key` that marks the valid elements. If an
        environment has already been reset, the infos of the ended episode are in `infos["final_info"]`.
        """
        if not isinstance(infos, Mapping):
            return NOTHING
        final = infos.get("final_info")
        if isinstance(final, np.ndarray):  # before Gymnasium 1.1: one dict per environment
            return self.read({index: final[index] for index in np.flatnonzero(ended).tolist()})
        source = final if isinstance(final, Mapping) else infos
        found: dict[str, NDArray[np.float64]] = {}
        for key, values in source.items():
            if not isinstance(values, np.ndarray) or values.shape != ended.shape or key in self._ignored:
                continue
            present = np.asarray(source.get(f"_{key}", ended), dtype=np.bool_) & ended
            numbers = _to_numbers(values, present)
            if not np.isnan(numbers).all() and self._knows(key):
                found[key] = numbers
        return found

    def _knows(self, key: object) -> bool:
        """Return whether to read `key`; a new key is added while there is room."""
        if key in self._keys:
            return True
        if not isinstance(key, str) or key.startswith("_") or not 0 < len(key.encode()) <= _MAX_KEY_BYTES:
            return False
        if len(self._keys) == MAX_EXTRAS:
            return False
        self._keys.add(key)
        return True


def join(parts: list[tuple[slice, Extras]], num_envs: int) -> Extras:
    """Merge the extras reported by slices of `num_envs` environments."""
    found: dict[str, NDArray[np.float64]] = {}
    for envs, reported in parts:
        for key, values in reported.items():
            found.setdefault(key, np.full(num_envs, np.nan))[envs] = values
    return found


def _to_numbers(values: NDArray[np.generic], present: BoolArray) -> NDArray[np.float64]:
    """Return the finite numbers `[N]` where they are `present`, NaN elsewhere."""
    numbers = np.full(len(values), np.nan)
    if values.dtype.kind in "biuf":
        numbers[present] = values[present]
        numbers[~np.isfinite(numbers)] = np.nan
        return numbers
    for index in np.flatnonzero(present):  # Gymnasium uses object arrays for NumPy bools and mixed types
        number = _to_number(values[index])
        numbers[index] = np.nan if number is None else number
    return numbers


def _to_number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value[()]
    if not isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int of more than 300 digits
        return None
    return number if math.isfinite(number) else None
