"""The text that the command line prints at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fastac.config import JsonValue

if TYPE_CHECKING:
    from fastac.contract import Asynchrony, Phases
    from fastac.runs import Session
    from fastac.runs.evaluate import Evaluation


_LONG = 0.25  # above this mean share of waiting, one worker may be faster


def describe_end(run: Session, summary: Mapping[str, JsonValue]) -> Iterator[str]:
    """Yield the texts in order: time by phase, other measurements, and the result."""
    yield _tell_phases(run.report.train_wall_s, run.report.phases, run.progress.eval_wall_s)
    if summary["efficiency"] is not None:
        yield _tell_efficiency(run, summary)
    if run.asynchrony is not None:
        yield _tell_asynchrony(run.asynchrony)
    if run.training.waiting:
        yield _tell_waiting(run.training.waiting)
    yield _tell_result(run, summary)


def _tell_phases(train_wall_s: float, phases: Phases, eval_wall_s: float) -> str:
    """Return the time by phase in two lines."""
    names = ["env", "act", "advantage", "update", "other"]
    spent: list[float] = [getattr(phases, f"{name}_s") for name in names]
    names.append("evaluation")
    spent.append(eval_wall_s)
    total_s = train_wall_s + eval_wall_s
    cells = [f"{_tell_seconds(s)} {s / max(total_s, 1e-9):>3.0%}" for s in spent]
    widths = [max(map(len, (name, cell))) + 2 for name, cell in zip(names, cells, strict=True)]
    total = _tell_seconds(total_s)
    first = max(len("Time"), len(total))
    above = "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    below = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{'Time':<{first}}{above}\n{total:<{first}}{below}"


def _tell_seconds(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds < 100.0 else f"{seconds:,.0f} s"


def _tell_efficiency(run: Session, summary: Mapping[str, JsonValue]) -> str:
    fraction, workers = summary["efficiency"], run.config.run.workers
    assert isinstance(fraction, float)
    bound = run.tracker.sps / fraction
    whose = "" if workers == 1 else f" in {workers} workers that do not wait for each other"
    return f"Efficiency {fraction:.0%}: environments and network, timed bare, make {bound:,.0f} steps/s{whose}."


def _tell_waiting(shares: list[float]) -> str:
    """Return a line with each worker's share of waiting; the worker that waits least is the slowest."""
    told = f"Waiting for other workers, by worker: {', '.join(f'{share:.0%}' for share in shares)} of the training."
    if sum(shares) / len(shares) > _LONG:
        told += " --workers 1 may be faster here: fastac tune measures it."
    return told


def _tell_asynchrony(measured: Asynchrony) -> str:
    """Describe how much A3C's workers interfered with each other."""
    counts = measured.staleness
    fresh = counts[0] / max(counts.sum(), 1)
    each = ", ".join(f"{number:,}" for number in measured.updates.tolist())
    restarts = f"; {measured.restarts} restarts" if measured.restarts else ""
    return (
        f"Staleness {measured.mean_staleness:.2f}: the mean number of updates by others between a copy and its "
        f"update; none in {fresh:.0%}. Updates by worker: {each}{restarts}."
    )


def _tell_result(run: Session, summary: Mapping[str, JsonValue]) -> str:
    report, where, settings = run.report, run.directory.path, run.config.run
    spent = (
        f"{report.env_steps:,} env steps, {report.updates:,} updates and {report.train_wall_s:.2f} s of training "
        f"({run.tracker.sps:,.0f} steps/s)"
    )
    if run.ended_by == "minutes":
        spent += f", when its {settings.budget_minutes:g} minutes were over"
    if run.stop_signal is not None:
        return f"Stopped by {run.stop_signal.name} after {spent}. Continue with: fastac resume {where}"
    env_id, evaluation = run.config.env.env_id, run.evaluations.best
    if evaluation is None:
        return f"Trained on {env_id}: {_tell_training_return(run)} after {spent}. Everything is in {where}"
    result = f"{settings.eval_actions} {_tell_evaluation(evaluation)}{_tell_policy(run)}"
    if summary["solved"]:
        return f"Solved {env_id}: {result}, after {spent}. Everything is in {where}"
    missed = "" if settings.until_return is None else f", short of {settings.until_return:g}"
    return f"Trained on {env_id}: {result}{missed}, after {spent}. Everything is in {where}"


def _tell_training_return(run: Session) -> str:
    mean_return = run.tracker.mean_return
    told = "no episode has ended" if mean_return is None else f"mean return of the latest episodes {mean_return:.1f}"
    return f"{told} (nothing was evaluated)"


def _tell_evaluation(evaluation: Evaluation) -> str:
    cut = f", {evaluation.cut} of them cut before they ended" if evaluation.cut else ""
    success = "" if evaluation.success_rate is None else f", {evaluation.success_rate:.0%} of them successes"
    number = f"{evaluation.episodes} episode{'s' if evaluation.episodes > 1 else ''}"
    spread = f" +- {evaluation.std_return:.1f}" if evaluation.episodes > 1 else ""
    return f"mean return {evaluation.mean_return:.1f}{spread} over {number}{success}{cut}"


def _tell_policy(run: Session) -> str:
    """Say which policy has that return, and give the last policy's return if it is another one."""
    best_at, last = run.progress.best_env_steps, run.evaluations.last
    if best_at is None or best_at == run.report.env_steps:
        beaten = run.evaluations.beaten
        than = "" if beaten is None else f" (that of env step {beaten[0]:,}, played again: {beaten[1]:.1f})"
        return f", by the last policy, which is the best{than}"
    others = "" if last is None else f" (the last one: {last.mean_return:.1f})"
    return f", by the best policy, of env step {best_at:,}{others}"
