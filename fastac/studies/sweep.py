"""A sweep: a search for settings, and the best of them trained again with fresh seeds."""

from __future__ import annotations

import json
import logging
import re
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast

import numpy as np

from fastac.api import EnvLike, configure_named
from fastac.build import EncoderFactory, EnvFactory, build_envs, describe_untuned, name_env
from fastac.config import AlgoName, Config, ConfigValue, JsonValue, TrainSettings, Vectorization
from fastac.contract import WorkerFailure
from fastac.install import INSTALL
from fastac.pickling import end_where_imported
from fastac.runs.configuring import Base
from fastac.runs.files import RecordError, describe
from fastac.runs.locking import locked
from fastac.studies.curves import check_objective, read_curve, score
from fastac.studies.options import Objective, SweepOptions
from fastac.studies.plan import GRACE_S, RunsPlan, count_seeds, end_by
from fastac.studies.search import Findings, Problem, Search, make_pruner, trial_config
from fastac.studies.seeds import check_packages, one_worker
from fastac.studies.spaces import change_space, check_space, find_space
from fastac.studies.stats import LEAST_FOR_INTERVAL, bootstrap_interval
from fastac.studies.sweep_report import LEAST_FOR_IMPORTANCE, changes, write_report
from fastac.studies.training import is_done
from fastac.torchrun import is_launched
from fastac.trials import run_plan

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("fastac")

_START = "start"  # the settings without the sweep
_BEST = 5  # settings that are trained with fresh seeds
_PROBLEM = "problem"  # an attribute of the study
_TABLES_S = 2.0  # until another machine has made a database's tables


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the settings that were trained with fresh seeds.

    Attributes:
        name: the trial, or "start": the settings without the sweep.
        config: complete.
        search_score: the trial's own score, which is too good, since it was chosen by it; None if there is none.
        scores: by fresh seed, higher is better; None for a seed that failed.
    """

    name: str
    config: Config
    search_score: float | None
    scores: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """The mean of the scores; None if there are none, or if a seed failed."""
        there = [each for each in self.scores if each is not None]
        return float(np.mean(there)) if there and len(there) == len(self.scores) else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % bootstrap interval of the mean; None for fewer than five seeds."""
        if self.mean is None or len(self.scores) < LEAST_FOR_INTERVAL:
            return None
        low, high = bootstrap_interval(np.array(self.scores, dtype=np.float64), np.mean)
        return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep has found.

    Attributes:
        config: the settings of the best, with the first seed; train it with `fastac.start` or `replace` what you like.
        settings: those of it that differ from the settings without the sweep, as `fastac.train` takes them.
        candidates: the best trials and the start, the best with fresh seeds first; without fresh seeds by their trials.
        directory: holds the study, the runs of the fresh seeds, `report.md`, `sweep.json` and `sweep.png`.
        objective: by what they were compared.
        num_completed: trials that were trained to their end.
        num_pruned: trials that were ended early.
        num_failed: trials that failed.
        history: number and score of each completed trial.
        importances: by setting, how much it decides whether a trial is among the best tenth; they add up to 1.
        fresh_seeds: the seeds of the candidates.
    """

    config: Config
    settings: Mapping[str, ConfigValue]
    candidates: tuple[Candidate, ...]
    directory: Path
    objective: Objective
    num_completed: int
    num_pruned: int
    num_failed: int
    history: tuple[tuple[int, float], ...]
    importances: Mapping[str, float] = field(default_factory=dict)
    fresh_seeds: tuple[int, ...] = ()


def sweep(
    env: EnvLike,
    algo: AlgoName | None = None,
    *,
    preset: str | None = None,
    run_dir: Path | str | None = None,
    encoder: str | EncoderFactory | None = None,
    verbose: bool = False,
    options: SweepOptions | None = None,
    **settings: Unpack[TrainSettings],
) -> Sweep:
    """Search for settings; then train the best five, and those without the sweep, with fresh seeds.

    With the directory of an earlier call it continues.

    Args:
        env: see `train`; it is sent to other processes, so it must be defined at the top of a module.
        algo: see `train`.
        preset: see `train`; where the search begins.
        run_dir: a directory for the sweep; by default one under `runs/`, named after environment and algorithm.
        encoder: see `train`, and `env`.
        verbose: show progress on stderr.
        options: how long, and how.
        settings: see `train`; they are not searched. `total_env_steps` is the budget of a run.

    Raises:
        ValueError: the settings are not valid, the directory holds another sweep, or a package is missing.
        EnvFailure, NonFiniteError, WorkerFailure: all of the first trials failed.
        RecordError: a file cannot be written.
        KeyboardInterrupt: Ctrl-C; what is there is saved, and the same call continues.
        SystemExit: SIGTERM; the same.
    """
    end_where_imported()
    named = name_env(env)
    given = cast("dict[str, ConfigValue]", {**settings})
    config, factory = configure_named(named, algo, preset, encoder, Base(), given)
    config = one_worker(config, named.given, factory, is_asked="workers" in given)
    directory = default_directory(config) if run_dir is None else Path(run_dir)
    done, stopped = run_sweep(config, list(given), options or SweepOptions(), directory, named.given, factory, verbose)
    end_by(stopped)
    assert done is not None
    return done


def default_directory(config: Config) -> Path:
    """Return the directory of a sweep, which has no date, so that the same command continues."""
    return Path("runs", f"sweep-{_slug(config)}")


def _slug(config: Config) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', config.env.env_id).strip('_')}-{config.algo.algo}"


def run_sweep(
    start: Config,
    given: Sequence[str],
    options: SweepOptions,
    directory: Path,
    env_factory: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    verbose: bool = False,
) -> tuple[Sweep | None, signal.Signals | None]:
    """Sweep from a complete configuration; see `sweep`.

    Args:
        start: where the search begins.
        given: names of settings that are not searched.
        options: how long, and how.
        directory: of the sweep.
        env_factory: the user's environments, if a name is not enough.
        encoder: the user's encoder.
        verbose: whether to show progress on stderr.

    Returns:
        What was found, and None; or None and the signal that stopped it.
    """
    _check_packages()
    if is_launched():
        raise ValueError("torchrun trains one run on several hosts: start a sweep without it; --storage divides it.")
    check_objective(options.objective, start.run.until_return)
    problem = _pose(start, given, options, directory, env_factory, encoder)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"cannot create {directory}: {describe(error)}; choose another run directory.") from error
    with locked(directory, directory), _quietly():
        study = _open_study(problem, options)
        untuned = describe_untuned(start)
        if untuned is not None:
            log.info("%s", untuned)
        log.info("%s", _announce(problem, options))
        search = Search(problem, study, options.trials, options.minutes)
        stopped = run_plan(search, "fastac.studies.training", GRACE_S, verbose)
        if stopped is not None:
            return None, stopped
        found = Findings.read(study)
        if found.best is None:
            raise ValueError(f"no trial of {directory} was completed: give more --minutes, or fewer --total-env-steps.")
        candidates, stopped = _confirm(problem, found, options.confirm_seeds, verbose)
        if stopped is not None:
            return None, stopped
        return _sum_up(problem, study, found, candidates, options.confirm_seeds), None


def _check_packages() -> None:
    if find_spec("optuna") is None:
        raise ValueError(f"a sweep needs optuna, which is not installed: {INSTALL['sweep']}.")
    check_packages()


def _quietly() -> warnings.catch_warnings[None]:
    """Silence Optuna's log, and its warnings that a part of it may change."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning)


