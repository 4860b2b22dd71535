"""What a sweep searches: a table of settings per algorithm, which a file may change."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

import numpy as np
from gymnasium.spaces import Box, Space

from fastac.config import AlgoName, Config, ConfigValue, EnvConfig, JsonValue, setting_names

Kind: TypeAlias = Literal["float", "log-float", "int", "log-int", "categorical"]
Choice: TypeAlias = str | int | float | bool | tuple[int, ...] | None
Only: TypeAlias = Literal["vectors", "box", "bounded", "unclipped"]

# Settings that are no part of an answer: what is trained on, how long, and where.
_FIXED = {field.name for field in fields(EnvConfig)} - {"num_envs", "squash_actions"}
_FIXED |= {
    *("algo", "seed", "device", "workers", "total_env_steps", "budget_minutes"),
    *("until_return", "eval", "eval_every", "eval_from_return", "eval_episodes", "eval_max_steps", "eval_actions"),
    *("checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "tensorboard", "log", "host_timeout_s"),
}
_LEAST_ROLLOUTS = 20  # in a run: with fewer there is hardly anything to evaluate or to prune
_DIGITS = 3  # of a number that is drawn


@dataclass(frozen=True, slots=True)
class Dimension:
    """One setting of a search space.

    Attributes:
        name: the setting's flat name.
        kind: how its values lie; log: in the logarithm.
        low: the lowest number.
        high: the highest number.
        choices: of a categorical one.
        zero_below: smaller numbers stand for 0, which a logarithm never comes to.
        only: where it means something: observations that are vectors, Box actions, bounded ones, rewards that are not
            clipped; None: everywhere.
    """

    name: str
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Choice, ...] = ()
    zero_below: float | None = None
    only: Only | None = None

    def to_value(self, drawn: str | float) -> Choice:
        """Return the setting's value for a number, or for the label of a choice."""
        if self.kind == "categorical":
            return self.choices[self.labels.index(str(drawn))]
        assert not isinstance(drawn, str)
        if self.zero_below is not None and drawn < self.zero_below:
            return 0.0
        return int(drawn) if self.kind.endswith("int") else float(f"{drawn:.{_DIGITS}g}")

    @property
    def labels(self) -> list[str]:
        """The choices as words, such as "64 64"."""
        return [" ".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in self.choices]

    def to_drawn(self, value: object) -> str | float | None:
        """Return what stands for a setting's value, None if nothing does."""
        if self.kind == "categorical":
            return self.labels[self.choices.index(cast(Choice, value))] if value in self.choices else None
        if value == 0.0 and self.zero_below is not None:
            return self.low
        is_in = isinstance(value, int | float) and self.low <= value <= self.high
        return cast(float, value) if is_in else None


SearchSpace: TypeAlias = tuple[Dimension, ...]


def _log(name: str, low: float, high: float, zero_below: float | None = None) -> Dimension:
    return Dimension(name, "log-float", low, high, zero_below=zero_below)


def _choose(name: str, *choices: Choice, only: Only | None = None) -> Dimension:
    return Dimension(name, "categorical", choices=choices, only=only)


# The ranges are about those of stable-baselines3's zoo, less what means nothing here.
_ALL: SearchSpace = (
    _log("learning_rate", 1e-4, 1e-2),
    _choose("learning_rate_schedule", "constant", "linear"),
    _choose("gamma", 0.9, 0.95, 0.98, 0.99, 0.995, 0.999),
    _log("ent_coef", 1e-6, 0.1, zero_below=1e-5),
    _choose("max_grad_norm", None, 0.3, 0.5, 1.0, 2.0, 5.0),
    _choose("normalize_obs", False, True),
    _choose("normalize_reward", False, True, only="unclipped"),
    _choose("hidden_sizes", (32, 32), (64, 64), (128, 128), (256, 256), only="vectors"),
    _choose("activation", "tanh", "relu", only="vectors"),
    Dimension("log_std_init", "float", -2.0, 0.5, only="box"),
    _choose("squash_actions", False, True, only="bounded"),
)
_CRITIC: SearchSpace = (
    *_ALL,
    Dimension("vf_coef", "float", 0.1, 1.0),
    _choose("gae_lambda", 0.8, 0.9, 0.92, 0.95, 0.98, 0.99, 1.0),
    _choose("normalize_advantage", False, True),
    _choose("shared_trunk", False, True, only="vectors"),
)
_SHORT = _choose("num_steps", 5, 8, 16, 32, 64)
SPACES: Mapping[AlgoName, SearchSpace] = {
    "a2c": (
        *_CRITIC,
        _choose("num_envs", 8, 16, 32, 64),
        _SHORT,
        _choose("num_minibatches", 1, 2, 4),
        _choose("optimizer", "adam", "rmsprop_tf"),
    ),
    "a3c": (
        *_CRITIC,
        _choose("envs_per_worker", 1, 4, 8, 16),
        _SHORT,
        _choose("optimizer", "adam", "rmsprop_tf"),
    ),
    "ppo": (
        *_CRITIC,
        _choose("num_envs", 4, 8, 16, 32),
        _choose("num_steps", 32, 64, 128, 256, 512, 1024, 2048),
        _choose("num_minibatches", 1, 2, 4, 8, 16, 32),
        _choose("num_epochs", 1, 3, 5, 10, 20),
        _choose("clip_coef", 0.1, 0.2, 0.3, 0.4),
    ),
    "reinforce": (
        *_ALL,
        _choose("num_envs", 1, 4, 8, 16),
        _choose("baseline", False, True),
        _choose("normalize_advantage", False, True),
    ),
}


