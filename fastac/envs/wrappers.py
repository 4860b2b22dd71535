"""The user's wrappers: puts them around an environment, and names them for a configuration."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from functools import partial

import gymnasium as gym
from gymnasium.vector import VectorEnv

from fastac.config import EnvConfig, WrapperFactory, is_json, read_wrapper
from fastac.contract import EnvFailure
from fastac.envs.failure import describe
from fastac.envs.importing import find_thing, is_unnamed, name_of
from fastac.envs.state import SingleEnv


def wrap_single(env: SingleEnv, config: EnvConfig) -> SingleEnv:
    """Put the configured wrappers around an environment, the first one directly; if one fails, close it.

    Raises:
        ValueError: a wrapper does not exist, cannot be called, or returned something else than an environment.
        EnvFailure: a wrapper raised an exception.
    """
    try:
        for line in config.wrappers:
            env = _wrap(env, line, config.env_id)
    except BaseException:
        env.close()
        raise
    return env


def _wrap(env: SingleEnv, line: str, env_id: str) -> SingleEnv:
    name, kwargs = read_wrapper(line)
    try:
        make = find_thing("wrapper", name)
    except ValueError as error:
        raise ValueError(f"{env_id} cannot be wrapped: {error}") from error
    try:
        wrapped = make(env, **kwargs)
    except Exception as error:  # foreign code may raise anything
        raise EnvFailure(f"{env_id} cannot be wrapped: {line} raised {describe(error)}.") from error
    if isinstance(wrapped, gym.Env) and not isinstance(wrapped, VectorEnv):
        return wrapped
    raise ValueError(f"{env_id} cannot be wrapped: {line} returned {wrapped!r:.80}, expected a gymnasium.Env.")


def name_wrappers(wrappers: Sequence[str | WrapperFactory]) -> tuple[str, ...]:
    """Return the lines that a configuration records for wrappers given in Python.

    Raises:
        ValueError: one that other processes cannot import, or whose arguments are not JSON.
    """
    if isinstance(wrappers, str) or not isinstance(wrappers, Sequence):
        raise ValueError(f"wrappers is {wrappers!r}, expected a list of them, the innermost first.")
    return tuple(wrapper if isinstance(wrapper, str) else _name(wrapper) for wrapper in wrappers)


def _name(wrapper: WrapperFactory) -> str:
    if isinstance(wrapper, partial) and not wrapper.args and is_json(wrapper.keywords):
        inner, words = _name(wrapper.func), [f"{key}={json.dumps(value)}" for key, value in wrapper.keywords.items()]
        return " ".join([inner, shlex.join(words)])
    if not callable(wrapper):
        raise ValueError(f"wrappers holds {wrapper!r}, expected a class or function, or its module:name.")
    name = name_of(wrapper)
    if is_unnamed(name):
        raise ValueError(
            f"wrappers holds {name}, which cannot be imported by its name: define it at the top level of a module, or "
            "give a function that returns the wrapped environment in place of the environment."
        )
    return name
