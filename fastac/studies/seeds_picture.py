"""The learning curves of one setting over seeds: their mean, interquartile mean and interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastac.config import Config
from fastac.runs.files import replace_file
from fastac.studies.curves import Floats
from fastac.studies.curves import read_curve as read_evaluations
from fastac.studies.stats import LEAST_FOR_INTERVAL, bootstrap_interval, interquartile_mean
from fastac.tools.plot import COLORS, DPI, SIZE_IN, STYLE, X_LABELS, Y_LABEL, align, read_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEAN, _MIDDLE, _FAILED = COLORS[0], COLORS[1], "#777777"


def draw(config: Config, trained: Sequence[Path], failed: Sequence[Path], output: Path) -> bool:
    """Draw the curves of runs to a .png file; return False if there are none yet.

    They show the evaluations if there is a target or `eval_every` is given, else the training episodes: by default a
    run is evaluated too seldom for a curve. The mean, the interquartile mean and the 95 % bootstrap interval of the
    mean are of the runs that did not fail. A run that ended at its target counts as staying there. Thin lines are
    single runs.

    Raises:
        RecordError: the file cannot be written.
    """
    has_evaluations = config.run.eval and (config.run.until_return is not None or bool(config.run.eval_every))
    read = _read_evaluations if has_evaluations else _read_episodes
    curves, broken = ([(x, y) for x, y in map(read, runs) if len(x)] for runs in (trained, failed))
    if not curves and not broken:
        return False
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    goal = config.run.until_return
    with matplotlib.rc_context(STYLE), replace_file(output) as temporary:
        figure = Figure(figsize=SIZE_IN, layout="constrained")
        axes = figure.add_subplot()
        for index, (x, y) in enumerate(broken):
            label = f"{len(broken)} failed" if index == 0 else None
            axes.plot(x, y, color=_FAILED, linewidth=1.0, linestyle=":", label=label)
        if curves:
            _draw_curves(axes, curves, stays=goal is not None)
        if goal is not None:
            axes.axhline(goal, color="#333333", linewidth=1.0, linestyle="--", label=f"goal: {goal:g}")
        axes.set_title(f"{config.env.env_id}, {config.algo.algo}, {len(curves) + len(broken)} seeds")
        axes.set(xlabel=X_LABELS["env_steps"], ylabel="mean return of evaluations" if has_evaluations else Y_LABEL)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
        figure.savefig(temporary, dpi=DPI)
    return True


def _read_evaluations(run: Path) -> tuple[Floats, Floats]:
    curve = read_evaluations(run)
    return curve.env_steps, curve.returns


def _read_episodes(run: Path) -> tuple[Floats, Floats]:
    try:
        curve = read_curve(run, "env_steps")
    except ValueError:  # no episode has ended
        return np.empty(0), np.empty(0)
    return curve.x, curve.y


def _draw_curves(axes: Axes, curves: Sequence[tuple[Floats, Floats]], stays: bool) -> None:
    for index, (x, y) in enumerate(curves):
        label = "single seeds" if index == 0 else None
        axes.plot(x, y, color=_MEAN, alpha=0.3, linewidth=0.8, label=label)
    end = max(x[-1] for x, _ in curves)
    grid, values = align([(np.append(x, end), np.append(y, y[-1])) for x, y in curves] if stays else curves)
    axes.plot(grid, values.mean(axis=0), color=_MEAN, linewidth=2.2, label="mean")
    middle = interquartile_mean(values, axis=0)
    axes.plot(grid, middle, color=_MIDDLE, linewidth=2.0, linestyle=(0, (4, 1.5)), label="interquartile mean")
    if len(curves) >= LEAST_FOR_INTERVAL:
        low, high = bootstrap_interval(values, np.mean)
        label = "95 % interval of the mean"
        axes.fill_between(grid, low, high, color=_MEAN, alpha=0.18, linewidth=0, label=label)
