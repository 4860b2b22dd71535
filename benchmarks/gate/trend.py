"""The rates of all runs of the gate on this checkout: one line of JSON per run, and a picture of them. Blocks nothing.

The lines stay in `runs/`, which is not committed: rates of different machines do not compare, and CI keeps its
own. A machine is its CPU's name. A series has fallen where even the best of the last five runs is 5 % below the
worst of the best five in a row before: single runs vary by more, whole groups do not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gate.trees import ROOT
from benchmarks.machine import describe_machine
from fastac.tools.gate.trees import InputError

TREND_PATH = ROOT / "runs" / "trend.jsonl"
PICTURE_PATH = ROOT / "runs" / "trend.png"
_WINDOW = 5
_FALLEN = 0.95
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# A rate per run, as (index of the run, steps per second).
Series = list[tuple[int, float]]


def append(path: Path, rates: Mapping[str, float], **more: Any) -> None:
    """Add this run's line: when, where, which commit, what else the caller knows, and the rates in steps/s."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"date": date, "machine": describe_machine(torch_threads=1), **more, "rates": dict(rates)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> dict[str, dict[str, Series]]:
    """Return the series by workload and CPU.

    Raises:
        InputError: there is no file, or a line of it is not one of `append`.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist yet: `make bench-check` adds a line to it.")
    found: dict[str, dict[str, Series]] = {}
    for index, line in enumerate(path.read_text().splitlines()):
        try:
            run = json.loads(line)
            for workload, rate in run["rates"].items():
                found.setdefault(workload, {}).setdefault(run["machine"]["cpu"], []).append((index, float(rate)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"line {index + 1} of {path} is no run of the gate: remove it.") from error
    return found


def falls(series: Series) -> list[int]:
    """Return the indices of the runs at which the rate was down."""
    rates = [rate for _, rate in series]
    highs, lows = _rolling(rates, max), _rolling(rates, min)
    return [
        series[now][0]
        for now in range(2 * _WINDOW - 1, len(rates))
        if highs[now] < _FALLEN * max(lows[_WINDOW - 1 : now - _WINDOW + 1])
    ]


def _rolling(rates: Sequence[float], of: Callable[[Sequence[float]], float]) -> list[float]:
    return [of(rates[max(0, end - _WINDOW) : end]) for end in range(1, len(rates) + 1)]


def draw(found: Mapping[str, Mapping[str, Series]], output: Path) -> None:
    """Draw a panel per workload and a colour per machine: runs as dots, and the least and most of the last five.

    Raises:
        InputError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter, MaxNLocator
    except ImportError as error:
        raise InputError("drawing needs matplotlib, which is not installed: `make install` brings it.") from error
    cpus = sorted({cpu for by_cpu in found.values() for cpu in by_cpu})
    columns = min(len(found), 2)
    figure = Figure(figsize=(7.5 * columns, 3.4 * -(-len(found) // columns) + 0.6), layout="constrained")
    for place, (workload, by_cpu) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(-(-len(found) // columns), columns, place)
        for cpu, series in by_cpu.items():
            _draw_series(axes, series, _COLORS[cpus.index(cpu) % len(_COLORS)], cpu)
        axes.set_title(workload, loc="left", fontsize=11, fontweight="bold")
        top = max(rate for series in by_cpu.values() for _, rate in series)
        axes.set(xlabel="run", ylabel="steps/s", ylim=(0.0, 1.1 * top))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e6e6e6")
        axes.spines[["top", "right"]].set_visible(False)
    handles = {text: handle for a in figure.axes for handle, text in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)


def _draw_series(axes: Any, series: Series, color: str, cpu: str) -> None:
    index, rates = [place for place, _ in series], [rate for _, rate in series]
    axes.plot(index, rates, "o", color=color, markersize=4, label=cpu)
    axes.fill_between(index, _rolling(rates, min), _rolling(rates, max), color=color, alpha=0.15, linewidth=0)
    rate_at, fallen = dict(series), falls(series)
    if fallen:
        label = f"fallen: {_WINDOW} runs all 5 % below {_WINDOW} before"
        axes.plot(fallen, [rate_at[place] for place in fallen], "v", color="#b00000", markersize=8, label=label)


def describe_falls(found: Mapping[str, Mapping[str, Series]]) -> Iterable[str]:
    """Yield a sentence for each series that has fallen by the last run."""
    for workload, by_cpu in found.items():
        for cpu, series in by_cpu.items():
            if falls(series)[-1:] == [series[-1][0]]:
                yield f"{workload} has fallen on {cpu}: its last {_WINDOW} runs are all 5 % below {_WINDOW} before."
