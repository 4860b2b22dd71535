"""The search of a sweep: Optuna proposes settings, and each trial trains them with several seeds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fastac.build import EncoderFactory, EnvFactory
from fastac.config import Config, ConfigValue
from fastac.contract import NonFiniteError
from fastac.processes import ChildFailure, Message
from fastac.studies.curves import tell_score
from fastac.studies.options import Objective, PrunerName
from fastac.studies.plan import Warnings
from fastac.studies.spaces import Dimension, SearchSpace, fit_settings
from fastac.studies.training import Rung, Task, train_trial
from fastac.trials import Standing, Trial

if TYPE_CHECKING:
    import optuna

Scores: TypeAlias = list[float] | None  # by seed; None: ended before

_RUNGS = 20  # evaluations of a trial
_UNPRUNED = 5  # trials that the median needs before it prunes
_WARM_RUNGS = 4  # a fifth of a trial: returns before that say little
_MOST_FAILED = 5  # trials that may fail before any succeeds

# Attributes of a trial in the study.
_FOLDER = "folder"  # of its runs
_PLACE = "place"  # the sweep that does it
_SCORES = "scores"  # by seed
_FAILED = "failed"  # why, in a sentence


@dataclass(frozen=True, slots=True)
class Problem:
    """What a sweep searches for.

    Attributes:
        config: the settings that are not searched; `total_env_steps` is the budget of a run.
        space: the others.
        objective: by what runs are compared, see `curves.score`.
        seeds: how many each trial has, from the configuration's own on.
        pruner: median: a trial ends if it is below the median of the others at the same evaluation; halving: three
            quarters end at each of some evaluations (successive halving); none.
        directory: of the sweep.
        env_factory: the user's environments, if a name is not enough.
        encoder: the user's encoder.
        has_shared_storage: whether other machines take part.
    """

    config: Config
    space: SearchSpace
    objective: Objective
    seeds: int
    pruner: PrunerName
    directory: Path
    env_factory: EnvFactory | None = None
    encoder: EncoderFactory | None = None
    has_shared_storage: bool = False

    def settings(self, params: Mapping[str, str | float]) -> dict[str, ConfigValue]:
        """Return the settings that Optuna's parameters stand for, before they are fitted to each other."""
        return {each.name: each.to_value(params[each.name]) for each in self.space if each.name in params}

    def fit(self, params: Mapping[str, str | float]) -> Config:
        """Return the configuration that Optuna's parameters stand for."""
        return fit_settings(self.config, self.settings(params))

    def tasks(self, name: str, config: Config, folder: Path, seeds: Sequence[int]) -> list[Task]:
        """Return the runs of one setting, which has a name."""
        given = self.env_factory, self.encoder
        return [
            Task(f"{name}, seed {seed}", config.replace(seed=seed), folder / f"seed{seed}", *given) for seed in seeds
        ]

    @property
    def place(self) -> str:
        """The name of this sweep among those that share a study."""
        if not self.has_shared_storage:
            return "here"
        import platform

        return f"{platform.node()}:{self.directory.resolve()}"


