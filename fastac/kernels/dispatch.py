"""Which twin of a kernel runs: Numba's on the CPU, Triton's on CUDA, or the reference where that one is missing."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from types import ModuleType
from typing import Concatenate, ParamSpec, TypeVar

from torch import Tensor

from fastac.kernels import reference

log = logging.getLogger("fastac")

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


@contextmanager
def announcing_compilation() -> Iterator[None]:
    """Say once that Numba compiles, when it really does: after an installation, and not from its cache on disk.

    A warning, since those are seen without any set-up of logging; but not from workers, of which there may be many.
    """
    if parent_process() is not None:
        yield
        return
    try:
        from numba.core.event import Event, Listener, install_listener
    except ImportError:  # no Numba: importing the twins says so
        yield
        return

    class Announcer(Listener):
        told = False

        def on_start(self, event: Event) -> None:
            if not self.told:
                self.told = True
                log.warning("Compiling fastac's kernels for this machine, once: about 20 seconds.")

        def on_end(self, event: Event) -> None:
            pass

    with install_listener("numba:compile", Announcer()):
        yield


def _load(module: str, remedy: str) -> ModuleType:
    """Import a module of twins, or say once that the reference takes its place."""
    try:
        with announcing_compilation():
            return importlib.import_module(f"fastac.kernels.{module}")
    except Exception as error:  # whatever a compiler fails at, training goes on
        # Numba's errors go on for pages; the first line says what happened.
        reason = (str(error).splitlines() or [""])[0]
        log.warning(
            "The compiled kernels cannot be used (%s: %s), so the slower reference kernels are; %s.",
            type(error).__name__,
            reason,
            remedy,
        )
        return reference


# Loaded at import, so that nothing is compiled while a run is being timed.
_ON_CPU = _load("numba_twins", "install Numba, and set NUMBA_CACHE_DIR to a folder that can be written to")


@functools.cache
def _on_cuda() -> ModuleType:
    return _load("triton_twins", "install the Triton that this PyTorch needs")


def _dispatched(
    function: Callable[Concatenate[Tensor, _Parameters], _Result],
) -> Callable[Concatenate[Tensor, _Parameters], _Result]:
    """Make a kernel from its reference, whose name its twins share; its first argument decides, and has no name."""
    name = function.__name__
    on_cpu: Callable[Concatenate[Tensor, _Parameters], _Result] = getattr(_ON_CPU, name)

    @functools.wraps(function)
    def kernel(first: Tensor, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        if first.is_cuda:
            on_cuda: Callable[Concatenate[Tensor, _Parameters], _Result] = getattr(_on_cuda(), name)
            return on_cuda(first, *args, **kwargs)
        return on_cpu(first, *args, **kwargs)

    return kernel


gae = _dispatched(reference.gae)
batch_moments = _dispatched(reference.batch_moments)
sample_categorical = _dispatched(reference.sample_categorical)
categorical_loss = _dispatched(reference.categorical_loss)
gaussian_loss = _dispatched(reference.gaussian_loss)
scale_images = _dispatched(reference.scale_images)
adam_step = _dispatched(reference.adam_step)
rmsprop_step = _dispatched(reference.rmsprop_step)
# Networks on CUDA have captured graphs in its place.
prepare_dense: Callable[[Tensor, Tensor, Tensor, str, Tensor], Callable[[], object]] = _ON_CPU.prepare_dense
# Episodes are counted, and frames stacked, where envs live.
find_episodes: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], int] = (
    _ON_CPU.find_episodes
)
stack_frames: Callable[[Tensor, Tensor, Tensor, Tensor], None] = _ON_CPU.stack_frames


def cache_folder() -> str | None:
    """Return where the compiled CPU kernels are kept on disk, or None where the reference takes their place."""
    return None if _ON_CPU is reference else str(_ON_CPU.cache_folder())