def find_space(
    config: Config, observations: Space[object], actions: Space[object], given: Collection[str] = ()
) -> SearchSpace:
    """Return the table's space for a configuration, less what means nothing there and the settings that are given.

    Args:
        config: names the algorithm.
        observations: the observation space of one environment.
        actions: its action space.
        given: names of settings that are not to be searched.
    """
    holds: dict[Only | None, bool] = {
        None: True,
        "vectors": len(observations.shape or ()) == 1,
        "box": isinstance(actions, Box),
        "bounded": isinstance(actions, Box) and actions.is_bounded("both"),
        "unclipped": not config.env.clip_rewards,
    }
    return tuple(each for each in SPACES[config.algo.algo] if holds[each.only] and each.name not in given)


def fit_settings(config: Config, settings: Mapping[str, ConfigValue]) -> Config:
    """Return a configuration with settings that were drawn alone, fitted to each other where a rule binds them.

    - A rollout is at most a twentieth of the run, or there would be few updates and evaluations: `num_steps` is cut.
    - `num_minibatches` becomes the largest divisor of what it divides, a shard's rows or a recurrent run's sequences.

    Raises:
        ValueError: they do not go together.
    """
    settings = dict(settings)
    minibatches = settings.pop("num_minibatches", config.algo.num_minibatches)
    assert isinstance(minibatches, int)
    changed = config.replace(**settings, num_minibatches=1)
    if changed.algo.collect == "steps":
        most = max(1, changed.run.total_env_steps // (_LEAST_ROLLOUTS * changed.env.num_envs))
        changed = changed.replace(num_steps=min(changed.algo.num_steps, most))
    for number in range(minibatches, 1, -1):
        with suppress(ValueError):
            return changed.replace(num_minibatches=number)
    return changed


def check_space(config: Config, space: SearchSpace, draws: int = 50) -> None:
    """Refuse a space that holds settings which do not work.

    Raises:
        ValueError: the space is empty, or a drawn configuration is not valid.
    """
    if not space:
        raise ValueError("the search space is empty: every setting of it is given, so there is nothing to search.")
    random = np.random.default_rng(0)
    for _ in range(draws):
        settings = {each.name: each.to_value(_draw(each, random)) for each in space}
        try:
            fit_settings(config, settings)
        except ValueError as error:
            raise ValueError(f"the search space holds settings that do not work: {error}") from error


def _draw(dimension: Dimension, random: np.random.Generator) -> str | float:
    if dimension.kind == "categorical":
        return str(random.choice(dimension.labels))
    low, high = dimension.low, dimension.high
    if dimension.kind.startswith("log"):
        return float(np.exp(random.uniform(np.log(low), np.log(high))))
    return float(random.uniform(low, high))


def change_space(space: SearchSpace, changes: Path | Mapping[str, JsonValue]) -> SearchSpace:
    """Return a space with the dimensions of a TOML or JSON file, or of its content; `only = true` drops all others.

    Raises:
        ValueError: the file cannot be read, or a dimension is not one.
    """
    where = "the search space" if isinstance(changes, Mapping) else str(changes)
    content = dict(changes) if isinstance(changes, Mapping) else _read(changes)
    dimensions = {} if content.pop("only", False) else {each.name: each for each in space}
    for name, told in content.items():
        dimensions[name] = _to_dimension(name, told, where)
    return tuple(dimensions.values())


def _read(path: Path) -> dict[str, JsonValue]:
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"the search space {path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"the search space {path} is a {type(content).__name__}, expected a table by setting.")
    return cast("dict[str, JsonValue]", content)


def _to_dimension(name: str, told: JsonValue, where: str) -> Dimension:
    if name not in setting_names() or name in _FIXED:
        raise ValueError(f"{name!r} in {where} is not a setting that can be searched.")
    expected = f"{name} in {where} is {told!r}, expected choices = [...], or kind, low and high."
    if not isinstance(told, dict) or not told.keys() <= {"kind", "low", "high", "choices", "zero_below"}:
        raise ValueError(expected)
    choices, kind = told.get("choices"), told.get("kind", "categorical" if "choices" in told else "float")
    if kind not in get_args(Kind):
        raise ValueError(f"kind of {name} in {where} is {kind!r}, expected one of {', '.join(get_args(Kind))}.")
    if kind == "categorical":
        if not isinstance(choices, list) or not choices:
            raise ValueError(expected)
        several = [tuple(each) if isinstance(each, list) else each for each in choices]
        several = [None if each == "None" else each for each in several]  # TOML has no null
        return Dimension(name, "categorical", choices=tuple(cast("list[Choice]", several)))
    low, high, zero_below = told.get("low"), told.get("high"), told.get("zero_below")
    if not isinstance(low, int | float) or not isinstance(high, int | float) or not low < high:
        raise ValueError(expected)
    if str(kind).startswith("log") and low <= 0:
        raise ValueError(f"low of {name} in {where} is {low!r}, expected a number above 0, since kind is {kind!r}.")
    made = Dimension(name, cast(Kind, kind), low, high)
    return made if zero_below is None else replace(made, zero_below=float(cast(float, zero_below)))
