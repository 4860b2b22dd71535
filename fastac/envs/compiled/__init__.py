"""Environments as three small functions that Numba compiles: N of them step in one call, without Python between."""

from fastac.envs.compiled.declaration import CompiledEnv
from fastac.envs.compiled.registry import find_declaration, register, renders_nothing
from fastac.envs.compiled.vector import CompiledVectorEnv

__all__ = ["CompiledEnv", "CompiledVectorEnv", "find_declaration", "register", "renders_nothing"]
