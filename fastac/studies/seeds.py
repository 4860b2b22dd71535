"""Trains one setting with many seeds, side by side, and sums up what they reach."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Unpack, cast

import numpy as np

from fastac.api import EnvLike, configure_named
from fastac.build import EncoderFactory, EnvFactory, describe_untuned, name_env
from fastac.config import AlgoName, Config, ConfigValue, JsonValue, TrainSettings
from fastac.install import INSTALL
from fastac.pickling import end_where_imported
from fastac.runs.configuring import Base
from fastac.runs.files import replace_json
from fastac.runs.run_dir import RunDirectory
from fastac.runs.worker_count import choose_workers
from fastac.studies.plan import GRACE_S, RunsPlan, count_seeds, end_by, log
from fastac.studies.seeds_picture import draw
from fastac.studies.stats import LEAST_FOR_INTERVAL, bootstrap_interval, interquartile_mean, median_with_none_last
from fastac.studies.training import Task, check_task, is_done
from fastac.text import format_table
from fastac.torchrun import is_launched
from fastac.trials import run_plan

_MOST = 10_000  # seeds


@dataclass(frozen=True, slots=True)
class SeedRun:
    """What one seed reached; the numbers of a seed that failed are None.

    Attributes:
        seed: the seed.
        run_dir: its run, as `fastac.load` takes it.
        mean_return: the last evaluation of the policy that the run ends with, the best one.
        last_mean_return: that of the last policy.
        env_steps: environment steps of training.
        train_wall_s: seconds of training.
        target_env_steps: environment steps until the target was reached; None if it was not, or there is none.
        target_wall_s: the same in seconds of training.
        failure: why the run failed, in a sentence; None if it did not.
    """

    seed: int
    run_dir: Path
    mean_return: float | None
    last_mean_return: float | None
    env_steps: int | None
    train_wall_s: float | None
    target_env_steps: int | None
    target_wall_s: float | None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class SeedRuns:
    """The runs of one setting over seeds.

    Attributes:
        config: the setting, with the first seed.
        directory: holds a run directory per seed, `seeds.json` and the picture.
        runs: by seed.
        picture: the learning curves; None if no seed came to an episode's end.
    """

    config: Config
    directory: Path
    runs: tuple[SeedRun, ...]
    picture: Path | None

    @property
    def returns(self) -> list[float]:
        """The mean returns of the seeds that have one."""
        return [run.mean_return for run in self.runs if run.mean_return is not None]

    @property
    def mean_return(self) -> float | None:
        """Their mean; None if there are none."""
        return float(np.mean(self.returns)) if self.returns else None

    @property
    def interquartile_mean_return(self) -> float | None:
        """Their mean without the lowest and the highest quarter."""
        return float(interquartile_mean(np.array(self.returns))) if self.returns else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % bootstrap interval of the mean; None for fewer than five seeds."""
        if len(self.returns) < LEAST_FOR_INTERVAL:
            return None
        low, high = bootstrap_interval(np.array(self.returns), np.mean)
        return float(low), float(high)

    @property
    def failed(self) -> list[SeedRun]:
        """The seeds that failed."""
        return [run for run in self.runs if run.failure is not None]

    def to_dict(self) -> dict[str, JsonValue]:
        """Return plain data, the content of `seeds.json`."""
        names = [name for name in SeedRun.__slots__ if name != "run_dir"]
        return {
            "env_id": self.config.env.env_id,
            "algo": self.config.algo.algo,
            "until_return": self.config.run.until_return,
            "mean_return": self.mean_return,
            "interquartile_mean_return": self.interquartile_mean_return,
            "mean_return_interval": None if self.interval is None else [*self.interval],
            "failed": len(self.failed),
            "seeds": [{name: getattr(run, name) for name in names} for run in self.runs],
        }


def train_seeds(
    env: EnvLike,
    algo: AlgoName | None = None,
    seeds: int = 10,
    *,
    preset: str | None = None,
    run_dir: Path | str | None = None,
    encoder: str | EncoderFactory | None = None,
    verbose: bool = False,
    **settings: Unpack[TrainSettings],
) -> SeedRuns:
    """Train one setting with the seeds `seed` to `seed + seeds - 1`, side by side, a process each.

    With the directory of an earlier call it continues: seeds that are complete are not trained again, and those that
    were interrupted go on from their last checkpoints.

    Args:
        env: see `train`; it is sent to other processes, so it must be defined at the top of a module.
        algo: see `train`.
        seeds: how many.
        preset: see `train`.
        run_dir: a directory for all of them, with a run directory for each; by default a dated one under `runs/`.
        encoder: see `train`, and `env`.
        verbose: show progress on stderr.
        settings: see `train`. Each run has one worker, unless `workers` is given (a3c: as many as its preset).

    Raises:
        ValueError: the settings are not valid, or the directory holds runs of other settings, or a package is missing.
        RecordError: a file cannot be written.
        KeyboardInterrupt: Ctrl-C; what is there is saved, and the same call continues.
        SystemExit: SIGTERM; the same.
    """
    end_where_imported()
    named = name_env(env)
    config, factory = configure_named(
        named, algo, preset, encoder, Base(), cast("dict[str, ConfigValue]", {**settings})
    )
    config = one_worker(config, named.given, factory, is_asked="workers" in settings)
    done, stopped = run_seeds(config, seeds, None if run_dir is None else Path(run_dir), named.given, factory, verbose)
    end_by(stopped)
    assert done is not None
    return done


def one_worker(
    config: Config, env_factory: EnvFactory | None, encoder: EncoderFactory | None, is_asked: bool
) -> Config:
    """Return the configuration with one worker, unless another number is asked for or part of the algorithm."""
    if is_asked or config.is_one_shard_per_worker:
        return choose_workers(config, env_factory, encoder)
    return config.replace(workers=1)


