"""Numba compilation: entry points that take addresses, the disk cache, and a log message while compiling.

Tensors are passed as addresses: `Tensor.numpy()` costs 0.6 us, an address 0.07 us, and a kernel takes up to 12
tensors. The generated call does the checks that Numba's array types would do.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, TypeAlias

import numba
from numba import carray, types  # type: ignore[attr-defined]  # numba re-exports these undeclared
from numba.core.caching import FunctionCache
from numba.core.event import Event, Listener, install_listener
from numba.extending import intrinsic

from fastac.kernels.numba_tools import jit
from fastac.kernels.specification import Specification

log = logging.getLogger("fastac")

_Any: TypeAlias = Any  # Numba objects without type stubs


@contextmanager
def announcing_compilation() -> Iterator[None]:
    """Log once when Numba really compiles, that is, after an installation and not when loading from the disk cache.

    It is a warning, because warnings are shown even if logging is not set up. Worker processes, which may be many,
    do not log it.
    """
    if parent_process() is not None:
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


def _array_at(element: _Any) -> _Any:
    """Return a compiled function that makes an array from an address and a size."""

    def cast(_context: _Any, address: _Any) -> _Any:
        def generate(context: _Any, builder: _Any, signature: _Any, arguments: _Any) -> _Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(address), generate  # type: ignore[no-untyped-call]  # numba has no types

    pointer: _Any = intrinsic(cast)

    @jit()
    def array(address: int, size: int) -> _Any:
        return carray(pointer(address), size)

    return array


_ARRAYS = {
    "float32_array": _array_at(types.float32),
    "float64_array": _array_at(types.float64),
    "bool_array": _array_at(types.boolean),
    "int64_array": _array_at(types.int64),
    "uint8_array": _array_at(types.uint8),
}


@functools.cache
def hash_sources() -> str:
    """Return a hash of this folder's source files."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class FolderCache(FunctionCache):
    """Numba's disk cache, with entries that are valid until any file of this folder changes.

    Numba only checks a stamp of the file that defines the function, so it misses changes in functions from other
    files. Only the stamp is replaced; folders, file names and concurrent compilation are handled by Numba.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Create the cache of a function."""
        super().__init__(function)  # type: ignore[no-untyped-call]  # numba has no types
        self._cache_file._source_stamp = hash_sources()


def compile_entry(specification: Specification, form: Callable[..., Any]) -> _Any:
    """Compile the entry point that Python calls with sizes, addresses and numbers, or load it from the disk cache."""
    # Numba puts its cache next to the source file named here.
    code = compile(specification.write_entry(), inspect.getfile(form), "exec")
    namespace: dict[str, Any] = {"__name__": form.__module__, "function": jit()(form), **_ARRAYS}
    exec(code, namespace)
    function = namespace[specification.name]
    entry: _Any = numba.njit(error_model="numpy")(function)
    entry._cache = FolderCache(function)
    entry.compile(specification.signature)
    entry.disable_compile()
    return entry
