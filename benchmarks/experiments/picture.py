"""The picture of an experiment: panels by group, with the same colour for an arm in all panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from benchmarks.experiments.definition import Arm, CurvePlot, Experiment, Measurement, Number, ValuePlot
from benchmarks.experiments.jobs import flatten
from fastac.install import INSTALL
from fastac.runs.files import replace_file
from fastac.studies.stats import LEAST_FOR_INTERVAL, Floats, bootstrap_interval, median_with_none_last
from fastac.tools.plot import COLORS, STYLE, align

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import LineStyleType

Measured: TypeAlias = dict[str, dict[Arm, list[Measurement]]]  # by group and arm, one trial per seed

_DPI = 150
_ROW_IN = 3.6  # height of a row of panels
_MOST_COLUMNS = 3  # more would make the labels too small to read on a page
_LINES: tuple[LineStyleType, ...] = ("-", "--", ":", "-.")  # used in turn when colours repeat
_MOST_LABEL = 30  # characters; if all arms' names together are longer, they are wrapped and rotated
_WRAP = 14  # characters per line of wrapped names


def draw(experiment: Experiment, measured: Measured, seeds: int, output: Path) -> None:
    """Draw all groups' panels to a .png file.

    Raises:
        ValueError: matplotlib is missing.
        RecordError: the file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise ValueError(f"the picture needs matplotlib, which is not installed: {INSTALL['plot']}.") from error
    rows = _arrange(experiment, measured)
    columns = max(map(len, rows))
    width = {1: 7.0, 2: 10.0}.get(columns, 3.6 * columns)
    names = list(dict.fromkeys(arm.name for arm in experiment.arms))
    styles = {name: (COLORS[i % len(COLORS)], _LINES[i // len(COLORS) % len(_LINES)]) for i, name in enumerate(names)}
    with matplotlib.rc_context({**STYLE, "axes.titlesize": 11.0}), replace_file(output) as temporary:
        figure = Figure(figsize=(width, _ROW_IN * len(rows) + 0.8), layout="constrained")
        for row, panels in enumerate(rows):
            for column, (group, plot) in enumerate(panels, start=1):
                axes = figure.add_subplot(len(rows), columns, row * columns + column)
                axes.set(title=f"{group}\n{plot.title}", xlabel=plot.x_label, ylabel=plot.y_label, yscale=plot.y_scale)
                if isinstance(plot, CurvePlot):
                    _draw_curves(axes, plot, measured[group], styles)
                else:
                    _draw_values(axes, plot, measured[group])
        drawn = {line.get_label() for axes in figure.axes for line in axes.lines}
        lines = [Line2D([], [], color=styles[n][0], linestyle=styles[n][1], label=n) for n in names if n in drawn]
        told = _tell(experiment, seeds, any(axes.texts for axes in figure.axes))
        figure.legend(handles=lines, title=told, loc="outside lower center", ncols=4)
        figure.savefig(temporary, dpi=_DPI)


def _arrange(experiment: Experiment, measured: Measured) -> list[list[tuple[str, CurvePlot | ValuePlot]]]:
    """Return the panels, one row per group, or all in one row if they fit."""
    rows = [[(group, plot) for plot in experiment.plots if _has(plot, arms)] for group, arms in measured.items()]
    panels = [panel for row in rows for panel in row]
    return rows if len(panels) > _MOST_COLUMNS else [panels]


def _has(plot: CurvePlot | ValuePlot, arms: Mapping[Arm, Sequence[Measurement]]) -> bool:
    """Return whether a group has measured everything that a panel shows."""
    trials = [trial for group in arms.values() for trial in group]
    if isinstance(plot, CurvePlot):
        return any(plot.curve in trial.curves for trial in trials)
    return all(any(name in trial.values for trial in trials) for name in plot.values)


def _tell(experiment: Experiment, seeds: int, has_counts: bool) -> str:
    """Return a text that explains lines, squares, bands, bars, dots and counts."""
    kinds = {type(plot) for plot in experiment.plots}
    means = [word for word, kind in (("lines", CurvePlot), ("squares", ValuePlot)) if kind in kinds]
    intervals = [word for word, kind in (("bands", CurvePlot), ("bars", ValuePlot)) if kind in kinds]
    told = f"Mean of {seeds} seeds ({', '.join(means)})" if seeds > 1 else "1 seed"
    if seeds >= LEAST_FOR_INTERVAL:
        told += f", its 95 % interval ({', '.join(intervals)})"
    if ValuePlot in kinds and seeds > 1:
        told += ", single seeds (dots)"
    if not has_counts:
        return told
    last = any(isinstance(plot, ValuePlot) and plot.none_is_last for plot in experiment.plots)
    what = "the square is the median of all seeds, the others last" if last else "what is drawn is of these alone"
    return f"{told}\nk/{seeds}: so many seeds came to that; {what}"


def _draw_curves(
    axes: Axes,
    plot: CurvePlot,
    arms: Mapping[Arm, Sequence[Measurement]],
    styles: Mapping[str, tuple[str, LineStyleType]],
) -> None:
    from matplotlib.ticker import EngFormatter

    for arm, trials in arms.items():
        curves = [trial.curves[plot.curve] for trial in trials if plot.curve in trial.curves]
        if not curves:
            continue  # this arm does not measure the curve
        color, line = styles[arm.name]
        grid, values = align([(np.array(curve.x), np.array(curve.y)) for curve in curves])
        axes.plot(grid, values.mean(axis=0), color=color, linestyle=line, linewidth=2.0, label=arm.name)
        if len(curves) >= LEAST_FOR_INTERVAL:
            axes.fill_between(grid, *bootstrap_interval(values, np.mean), color=color, alpha=0.15, linewidth=0)
    if axes.get_xlim()[1] >= 10_000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k


def _draw_values(axes: Axes, plot: ValuePlot, arms: Mapping[Arm, Sequence[Measurement]]) -> None:
    places = _place(axes, plot, list(arms))
    count = len(plot.values)
    axes.margins(y=0.15)  # room for the counts
    for index, ((name, word), color) in enumerate(zip(plot.values.items(), COLORS, strict=False)):
        aside = index - (count - 1) / 2  # offset, so that bars do not overlap
        points: list[tuple[float, float]] = []
        for place, trials in zip(places, arms.values(), strict=True):
            x = place * 1.1**aside if plot.x_setting else place + 0.5 * aside / count
            scores = [score for trial in trials if (score := trial.values.get(name)) is not None]
            middle = _middle(plot, [trial.values.get(name) for trial in trials])
            if middle is not None:
                points.append((x, middle))
            if scores:
                # An interval of the mean is only valid next to a mean of all seeds.
                _draw_seeds(
                    axes, x, np.array(scores), color, has_bar=not plot.none_is_last or len(scores) == len(trials)
                )
            if len(scores) < len(trials):
                text, top = f"{len(scores)}/{len(trials)}", 0.98 - 0.07 * index
                above = axes.get_xaxis_transform()
                axes.text(x, top, text, transform=above, ha="center", va="top", fontsize=8, color=color)
        line = "-" if plot.x_setting else ""
        axes.plot(*np.array(points).reshape(-1, 2).T, "s", linestyle=line, color=color, markersize=6, label=word)
    if count > 1:
        axes.legend()


def _middle(plot: ValuePlot, scores: Sequence[Number]) -> Number:
    """Return the square's value: the mean, or the median if some scores are None and count as infinite."""
    there = [score for score in scores if score is not None]
    if plot.none_is_last and len(there) < len(scores):
        return median_with_none_last(scores)
    return float(np.mean(there)) if there else None


def _draw_seeds(axes: Axes, x: float, scores: Floats, color: str, has_bar: bool) -> None:
    """Draw a dot for each seed and a bar for the interval."""
    axes.plot(np.full(len(scores), x), scores, "o", color=color, alpha=0.35, markersize=4, markeredgewidth=0)
    if has_bar and len(scores) >= LEAST_FOR_INTERVAL:
        ends = bootstrap_interval(scores, np.mean)
        axes.plot([x, x], ends, color=color, linewidth=3.0, alpha=0.7, solid_capstyle="butt")


def _place(axes: Axes, plot: ValuePlot, arms: Sequence[Arm]) -> list[float]:
    """Return each arm's x position, and label the axis accordingly."""
    if plot.x_setting is None:
        names = [arm.name for arm in arms]
        axes.set_xticks(range(len(arms)), names)
        if sum(map(len, names)) > _MOST_LABEL:
            names = [fill(name, _WRAP) for name in names]
            axes.set_xticks(range(len(arms)), names, rotation=30, ha="right", rotation_mode="anchor", fontsize=9)
        axes.set_xlim(-0.6, len(arms) - 0.4)
        return [float(place) for place in range(len(arms))]
    settings = [flatten(arm.config)[plot.x_setting] for arm in arms]
    places = [float(value) for value in settings if isinstance(value, int | float)]
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places], rotation=45 if len(places) > 6 else 0)
    axes.set_xticks([], minor=True)
    return places