def trial_config(config: Config, given: Collection[str]) -> Config:
    """Return a configuration whose runs are evaluated often, and lose little if they are killed."""
    every = max(1, config.run.total_env_steps // _RUNGS)
    changes: dict[str, ConfigValue] = {"eval_every": every, "checkpoint_every": 2 * every, "keep_checkpoints": 1}
    changes["tensorboard"], changes["log"] = "log" in given and "tensorboard" in config.run.log, ()
    return config.replace(**{name: value for name, value in changes.items() if name not in given})


class Search:
    """The plan of a sweep's trials; the study keeps everything that it knows."""

    def __init__(self, problem: Problem, study: optuna.Study, trials: int, minutes: float | None) -> None:
        """Take over a study, and queue the trials that were interrupted here again.

        Args:
            problem: what is searched for.
            study: new, or of the same problem.
            trials: at most, those that are there included.
            minutes: at most, those before included; None: any.
        """
        self._problem, self._study, self._most = problem, study, trials
        self._minutes, self._began = minutes, time.monotonic()
        self._spent_s = float(study.user_attrs.get(self._spent_key, 0.0))
        self._running: dict[str, optuna.trial.Trial] = {}
        self._pruned: set[str] = set()
        self._warnings = Warnings()
        self._requeue()
        self._found = Findings.read(study)

    @property
    def _spent_key(self) -> str:
        return f"spent_s {self._problem.place}"

    @property
    def spent_s(self) -> float:
        """Seconds spent on the search so far, those before an interruption included."""
        return self._spent_s + time.monotonic() - self._began

    @property
    def is_over(self) -> bool:
        """Whether the minutes are spent."""
        return self._minutes is not None and self.spent_s >= 60.0 * self._minutes

    def _requeue(self) -> None:
        """Queue again what was running here when an earlier sweep was killed."""
        from optuna.trial import TrialState

        for lost in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if lost.user_attrs.get(_PLACE) != self._problem.place:
                continue
            if lost.params.keys() == {each.name for each in self._problem.space}:
                self._study.enqueue_trial(lost.params, user_attrs={_FOLDER: lost.user_attrs[_FOLDER]})
            self._study.tell(lost.number, state=TrialState.FAIL)

    def next(self) -> Trial[Scores] | None:
        """See `trials.Plan`."""
        while True:
            self._found = Findings.read(self._study)
            if self._found.num_begun >= self._most or self.is_over:
                return None
            self._study.sampler = self._make_sampler(self._found.num_begun)
            asked = self._study.ask()
            folder = asked.user_attrs.get(_FOLDER, f"{asked.number:04d}")
            asked.set_user_attr(_FOLDER, folder)
            asked.set_user_attr(_PLACE, self._problem.place)
            params = {each.name: _suggest(asked, each) for each in self._problem.space}
            try:
                config = self._problem.fit(params)
            except ValueError as error:  # a combination of the user's space that `check_space` has not drawn
                self._fail(asked, str(error), is_of_settings=True)
                continue
            return self._make_trial(asked, config, folder)

    def _make_trial(self, asked: optuna.trial.Trial, config: Config, folder: str) -> Trial[Scores]:
        first, name = config.run.seed, f"trial {asked.number}"
        seeds = range(first, first + self._problem.seeds)
        tasks = self._problem.tasks(name, config, self._problem.directory / "trials" / folder, seeds)
        self._running[name] = asked
        return Trial(name, partial(train_trial, tasks, self._problem.objective), config.num_workers)

    def _make_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return a sampler whose seed is the trial's: so an interrupted sweep goes on like an uninterrupted one."""
        from optuna.samplers import TPESampler

        entropy = [self._problem.config.run.seed, number]
        if self._problem.has_shared_storage:  # two machines must not propose the same
            entropy += list(self._problem.place.encode())
        return TPESampler(seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def hear(self, trial: Trial[Scores], message: Message) -> bool:
        """See `trials.Plan`."""
        self._warnings.take(trial.name, message)
        if isinstance(message, Rung):
            asked = self._running[trial.name]
            asked.report(message.score, message.number)
            if asked.should_prune():
                self._pruned.add(trial.name)
                return False
        return not self.is_over

    def keep(self, trial: Trial[Scores], result: Scores, wall_s: float) -> str:
        """See `trials.Plan`."""
        from optuna.trial import TrialState

        if result is None and trial.name not in self._pruned:
            return ""  # the minutes are over; the trial stays in the study as interrupted
        asked = self._running.pop(trial.name)
        best = self._found.best
        if result is None:
            self._end(asked, TrialState.PRUNED)
            return ""
        value = float(np.mean(result))
        asked.set_user_attr(_SCORES, result)
        self._end(asked, TrialState.COMPLETE, value)
        if best is not None and best.value is not None and value <= best.value:
            return ""
        return f"{trial.name} is the best so far: {tell_score(value, self._problem.objective)}"

    def fail(self, trial: Trial[Scores], error: ChildFailure) -> str:
        """See `trials.Plan`.

        Raises:
            EnvFailure, NonFiniteError, WorkerFailure: all of the first trials fail, so the fault is not a setting's.
        """
        self._fail(self._running.pop(trial.name), str(error), isinstance(error, NonFiniteError))
        if self._found.best is None and self._found.num_failed >= _MOST_FAILED:
            raise type(error)(f"the first {_MOST_FAILED} trials failed, the last of them {error}") from error.__cause__
        return f"failed: {error}"

    def _fail(self, asked: optuna.trial.Trial, why: str, is_of_settings: bool) -> None:
        """Tell the study that a trial failed.

        By its settings: then it is pruned, which counts as worse than all that were completed, and the sampler learns
        from it. Another failure says nothing about them.
        """
        from optuna.trial import TrialState

        asked.set_user_attr(_FAILED, why)
        self._end(asked, TrialState.PRUNED if is_of_settings else TrialState.FAIL)

    def _end(self, asked: optuna.trial.Trial, state: optuna.trial.TrialState, value: float | None = None) -> None:
        """Tell the study how a trial ended, and keep only settings and evaluations of its runs, which may be many."""
        self._study.tell(asked, value, state)
        self._study.set_user_attr(self._spent_key, self.spent_s)
        self._found = Findings.read(self._study)
        for run in (self._problem.directory / "trials" / asked.user_attrs[_FOLDER]).glob("seed*"):
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
            (run / "progress.jsonl").unlink(missing_ok=True)

    def tell(self, running: Sequence[str]) -> Standing:
        """See `trials.Plan`."""
        found, objective = self._found, self._problem.objective
        told = []
        if found.best is not None and found.best.value is not None:
            told.append(f"best {tell_score(found.best.value, objective)}")
        told += [f"{found.num_pruned} pruned"] if found.num_pruned else []
        told += [f"{found.num_failed} failed"] if found.num_failed else []
        return Standing(found.num_ended, self._most, ", ".join(told))


def _suggest(asked: optuna.trial.Trial, dimension: Dimension) -> str | float:
    """Return the parameter that Optuna proposes for a setting."""
    name, low, high = dimension.name, dimension.low, dimension.high
    is_log = dimension.kind.startswith("log")
    if dimension.kind == "categorical":
        return asked.suggest_categorical(name, dimension.labels)
    if dimension.kind.endswith("int"):
        return asked.suggest_int(name, int(low), int(high), log=is_log)
    return asked.suggest_float(name, low, high, log=is_log)


@dataclass(frozen=True, slots=True)
class Findings:
    """What a study holds; trials that were interrupted and done again count once.

    Attributes:
        completed: the trials with a score, the best first.
        num_begun: how many were begun.
        num_pruned: how many ended early.
        num_failed: how many failed.
    """

    completed: tuple[optuna.trial.FrozenTrial, ...]
    num_begun: int
    num_pruned: int
    num_failed: int

    @property
    def best(self) -> optuna.trial.FrozenTrial | None:
        """The trial with the best score."""
        return self.completed[0] if self.completed else None

    @property
    def num_ended(self) -> int:
        """How many have ended."""
        return len(self.completed) + self.num_pruned + self.num_failed

    @classmethod
    def read(cls, study: optuna.Study) -> Findings:
        """Read a study."""
        from optuna.trial import TrialState

        trials = study.get_trials(deepcopy=False)
        failed = [trial for trial in trials if _FAILED in trial.user_attrs]
        pruned = [t for t in trials if t.state == TrialState.PRUNED and _FAILED not in t.user_attrs]
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        completed = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        completed.sort(key=lambda trial: (-_value(trial), trial.number))
        num_begun = len(failed) + len(pruned) + len(running) + len(completed)
        return cls(tuple(completed), num_begun, len(pruned), len(failed))


def _value(trial: optuna.trial.FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def make_pruner(name: PrunerName) -> optuna.pruners.BasePruner:
    """Return Optuna's pruner of this name; see `Problem.pruner`."""
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    match name:
        case "median":
            return MedianPruner(n_startup_trials=_UNPRUNED, n_warmup_steps=_WARM_RUNGS)
        case "halving":
            return SuccessiveHalvingPruner(min_resource=_WARM_RUNGS)
        case "none":
            return NopPruner()
