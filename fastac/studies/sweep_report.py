"""The report of a sweep: table, command, preset, importances and picture."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastac.build import default_config
from fastac.config import Config, ConfigValue, JsonValue
from fastac.runs.files import replace_file, replace_json, write_durably
from fastac.studies.curves import NEVER_S, tell_score
from fastac.studies.options import Objective
from fastac.text import format_table
from fastac.tools.plot import COLORS, DPI, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastac.studies.sweep import Candidate, Sweep

_WHAT: dict[Objective, str] = {
    "final": "mean return of the last evaluation",
    "area": "mean return over the whole training (area under the curve)",
    "seconds": "seconds of training until the target",
}
# Settings of the runs of a sweep alone, which another run need not have.
_OWN = ("seed", "workers", "eval_every", "checkpoint_every", "keep_checkpoints", "tensorboard", "log")
LEAST_FOR_IMPORTANCE = 10  # completed trials
_MOST_SHOWN = 12  # importances


def write_report(done: Sweep) -> None:
    """Write `report.md`, `sweep.json` and `sweep.png` into the sweep's directory.

    Raises:
        RecordError: a file cannot be written.
    """
    draw(done)
    replace_json(done.directory / "sweep.json", to_dict(done))
    with replace_file(done.directory / "report.md") as temporary:
        head = f"# Sweep of {done.config.env.env_id}, {done.config.algo.algo}\n\n"
        write_durably(temporary, (head + tell(done, "") + "\n\n![sweep](sweep.png)\n").encode())


def to_dict(done: Sweep) -> dict[str, JsonValue]:
    """Return plain data, the content of `sweep.json`."""
    return {
        "objective": done.objective,
        "completed": done.num_completed,
        "pruned": done.num_pruned,
        "failed": done.num_failed,
        "settings": {name: _plain(value) for name, value in done.settings.items()},
        "fresh_seeds": [*done.fresh_seeds],
        "candidates": [
            {"name": each.name, "search_score": each.search_score, "scores": [*each.scores], "mean": each.mean}
            for each in done.candidates
        ],
        "importances": {**done.importances},
        "config": done.config.to_dict(),
    }


def _plain(value: ConfigValue) -> JsonValue:
    plain: JsonValue = json.loads(json.dumps(value))
    return plain


def tell(done: Sweep, command: str = "") -> str:
    """Return the report as text, in Markdown; `command` is a shell command already formatted, "" makes it."""
    ended = done.num_completed + done.num_pruned + done.num_failed
    begun = f"{ended} trial{'s' if ended > 1 else ''}"
    counts = f"{begun}: {done.num_completed} completed, {done.num_pruned} pruned, {done.num_failed} failed."
    parts = [f"{counts} Score: {_WHAT[done.objective]}, mean over seeds.", _table(done.candidates, done.objective)]
    if done.fresh_seeds:
        parts.append(
            f"*In the sweep* is too good, since trials were chosen by it. *Fresh* are the seeds {done.fresh_seeds[0]} "
            f"to {done.fresh_seeds[-1]}, with the 95 % bootstrap interval of the mean from five seeds on. *Start* is "
            "the settings without the sweep."
        )
    else:
        parts.append("No fresh seeds: these scores are too good, since trials were chosen by them.")
    winner = done.candidates[0]
    better = "Best: the settings without the sweep" if winner.name == "start" else f"Best: {winner.name}"
    parts += [f"{better}. Train it with:", command or f"    {to_command(done)}"]
    parts += ["As a preset:", to_preset(done.config)]
    if done.importances:
        most = sorted(done.importances.items(), key=lambda item: -item[1])[:_MOST_SHOWN]
        told = ", ".join(f"{name} {value:.2f}" for name, value in most)
        parts.append(f"What decided (importances, they add up to 1): {told}.")
    elif done.num_completed < LEAST_FOR_IMPORTANCE:
        parts.append(f"What decided cannot be said of fewer than {LEAST_FOR_IMPORTANCE} completed trials.")
    return "\n\n".join(parts)


def _table(candidates: Sequence[Candidate], objective: Objective) -> str:
    rows = []
    for each in candidates:
        cells = [each.name, "-" if each.search_score is None else tell_score(each.search_score, objective)]
        if each.scores:
            cells += [_tell_mean(each, objective), tell_score(min(map(_or_never, each.scores)), objective)]
        rows.append(cells)
    head = ["settings", "in the sweep", *(["fresh: mean", "worst seed"] if candidates[0].scores else [])]
    return format_table(head, rows)


def _or_never(value: float | None) -> float:
    return -np.inf if value is None else value


def _tell_mean(candidate: Candidate, objective: Objective) -> str:
    if candidate.mean is None:
        failed = sum(each is None for each in candidate.scores)
        return f"{failed} failed"
    if objective == "seconds" and min(map(_or_never, candidate.scores)) <= -NEVER_S:
        reached = sum(_or_never(each) > -NEVER_S for each in candidate.scores)
        return f"{reached} of {len(candidate.scores)} seeds"
    told = tell_score(candidate.mean, objective)
    if candidate.interval is None:
        return told
    ends = sorted((tell_score(end, objective) for end in candidate.interval), key=_first_number)
    return f"{told} [{', '.join(ends)}]"


def _first_number(text: str) -> float:
    return float(text.split()[0].replace(",", ""))


def to_command(done: Sweep) -> str:
    """Return the command that trains the best settings, or the Python of an environment that has no name."""
    config = done.config
    env, algo = config.env.env_id, config.algo.algo
    if env.startswith("<"):
        return f"fastac.train(YOUR_ENV, {algo!r}, **{dict(done.settings)!r})"
    before = default_config(env, algo, None, None, config.to_flat())
    words = ["fastac", "train", env, "--algo", algo]
    for name, value in changes(config, before).items():
        words += _to_words(name, value)
    return shlex.join(words)


def changes(config: Config, before: Config) -> dict[str, ConfigValue]:
    """Return the settings by which one configuration becomes the other, except for environment and algorithm."""
    skipped = {*_OWN, "env_id", "algo"}
    if config.is_one_shard_per_worker:  # their number is part of the algorithm, and num_envs follows from it
        skipped = skipped - {"workers"} | {"num_envs"}
    old = before.to_flat()
    return {name: value for name, value in config.to_flat().items() if name not in skipped and value != old[name]}


def _to_words(name: str, value: ConfigValue) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    if isinstance(value, float):
        return [flag, f"{value:g}" if float(f"{value:g}") == value else repr(value)]
    return [flag, json.dumps(value) if isinstance(value, dict) else str(value)]


def to_preset(config: Config) -> str:
    """Return the function that a preset is, indented as code."""
    name = re.sub(r"\W+", "_", f"{config.env.env_id.rpartition(':')[2]}_{config.algo.algo}").lower().strip("_")
    shown = {"env_id": config.env.env_id, "algo": config.algo.algo, **changes(config, Config())}
    lines = [
        f"def {name}() -> Config:",
        f'    """{config.algo.algo.upper()} on {config.env.env_id}, found by a sweep."""',
        "    return Config().replace(",
        *(f"        {key}={json.dumps(v) if isinstance(v, str) else repr(v)}," for key, v in shown.items()),
        "    )",
    ]
    return "\n".join(f"    {line}" for line in lines)


# --- the picture -----------------------------------------------------------------------------------


def draw(done: Sweep) -> None:
    """Draw the trials' scores, the fresh seeds' and the importances to `sweep.png`."""
    import matplotlib
    from matplotlib.figure import Figure

    has_importances, has_fresh = bool(done.importances), bool(done.fresh_seeds)
    columns = 1 + has_fresh + has_importances
    with matplotlib.rc_context({**STYLE, "axes.titlesize": 11.0}), replace_file(done.directory / "sweep.png") as path:
        figure = Figure(figsize=(1.0 + 4.2 * columns, 4.2), layout="constrained")
        _draw_trials(figure.add_subplot(1, columns, 1), done)
        if has_fresh:
            _draw_fresh(figure.add_subplot(1, columns, 2), done)
        if has_importances:
            _draw_importances(figure.add_subplot(1, columns, columns), done)
        figure.suptitle(f"{done.config.env.env_id}, {done.config.algo.algo}", x=0.01, ha="left", weight="bold")
        figure.savefig(path, dpi=DPI)


def _shown(value: float, objective: Objective) -> float:
    """Return a score as it is drawn; a target that is not reached is no point."""
    if objective != "seconds":
        return value
    return np.nan if value <= -NEVER_S else -value


def _draw_trials(axes: Axes, done: Sweep) -> None:
    numbers = [number for number, _ in done.history]
    best = np.maximum.accumulate([value for _, value in done.history])
    axes.plot(numbers, [_shown(v, done.objective) for _, v in done.history], "o", color=COLORS[0], alpha=0.5, ms=4)
    axes.step(numbers, [_shown(v, done.objective) for v in best], where="post", color=COLORS[1], label="best so far")
    axes.set_title(f"{done.num_completed} completed trials ({done.num_pruned} pruned, {done.num_failed} failed)")
    axes.set(xlabel="trial", ylabel=_label(done.objective))
    axes.legend(loc="best")


def _label(objective: Objective) -> str:
    return {"final": "final mean return", "area": "mean return over training", "seconds": "seconds to the target"}[
        objective
    ]


def _draw_fresh(axes: Axes, done: Sweep) -> None:
    for place, each in enumerate(done.candidates):
        there = [_shown(value, done.objective) for value in each.scores if value is not None]
        axes.plot(np.full(len(there), place), there, "o", color=COLORS[0], alpha=0.45, markersize=5, markeredgewidth=0)
        if each.mean is not None:
            axes.plot(place, _shown(each.mean, done.objective), "s", color=COLORS[1], markersize=7)
    axes.plot([], [], "o", color=COLORS[0], alpha=0.45, label="one seed")
    axes.plot([], [], "s", color=COLORS[1], label="mean")
    axes.set_xticks(range(len(done.candidates)), [each.name for each in done.candidates], rotation=30, ha="right")
    axes.set_title(f"with {len(done.fresh_seeds)} fresh seeds")
    axes.set_ylabel(_label(done.objective))
    axes.legend(loc="best")


def _draw_importances(axes: Axes, done: Sweep) -> None:
    most = sorted(done.importances.items(), key=lambda item: item[1])[-_MOST_SHOWN:]
    axes.barh([name for name, _ in most], [value for _, value in most], color=COLORS[2])
    axes.set_title("what decided")
    axes.set_xlabel("importance")
    axes.grid(axis="y", visible=False)
