"""State trees as files hold them: arrays by their paths for safetensors, the rest for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastac.config import JsonValue
from fastac.contract import StateLeaf, StateTree

_DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)

LoadedLeaf: TypeAlias = NDArray[np.generic] | int | float | str | bool | None
LoadedTree: TypeAlias = dict[str, "LoadedTree | LoadedLeaf"]


def split_tree(tree: StateTree, prefix: str, arrays: dict[str, NDArray[np.generic]]) -> dict[str, JsonValue]:
    """Move the arrays of `tree` to `arrays` and return the rest."""
    scalars: dict[str, JsonValue] = {}
    for key, value in tree.items():
        if not isinstance(key, str) or "/" in key:
            raise ValueError(f'checkpoint key {key!r} below "{prefix}" cannot be saved, expected a string without "/".')
        name = prefix + key
        if isinstance(value, Mapping):
            scalars[key] = split_tree(value, name + "/", arrays)
        elif isinstance(value, Tensor | np.ndarray):
            arrays[name] = _to_array(name, value)
        else:
            scalars[key] = _to_scalar(name, value)
    return scalars


def _to_array(name: str, value: Tensor | NDArray[np.generic]) -> NDArray[np.generic]:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        if str(value.dtype).removeprefix("torch.") not in _DTYPES:
            raise ValueError(f"checkpoint tensor {name!r} is {value.dtype}, expected one of {', '.join(_DTYPES)}.")
        value = value.numpy()
    if value.dtype.name not in _DTYPES:
        raise ValueError(f"checkpoint array {name!r} is {value.dtype}, expected one of {', '.join(_DTYPES)}.")
    return np.asarray(value, order="C")  # np.ascontiguousarray would turn a 0-d array into 1-d


def _to_scalar(name: str, value: StateLeaf) -> JsonValue:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"checkpoint leaf {name!r} is a {type(value).__name__}, expected an array, int, float, str, bool or None."
    )


def join_tree(tree: LoadedTree, arrays: Mapping[str, NDArray[np.generic]]) -> LoadedTree:
    """Put the arrays back to the places from which `split_tree` moved them."""
    for name, array in arrays.items():
        *branches, leaf = name.split("/")
        branch: LoadedTree | LoadedLeaf = tree
        for key in branches:
            branch = branch.get(key) if isinstance(branch, dict) else None
        if not isinstance(branch, dict) or leaf in branch:
            raise ValueError(f"there is no place for the array {name!r}")
        if array.dtype.name not in _DTYPES:
            raise ValueError(f"the array {name!r} is {array.dtype}, expected one of {', '.join(_DTYPES)}")
        branch[leaf] = array
    return tree


def read_tree(value: JsonValue, name: str) -> LoadedTree:
    """Return a JSON object without lists, which no state contains."""
    if not isinstance(value, dict):
        raise ValueError(f"{name!r} is a {type(value).__name__}, expected an object")
    return {key: _to_leaf(item, f"{name}/{key}") for key, item in value.items()}


def _to_leaf(value: JsonValue, name: str) -> LoadedTree | LoadedLeaf:
    if isinstance(value, dict):
        return read_tree(value, name)
    if isinstance(value, list):
        raise ValueError(f"{name!r} is a list, expected a number, a text, True, False, null or an object")
    return value
