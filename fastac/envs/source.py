"""Finds what environments are made from: a registered id, or the user's class or function."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from types import ModuleType
from typing import TypeAlias, cast

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import VectorEnv

from fastac.config import OWN_ENVS, EnvArguments, EnvConfig, is_atari, is_json, with_home
from fastac.envs.failure import describe
from fastac.envs.importing import check_named, find_thing, import_home, is_unnamed, name_of
from fastac.envs.state import BatchedEnv, SingleEnv
from fastac.install import INSTALL
from fastac.pickling import pickled

# Builds one environment, or a batch of the size given by its first argument.
EnvMaker: TypeAlias = Callable[..., "SingleEnv | BatchedEnv"]


@dataclass(frozen=True, slots=True)
class ScriptEnv:
    """An id registered only by the user's script; a process that unpickles this imports the script first."""

    env_id: str
    script: str = "__main__"


# Accepted instead of an id. A spec comes from `gym.spec(...)` or `gym.make(...).spec`.
Given: TypeAlias = EnvMaker | EnvSpec | ScriptEnv

_NUMBER = "num_envs"
_SEED = "seed"


@dataclass(frozen=True, slots=True)
class EnvFunction:
    """A class or function that builds environments.

    Attributes:
        make: the class or function.
        is_batch: whether it takes a number and returns a batch of that size, or returns a single environment.
        takes_number: whether the number is passed as `num_envs` or as the first argument.
        takes_seed: whether a batch gets its seed when it is built.
    """

    make: EnvMaker
    is_batch: bool
    takes_number: bool
    takes_seed: bool


Source: TypeAlias = EnvSpec | EnvFunction


def find_source(config: EnvConfig, given: Given | None = None) -> Source:
    """Return the source of a configuration's environments.

    Args:
        config: names the source.
        given: the source itself, if available.

    Raises:
        ValueError: no such id, class or function, or a function with unexpected parameters.
    """
    if isinstance(given, ScriptEnv):
        given = gym.registry.get(given.env_id)
    found = _find_named(config.env_id) if given is None else given
    return found if isinstance(found, EnvSpec) else _inspect(config.env_id, found, config.env_kwargs)


def _inspect(env_id: str, make: EnvMaker, kwargs: EnvArguments) -> EnvFunction:
    """Decide from the parameters not in `kwargs` whether a function builds a batch or a single environment.

    A subclass of `gym.Env` builds one environment, a subclass of `VectorEnv` a batch. A function builds a batch if it
    has a parameter `num_envs` or a parameter without a default (other than `seed`); other functions build one.

    Raises:
        ValueError: the function requires more than one number.
    """
    params = [param for param in _find_params(make) if param.name not in kwargs]
    names = {param.name for param in params}
    required = [p for p in params if p.default is p.empty and p.kind in _POSITIONAL and p.name != _SEED]
    is_batch = _NUMBER in names or bool(required)
    if isinstance(make, type):
        is_batch = issubclass(make, VectorEnv) or (is_batch and not issubclass(make, gym.Env))
    elif len({param.name for param in required} | (names & {_NUMBER})) > 1:
        taken = " and ".join(param.name for param in required)
        raise ValueError(
            f"{env_id} takes {taken}, expected a function of no arguments that returns one environment, or one with a "
            f"parameter {_NUMBER}: give it the rest as env_kwargs, or in a lambda."
        )
    return EnvFunction(make, is_batch, _NUMBER in names, is_batch and _SEED in names)


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _find_params(make: Callable[..., object]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(make).parameters.values())
    except (TypeError, ValueError):  # implemented in C
        return []


def takes(make: Callable[..., object], name: str) -> bool:
    """Return whether a function accepts a keyword argument of this name."""
    return any(param.name == name or param.kind is param.VAR_KEYWORD for param in _find_params(make))


def has_batch(spec: EnvSpec, kwargs: EnvArguments) -> bool:
    """Return whether a registered environment has a batched version of its own that accepts `kwargs`."""
    if spec.vector_entry_point is None or spec.additional_wrappers:
        return False
    if not kwargs:
        return True
    limit = kwargs.get("max_episode_steps", 1)
    if not isinstance(limit, int) or limit < 1:  # no limit, which a batch would take as a limit of no steps
        return False
    entry = spec.vector_entry_point
    create = load_env_creator(entry) if isinstance(entry, str) else entry
    return all(takes(create, name) for name in kwargs)


