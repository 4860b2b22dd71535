"""The settings of a resumed run, and the text about changed ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastac.config import Config, ConfigValue, JsonValue
from fastac.learning.schedules import anneal

# The settings that may change when a run is resumed.
CHANGEABLE = ("total_env_steps", "budget_minutes", "until_return", "learning_rate", "workers", "eval")


def continued_config(saved: Config, written: Config, where: Path, changes: Mapping[str, ConfigValue]) -> Config:
    """Return the configuration that a run continues with.

    Args:
        saved: the checkpoint's configuration, used for training up to there.
        written: the configuration in `config.json`; it takes precedence for settings that may change.
        where: the path of that file.
        changes: new values for settings that may change, with the highest precedence; None keeps a setting.

    Raises:
        ValueError: `config.json` differs in a setting that may not change.
    """
    before, now = flatten(saved), flatten(written)
    for name in now:
        if now[name] != before[name] and name not in CHANGEABLE:
            raise ValueError(
                f"{where} says {name} {now[name]!r}, but the run was trained with {before[name]!r}, which cannot "
                f"change while it goes on (only {', '.join(CHANGEABLE)} can): put it back, or train anew."
            )
    workers = changes.get("workers") or now["workers"]
    if saved.is_one_shard_per_worker and workers != before["workers"]:
        raise ValueError(
            f"workers is {workers!r}, expected {before['workers']}: how many environments each worker has is part of "
            "this run (a3c, or envs_per_worker), so train anew with another number."
        )
    return written.replace(**{name: value for name, value in changes.items() if value is not None})


def flatten(config: Config) -> dict[str, JsonValue]:
    """Return a configuration's settings by their flat names."""
    sections = config.to_dict().values()
    return {name: value for section in sections if isinstance(section, dict) for name, value in section.items()}


def tell_changes(before: Config, now: Config, env_steps: int) -> str:
    """Return the changes from `env_steps` on, such as "learning_rate 1e-06 -> 0.0006"; empty if there are none."""
    old, new = flatten(before), flatten(now)
    told = [f"{name} {old[name]} -> {new[name]}" for name in CHANGEABLE[:-1] if old[name] != new[name]]
    return ", ".join(told + tell_jumps(before, now, env_steps))


def tell_jumps(before: Config, now: Config, env_steps: int) -> list[str]:
    """Return which scheduled values jump at `env_steps`, with their old and new values."""
    old, new = _scheduled(before, env_steps), _scheduled(now, env_steps)
    return [f"{name} {old[name]:.3g} -> {new[name]:.3g}" for name in old if old[name] != new[name]]


def _scheduled(config: Config, env_steps: int) -> dict[str, float]:
    algo, optim = config.algo, config.optim
    done = min(1.0, env_steps / config.run.total_env_steps)
    return {
        "learning_rate": anneal(optim.learning_rate_schedule, optim.learning_rate, done),
        "ent_coef": anneal(optim.ent_coef_schedule, algo.ent_coef, done),
        "clip_coef": anneal(optim.clip_coef_schedule, algo.clip_coef, done) if algo.algo == "ppo" else 0.0,
    }
