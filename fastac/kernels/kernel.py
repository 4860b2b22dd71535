"""A kernel: one readable reference, its fast forms, and the choice between them.

The reference comes first and documents the kernel. Its signature is the only specification of the arguments
(see `fastac.kernels.specification`). A fast form takes the sizes, then the reference's arguments:

    @kernel("M")
    def double(row: Annotated[Tensor, "float32 M"]) -> None:
        row.mul_(2.0)

    @double.numba
    def _double_numba(size: int, row: Floats) -> None:
        for k in range(size):
            row[k] *= np.float32(2.0)

Numba's form gets flat arrays. Triton's form gets the tensors, after the same checks, and launches device functions.
Where a kernel has no fast form, its reference runs.

A kernel that is run again and again on the same memory is made with `@kernel("M", is_step=True)`: `prepare` returns a
`Program` that can be joined with others. On the CPU such a kernel always runs as a program, so there is one
compiled form of it, and one result.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor

from fastac.kernels.program import Op, Program
from fastac.kernels.specification import Real, Specification, hold, refuse
from fastac.kernels.triton_tools import compile_marked

log = logging.getLogger("fastac")

_P = ParamSpec("_P")
_R = TypeVar("_R")
Form: TypeAlias = Callable[..., Any]  # takes sizes, then the reference's arguments
Entry: TypeAlias = Any  # a function compiled by Numba, untyped

KERNELS: list[Kernel[..., Any]] = []  # all kernels, in the order of their definition


class Kernel(Generic[_P, _R]):
    """A function on arrays, in up to three forms with one signature.

    Attributes:
        specification: specification of the arguments.
        reference: in torch, for any float dtype and device.
        on_cpu: runs on the CPU: Numba's form, or the reference.
        entry: the entry point compiled by Numba, or None.
        is_step: whether the kernel runs as a step of a `Program`; it has no entry point.
        numba_form: the source of `entry`.
        triton_form: launches Triton's device functions.
    """

    def __init__(self, reference: Callable[Concatenate[Tensor, _P], _R], sizes: str, is_step: bool) -> None:
        """Store the reference and the letters of its shapes."""
        functools.update_wrapper(self, reference)
        self.specification = Specification.read(reference, sizes)
        self.reference = self.on_cpu = reference
        self.is_step = is_step
        self.entry: Entry = None
        self._bind: Callable[..., Program] | None = None
        self.numba_form: Form | None = None
        self.triton_form: Form | None = None
        KERNELS.append(self)

    def __call__(self, first: Tensor, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run the form for the device of the first argument, which is positional only."""
        return self.on_cuda(first, *args, **kwargs) if first.is_cuda else self.on_cpu(first, *args, **kwargs)

    @functools.cached_property
    def on_cuda(self) -> Callable[Concatenate[Tensor, _P], _R]:
        """The form for CUDA: Triton's, which is loaded with the first CUDA tensor, or the reference."""
        if self.triton_form is None or not _is_triton_loaded():
            return self.reference
        return self._write_call(self.triton_form, by_address=False)

    def prepare(self, first: Tensor, /, *args: _P.args, **kwargs: _P.kwargs) -> Op:
        """Return the call on tensors that will not move: on the CPU a `Program`, if the kernel is compiled.

        Floats may be given as tensors of one element (`Real`), which every call reads anew.
        """
        assert self.is_step, "only a step of a program can be prepared"
        if first.is_cuda or self._bind is None:
            return self._call_later(self.on_cuda if first.is_cuda else self.reference, [first, *args], kwargs)
        return self._bind(first, *args, **kwargs)

    def _call_later(self, form: Callable[..., object], args: list[object], kwargs: dict[str, object]) -> Op:
        """Return the call of a form that takes floats."""
        named = {**dict(zip((a.name for a in self.specification.arguments), args, strict=False)), **kwargs}
        values, late = [named[a.name] for a in self.specification.arguments], dict[int, Tensor]()
        for k, (argument, value) in enumerate(zip(self.specification.arguments, values, strict=True)):
            if argument.is_float and isinstance(value, Tensor):
                late[k] = value

        def call() -> None:
            form(*(float(late[k]) if k in late else value for k, value in enumerate(values)))

        return call if late else functools.partial(form, *values)

    def numba(self, form: Form) -> Form:
        """Register the form for the CPU, which `compile_kernels` compiles."""
        self.numba_form = form
        return form

    def triton(self, form: Form) -> Form:
        """Register the form for CUDA."""
        self.triton_form = form
        return form

    def use(self, entry: Entry) -> None:
        """Run the compiled entry point from now on."""
        self.entry, self.on_cpu = entry, self._write_call(entry, by_address=True)

    def use_step(self, address: int) -> None:
        """Run the compiled function at `address`, in programs, from now on."""
        first_float = len(self.specification.sizes)
        floats = [first_float + k for k, a in enumerate(self.specification.arguments) if a.is_float]

        def bind(*given: Tensor | Real | int) -> Program:
            args = list(given)
            for k in floats:
                args[k] = hold(args[k])
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            values = [arg.data_ptr() if isinstance(arg, Tensor) else int(arg) for arg in args]
            return Program.call(address, values, tensors)  # keeps the tensors' memory alive

        bound: Callable[..., Any] = self._write_call(bind, by_address=False)
        self._bind = bound
        self.on_cpu = lambda *args, **kwargs: bound(*args, **kwargs)()

    def _write_call(self, call: Callable[..., Any], by_address: bool) -> Callable[Concatenate[Tensor, _P], _R]:
        """Generate the function that checks the arguments and passes them to `call`.

        It is generated as source, as dataclasses do: a loop over the arguments would cost more than some kernels.
        """
        dtypes = {a.dtype: getattr(torch, a.dtype) for a in self.specification.arguments if a.dtype}
        namespace: dict[str, Any] = {"call": call, "refuse": refuse, "prod": math.prod, **dtypes}
        name = self.specification.name
        exec(compile(self.specification.write_call(by_address), f"<call of {name}>", "exec"), namespace)
        function: Callable[Concatenate[Tensor, _P], _R] = namespace[name]
        return function


