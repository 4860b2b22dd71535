"""What Triton's forms are made of, without importing Triton: that waits for the first CUDA tensor.

Each program takes a block of rows and leaves float64 partial sums, which are added up after it: no atomics, so that a
result does not depend on the order in which programs run. Nothing waits for the device and no shape depends on data,
so that all of it can be captured in a CUDA graph.

With TRITON_INTERPRET=1 set before Triton is imported, the forms take CPU tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Launchable: TypeAlias = Any  # device_function[grid](arguments)
Results: TypeAlias = Any  # of a part of device functions: one or several blocks

_NUM_ELEMENTS = 1024  # rows x columns per program

_marked: list[FunctionType] = []


def triton_jit(function: Callable[..., Any]) -> Launchable:
    """Mark a device function, or a part of one. `compile_marked` puts Triton's in its place."""
    assert isinstance(function, FunctionType)
    _marked.append(function)
    return function


def compile_marked() -> None:
    """Import Triton, and put its functions in the place of the marked ones, in every module that defines some.

    That includes those which such a module imports from another. Triton's language becomes the global `tl` there.
    """
    triton, language = importlib.import_module("triton"), importlib.import_module("triton.language")
    compiled = {function: triton.jit(function) for function in _marked}
    for module in {function.__module__: function.__globals__ for function in _marked}.values():
        held = {name: value for name, value in module.items() if isinstance(value, FunctionType)}
        module.update({name: compiled[value] for name, value in held.items() if value in compiled})
        module["tl"] = language


def block_shape(num_columns: int) -> tuple[int, int]:
    """Return rows and columns of a program's block, powers of two as Triton wants."""
    columns = 1 << (num_columns - 1).bit_length()
    return max(1, _NUM_ELEMENTS // columns), columns


def count_programs(num_rows: int, block: int) -> int:
    """Return how many programs there are: at least one, which leaves the sums of nothing."""
    return max(1, -(-num_rows // block))


def make_parts(like: Tensor, *shape: int) -> Tensor:
    """Make room for the programs' sums."""
    return torch.empty(shape, dtype=torch.float64, device=like.device)


def split(number: float) -> tuple[float, float]:
    """Split a float64 into two float32, which is what Triton makes of numbers: the rounded, and the rest."""
    rounded = float(np.float32(number))
    return rounded, number - rounded
