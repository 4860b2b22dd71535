"""Converts the names and values of settings, as written by users, to the right type, and checks them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Literal, TypeAlias, get_args, get_origin

JsonValue: TypeAlias = str | int | float | bool | list["JsonValue"] | dict[str, "JsonValue"] | None
ConfigValue: TypeAlias = str | int | float | bool | tuple[int, ...] | tuple[str, ...] | Mapping[str, JsonValue] | None
EnvArguments: TypeAlias = Mapping[str, object]  # JSON values; the flag parser recognises this type


# Names that other libraries use for a setting.
OTHER_NAMES = {
    "lr": "learning_rate",
    "n_envs": "num_envs",
    "n_steps": "num_steps",
    "n_epochs": "num_epochs",
    "epochs": "num_epochs",
    "total_timesteps": "total_env_steps",
    "timesteps": "total_env_steps",
    "steps": "total_env_steps",
    "clip_range": "clip_coef",
    "clip_eps": "clip_coef",
    "clip_range_vf": "clip_value_coef",
    "clip_vloss": "clip_value_coef",
    "desired_kl": "target_kl",
    "kl_target": "target_kl",
    "entropy_coef": "ent_coef",
    "value_coef": "vf_coef",
    "lambda": "gae_lambda",
    "batch_size": "num_minibatches",
    "minibatch_size": "num_minibatches",
    "net_arch": "hidden_sizes",
    "logdir": "run_dir",
    "log_dir": "run_dir",
    "log_folder": "run_dir",
    "output_dir": "run_dir",
    "max_episode_steps": "eval_max_steps",
    "eval_freq": "eval_every",
    "n_eval_episodes": "eval_episodes",
    "deterministic": "eval_actions",
}

# fastac's own environments, and the modules that register them.
OWN_ENVS = {
    "fastac/MaskedCartPole-v1": "fastac.envs.masked",
    "fastac/RandomWalk-v0": "fastac.envs.compiled.random_walk",
}


def with_home(env_id: str) -> str:
    """Return an id of fastac's own environments as `module:id`, so that the module is imported first; others as is."""
    return f"{OWN_ENVS[env_id]}:{env_id}" if env_id in OWN_ENVS else env_id


def unknown(name: str, names: Iterable[str]) -> ValueError:
    """Return the error for an unknown setting, with suggestions from `names`."""
    known = list(names)
    other = OTHER_NAMES.get(name)
    near = [other] if other in known else get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return ValueError(f"{name!r} is not a fastac setting.{hint}")


def coerce(name: str, kind: object, value: object) -> ConfigValue:
    """Convert the value of the setting `name` to its field's `kind`, such as 1e6 to int and a list of ints to tuple.

    Raises:
        ValueError: a value of another kind.
    """
    if kind == EnvArguments:
        return _to_arguments(name, value)
    kinds = (kind,) if get_origin(kind) in (None, tuple, Literal) else get_args(kind)
    optional = type(None) in kinds
    if value is None and optional:
        return None
    if isinstance(value, bool | str) or value is None:
        expected = bool if isinstance(value, bool) else str
        if expected in kinds or (expected is str and any(get_origin(k) is Literal for k in kinds)):
            return value
    elif isinstance(value, Real) and (not isinstance(value, Integral) or abs(int(value)) < 2**63):  # NumPy's too
        if float in kinds:
            return float(value)
        if int in kinds and float(value).is_integer():
            return int(value) if isinstance(value, Integral) else int(float(value))
    elif isinstance(value, Sequence):
        several = _to_tuple(kinds, value)
        if several is not None:
            return several
    raise ValueError(f"{name} is {value!r}, expected {_describe(kind)}.")


def _to_tuple(kinds: Sequence[object], value: Sequence[object]) -> tuple[int, ...] | tuple[str, ...] | None:
    """Return several values of a kind in `kinds`, or None if they are none of it."""
    texts = tuple(each for each in value if isinstance(each, str))
    if tuple[str, ...] in kinds and len(texts) == len(value):
        return texts
    whole = tuple(int(each) for each in value if isinstance(each, Integral) and not isinstance(each, bool))
    return whole if tuple[int, ...] in kinds and len(whole) == len(value) else None


def _to_arguments(name: str, value: object) -> dict[str, JsonValue]:
    """Return the arguments as they will be after saving and loading."""
    if not isinstance(value, Mapping) or not is_json(value):
        raise ValueError(f"{name} is {value!r}, expected a dict of JSON's values by name, such as {{'level': 3}}.")
    arguments: dict[str, JsonValue] = json.loads(json.dumps(dict(value)))
    return arguments


def read_word(word: str) -> JsonValue:
    """Return a word as the JSON value or the Python constant that it spells, else as it is."""
    try:
        value: JsonValue = json.loads(word)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(word, word)
    return value


def is_json(value: object) -> bool:
    """Return whether a value survives JSON unchanged, except that tuples become lists."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_json(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_json, value))
    is_finite = not isinstance(value, float) or math.isfinite(value)
    return value is None or (type(value) in (str, int, float, bool) and is_finite)


def _describe(kind: object) -> str:
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
    if isinstance(kind, type) and kind in words:
        return words[kind]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "texts, such as ('goal',)" if str in get_args(kind) else "whole numbers, such as (64, 64)"
    if type(None) not in get_args(kind):
        return "a whole number or auto"
    return _describe(get_args(kind)[0]).replace(" or ", ", ") + " or None"


def check(ok: bool, name: str, value: object, expected: str) -> None:
    """Raise ValueError with a one-sentence message unless `ok` (which is False for every comparison with NaN)."""
    if not ok:
        raise ValueError(f"{name} is {value!r}, expected {expected}.")


def check_choice(name: str, value: str, literal: object) -> None:
    """Raise ValueError with a one-sentence message unless the value is one of a `Literal`."""
    choices = get_args(literal)
    check(value in choices, name, value, "one of " + ", ".join(choices))
