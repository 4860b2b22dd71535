"""Adapts Gymnasium environments, single or vectorised, to the step contract.

Handles autoreset modes, flattening of observations, clipping and squashing of actions, saving of environment states,
and trial environments.
"""

from fastac.envs.make import adapt, film_game, make_batch, make_single, make_vec
from fastac.envs.offers import comes_batched, has_compiled, has_native, offered_vectorizations, picks_own_batch
from fastac.envs.source import Given, Named, name_env, take_env
from fastac.envs.spaces import check_spaces, is_image, observation_dtype, shows_image

__all__ = [
    "Given",
    "Named",
    "adapt",
    "check_spaces",
    "comes_batched",
    "film_game",
    "has_compiled",
    "has_native",
    "is_image",
    "make_batch",
    "make_single",
    "make_vec",
    "name_env",
    "observation_dtype",
    "offered_vectorizations",
    "picks_own_batch",
    "shows_image",
    "take_env",
]
