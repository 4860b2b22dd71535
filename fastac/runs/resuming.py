"""The settings of a resumed run, and the text about changed ones."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast, get_type_hints

from fastac.config import Config, ConfigValue, JsonValue, ResumeSettings
from fastac.contract import VecEnv, read_branch
from fastac.envs.saved_spaces import load_spaces
from fastac.learning.schedules import anneal
from fastac.runs.checkpoint import Checkpoint, best_mean_return
from fastac.runs.files import one_sentence
from fastac.runs.run_dir import RunDirectory
from fastac.runs.state import wall_minutes_of

log = logging.getLogger("fastac")

# The settings that may change when a run is resumed.
CHANGEABLE = tuple(get_type_hints(ResumeSettings))

# Why the others may not: single settings, and whole sections of the configuration.
_WHY = {
    "seed": "its random streams go on",
    "device": "its numbers are those of this device",
    "shards": "each shard has random streams of its own",
    "exchange": "its sums of gradients are taken in this way",
    "sync_every": "its hosts take steps in this way",
    "init_from": "it has begun",
    "env": "its episodes and statistics are those of these environments",
    "model": "its weights and statistics are those of this network",
    "algo": "its rollouts and counts are those of this form of training",
    "optim": "what the optimiser has saved is its own",
}


def continued_config(saved: Config, written: Config, where: Path, changes: Mapping[str, ConfigValue]) -> Config:
    """Return the configuration that a run continues with.

    Args:
        saved: the checkpoint's configuration, used for training up to there.
        written: the configuration in `config.json`; it takes precedence for settings that may change.
        where: the path of that file.
        changes: new values for settings that may change, with the highest precedence.

    Raises:
        ValueError: `config.json` or `changes` differ in a setting that may not change.
    """
    before, now = flatten(saved), flatten(written)
    for name in now:
        if now[name] != before[name] and name not in CHANGEABLE:
            raise ValueError(
                f"{where} says {name} {now[name]!r}, but the run was trained with {before[name]!r}, which cannot "
                f"change while it goes on ({_why_fixed(name)}): put it back, or train anew."
            )
    for name in changes:
        if name in before and name not in CHANGEABLE:
            raise ValueError(
                f"{name} cannot change while a run goes on: {_why_fixed(name)}; a new run can begin with its policy "
                f"and other settings (fastac train --from {where.parent} --init-from {where.parent})."
            )
    workers = changes.get("workers") or now["workers"]
    if saved.is_one_shard_per_worker and workers != before["workers"]:
        raise ValueError(
            f"workers is {workers!r}, expected {before['workers']}: how many environments each worker has is part of "
            "this run (a3c, or envs_per_worker), so train anew with another number."
        )
    return written.replace(**changes)


def _why_fixed(name: str) -> str:
    sections = cast("dict[str, dict[str, JsonValue]]", Config().to_dict())
    return _WHY.get(name) or next(_WHY[section] for section, values in sections.items() if name in values)


def why_one_host(config: Config) -> str | None:
    """Return a sentence if a run cannot be divided among hosts; else None."""
    if not config.is_one_shard_per_worker:
        return None
    return (
        "a3c's workers, and those of envs_per_worker, share the memory of one machine, and their number is part of the "
        "run, so it cannot be divided among hosts: train a2c or ppo with num_envs."
    )


def rerun_config(saved: Config, given: Config, run_dir: Path, changeable: Collection[str] = CHANGEABLE) -> Config:
    """Return the configuration that a run continues with if the command that began it is given again.

    `changeable` are the settings in which the command may differ.

    Raises:
        ValueError: the command has another setting that may not change.
    """
    before, now = flatten(saved), flatten(given)
    for name in settings_apart(saved, given, changeable):
        raise ValueError(
            f"{run_dir} holds a run with {name} {before[name]!r}, and the command says {now[name]!r}, which cannot "
            "change while it goes on: give the command that began it, or another --run-dir."
        )
    changes = {name: value for name, value in given.to_flat().items() if name in changeable}
    if isinstance(changes["workers"], int):
        changes["workers"] = min(changes["workers"], saved.num_shards)
    return saved.replace(**changes)


def settings_apart(saved: Config, given: Config, changeable: Collection[str] = CHANGEABLE) -> list[str]:
    """Return the settings that may not change and that a run's command gives otherwise; shards may be left to auto."""
    before, now = flatten(saved), flatten(given)
    free = {*changeable, *(["shards"] if now["shards"] == "auto" else [])}
    return [name for name in now if name not in free and now[name] != before[name]]


