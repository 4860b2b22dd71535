"""The content of `summary.json` for a run that has ended."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from fastac.config import JsonValue
from fastac.contract import Asynchrony
from fastac.runs.provenance import git_commit, peak_rss_mb, versions

if TYPE_CHECKING:
    from fastac.runs.session import Session


def summarize(run: Session) -> dict[str, JsonValue]:
    """Return the content of `summary.json`; durations in seconds, memory in MB."""
    config, report, progress = run.config, run.report, run.progress
    return {
        "env_id": config.env.env_id,
        "algo": config.algo.algo,
        "seed": config.run.seed,
        "env_steps": report.env_steps,
        "frames": report.frames,
        "updates": report.updates,
        "episodes": report.episodes,
        "train_wall_s": report.train_wall_s,
        "eval_wall_s": progress.eval_wall_s,
        "total_wall_s": run.total_wall_s,
        "sps": run.tracker.sps,
        "sps_last_window": run.tracker.sps_window,
        "mean_return": run.tracker.mean_return,
        **_describe_evaluations(run),
        "until_return": config.run.until_return,
        "solved": progress.solved if config.run.until_return is not None else None,
        "solved_wall_s": progress.solved_wall_s,
        "solved_env_steps": progress.solved_env_steps,
        "phases": {**asdict(report.phases)},
        "efficiency": run.efficiency,
        "bare_times": {**asdict(run.bare_times)} if run.bare_times else None,
        "peak_rss_mb": peak_rss_mb(),
        "rollout_mb": run.training.info.rollout_nbytes / 1e6,
        "activations_mb": run.training.info.activations_nbytes / 1e6,
        "workers": config.run.workers,
        "waiting_per_worker": [*run.training.waiting],
        "asynchrony": _describe_asynchrony(run.asynchrony),
        "vectorization": run.training.info.description,
        "ended_by": run.ended_by,
        "stopped_by": run.stop_signal.name if run.stop_signal else None,
        "versions": {**versions()},
        "git_commit": git_commit(),
        "command": run.command,
        "run_dir": str(run.directory.path),
    }


def _describe_evaluations(run: Session) -> dict[str, JsonValue]:
    """Return the evaluations of the best policy, with which the run ends, and of the last one."""
    best, last = run.evaluations.best, run.evaluations.last
    return {
        "eval_mean_return": best.mean_return if best else None,
        "eval_std_return": best.std_return if best else None,
        "eval_episodes": best.episodes if best else None,
        "eval_cut_episodes": best.cut if best else None,
        "eval_success_rate": best.success_rate if best else None,
        "eval_max_steps": run.evaluations.max_steps,
        "eval_actions": run.config.run.eval_actions,
        "last_eval_mean_return": last.mean_return if last else None,
        "best_eval_mean_return": run.progress.best_mean_return,
        "best_env_steps": run.progress.best_env_steps,
    }


def _describe_asynchrony(measured: Asynchrony | None) -> dict[str, JsonValue] | None:
    """Return the statistics of asynchronous workers."""
    if measured is None:
        return None
    return {
        "mean_staleness": measured.mean_staleness,
        "max_staleness": measured.max_staleness,
        "staleness": measured.staleness.tolist(),
        "updates_per_worker": measured.updates.tolist(),
        "restarts": measured.restarts,
    }
