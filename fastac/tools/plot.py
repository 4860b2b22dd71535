"""Draws learning curves of finished or running runs, averaged over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastac.config import Config
from fastac.install import INSTALL
from fastac.runs.files import replace_file
from fastac.runs.run_dir import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

Floats: TypeAlias = NDArray[np.float64]
XAxis: TypeAlias = Literal["env_steps", "seconds"]

SIZE_IN = (8.0, 4.5)  # of one panel
DPI = 150
_GRID_POINTS = 500
X_LABELS: dict[XAxis, str] = {"env_steps": "environment steps", "seconds": "training time (s)"}
Y_LABEL = "episode return, mean of the last 100"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE: dict[RcKeyType, object] = {
    "font.size": 11.0,
    "axes.titlesize": 13.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 10.0,
}


@dataclass(frozen=True, slots=True)
class Curve:
    """The records of one run.

    Attributes:
        config: the run's configuration.
        x: `[rows]`, env steps or seconds of training, increasing.
        y: `[rows]`, mean return over the last 100 episodes.
        eval_x: `[evaluations]`, in the same unit as x.
        eval_y: `[evaluations]`, mean return of evaluations.
    """

    config: Config
    x: Floats
    y: Floats
    eval_x: Floats
    eval_y: Floats


def plot(runs: Sequence[Path], output: Path, x: XAxis = "env_steps") -> None:
    """Draw the learning curves of `runs`, one panel per environment and one colour per algorithm.

    Runs of the same environment and algorithm count as seeds of one setting. Thin lines are single runs, dots their
    evaluations; the thick line is the mean over runs and the band spans minimum to maximum. Mean and band end where
    the shortest run ends: the remaining runs alone would be a different, slower-learning set.

    Args:
        runs: run directories.
        output: a .png file; an older one is replaced only by a complete new one.
        x: the quantity on the x-axis.

    Raises:
        ValueError: a directory has no run, a run has no episodes, or matplotlib is missing.
        RecordError: the file cannot be written.
    """
    _check_arguments(runs, output, x)
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise ValueError(f"plotting needs matplotlib, which is not installed: {INSTALL['plot']}.") from error
    panels = _group([read_curve(run, x) for run in runs], lambda config: config.env.env_id)
    algos = sorted({curve.config.algo.algo for curves in panels.values() for curve in curves})
    colors: dict[str, str] = {algo: COLORS[index % len(COLORS)] for index, algo in enumerate(algos)}
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE), replace_file(output) as temporary:
        # A separate Figure, without pyplot, does not affect the caller's backend and open figures.
        figure = Figure(figsize=(columns * SIZE_IN[0], rows * SIZE_IN[1]), layout="constrained")
        for index, (env_id, curves) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(rows, columns, index)
            _draw_panel(axes, curves, colors)
            axes.set(title=env_id, xlabel=X_LABELS[x], ylabel=Y_LABEL)
            if x == "env_steps":
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k
        figure.savefig(temporary, dpi=DPI)


def _check_arguments(runs: Sequence[Path], output: Path, x: XAxis) -> None:
    if not runs:
        raise ValueError("no run directory was given, expected at least one.")
    if output.suffix.lower() != ".png":
        raise ValueError(f"the picture is to be {str(output)!r}, expected a file that ends with .png.")
    if x not in X_LABELS:
        raise ValueError(f"x is {x!r}, expected one of {', '.join(X_LABELS)}.")


def _group(curves: Sequence[Curve], key: Callable[[Config], str]) -> dict[str, list[Curve]]:
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(key(curve.config), []).append(curve)
    return dict(sorted(groups.items()))


def read_curve(path: Path, x: XAxis) -> Curve:
    """Read the records of a run.

    Raises:
        ValueError: there is no run, or no episode of it has ended yet.
    """
    run = RunDirectory.open(path)
    config = run.read_config()
    steps, seconds, returns = _read_columns(run.progress_path, ("env_steps", "train_wall_s", "mean_return"))
    if not len(steps):
        raise ValueError(f"{path} holds a run in which no episode has ended yet: there is nothing to plot.")
    eval_steps, eval_returns = _read_columns(path / "evaluations.jsonl", ("env_steps", "mean_return"))
    if x == "seconds":
        return Curve(config, seconds, returns, np.interp(eval_steps, steps, seconds), eval_returns)
    return Curve(config, steps, returns, eval_steps, eval_returns)


def _read_columns(path: Path, names: tuple[str, ...]) -> Floats:
    """Return `[names, rows]` from a file of JSON lines; skip rows in which a value is null."""
    rows: list[list[float]] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break  # a partial line, still being written
        values = [row.get(name) for name in names]
        if None not in values:
            rows.append(values)
    return np.array(rows, dtype=np.float64).reshape(-1, len(names)).T


def _draw_panel(axes: Axes, curves: Sequence[Curve], colors: dict[str, str]) -> None:
    for algo, group in _group(curves, lambda config: config.algo.algo).items():
        _draw_group(axes, group, algo.upper(), colors[algo])
    if any(len(curve.eval_x) for curve in curves):
        axes.plot([], [], "o", color="#777777", markersize=4, label="evaluation")
    for goal in sorted({c.config.run.until_return for c in curves if c.config.run.until_return is not None}):
        axes.axhline(goal, color="#333333", linewidth=1.0, linestyle="--", label=f"goal: {goal:g}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)  # below, where it covers no data


def _draw_group(axes: Axes, curves: Sequence[Curve], name: str, color: str) -> None:
    grid, values = align([(curve.x, curve.y) for curve in curves])
    num = len(curves)
    noun = "seed" if len({curve.config.run.seed for curve in curves}) == num else "run"
    label = f"{name} (1 {noun})" if num == 1 else f"{name} (mean and min\N{EN DASH}max of {num} {noun}s)"
    axes.plot(grid, values.mean(axis=0), color=color, linewidth=2.2, label=label)
    if num > 1:
        axes.fill_between(grid, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
        for curve in curves:
            axes.plot(curve.x, curve.y, color=color, alpha=0.45, linewidth=0.8)
    for curve in curves:
        axes.plot(curve.eval_x, curve.eval_y, "o", color=color, alpha=0.55, markersize=4, markeredgewidth=0)


def align(curves: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Interpolate curves onto one grid, from where all have begun to where the first ends.

    Args:
        curves: x, increasing, and y of each curve; lengths may differ.

    Returns:
        The grid `[G]`, and values `[curves, G]`.
    """
    begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.linspace(begin, max(begin, end), _GRID_POINTS)
    return grid, np.array([np.interp(grid, x, y) for x, y in curves])
