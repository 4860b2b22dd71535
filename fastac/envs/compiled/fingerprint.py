"""A hash of everything that a function's compiled code depends on, so that the disk cache never misses a change.

Numba's own cache looks at the file that defines the function, and not at the helpers and constants that it uses.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import sys
from collections.abc import Iterable
from enum import Enum, EnumMeta
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType

import numba
import numpy as np
from gymnasium.spaces import Box

from fastac.envs.compiled.declaration import CompiledEnv, plain
from fastac.kernels.compiling import hash_sources

# Packages whose behaviour does not change but with their version.
_FIXED = frozenset(sys.stdlib_module_names) | {"numpy", "numba"}


class UnknownError(ValueError):
    """A function depends on an object whose changes cannot be seen."""


def hash_env(env: CompiledEnv) -> str | None:
    """Return the hash of a declaration, or None if it depends on something whose changes cannot be seen."""
    digest = _Digest()
    space = env.action_space
    bounds = [env.observation_space.low, env.observation_space.high]
    bounds += [space.low, space.high] if isinstance(space, Box) else [np.array([space.n, space.start])]
    try:
        digest.add((_hash_own_sources(), hash_sources(), numba.__version__, np.__version__, sys.version_info[:2]))
        digest.add((env.state_size, env.reset_draws, env.step_draws, *bounds))
        for function in (env.reset, env.step, env.observe):
            digest.add(plain(function))
    except UnknownError:
        return None
    return digest.hexdigest()


@functools.cache
def _hash_own_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class _Digest:
    """Adds values to a hash, functions with all that they refer to."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._seen: dict[int, int] = {}  # functions and modules' attributes, by identity, in the order seen

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def add(self, value: object) -> None:
        """Add a value.

        Raises:
            UnknownError: an object of a kind whose content is not known.
        """
        inner = plain(value) if callable(value) else value
        if inner is not value:  # compiled by the user, perhaps with fastmath
            self._update(repr(sorted(getattr(value, "targetoptions", {}).items(), key=repr)))
        self._digest.update(type(inner).__qualname__.encode() + b"\0")
        if isinstance(inner, FunctionType):
            self._add_function(inner)
        elif isinstance(inner, CodeType):
            self._add_code(inner)
        elif isinstance(inner, np.ndarray | np.generic) and not inner.dtype.hasobject:
            self._update(str(inner.dtype), str(np.shape(inner)), np.ascontiguousarray(inner).tobytes())
        elif isinstance(inner, float):
            self._update(struct.pack("<d", inner))
        elif inner is None or inner is Ellipsis or isinstance(inner, str | bytes | int | complex | range | slice):
            self._update(repr(inner))
        elif isinstance(inner, tuple | list):
            self._add_all(inner)
        elif isinstance(inner, frozenset | set):
            self._add_all(sorted(inner, key=repr))
        elif isinstance(inner, dict):
            self._add_all(sorted(inner.items(), key=repr))
        else:
            self._add_named(inner)

    def _add_named(self, value: object) -> None:
        """Add a module, class or built-in function of a package that is known by its version."""
        if isinstance(value, Enum | EnumMeta):
            members = value if isinstance(value, EnumMeta) else [value]
            self._add_all((member.name, member.value) for member in members)
            return
        module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        is_fixed = isinstance(module, str) and module.partition(".")[0] in _FIXED
        if not is_fixed and not isinstance(value, BuiltinFunctionType | np.ufunc | np.dtype | ModuleType):
            raise UnknownError(repr(value))
        self._update(str(module), str(getattr(value, "__qualname__", value)))

    def _add_all(self, values: Iterable[object]) -> None:
        values = list(values)
        self._update(str(len(values)))
        for value in values:
            self.add(value)

    def _add_function(self, function: FunctionType) -> None:
        if id(function) in self._seen:
            self._update(str(self._seen[id(function)]))
            return
        self._seen[id(function)] = len(self._seen)
        module = function.__module__ or ""
        if module.partition(".")[0] in _FIXED:
            self._update(module, function.__qualname__)
            return
        self._add_code(function.__code__)
        self._add_all((function.__defaults__, function.__kwdefaults__))
        self._add_all(cell.cell_contents for cell in function.__closure__ or ())
        for code in _codes(function.__code__):
            self._add_globals(code, function.__globals__)

    def _add_code(self, code: CodeType) -> None:
        self._update(code.co_code, *code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars)
        self._add_all(code.co_consts)

    def _add_globals(self, code: CodeType, names: dict[str, object]) -> None:
        """Add the globals that a code refers to, and what it takes from modules among them."""
        for name in code.co_names:
            if name not in names:
                continue
            value = names[name]
            self._update(name)
            self.add(value)
            for attribute in _attributes(value, code.co_names):
                self.add(attribute)

    def _update(self, *parts: str | bytes) -> None:
        for part in parts:
            content = part.encode() if isinstance(part, str) else part
            self._digest.update(len(content).to_bytes(8, "little") + content)


def _codes(code: CodeType) -> list[CodeType]:
    """Return a code and those of the functions inside it."""
    inner = [each for const in code.co_consts if isinstance(const, CodeType) for each in _codes(const)]
    return [code, *inner]


def _attributes(value: object, names: tuple[str, ...]) -> list[object]:
    """Return what a code may take from a module, also from modules in it; all names of the code are tried."""
    if not isinstance(value, ModuleType) or value.__name__.partition(".")[0] in _FIXED:
        return []
    found = [getattr(value, name) for name in names if hasattr(value, name)]
    return found + [each for inner in found if inner is not value for each in _attributes(inner, names)]
