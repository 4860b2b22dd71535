"""Compiles the step of a batch, or loads it from the disk cache; says in one sentence what cannot be compiled."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numba
from numba.core.caching import NullCache
from numba.core.errors import NumbaError, NumbaWarning, UnsupportedBytecodeError

from fastac.envs.compiled.declaration import CompiledEnv, place_of, plain, shorten
from fastac.envs.compiled.fingerprint import hash_env
from fastac.envs.compiled.loop import make_loop
from fastac.envs.compiled.trial import try_env
from fastac.kernels.compiling import QuickCache, announcing_compilation, compile_block

_Any: TypeAlias = Any  # Numba's objects, which have no types

_KNOWN: dict[str, int] = {}  # addresses of what this process has compiled, by hash
_UNHASHED: WeakKeyDictionary[CompiledEnv, int] = WeakKeyDictionary()


def compile_env(env: CompiledEnv, name: str) -> int:
    """Return the address of a compiled step, for a `Program`; `name` is for the log and for messages.

    What is not in the disk cache is first played in plain Python, where indices and results are checked.

    Raises:
        ValueError: a function that Numba cannot compile, or that failed when it was played; with its file and line.
    """
    key = hash_env(env)
    address = _UNHASHED.get(env) if key is None else _KNOWN.get(key)
    if address is None:
        address = _compile(env, name, key)
        if key is None:
            _UNHASHED[env] = address
        else:
            _KNOWN[key] = address
    return address


def _compile(env: CompiledEnv, name: str, key: str | None) -> int:
    def find_cache(_: Callable[..., Any]) -> _Any:
        return _TryingCache(env, name, _find_cache(env, key))

    try:
        with announcing_compilation(name, 3), warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaWarning)  # such as that a large array keeps it out of the cache
            return compile_block(make_loop(env), find_cache)
    except _REFUSALS as error:
        raise ValueError(f"{name} cannot be compiled: {_explain(env, error)}") from error


class _TryingCache:
    """A cache that plays an environment before it is compiled."""

    def __init__(self, env: CompiledEnv, name: str, cache: _Any) -> None:
        self._env, self._name, self._cache = env, name, cache

    def load_overload(self, signature: _Any, context: _Any) -> _Any:
        found = self._cache.load_overload(signature, context)
        if found is None:
            try_env(self._env, self._name)
        return found

    def save_overload(self, signature: _Any, found: _Any) -> None:
        self._cache.save_overload(signature, found)


def _find_cache(env: CompiledEnv, key: str | None) -> _Any:
    """Return the cache in the folder of the user's file, or one that keeps nothing if there is no place for it."""
    if key is not None:
        try:
            return _HashCache(env, key)
        except RuntimeError:  # a console, a notebook without IPython, no folder that can be written to
            pass
    return NullCache()


class _HashCache(QuickCache):
    """Numba's disk cache, with files of its own for each hash.

    Numba writes the index before the code. If declarations shared files, a full disk or a kill in between would leave
    the index of one with the code of another, which would then run on the wrong arrays.
    """

    def __init__(self, env: CompiledEnv, key: str) -> None:
        super().__init__(plain(env.step))  # type: ignore[no-untyped-call]  # numba has no types
        self._cache_file = type(self._cache_file)(self._cache_path, f"{self._impl.filename_base}-{key[:16]}", key)

    def _index_key(self, signature: _Any, codegen: _Any) -> _Any:
        return signature, codegen.magic_tuple()


# --- what Numba says, in one sentence ----------------------------------------------------------------


def _explain(env: CompiledEnv, error: Exception) -> str:
    """Return the function, its file and line, and Numba's reason; the functions are compiled one by one to find it."""
    for function, signature in zip((env.reset, env.step, env.observe), _signatures(env), strict=True):
        inner = plain(function)
        try:
            numba.njit(error_model="numpy")(inner).compile(signature)
        except _REFUSALS as found:
            return f"{inner.__name__}, {_find_place(found, place_of(inner))}: {_find_reason(found)}"
    return f"step, {place_of(env.step)}, must return (reward, terminated): {_find_reason(error)}"


def _signatures(env: CompiledEnv) -> tuple[str, str, str]:
    action = "f4[::1]" if env.action_size else "i8"
    return "(f8[::1], f8[::1])", f"(f8[::1], {action}{', f8[::1]' if env.step_draws else ''})", "(f8[::1], f4[::1])"


_REFUSALS = (NumbaError, UnsupportedBytecodeError)  # the second is no NumbaError
_PLACE = re.compile(r'File "([^"]+)", line (\d+)')
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def _find_place(error: Exception, default: str) -> str:
    """Return the last place in the user's code that the message names, as `file:line`."""
    places = [(path, line) for path, line in _PLACE.findall(str(error)) if "site-packages" not in path]
    location: _Any = getattr(error, "loc", None)
    if places:
        path, line = places[-1]
        return f"{shorten(str(Path(path)))}:{line}"
    is_users = location is not None and "site-packages" not in location.filename
    return f"{shorten(location.filename)}:{location.line}" if is_users else default


def _find_reason(error: Exception) -> str:
    """Return the first line of Numba's pages that says what is wrong."""
    lines = [_STYLE.sub("", line).strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Failed in", "During", "File", ">>>", "-", "<"))]
    reason = (said or ["it is not in the part of Python that Numba knows"])[0].rstrip(".: ")
    if "Cannot determine Numba type of <class 'function'>" in str(error):
        reason += "; mark the functions that yours calls with @numba.njit"
    return f"{reason}."
