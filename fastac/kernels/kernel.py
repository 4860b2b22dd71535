"""A kernel: one readable reference, the fast forms around it, and the choice between them.

The reference stands first, documents the kernel, and its signature is the only place where the arguments are specified
(see `fastac.kernels.specification`). A fast form is a function of the sizes, then of the reference's arguments:

    @kernel("M")
    def double(row: Annotated[Tensor, "float32 M"]) -> None:
        row.mul_(2.0)

    @double.numba
    def _double_numba(size: int, row: Floats) -> None:
        for k in range(size):
            row[k] *= np.float32(2.0)

Numba's form gets flat arrays. Triton's form gets the tensors, after the same checks, and launches device functions on
them. A kernel without one of them runs its reference there.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor

from fastac.kernels.specification import Specification, refuse
from fastac.kernels.triton_tools import compile_marked

log = logging.getLogger("fastac")

_P = ParamSpec("_P")
_R = TypeVar("_R")
Form: TypeAlias = Callable[..., Any]  # of sizes, then of the reference's arguments
Entry: TypeAlias = Any  # what Numba compiled, which has no type

KERNELS: list[Kernel[..., Any]] = []  # all of them, in the order of their definition


class Kernel(Generic[_P, _R]):
    """A function over arrays, in up to three forms with one signature.

    Attributes:
        specification: of the arguments.
        reference: in torch, of any float dtype, on any device.
        on_cpu: what runs on the CPU: Numba's form, or the reference.
        entry: what Numba compiled, None where it has not.
        numba_form: what Numba compiles.
        triton_form: what launches Triton's device functions.
    """

    def __init__(self, reference: Callable[Concatenate[Tensor, _P], _R], sizes: str) -> None:
        """Take the reference, and the letters of its shapes."""
        functools.update_wrapper(self, reference)
        self.specification = Specification.read(reference, sizes)
        self.reference = self.on_cpu = reference
        self.entry: Entry = None
        self.numba_form: Form | None = None
        self.triton_form: Form | None = None
        KERNELS.append(self)

    def __call__(self, first: Tensor, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run the form for where the first argument lies, which has no name."""
        return self.on_cuda(first, *args, **kwargs) if first.is_cuda else self.on_cpu(first, *args, **kwargs)

    @functools.cached_property
    def on_cuda(self) -> Callable[Concatenate[Tensor, _P], _R]:
        """What runs on CUDA: Triton's form, which is loaded when the first CUDA tensor comes, or the reference."""
        if self.triton_form is None or not _is_triton_loaded():
            return self.reference
        return self._write_call(self.triton_form, by_address=False)

    def prepare(self, first: Tensor, /, *args: _P.args, **kwargs: _P.kwargs) -> Callable[[], _R]:
        """Check CPU tensors that stay where they are; return the call on them, which costs half a microsecond."""
        if self.entry is None:
            return functools.partial(self.reference, first, *args, **kwargs)
        bind = self._write_call(functools.partial(functools.partial, self.entry), by_address=True)
        call: Any = bind(first, *args, **kwargs)
        call.tensors = first, args, kwargs  # or their memory might go
        return call  # type: ignore[no-any-return]

    def numba(self, form: Form) -> Form:
        """Take the form for the CPU, which `compile_kernels` compiles."""
        self.numba_form = form
        return form

    def triton(self, form: Form) -> Form:
        """Take the form for CUDA."""
        self.triton_form = form
        return form

    def use(self, entry: Entry) -> None:
        """Run what Numba compiled from now on."""
        self.entry, self.on_cpu = entry, self._write_call(entry, by_address=True)

    def _write_call(self, call: Callable[..., Any], by_address: bool) -> Callable[Concatenate[Tensor, _P], _R]:
        """Make the function that checks the arguments and hands them to `call`.

        It is written out as source, as dataclasses do: a loop over the arguments would cost more than some kernels.
        """
        dtypes = {a.dtype: getattr(torch, a.dtype) for a in self.specification.arguments if a.dtype}
        namespace: dict[str, Any] = {"call": call, "refuse": refuse, "prod": math.prod, **dtypes}
        name = self.specification.name
        exec(compile(self.specification.write_call(by_address), f"<call of {name}>", "exec"), namespace)
        return namespace[name]  # type: ignore[no-any-return]


def kernel(sizes: str) -> Callable[[Callable[Concatenate[Tensor, _P], _R]], Kernel[_P, _R]]:
    """Make a kernel of its reference; `sizes` are the letters of its shapes, in the order of its fast forms' sizes."""
    return lambda reference: Kernel(reference, sizes)


def compile_kernels() -> None:
    """Compile every kernel for the CPU or load it from the cache; all or none, so that a run is of one kind.

    It is done at import, so that nothing is compiled while a run is being timed.
    """
    try:
        from fastac.kernels.compiling import announcing_compilation, compile_entry  # which need Numba

        with announcing_compilation():
            entries = [
                (kernel, compile_entry(kernel.specification, kernel.numba_form))
                for kernel in KERNELS
                if kernel.numba_form is not None
            ]
    except Exception as error:  # whatever a compiler fails at, training goes on
        _warn_of_reference(error, "install Numba, and set NUMBA_CACHE_DIR to a folder that can be written to")
        return
    for kernel, entry in entries:
        kernel.use(entry)


def cache_folder() -> str | None:
    """Return where the compiled CPU kernels are kept on disk, or None where the references take their place."""
    folders = [str(kernel.entry.stats.cache_path) for kernel in KERNELS if kernel.entry is not None]
    return folders[0] if folders else None


@functools.cache
def _is_triton_loaded() -> bool:
    """Load Triton and what it compiles, or say once that the references take its place."""
    try:
        compile_marked()
    except Exception as error:
        _warn_of_reference(error, "install the Triton that this PyTorch needs")
        return False
    return True


def _warn_of_reference(error: Exception, remedy: str) -> None:
    # Numba's errors go on for pages; the first line says what happened.
    reason = (str(error).splitlines() or [""])[0]
    log.warning(
        "The compiled kernels cannot be used (%s: %s), so the slower reference kernels are; %s.",
        type(error).__name__,
        reason,
        remedy,
    )
