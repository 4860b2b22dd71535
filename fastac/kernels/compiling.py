"""Numba compilation: entry points that take addresses, the disk cache, and a log message while compiling.

Tensors are passed as addresses: `Tensor.numpy()` costs 0.6 us, an address 0.07 us, and a kernel takes up to 12
tensors. The generated call does the checks that Numba's array types would do.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, TypeAlias

import numba
import numba.cpython.hashing  # makes known to the loader what compiled code calls to hash
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]  # numba re-exports these undeclared
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.event import Event, Listener, install_listener
from numba.core.runtime.nrt import rtsys
from numba.extending import intrinsic

from fastac.kernels.numba_tools import jit
from fastac.kernels.specification import Specification

log = logging.getLogger("fastac")

_Any: TypeAlias = Any  # Numba objects without type stubs


@contextmanager
def announcing_compilation(what: str = "fastac's kernels", about_s: int = 40) -> Iterator[None]:
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
                log.warning("Compiling %s for this machine, once: about %d seconds.", what, about_s)

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


_int64_array = _array_at(types.int64)
# Turn an address and a size into a flat array.
ARRAYS = {
    "float32_array": _array_at(types.float32),
    "float64_array": _array_at(types.float64),
    "bool_array": _array_at(types.boolean),
    "int64_array": _int64_array,
    "uint8_array": _array_at(types.uint8),
}


@functools.cache
def hash_sources() -> str:
    """Return a hash of this folder's source files."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class QuickCache(FunctionCache):
    """Numba's disk cache, without what Numba imports before it looks into the cache.

    That is its implementations of Python and numpy, and scipy's linear algebra. Only compilation needs them, and they
    take half a second.
    """

    def save_overload(self, sig: _Any, data: _Any) -> None:
        """Save, unless that fails (a full disk): then the next process compiles again.

        Numba writes the index before the code. Code of earlier sources goes first, or a save that ends in between
        would leave an index that is valid with code that is not.
        """
        files: _Any = self._cache_file
        with suppress(OSError):
            named = set(files._load_index().values())
            stem = glob.escape(files._index_name.removesuffix(".nbi"))
            for code in Path(files._cache_path).glob(f"{stem}.*.nbc"):
                if code.name not in named:
                    code.unlink(missing_ok=True)
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]  # numba has no types

    def load_overload(self, sig: _Any, target_context: _Any) -> _Any:
        """Return the compiled function from the cache, or None; Numba's own method without `target_context.refresh`."""
        rtsys.initialize(target_context)  # makes known what compiled code calls
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)  # type: ignore[no-untyped-call]  # numba has no types


class FolderCache(QuickCache):
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
    function = _generate(specification.name, specification.write_entry(), form)
    return _compile_jit(function, specification.signature)


def compile_step(specification: Specification, form: Callable[..., Any]) -> int:
    """Compile the function that a `Program` calls with a block of arguments; return its address."""
    return compile_block(_generate(specification.name, specification.write_step(), form), FolderCache)


def compile_block(function: Callable[[int], None], cache: Callable[[Callable[..., Any]], FunctionCache]) -> int:
    """Compile a function of the address of its block, or load it from the disk cache; return its address.

    The code is never freed.
    """
    signature = (types.int64,), types.void
    compiled: _Any = CFunc(function, signature, locals={}, options={"error_model": "numpy"})
    compiled._cache = cache(function)
    compiled.compile()
    COMPILED.append(compiled)
    address: int = compiled.address
    return address


COMPILED: list[_Any] = []  # keeps the code at the addresses alive


def _generate(name: str, source: str, form: Callable[..., Any]) -> Callable[..., Any]:
    """Define a function from source around a kernel's form."""
    # Numba puts its cache next to the source file named here.
    namespace: dict[str, Any] = {"__name__": form.__module__, "function": jit()(form), **ARRAYS}
    exec(compile(source, inspect.getfile(form), "exec"), namespace)
    function: Callable[..., Any] = namespace[name]
    return function


def _compile_jit(function: Callable[..., Any], signature: str) -> _Any:
    entry: _Any = numba.njit(error_model="numpy")(function)
    entry._cache = FolderCache(function)
    entry.compile(signature)
    entry.disable_compile()
    return entry


def compile_runners() -> tuple[_Any, _Any]:
    """Compile the loops of `Program`, or load them from the disk cache."""
    return _compile_jit(_run, "void(i8, i8)"), _compile_jit(_repeat, "void(i8, i8, i8, i8)")


def _run(table: int, num: int) -> None:
    """Call the function of every row with its block."""
    rows = _int64_array(table, 2 * num)
    for k in range(num):
        _call(rows[2 * k], rows[2 * k + 1])


def _repeat(table: int, num: int, times: int, until: int) -> None:
    """Call all functions up to `times` times, until the number at address `until` is not 0."""
    rows, stop = _int64_array(table, 2 * num), _int64_array(until, 1)
    for _ in range(times):
        if stop[0] != 0:
            return
        for k in range(num):
            _call(rows[2 * k], rows[2 * k + 1])


def _call_address(_context: _Any, address: _Any, block: _Any) -> _Any:
    """Call the function at `address`, as the C ABI does, with the address of its block."""

    def generate(_target: _Any, builder: _Any, _signature: _Any, arguments: _Any) -> _Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])
        return _target.get_dummy_value()

    return types.void(address, block), generate


_call: _Any = intrinsic(_call_address)
