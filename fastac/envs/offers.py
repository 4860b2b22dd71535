"""Decides in which ways a configuration's environments can be batched, and which one `auto` takes."""

from __future__ import annotations

from gymnasium.envs.registration import EnvSpec

from fastac.config import EnvConfig, Vectorization, is_atari
from fastac.envs.compiled import CompiledEnv, find_declaration
from fastac.envs.pool import has_pool
from fastac.envs.source import EnvFunction, Given, Source, find_source, has_batch

# With `auto`: from this number on, a step of the id's own batch is cheaper than single environments one after the
# other. CartPole's batch takes 40 us for one env and for five; a single env takes 7 us.
_LEAST_NATIVE = 6


def offered_vectorizations(config: EnvConfig, given: Given | None = None) -> tuple[Vectorization, ...]:
    """Return every way in which these environments can be batched, the one expected to be fastest per core first.

    If `config` names one, that is the only one.

    Raises:
        ValueError: an unknown id.
    """
    if config.vectorization != "auto":
        return (config.vectorization,)
    if comes_batched(config, given):
        return ("auto",)
    if is_atari(config.env_id):
        return ("native",)
    offers: dict[Vectorization, bool] = {
        "compiled": has_compiled(config, given),
        "native": has_native(config, given),
        "sync": True,
        "process": True,
        "envpool": given is None and not config.wrappers and has_pool(config.env_id),
    }
    return tuple(name for name, is_offered in offers.items() if is_offered)


def has_native(config: EnvConfig, given: Given | None = None) -> bool:
    """Return whether an environment has a batched version of its own.

    Raises:
        ValueError: an unknown id.
    """
    return _is_native(config, find_source(config, given))


def _is_native(config: EnvConfig, source: Source) -> bool:
    return isinstance(source, EnvSpec) and not config.wrappers and has_batch(source, config.env_kwargs)


def comes_batched(config: EnvConfig, given: Given | None = None) -> bool:
    """Return whether environments only come in batches: EnvPool's, or those of a function that builds batches.

    Raises:
        ValueError: an unknown id.
    """
    if config.vectorization == "envpool":
        return True
    source = find_source(config, given)
    return isinstance(source, EnvFunction) and source.is_batch


def has_compiled(config: EnvConfig, given: Given | None = None) -> bool:
    """Return whether an environment has a compiled version that takes the configured arguments.

    Raises:
        ValueError: an unknown id.
    """
    return find_compiled(config, find_source(config, given)) is not None


def picks_own_batch(config: EnvConfig, num_envs: int, given: Given | None = None) -> bool:
    """Return whether `num_envs` environments would use the id's compiled version, or its own batched version.

    Raises:
        ValueError: an unknown id, or a vectorization that the id does not have.
    """
    source = find_source(config, given)
    return picks_compiled(config, source) or picks_native(config, source, num_envs)


def find_compiled(config: EnvConfig, source: Source) -> CompiledEnv | None:
    """Return the compiled version of an environment with the configured arguments, or None; wrappers have none."""
    if config.wrappers or not isinstance(source, EnvSpec):
        return None
    return find_declaration(source, config.env_kwargs)


def picks_compiled(config: EnvConfig, source: Source) -> bool:
    """Return whether the environments are compiled ones; ValueError if that was asked for and there are none."""
    if config.vectorization not in ("auto", "compiled"):
        return False
    is_offered = find_compiled(config, source) is not None
    if config.vectorization == "compiled" and not is_offered:
        raise ValueError(
            f"vectorization is 'compiled' but {config.env_id} has no compiled version, or none with these arguments: "
            "use auto or sync."
        )
    return is_offered


def picks_native(config: EnvConfig, source: Source, num_envs: int) -> bool:
    """Return whether the environments are the id's own batch; ValueError if that was asked for and there is none."""
    offered = _is_native(config, source)
    if config.vectorization == "native" and not offered:
        others = "auto, compiled or sync" if find_compiled(config, source) is not None else "auto or sync"
        raise ValueError(f"vectorization is 'native' but {config.env_id} has no batched version: use {others}.")
    least = 1 if is_atari(config.env_id) else _LEAST_NATIVE
    return offered and (config.vectorization == "native" or (config.vectorization == "auto" and num_envs >= least))