def run_seeds(
    config: Config,
    seeds: int,
    directory: Path | None,
    env_factory: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    verbose: bool = False,
    command: str = "",
) -> tuple[SeedRuns | None, signal.Signals | None]:
    """Train a complete configuration with many seeds; see `train_seeds`.

    Returns:
        What they reached, and None; or None and the signal that stopped them.
    """
    check_packages()
    if not 1 <= seeds <= _MOST:
        raise ValueError(f"seeds is {seeds}, expected a whole number from 1 to {_MOST:,}.")
    if is_launched():
        raise ValueError("torchrun trains one run on several hosts: start seeds without it.")
    first = config.run.seed
    directory = directory or default_directory(config, seeds)
    tasks = [
        Task(f"seed {seed}", config.replace(seed=seed), directory / f"seed{seed}", env_factory, encoder, command)
        for seed in range(first, first + seeds)
    ]
    for task in tasks:
        check_task(task)
    untuned = describe_untuned(config)
    if untuned is not None:
        log.info("%s", untuned)
    log.info("%d seeds, each a run in %s", seeds, directory)
    plan = RunsPlan(tasks, [task for task in tasks if not is_done(task)])
    stopped = run_plan(plan, "fastac.studies.training", GRACE_S, verbose)
    if stopped is not None:
        return None, stopped
    return _sum_up(config, directory, tasks, plan.failures), None


def check_packages() -> None:
    """Refuse to begin what could not be summed up at its end.

    Raises:
        ValueError: matplotlib or SciPy is missing.
    """
    for package in ("matplotlib", "scipy"):
        if find_spec(package) is None:
            raise ValueError(f"a summary over seeds needs {package}, which is not installed: {INSTALL['plot']}.")


def default_directory(config: Config, seeds: int) -> Path:
    """Return a directory's name for seeds that begin now."""
    env, first = re.sub(r"[^\w.-]+", "_", config.env.env_id).strip("_"), config.run.seed
    name = f"{env}-{config.algo.algo}-seeds{first}-{first + seeds - 1}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path("runs", name)


def _sum_up(config: Config, directory: Path, tasks: Sequence[Task], failures: dict[str, str]) -> SeedRuns:
    """Return what the runs reached; write `seeds.json` and the picture."""
    runs = tuple(_read_run(task, failures.get(task.name)) for task in tasks)
    picture = directory / "learning-curves.png"
    trained = [run.run_dir for run in runs if run.failure is None]
    failed = [run.run_dir for run in runs if run.failure is not None]
    is_drawn = draw(config, trained, failed, picture)
    done = SeedRuns(config, directory, runs, picture if is_drawn else None)
    replace_json(directory / "seeds.json", done.to_dict())
    return done


def _read_run(task: Task, failure: str | None) -> SeedRun:
    seed, run_dir = task.config.run.seed, task.run_dir
    if failure is not None:
        return SeedRun(seed, run_dir, None, None, None, None, None, None, failure)
    summary = RunDirectory.open(run_dir).read_summary()
    return SeedRun(
        seed,
        run_dir,
        _read_number(summary, "eval_mean_return"),
        _read_number(summary, "last_eval_mean_return"),
        _read_count(summary, "env_steps"),
        _read_number(summary, "train_wall_s"),
        _read_count(summary, "solved_env_steps"),
        _read_number(summary, "solved_wall_s"),
    )


def _read_number(summary: Mapping[str, JsonValue], name: str) -> float | None:
    number = summary.get(name)
    return float(number) if isinstance(number, int | float) else None


def _read_count(summary: Mapping[str, JsonValue], name: str) -> int | None:
    number = _read_number(summary, name)
    return None if number is None else int(number)


def tell(done: SeedRuns) -> str:
    """Return the table and the sentences that the command line ends with."""
    target = done.config.run.until_return
    head = ["seed", "return", "last policy", "env steps", "train s"]
    if target is not None:
        head += [f"steps to {target:g}", f"s to {target:g}"]
    rows = [[str(run.seed), *_tell_run(run, target is not None)] for run in done.runs]
    return "\n".join([format_table(head, rows), "", *_tell_sums(done)])


def _tell_run(run: SeedRun, has_target: bool) -> list[str]:
    cells = ["failed" if run.failure is not None else _number(run.mean_return, 1)]
    cells += [_number(run.last_mean_return, 1), _number(run.env_steps, 0), _number(run.train_wall_s, 2)]
    if has_target:
        cells += [_number(run.target_env_steps, 0), _number(run.target_wall_s, 2)]
    return cells


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _tell_sums(done: SeedRuns) -> list[str]:
    lines, target = [], done.config.run.until_return
    if done.returns:
        spread = "" if done.interval is None else " [{:,.1f}, {:,.1f}]".format(*done.interval)
        lines.append(
            f"Return of {count_seeds(len(done.returns))}: mean {done.mean_return:,.1f}{spread}, interquartile mean "
            f"{done.interquartile_mean_return:,.1f}, lowest {min(done.returns):,.1f}."
        )
    if target is not None:
        ended = [run for run in done.runs if run.failure is None]
        reached = [run for run in ended if run.target_env_steps is not None]
        steps = median_with_none_last([run.target_env_steps for run in ended]) if ended else None
        seconds = median_with_none_last([run.target_wall_s for run in ended]) if ended else None
        when = "" if steps is None or seconds is None else f"; median {steps:,.0f} steps, {seconds:,.2f} s"
        lines.append(f"Came to {target:g}: {len(reached)} of {len(done.runs)} seeds{when}.")
    lines.append(f"Failed: {len(done.failed)} of {len(done.runs)} seeds.")
    lines += [f"  seed {run.seed}: {run.failure}" for run in done.failed]
    return lines
