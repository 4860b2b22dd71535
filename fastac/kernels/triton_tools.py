"""Building blocks of Triton's forms, without importing Triton: it is imported with the first CUDA tensor.

Each program processes a block of rows and stores float64 partial sums, which are added afterwards. There are no
atomics, so results do not depend on the order in which programs run. Nothing waits for the device and no shape depends
on data, so everything can be captured in a CUDA graph.

With TRITON_INTERPRET=1 set before Triton is imported, the forms accept CPU tensors.
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
Results: TypeAlias = Any  # results of a device helper function: one or several blocks

_NUM_ELEMENTS = 1024  # rows x columns per program

_marked: list[FunctionType] = []


def triton_jit(function: Callable[..., Any]) -> Launchable:
    """Mark a device function or a helper of one; `compile_marked` replaces it by the compiled function."""
    assert isinstance(function, FunctionType)
    _marked.append(function)
    return function


def compile_marked() -> None:
    """Import Triton and replace the marked functions by compiled ones, in every module that defines marked functions.

    Marked functions that such a module imports are replaced too. Triton's language becomes the global `tl` in them.
    """
    triton, language = importlib.import_module("triton"), importlib.import_module("triton.language")
    compiled = {function: triton.jit(function) for function in _marked}
    for module in {function.__module__: function.__globals__ for function in _marked}.values():
        held = {name: value for name, value in module.items() if isinstance(value, FunctionType)}
        module.update({name: compiled[value] for name, value in held.items() if value in compiled})
        module["tl"] = language


def block_shape(num_columns: int) -> tuple[int, int]:
    """Return rows and columns of a program's block; both are powers of two, as Triton requires."""
    columns = 1 << (num_columns - 1).bit_length()
    return max(1, _NUM_ELEMENTS // columns), columns


def count_programs(num_rows: int, block: int) -> int:
    """Return the number of programs; at least one, which writes zero sums if there are no rows."""
    return max(1, -(-num_rows // block))


def make_parts(like: Tensor, *shape: int) -> Tensor:
    """Allocate the programs' partial sums."""
    return torch.empty(shape, dtype=torch.float64, device=like.device)


def split(number: float) -> tuple[float, float]:
    """Split a float64 into two float32, rounded value and remainder, because Triton passes floats as float32."""
    rounded = float(np.float32(number))
    return rounded, number - rounded