def _find_named(env_id: str) -> EnvSpec | EnvMaker:
    """Return the registered spec of an id, or the object named by `module:name`.

    Raises:
        ValueError: no such module, id, class or function; the message suggests the nearest names.
    """
    check_named("env_id", env_id)
    env_id = with_home(env_id)
    module, _, name = env_id.rpartition(":")
    if module:
        home = import_home("env_id", env_id)  # the import may register the id
        if name not in gym.registry:
            _register(env_id, home)
    if is_atari(name):
        _register_atari(env_id)
    spec = gym.registry.get(name)
    if spec is not None:
        return spec
    if module:
        return cast(EnvMaker, find_thing("env_id", env_id, others=gym.registry))
    near = get_close_matches(name, [*gym.registry, *OWN_ENVS], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "expected a registered id, module:id or module:function."
    raise ValueError(f"env_id is {env_id!r}, which Gymnasium does not know: {hint}")


def _register(env_id: str, home: ModuleType) -> None:
    """Call the `register_envs` of a module, as MinAtar and others need it before their ids are known."""
    register = getattr(home, "register_envs", None)
    if home.__name__.partition(".")[0] == "gymnasium" or not callable(register) or _find_required(register):
        return
    try:
        register()
    except Exception as error:
        what = f"{home.__name__}.register_envs() raised {describe(error)}"
        raise ValueError(f"env_id is {env_id!r}, but {what}.") from error


def _find_required(make: Callable[..., object]) -> list[str]:
    return [param.name for param in _find_params(make) if param.default is param.empty and param.kind in _POSITIONAL]


def _register_atari(env_id: str) -> None:
    """Import ale-py, which registers its games with Gymnasium."""
    try:
        importlib.import_module("ale_py.vector_env")
    except ImportError as error:
        raise ValueError(
            f"env_id is {env_id!r}, which needs a package ({describe(error)}): {INSTALL['atari']}."
        ) from error


# --- names recorded in configurations ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Named:
    """An environment as recorded in a configuration.

    Attributes:
        env_id: a registered id, or `module:name`; `<module:name>` if another process cannot import it.
        kwargs: its arguments.
        given: the source itself, if the name is not enough for this process and its children.
    """

    env_id: str
    kwargs: EnvArguments
    given: Given | None


def name_env(env: str | Given | SingleEnv) -> Named:
    """Return an environment's record.

    Raises:
        ValueError: as `take_env`.
    """
    if isinstance(env, str):
        return _name_id(env)
    given = take_env(env)
    if isinstance(given, ScriptEnv):
        return Named(given.env_id, {}, given)
    return _name_spec(given) if isinstance(given, EnvSpec) else _name_function(given)


def take_env(env: str | Given | SingleEnv) -> Given:
    """Return the source of environments for an id, a class, a function, a spec, or an environment.

    Raises:
        ValueError: none of these.
    """
    if isinstance(env, VectorEnv):
        raise ValueError(
            f"env is {env!r}, a batch that was built already: give a function that builds it, such as "
            "lambda num_envs: gymnasium.make_vec(..., num_envs=num_envs)."
        )
    if isinstance(env, gym.Env):
        return _read_spec(env)
    if isinstance(env, str):
        return _find_named(env)
    if isinstance(env, EnvSpec | ScriptEnv) or callable(env):
        return env
    if isinstance(env, list | tuple) and env:
        raise ValueError(
            f"env is a {type(env).__name__} of {len(env)}, expected one environment's id, class or function: give one "
            f"of them, and num_envs={len(env)}."
        )
    raise ValueError(f"env is {env!r}, expected an environment's id, class or function.")


def _read_spec(env: SingleEnv) -> EnvSpec:
    if env.spec is None:
        raise ValueError(
            f"env is an environment that was built already, {env}: give its class, or a function that builds one, as "
            "fastac builds as many as it needs."
        )
    return env.spec


def _name_id(env_id: str) -> Named:
    """Return the record of an id; with the module that registers it, so that other processes find it too."""
    spec = gym.registry.get(env_id)
    if spec is None or is_atari(env_id):
        return Named(env_id, {}, None)  # `module:id`, or unknown, which is reported better when it is built
    entry = spec.entry_point
    home = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", _SCRIPT)
    if home.partition(".")[0] == "gymnasium":
        return Named(env_id, {}, None)
    given: Given = spec
    try:
        pickled(spec, "")
    except ValueError:  # for example, its entry point is a nested function
        given = ScriptEnv(env_id)
    is_importable = home not in (_SCRIPT, "functools")  # functools is the module of every partial
    return Named(f"{home}:{env_id}" if is_importable else env_id, {}, given)


_SCRIPT = "__main__"


def _name_spec(spec: EnvSpec) -> Named:
    """Record a spec as its registered id and changed arguments; other specs have no name and are kept as they are."""
    known = gym.registry.get(spec.id)
    if known is None or spec.additional_wrappers != known.additional_wrappers:
        return Named(f"<{spec.id}>", {}, spec)
    kwargs = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    if spec.max_episode_steps != known.max_episode_steps:
        kwargs["max_episode_steps"] = -1 if spec.max_episode_steps is None else spec.max_episode_steps
    changed = {name: value for name, value in kwargs.items() if name not in known.kwargs or known.kwargs[name] != value}
    if not is_json(changed):
        return Named(f"<{spec.id}>", {}, spec)
    named = _name_id(spec.id)
    return Named(named.env_id, changed, named.given)


def _name_function(make: EnvMaker) -> Named:
    """Record an importable function as `module:name`; keywords of a `partial` become its arguments."""
    if isinstance(make, partial) and not make.args and is_json(make.keywords):
        inner = _name_function(make.func)
        if inner.given is None:
            return Named(inner.env_id, {**inner.kwargs, **make.keywords}, None)
    name = name_of(make)
    return Named(name, {}, make if is_unnamed(name) else None)
