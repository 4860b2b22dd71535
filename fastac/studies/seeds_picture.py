"""The learning curves of one setting over seeds: their mean, interquartile mean and interval."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastac.runs.files import replace_file
from fastac.studies.stats import LEAST_FOR_INTERVAL, bootstrap_interval, interquartile_mean
from fastac.tools.plot import COLORS, DPI, SIZE_IN, STYLE, X_LABELS, Y_LABEL, Curve, align, read_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEAN, _MIDDLE, _FAILED = COLORS[0], COLORS[1], "#777777"


def draw(trained: Sequence[Path], failed: Sequence[Path], output: Path) -> bool:
    """Draw the curves of runs to a .png file; return False if there are none yet.

    The mean, the interquartile mean and the 95 % bootstrap interval of the mean are of the runs that did not fail, up
    to where the first of them ends: the others alone would be a slower-learning set. Thin lines are single runs.

    Raises:
        RecordError: the file cannot be written.
    """
    curves, broken = _read(trained), _read(failed)
    if not curves and not broken:
        return False
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    config = (curves or broken)[0].config
    with matplotlib.rc_context(STYLE), replace_file(output) as temporary:
        figure = Figure(figsize=SIZE_IN, layout="constrained")
        axes = figure.add_subplot()
        _draw_failed(axes, broken)
        if curves:
            _draw_curves(axes, curves)
        if config.run.until_return is not None:
            goal = config.run.until_return
            axes.axhline(goal, color="#333333", linewidth=1.0, linestyle="--", label=f"goal: {goal:g}")
        title = f"{config.env.env_id}, {config.algo.algo}, {len(curves) + len(broken)} seeds"
        axes.set(title=title, xlabel=X_LABELS["env_steps"], ylabel=Y_LABEL)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
        figure.savefig(temporary, dpi=DPI)
    return True


def _read(runs: Sequence[Path]) -> list[Curve]:
    """Return the curves of runs, without those in which no episode has ended."""
    curves = []
    for run in runs:
        with suppress(ValueError):
            curves.append(read_curve(run, "env_steps"))
    return curves


def _draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    for index, curve in enumerate(curves):
        label = "single seeds" if index == 0 else None
        axes.plot(curve.x, curve.y, color=_MEAN, alpha=0.3, linewidth=0.8, label=label)
    grid, values = align([(curve.x, curve.y) for curve in curves])
    axes.plot(grid, values.mean(axis=0), color=_MEAN, linewidth=2.2, label="mean")
    middle = interquartile_mean(values, axis=0)
    axes.plot(grid, middle, color=_MIDDLE, linewidth=2.0, linestyle=(0, (4, 1.5)), label="interquartile mean")
    if len(curves) >= LEAST_FOR_INTERVAL:
        low, high = bootstrap_interval(values, np.mean)
        label = "95 % interval of the mean"
        axes.fill_between(grid, low, high, color=_MEAN, alpha=0.18, linewidth=0, label=label)


def _draw_failed(axes: Axes, curves: Sequence[Curve]) -> None:
    for index, curve in enumerate(curves):
        label = f"{len(curves)} failed" if index == 0 else None
        axes.plot(curve.x, curve.y, color=_FAILED, linewidth=1.0, linestyle=":", label=label)