def why_complete(config: Config, checkpoint: Checkpoint, directory: RunDirectory) -> str | None:
    """Return a sentence if a run is complete, including its last evaluation; else None."""
    with one_sentence(f"the last checkpoint in {directory.path} does not fit this run"):
        spent = wall_minutes_of(checkpoint.state)
    budget, target = config.run.total_env_steps, config.run.until_return
    if not directory.has_ended or directory.read_summary().get("stopped_by") is not None:
        return None
    if checkpoint.env_steps >= budget:
        return (
            f"the run is complete: it has taken {checkpoint.env_steps} of {budget} environment steps; "
            "give a larger --total-env-steps to go on."
        )
    minutes = config.run.budget_minutes
    if minutes is not None and spent >= minutes:
        return (
            f"the run is complete: it has taken {spent:,.2f} of {minutes:g} minutes; "
            "give a larger --budget-minutes to go on."
        )
    best = best_mean_return(directory.path)
    if target is not None and best is not None and best >= target:
        return (
            f"the run is complete: its mean return of {best:g} has reached {target:g}; "
            "give a larger --until-return to go on."
        )
    return None


def check_spaces(envs: VecEnv, checkpoint: Checkpoint) -> None:
    """Refuse an environment whose spaces differ from the policy's.

    Raises:
        ValueError: they differ.
    """
    saved = load_spaces(read_branch(checkpoint.state, "spaces"))
    for what in ("observation", "action"):
        before, now = (getattr(has, f"single_{what}_space") for has in (saved, envs))
        if before != now:
            raise ValueError(f"the environment's {what} space is {now}, expected {before}, as the run began with.")


def flatten(config: Config) -> dict[str, JsonValue]:
    """Return a configuration's settings by their flat names."""
    sections = config.to_dict().values()
    return {name: value for section in sections if isinstance(section, dict) for name, value in section.items()}


def find_changes(before: Config, now: Config) -> dict[str, tuple[JsonValue, JsonValue]]:
    """Return the settings that are others from now on, with their old and new values."""
    old, new = flatten(before), flatten(now)
    return {name: (old[name], new[name]) for name in new if old[name] != new[name]}


def log_changes(before: Config, now: Config, env_steps: int) -> None:
    """Log a line for each changed setting, and a warning for each scheduled value that jumps at `env_steps`."""
    for name, (old, new) in find_changes(before, now).items():
        log.info("from step %d on: %s %s -> %s", env_steps, name, old, new)
    for line in tell_jumps(before, now, env_steps):
        log.warning("at step %d a schedule jumps: %s", env_steps, line)


def tell_jumps(before: Config, now: Config, env_steps: int) -> list[str]:
    """Return which scheduled values jump at `env_steps`, with their old and new values."""
    old, new = _scheduled(before, env_steps), _scheduled(now, env_steps)
    ways = [flatten(config) for config in (before, now)]
    moving = [name for name in old if any(way[f"{name}_schedule"] != "constant" for way in ways)]
    return [f"{name} {old[name]:.3g} -> {new[name]:.3g}" for name in moving if old[name] != new[name]]


def _scheduled(config: Config, env_steps: int) -> dict[str, float]:
    algo, optim = config.algo, config.optim
    done = min(1.0, env_steps / config.run.total_env_steps)
    return {
        "learning_rate": anneal(optim.learning_rate_schedule, optim.learning_rate, done),
        "ent_coef": anneal(optim.ent_coef_schedule, algo.ent_coef, done),
        "clip_coef": anneal(optim.clip_coef_schedule, algo.clip_coef, done) if algo.algo == "ppo" else 0.0,
    }
