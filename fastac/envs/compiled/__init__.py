"""Environments as three small functions that Numba compiles: N of them step in one call, without Python between."""

from fastac.envs.compiled.declaration import CompiledEnv

__all__ = ["CompiledEnv"]
