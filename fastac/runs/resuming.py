"""The settings of a resumed run, and the text about changed ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastac.config import Config, ConfigValue, JsonValue
from fastac.contract import VecEnv, read_branch
from fastac.envs.saved_spaces import load_spaces
from fastac.learning.schedules import anneal
from fastac.runs.checkpoint import Checkpoint, best_mean_return
from fastac.runs.files import one_sentence
from fastac.runs.run_dir import RunDirectory
from fastac.runs.state import wall_minutes_of

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


def why_one_host(config: Config) -> str | None:
    """Return a sentence if a run cannot be divided among hosts; else None."""
    if not config.is_one_shard_per_worker:
        return None
    return (
        "a3c's workers, and those of envs_per_worker, share the memory of one machine, and their number is part of the "
        "run, so it cannot be divided among hosts: train a2c or ppo with num_envs."
    )


def rerun_config(saved: Config, given: Config, run_dir: Path) -> Config:
    """Return the configuration that a run continues with if the command that began it is given again.

    Raises:
        ValueError: the command has another setting that may not change.
    """
    before, now = flatten(saved), flatten(given)
    for name in settings_apart(saved, given):
        raise ValueError(
            f"{run_dir} holds a run with {name} {before[name]!r}, and the command says {now[name]!r}, which cannot "
            "change while it goes on: give the command that began it, or another --run-dir."
        )
    changes = {name: value for name, value in given.to_flat().items() if name in CHANGEABLE}
    if isinstance(changes["workers"], int):
        changes["workers"] = min(changes["workers"], saved.num_shards)
    return saved.replace(**changes)


def settings_apart(saved: Config, given: Config) -> list[str]:
    """Return the settings that may not change and that a run's command gives otherwise; shards may be left to auto."""
    before, now = flatten(saved), flatten(given)
    free = {*CHANGEABLE, *(["shards"] if now["shards"] == "auto" else [])}
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