def kernel(sizes: str, is_step: bool = False) -> Callable[[Callable[Concatenate[Tensor, _P], _R]], Kernel[_P, _R]]:
    """Make a kernel from its reference; `sizes` are the letters of its shapes, in the order of a fast form's sizes."""
    return lambda reference: Kernel(reference, sizes, is_step)


def compile_kernels() -> None:
    """Compile every CPU kernel or load it from the cache; all or none, so that a run never mixes forms.

    This happens at import, so that compilation is not part of a timed run.
    """
    fast = [(kernel, kernel.numba_form) for kernel in KERNELS if kernel.numba_form is not None]
    try:
        # This needs Numba.
        from fastac.kernels.compiling import announcing_compilation, compile_entry, compile_runners, compile_step

        with announcing_compilation():
            entries = {k: compile_entry(k.specification, form) for k, form in fast if not k.is_step}
            steps = {k: compile_step(k.specification, form) for k, form in fast if k.is_step}
            runner, repeater = compile_runners()
    except Exception as error:  # training must continue whatever the compiler raises
        _warn_of_reference(error, "install Numba, and set NUMBA_CACHE_DIR to a folder that can be written to")
        return
    Program.runner, Program.repeater = staticmethod(runner), staticmethod(repeater)
    for kernel, entry in entries.items():
        kernel.use(entry)
    for kernel, address in steps.items():
        kernel.use_step(address)


def cache_folder() -> str | None:
    """Return the folder of the compiled CPU kernels, or None if the references run instead."""
    folders = [str(kernel.entry.stats.cache_path) for kernel in KERNELS if kernel.entry is not None]
    return folders[0] if folders else None


@functools.cache
def _is_triton_loaded() -> bool:
    """Load Triton and the marked functions, or log once that the references run instead."""
    try:
        compile_marked()
    except Exception as error:
        _warn_of_reference(error, "install the Triton that this PyTorch needs")
        return False
    return True


def _warn_of_reference(error: Exception, remedy: str) -> None:
    # Numba's errors are pages long; the first line states the problem.
    reason = (str(error).splitlines() or [""])[0]
    log.warning(
        "The compiled kernels cannot be used (%s: %s), so the slower reference kernels are; %s.",
        type(error).__name__,
        reason,
        remedy,
    )
