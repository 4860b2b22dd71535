"""Reports the results of an experiment from its trials' files alone: numbers, a page and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np

from benchmarks.experiments.definition import Column, Experiment, Number
from benchmarks.experiments.jobs import Saved, check_out, flatten, list_jobs, load_measurement
from benchmarks.experiments.picture import Measured, draw
from fastac.config import JsonValue
from fastac.runs.files import replace_file, replace_json, write_durably
from fastac.studies.stats import (
    LEAST_FOR_INTERVAL,
    bootstrap_interval,
    interquartile_mean,
    median_with_none_last,
)

Json: TypeAlias = dict[str, JsonValue]
Summaries: TypeAlias = dict[str, Json]  # by the value's name

# Settings shown on the page; results.json has all of them.
_TOLD = ("algo", "num_envs", "num_steps", "learning_rate", "total_env_steps", "eval_episodes")


def write_report(experiment: Experiment, seeds: int, out: Path) -> str:
    """Write `results.json`, `report.md` and the picture `<experiment>.png` to `out`.

    The report depends only on the trial files.

    Returns:
        The tables, in Markdown.

    Raises:
        ValueError: a trial is missing, damaged, or has other settings, or the directory has trials of another
            experiment.
        RecordError: the disk is full, or the location is not writable.
    """
    check_out(experiment, out)
    saved = _load(experiment, seeds, out)
    measured: Measured = {}
    for arm in experiment.arms:
        measured.setdefault(arm.group, {})[arm] = [item.measurement for item in saved[arm.group, arm.name]]
    machines: list[JsonValue] = []
    for item in (item for items in saved.values() for item in items):
        if item.machine not in machines:
            machines.append(dict(item.machine))
    command = f"python -m benchmarks.experiments {experiment.name} --seeds {seeds}"
    results: Json = {
        "experiment": experiment.name,
        "question": experiment.question,
        "command": command,
        "seeds": seeds,
        "machines": machines,
        "groups": {group: _summarise_group(measured, group) for group in measured},
    }
    tables = _format_tables(experiment, results)
    replace_json(out / "results.json", results)
    draw(experiment, measured, seeds, out / f"{experiment.name}.png")
    with replace_file(out / "report.md") as temporary:
        write_durably(temporary, _format_page(results, tables).encode())
    return tables


def _load(experiment: Experiment, seeds: int, out: Path) -> dict[tuple[str, str], list[Saved]]:
    """Read all trials, by group and arm, seed by seed."""
    loaded: dict[tuple[str, str], list[Saved]] = {}
    for job in list_jobs(experiment, seeds):
        saved = load_measurement(job, out)
        if saved is None:
            raise ValueError(f"{job.path(out)} is missing: run the experiment to its end first.")
        loaded.setdefault((job.arm.group, job.arm.name), []).append(saved)
    return loaded


def _summarise_group(measured: Measured, group: str) -> Json:
    """Return the first arm's settings, and for each arm its differing settings and its numbers."""
    first = flatten(next(iter(measured[group])).config)
    arms: Json = {}
    for arm, trials in measured[group].items():
        settings = {name: value for name, value in flatten(arm.config).items() if value != first[name]}
        names = dict.fromkeys(name for trial in trials for name in trial.values)
        values: Json = {name: summarise([trial.values.get(name) for trial in trials]) for name in names}
        arms[arm.name] = {"settings": settings, "values": values}
    del first["seed"]
    return {"settings": first, "arms": arms}


def summarise(scores: Sequence[Number]) -> Json:
    """Return the seeds' scores, the count of None, the median with None last, and statistics of the other scores."""
    there = np.array([score for score in scores if score is not None], dtype=np.float64)
    summary: Json = {
        "scores": list(scores),
        "none": len(scores) - len(there),
        "median_with_none_last": median_with_none_last(scores),
    }
    for name, statistic in (("mean", np.mean), ("iqm", interquartile_mean)):
        summary[name] = float(statistic(there)) if len(there) else None
        enough = len(there) >= LEAST_FOR_INTERVAL
        summary[f"{name}_interval"] = [float(end) for end in bootstrap_interval(there, statistic)] if enough else None
    return summary


def _format_page(results: Json, tables: str) -> str:
    """Return the page: the question, the results, the command and the machines."""
    name, machines = results["experiment"], cast("list[Json]", results["machines"])
    page = [
        f"# {name}",
        str(results["question"]),
        tables,
        f"![{name}]({name}.png)",
        f"Run it again: `{results['command']}`. Every arm's settings and every seed's numbers are in `results.json`.",
        f"Seeds: {', '.join(map(str, range(cast('int', results['seeds']))))}. On {_format_machines(machines)}.",
    ]
    return "\n\n".join(page) + "\n"


