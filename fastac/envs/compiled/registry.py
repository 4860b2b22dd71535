"""Compiled environments by id: the user's, registered with Gymnasium, and Gymnasium's that fastac has compiled."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from fastac.envs.compiled.declaration import CompiledEnv
from fastac.envs.compiled.single import PlainEnv
from fastac.envs.compiled.vector import CompiledVectorEnv
from fastac.envs.failure import describe

# Makes a declaration from the arguments of the environment.
Declare: TypeAlias = Callable[..., CompiledEnv]

# What fastac has compiled, by the entry point of the ordinary environment and the wrappers that its spec adds.
_CARTPOLE = "gymnasium.envs.classic_control.cartpole:CartPoleEnv"
_HERE = "fastac.envs.compiled"
_TABLE: dict[tuple[str, ...], str] = {
    (_CARTPOLE,): f"{_HERE}.cartpole:cartpole",
    (_CARTPOLE, "fastac.envs.masked:MaskedCartPole"): f"{_HERE}.cartpole:masked_cartpole",
    ("gymnasium.envs.classic_control.acrobot:AcrobotEnv",): f"{_HERE}.acrobot:acrobot",
    ("gymnasium.envs.classic_control.mountain_car:MountainCarEnv",): f"{_HERE}.mountain_car:mountain_car",
    (
        "gymnasium.envs.classic_control.continuous_mountain_car:Continuous_MountainCarEnv",
    ): f"{_HERE}.mountain_car:continuous_mountain_car",
    ("gymnasium.envs.classic_control.pendulum:PendulumEnv",): f"{_HERE}.pendulum:pendulum",
}
_LIMIT = "max_episode_steps"
_NO_LIMIT = -1  # of `gymnasium.make`


def register(env_id: str, env: CompiledEnv | Declare, reward_threshold: float | None = None) -> None:
    """Register a compiled environment with Gymnasium, for `gymnasium.make`, `gymnasium.make_vec` and fastac.

    Args:
        env_id: the id, such as "GridWorld-v0".
        env: the declaration, or a function that returns one; its parameters, all with defaults, are the environment's
            arguments (`env_kwargs`).
        reward_threshold: the mean return at which the environment counts as solved.
    """
    declare = _Constant(env) if isinstance(env, CompiledEnv) else env
    # As in `collections.namedtuple`: other processes import the module that registers the id.
    module = sys._getframe(1).f_globals.get("__name__", "__main__")
    gym.register(
        env_id,
        entry_point=PlainMaker(env_id, module, declare),
        vector_entry_point=VectorMaker(env_id, module, declare),
        max_episode_steps=declare().max_episode_steps,
        reward_threshold=reward_threshold,
    )


class _Constant:
    """Declares the same environment always, and takes no arguments."""

    def __init__(self, env: CompiledEnv) -> None:
        self._env = env

    def __call__(self) -> CompiledEnv:
        return self._env


class _Maker:
    """An entry point of a registered environment; pickled as its id and the module that registers it."""

    def __init__(self, env_id: str, module: str, declare: Declare) -> None:
        self.env_id, self.declare = env_id, declare
        self.__module__ = module

    def __reduce__(self) -> tuple[Callable[..., _Maker], tuple[str, str, str]]:
        return _find_maker, (self.__module__, self.env_id, self._role)

    def __deepcopy__(self, memo: dict[int, object]) -> _Maker:  # Gymnasium copies specs
        return self

    _role = ""


class PlainMaker(_Maker):
    """Makes one environment, in plain Python."""

    _role = "entry_point"

    def __call__(self, **kwargs: object) -> PlainEnv:
        """Make it; the arguments are those of the declaring function.

        Raises:
            TypeError: an argument that it does not take.
        """
        if "render_mode" in kwargs:
            raise TypeError(f"{self.env_id} got render_mode, but compiled environments render nothing")
        return PlainEnv(self.declare(**kwargs))


class VectorMaker(_Maker):
    """Makes a compiled batch."""

    _role = "vector_entry_point"

    def __call__(self, num_envs: int = 1, max_episode_steps: int | None = None, **kwargs: object) -> CompiledVectorEnv:
        """Make it; further arguments are those of the declaring function."""
        return CompiledVectorEnv(self.declare(**kwargs), num_envs, max_episode_steps, self.env_id)


def _find_maker(module: str, env_id: str, role: str) -> _Maker:
    importlib.import_module(module)
    maker: _Maker = getattr(gym.registry[env_id], role)
    return maker


def find_declaration(spec: EnvSpec, kwargs: Mapping[str, object]) -> CompiledEnv | None:
    """Return the compiled environment of a registered one, or None if there is none that takes these arguments.

    There is none either where Numba cannot be used.

    Raises:
        ValueError: an argument of a value that the environment does not take.
    """
    declare, arguments = _find_declare(spec), {**spec.kwargs, **kwargs}
    limit = arguments.pop(_LIMIT, spec.max_episode_steps)
    if declare is None or (limit is not None and (type(limit) is not int or limit < _NO_LIMIT or limit == 0)):
        return None
    if any(name not in inspect.signature(declare).parameters for name in arguments) or not _can_compile():
        return None
    try:
        env = declare(**arguments)
    except Exception as error:
        raise ValueError(f"env_kwargs is {dict(kwargs)}, which {spec.id} refuses ({describe(error)}).") from error
    return replace(env, max_episode_steps=None if limit == _NO_LIMIT else limit)


def renders_nothing(spec: EnvSpec) -> bool:
    """Return whether a registered environment is a declaration, which has no pictures."""
    return isinstance(spec.entry_point, PlainMaker)


def _can_compile() -> bool:
    from fastac.kernels.program import Program  # loads the kernels

    return hasattr(Program, "runner")


def _find_declare(spec: EnvSpec) -> Declare | None:
    if isinstance(spec.entry_point, PlainMaker):
        return None if spec.additional_wrappers else spec.entry_point.declare
    wrappers = tuple(wrapper.entry_point for wrapper in spec.additional_wrappers if not wrapper.kwargs)
    if not isinstance(spec.entry_point, str) or len(wrappers) < len(spec.additional_wrappers):
        return None
    name = _TABLE.get((spec.entry_point, *wrappers))
    if name is None:
        return None
    module, _, function = name.partition(":")
    declare: Declare = getattr(importlib.import_module(module), function)
    return declare
