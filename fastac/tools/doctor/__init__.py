"""Examines an environment before hours are spent on it: facts are collected once, by a few trials, and then judged.

`doctor` takes an environment as `fastac.train` does; `examine` takes a configuration of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import gymnasium as gym
import numpy as np

from fastac.build import EnvFactory, name_env
from fastac.config import Config, EnvArguments, JsonValue
from fastac.tools.doctor.examination import examine
from fastac.tools.doctor.findings import Diagnosis, Finding, Severity

__all__ = ["Diagnosis", "Finding", "Severity", "doctor", "examine"]

_Env: TypeAlias = "str | EnvFactory | gym.Env[np.ndarray, np.ndarray]"


def doctor(
    env: _Env,
    *,
    env_kwargs: EnvArguments | None = None,
    seconds: float = 10.0,
    drop_keys: Sequence[str] = (),
) -> Diagnosis:
    """Examine an environment, and return what was found.

    It is stepped with random actions, legal ones where it has action masks: about 10,000 steps, fewer if they take
    longer than `seconds`.

    Args:
        env: an id, a class, a function, a spec or an environment from `gymnasium.make`, as `train` takes it.
        env_kwargs: its keyword arguments.
        seconds: limit for the whole examination; a step that is under way is waited for.
        drop_keys: keys of a Dict observation that training leaves out.

    Raises:
        ValueError: an unknown environment, an Atari game of ALE/, or `seconds` is not above 0.
        EnvFailure: the environment could not be built.
    """
    named = name_env(env)
    kwargs = cast("Mapping[str, JsonValue]", {**named.kwargs, **(env_kwargs or {})})
    config = Config().replace(env_id=named.env_id, env_kwargs=kwargs, drop_keys=tuple(drop_keys))
    return examine(config.env, named.given, seconds)