def _format_tables(experiment: Experiment, results: Json) -> str:
    """Return each group's settings and table, and explanations of columns and cells."""
    groups, parts = cast("dict[str, Json]", results["groups"]), []
    for group, content in groups.items():
        parts += [f"## {group}", _format_settings(content), _format_table(experiment, _values(content))]
    parts.append("\n".join(f"- *{column.label}*: {column.meaning}." for column in experiment.columns))
    cells = [
        values.get(column.value)
        for group in groups.values()
        for values in _values(group).values()
        for column in experiment.columns
    ]
    are_all = not any(cell["none"] for cell in cells if cell is not None)
    parts.append(_format_legend(experiment, cast("int", results["seeds"]), are_all))
    return "\n\n".join(parts)


def _values(content: Json) -> dict[str, Summaries]:
    """Return the values that a group's arms measured."""
    return {name: arm["values"] for name, arm in cast("dict[str, dict[str, Summaries]]", content["arms"]).items()}


def _format_settings(content: Json) -> str:
    """Return the most important settings of the first arm."""
    settings = cast("Json", content["settings"])
    given = [(name, settings[name]) for name in _TOLD if settings[name] is not None]
    told = [f"{name} {value if isinstance(value, str) else f'{value:,}'}" for name, value in given]
    return f"Settings of *{next(iter(_values(content)))}*: {', '.join(told)}."


def _format_table(experiment: Experiment, arms: Mapping[str, Summaries]) -> str:
    columns = [column for column in experiment.columns if any(column.value in values for values in arms.values())]
    rows = [["", *(column.label for column in columns)]]
    for name, values in arms.items():
        rows.append([name, *(format_cell(values.get(column.value), column) for column in columns)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * len(columns) + "|", *lines[1:]])


def _format_legend(experiment: Experiment, seeds: int, are_all: bool) -> str:
    legend = ["1 seed."]
    if seeds > 1:
        legend = [f"Mean / interquartile mean over {seeds} seeds; intervals are for {LEAST_FOR_INTERVAL} and more."]
    if seeds >= LEAST_FOR_INTERVAL:
        legend = [
            f"Mean / interquartile mean [95 % bootstrap interval of the mean] over {seeds} seeds.",
            "With so few it is too narrow: of 10 normal numbers it covers the true mean in about 90 % of cases.",
            f"Of fewer than {LEAST_FOR_INTERVAL} there is none.",
        ]
    if not are_all:
        legend.append("Where it says *k of n*, so many of the seeds came to that, and the numbers are of these alone.")
        if any(column.none_is_last for column in experiment.columns):
            legend.append("A median is of all seeds, those that did not come to it last.")
    return " ".join(legend)


def format_cell(summary: Json | None, column: Column) -> str:
    """Return a table cell; "-" if the arm has no such value."""
    if summary is None:
        return "-"
    size, none = len(cast("list[Number]", summary["scores"])), cast("int", summary["none"])
    count = f"{size - none} of {size}"
    if none == size:
        return count
    if none and column.none_is_last:
        median = cast("Number", summary["median_with_none_last"])
        return count if median is None else f"median {median:,.{column.digits}f}, {count}"
    numbers = [cast("float", summary[name]) for name in ("mean", "iqm")]
    interval = cast("list[float] | None", summary["mean_interval"])
    mean_, iqm, *ends = (f"{number:,.{column.digits}f}" for number in [*numbers, *(interval or [])])
    cell = mean_ if size - none == 1 else f"{mean_} / {iqm}"
    if ends:
        cell += f" [{', '.join(ends)}]"
    return f"{cell}, {count}" if none else cell


def _format_machines(machines: Sequence[Json]) -> str:
    """Return the machines of the trials, each with all commits that ran there."""
    commits: dict[str, list[str]] = {}
    for machine in machines:
        cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
        software = ", ".join(f"{name} {number}" for name, number in cast("Json", machine["versions"]).items())
        commits.setdefault(f"{machine['cpu']}, {cores}; {software}", []).append(str(machine["commit"]))
    return ". And on ".join(
        f"{place}; commit{'s' if len(those) > 1 else ''} {', '.join(those)}" for place, those in commits.items()
    )