def _pose(
    start: Config,
    given: Sequence[str],
    options: SweepOptions,
    directory: Path,
    env_factory: EnvFactory | None,
    encoder: EncoderFactory | None,
) -> Problem:
    """Return the problem: the search space of one environment, and the settings of trials."""
    pool: Vectorization = "envpool" if start.env.vectorization == "envpool" else "auto"
    one = replace(start.env, num_envs=1, envs_per_worker=None, vectorization=pool)
    with closing(build_envs(one, np.random.SeedSequence(0), env_factory)) as envs:
        space = find_space(start, envs.single_observation_space, envs.single_action_space, given)
    if options.space is not None:
        space = change_space(space, options.space)
    for name in sorted({each.name for each in space} & set(given)):
        raise ValueError(f"{name} is given, and the search space names it: leave out one of them.")
    config = trial_config(start, given)
    if not config.run.eval or not config.run.eval_every:
        raise ValueError("a sweep compares trials by their evaluations: leave out --no-eval and --eval-every 0.")
    check_space(config, space)
    return Problem(
        config,
        space,
        options.objective,
        options.seeds_per_trial,
        options.pruner,
        directory,
        env_factory,
        encoder,
        options.storage is not None,
    )


def _announce(problem: Problem, options: SweepOptions) -> str:
    """Return a line about what will be done."""
    minutes = "" if options.minutes is None else f" or {options.minutes:g} minutes"
    names = ", ".join(each.name for each in problem.space)
    return (
        f"up to {options.trials} trials{minutes} of {count_seeds(problem.seeds)}, "
        f"{problem.config.run.total_env_steps:,} env steps each, in {problem.directory}; searched: {names}"
    )


def _open_study(problem: Problem, options: SweepOptions) -> optuna.Study:
    """Create the study, which begins with the settings without the sweep, or open that of the same problem.

    Raises:
        ValueError: the storage cannot be opened, or has another problem's study.
    """
    url = options.storage or f"sqlite:///{problem.directory.resolve() / 'study.db'}"
    name = options.study or (_slug(problem.config) if options.storage else "sweep")
    try:
        study = _create_study(url, name, problem)
    except Exception as error:  # Optuna's, SQLAlchemy's, and those of the database's driver
        raise ValueError(f"the storage {url} cannot be opened: {str(error).splitlines()[0]}") from error
    posed = _describe(problem)
    before = study.user_attrs.get(_PROBLEM)
    if before is None:
        study.set_user_attr(_PROBLEM, posed)
        known = {each.name: each.to_drawn(problem.config.to_flat()[each.name]) for each in problem.space}
        study.enqueue_trial({name: value for name, value in known.items() if value is not None})
        return study
    later = _flatten(Config())  # settings that older versions did not have
    for what in posed:
        if before.get(what, later.get(what)) != posed[what]:
            apart = f"{what} {before.get(what)!r}, and the command says {posed[what]!r}"
            apart = "another search space" if what == "space" else apart
            raise ValueError(
                f"{options.storage or problem.directory} holds a sweep with {apart}: give the command that began it, "
                f"or another {'--study' if options.storage else '--run-dir'}."
            )
    return study


