"""Turns any Gymnasium vector env into the one step contract.

Owns autoreset modes, action clipping, environment state capture, and the probe environments.
"""

from fastac.envs.make import adapt, has_native, make_vec, picks_native
from fastac.envs.spaces import check_spaces

__all__ = ["adapt", "check_spaces", "has_native", "make_vec", "picks_native"]
