"""Reads a kernel's arguments from its reference's signature, and generates code from them.

An array is annotated as `Annotated[Tensor, "float32 T+1 N"]`: dtype and shape. A dimension is a number, a letter or a
sum of both; `*F` is the product of all remaining dimensions. The value of a letter comes from the first array that has
it alone as a dimension. All other arguments are numbers: float, int, bool, or a `Literal` of strings, which compiled
code sees as an index.

In a program a float may change between runs: it is given as a float64 tensor of one element (`Real`), which is read
when the program runs.

`T` is steps and `N` environments, time first; `M` is rows of a batch; `A` is the number of actions, or the size of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

# A float, or where it is: a float64 tensor of one element on the CPU, read when the call runs.
Real: TypeAlias = float | Tensor

# Numba's names of number types; every other argument is an address, a size or an index.
_NUMBERS: dict[object, str] = {float: "f8", Real: "f8", bool: "b1"}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a kernel.

    Attributes:
        name: as in the signature.
        dtype: dtype of an array, as torch and numpy call it; empty for a number.
        shape: dimensions of an array.
        number: type of a number, as Numba calls it.
        choices: strings encoded as a number, if any.
    """

    name: str
    dtype: str = ""
    shape: tuple[str, ...] = ()
    number: str = "i8"
    choices: tuple[str, ...] = ()

    @classmethod
    def read(cls, name: str, hint: object) -> Argument:
        """Parse an annotation."""
        if get_origin(hint) is Literal:
            return cls(name, choices=get_args(hint))
        if get_origin(hint) is Annotated:
            dtype, *shape = get_args(hint)[1].split()
            return cls(name, dtype, tuple(shape))
        return cls(name, number=_NUMBERS.get(hint, "i8"))

    @property
    def is_float(self) -> bool:
        """Whether the argument is a float."""
        return not self.dtype and not self.choices and self.number == "f8"

    @property
    def size(self) -> str:
        """Number of elements of an array, as an expression of the letters."""
        dims = [dim.lstrip("*") for dim in self.shape]
        return " * ".join(dim if dim.isalnum() else f"({dim})" for dim in dims)


@dataclass(frozen=True, slots=True)
class Specification:
    """The arguments of a kernel.

    Attributes:
        name: name of the kernel.
        sizes: letters whose values compiled code takes, before the arguments.
        arguments: in order.
    """

    name: str
    sizes: tuple[str, ...]
    arguments: tuple[Argument, ...]

    @classmethod
    def read(cls, reference: Callable[..., Any], sizes: str) -> Specification:
        """Read the signature of a reference."""
        hints = get_type_hints(reference, include_extras=True)
        assert hints.pop("return") is type(None), "a kernel writes its results"
        arguments = tuple(Argument.read(name, hint) for name, hint in hints.items())
        return cls(reference.__name__, tuple(sizes.split()), arguments)

    @property
    def signature(self) -> str:
        """Numba's type of the entry point; addresses are integers."""
        return f"void({', '.join(['i8'] * len(self.sizes) + [a.number for a in self.arguments])})"

    def write_entry(self) -> str:
        """Generate the compiled entry point, which turns addresses into flat arrays; sizes and numbers are unchanged.

        For the example in `fastac.kernels.kernel` it generates

            def double(M, row):
                return function(M, float32_array(row, M))
        """
        names = ", ".join([*self.sizes, *(a.name for a in self.arguments)])
        values = [f"{a.dtype}_array({a.name}, {a.size})" if a.dtype else a.name for a in self.arguments]
        return f"def {self.name}({names}):\n    return function({', '.join([*self.sizes, *values])})\n"

    def write_step(self) -> str:
        """Generate the compiled function for a `Program`, which finds sizes, addresses and whole numbers in its block.

        Instead of a float the block holds its address.

        For the example in `fastac.kernels.kernel` it generates

            def double(block):
                values = int64_array(block, 2)
                M, row, = values[0], values[1],
                function(M, float32_array(row, M))
        """
        names = [*self.sizes, *(a.name for a in self.arguments)]
        values = [self._read_from_block(a) for a in self.arguments]
        return (
            f"def {self.name}(block):\n    values = int64_array(block, {len(names)})\n"
            f"    {', '.join(names)}, = {', '.join(f'values[{k}]' for k in range(len(names)))},\n"
            f"    function({', '.join([*self.sizes, *values])})\n"
        )

    @staticmethod
    def _read_from_block(argument: Argument) -> str:
        if argument.dtype:
            return f"{argument.dtype}_array({argument.name}, {argument.size})"
        return f"float64_array({argument.name}, 1)[0]" if argument.is_float else argument.name

    def write_call(self, by_address: bool) -> str:
        """Generate the function that checks arguments and passes sizes, addresses (or tensors) and numbers to `call`.

        For the example in `fastac.kernels.kernel` it generates

            def double(row):
                M, = row.shape
                count0 = M
                if row.dtype is not float32 or row.numel() != count0 or not row.is_contiguous():
                    refuse('row', row, float32, count0)
                return call(M, row.data_ptr())
        """
        arrays = [a for a in self.arguments if a.dtype]
        counts = {size: f"count{k}" for k, size in enumerate(dict.fromkeys(a.size for a in arrays))}
        lines = [*self._find_sizes(), *(f"{count} = {size}" for size, count in counts.items())]
        for a in arrays:
            is_wrong = f"{a.name}.dtype is not {a.dtype} or {a.name}.numel() != {counts[a.size]}"
            lines.append(f"if {is_wrong} or not {a.name}.is_contiguous():")
            lines.append(f"    refuse({a.name!r}, {a.name}, {a.dtype}, {counts[a.size]})")
        values = [self._hand_over(a, by_address) for a in self.arguments]
        lines.append(f"return call({', '.join([*self.sizes, *values])})")
        head = f"def {self.name}({', '.join(a.name for a in self.arguments)}):"
        return "\n    ".join([head, *lines]) + "\n"

    def _find_sizes(self) -> list[str]:
        """Generate the lines that assign a value to every letter."""
        lines, found = [], set[str]()
        for a in self.arguments:
            new = [dim for dim in a.shape if dim.lstrip("*").isalpha() and dim.lstrip("*") not in found]
            if new:
                found |= {dim.lstrip("*") for dim in new}
                targets = [dim if dim in new else "*_" if dim.startswith("*") else "_" for dim in a.shape]
                lines.append(f"{', '.join(targets)}, = {a.name}.shape")
                lines += [f"{dim[1:]} = prod({dim[1:]})" for dim in new if dim.startswith("*")]
        return lines

    @staticmethod
    def _hand_over(argument: Argument, by_address: bool) -> str:
        if argument.choices:
            return f"{argument.choices!r}.index({argument.name})"
        return f"{argument.name}.data_ptr()" if argument.dtype and by_address else argument.name


def hold(number: Real) -> Tensor:
    """Return where a float is: the tensor that was given, or a new one."""
    if not isinstance(number, Tensor):
        return torch.tensor([number], dtype=torch.float64)
    assert number.dtype == torch.float64 and number.numel() == 1 and not number.is_cuda, "expected one float64 number"
    return number


def refuse(name: str, tensor: Tensor, dtype: torch.dtype, count: int) -> None:
    """Reject an array that a kernel would misread, since kernels do not check their accesses.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"{name} of shape {tuple(tensor.shape)}, {tensor.dtype}, strides {tensor.stride()}: the kernel takes a "
        f"contiguous one of {count} elements, {dtype}; convert it, or call the kernel's reference."
    )