def _create_study(url: str, name: str, problem: Problem) -> optuna.Study:
    """Create or open a study; once more after a moment if another machine was just making the same tables."""
    import optuna
    from sqlalchemy.exc import DBAPIError

    pruner = make_pruner(problem.pruner)
    make = partial(
        optuna.create_study,
        storage=url,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        pruner=pruner,
    )
    try:
        return make()
    except DBAPIError:
        time.sleep(_TABLES_S)
        return make()


def _describe(problem: Problem) -> dict[str, JsonValue]:
    """Return what must be the same when a sweep goes on, in JSON types."""
    flat = _flatten(problem.config)
    searched = {each.name for each in problem.space}
    described: dict[str, object] = {"space": [asdict(each) for each in problem.space]}
    described |= {name: value for name, value in flat.items() if name not in searched}
    described |= {"objective": problem.objective, "seeds_per_trial": problem.seeds, "pruner": problem.pruner}
    plain: dict[str, JsonValue] = json.loads(json.dumps(described))
    return plain


def _flatten(config: Config) -> dict[str, JsonValue]:
    found = {name: value for section in config.to_dict().values() for name, value in _items(section)}
    plain: dict[str, JsonValue] = json.loads(json.dumps(found))
    return plain


def _items(section: JsonValue) -> list[tuple[str, JsonValue]]:
    return list(section.items()) if isinstance(section, dict) else []


def _confirm(
    problem: Problem, found: Findings, seeds: int, verbose: bool
) -> tuple[tuple[Candidate, ...], signal.Signals | None]:
    """Train the best settings and the start with fresh seeds; return them, the best first."""
    configs: dict[str, tuple[Config, float | None]] = {}
    for trial in found.completed:
        config = problem.fit(trial.params)
        if len(configs) < _BEST and all(config != other for other, _ in configs.values()):
            configs[_START if config == problem.config else f"trial {trial.number}"] = (config, trial.value)
    if not seeds:
        return tuple(Candidate(name, config, value, ()) for name, (config, value) in configs.items()), None
    own = (trial.value for trial in found.completed if problem.fit(trial.params) == problem.config)
    configs.setdefault(_START, (problem.config, next(own, None)))
    fresh, folder = _fresh_seeds(problem, seeds), problem.directory / "fresh"
    tasks = {
        name: problem.tasks(name, config, folder / name.replace(" ", "-"), fresh)
        for name, (config, _) in configs.items()
    }
    every = [task for those in tasks.values() for task in those]
    log.info("%s: each with fresh seeds, %d", ", ".join(configs), seeds)
    plan = RunsPlan(every, [task for task in every if not is_done(task)], tells_each=False)
    stopped = run_plan(plan, "fastac.studies.training", GRACE_S, verbose)
    if stopped is not None:
        return (), stopped
    target = problem.config.run.until_return
    candidates = [
        Candidate(
            name,
            config,
            value,
            tuple(
                None if task.name in plan.failures else score(read_curve(task.run_dir), problem.objective, target)
                for task in tasks[name]
            ),
        )
        for name, (config, value) in configs.items()
    ]
    if all(candidate.mean is None for candidate in candidates):
        raise WorkerFailure(f"every setting failed with a fresh seed, such as: {next(iter(plan.failures.values()))}")
    return tuple(sorted(candidates, key=_rank)), None


def _rank(candidate: Candidate) -> tuple[float, bool]:
    """Return what candidates are sorted by; of equal ones the start comes first, since it needs no change."""
    return np.inf if candidate.mean is None else -candidate.mean, candidate.name != _START


def _fresh_seeds(problem: Problem, seeds: int) -> range:
    first = problem.config.run.seed + problem.seeds
    return range(first, first + seeds)


def _sum_up(
    problem: Problem,
    study: optuna.Study,
    found: Findings,
    candidates: tuple[Candidate, ...],
    seeds: int,
) -> Sweep:
    """Return what was found, and write the report."""
    config = candidates[0].config
    done = Sweep(
        config,
        changes(config, problem.config),
        candidates,
        problem.directory,
        problem.objective,
        len(found.completed),
        found.num_pruned,
        found.num_failed,
        tuple(sorted((trial.number, trial.value) for trial in found.completed if trial.value is not None)),
        _importances(study, found),
        tuple(_fresh_seeds(problem, seeds)),
    )
    write_report(done)
    return done


def _importances(study: optuna.Study, found: Findings) -> dict[str, float]:
    """Return how much each setting decides whether a trial is among the best tenth (PED-ANOVA, Watanabe et al. 2023).

    Empty with too few trials.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if len(found.completed) < LEAST_FOR_IMPORTANCE:
        return {}
    importances = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {name: value for name, value in importances.items() if np.isfinite(value)}
