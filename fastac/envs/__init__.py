"""Turns any Gymnasium vector env into the one step contract.

Owns autoreset modes, flattening observations, clipping and squashing actions, environment state capture, and the probe
environments.
"""

from fastac.envs.make import adapt, film_game, has_native, make_vec, picks_native
from fastac.envs.spaces import check_spaces, is_image, observation_dtype

__all__ = [
    "adapt",
    "check_spaces",
    "film_game",
    "has_native",
    "is_image",
    "make_vec",
    "observation_dtype",
    "picks_native",
]
