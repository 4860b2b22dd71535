"""What the process of a trial does: one run, or the runs of one setting over seeds in turns."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastac.api import resume, start_config
from fastac.build import EncoderFactory, EnvFactory
from fastac.config import Config
from fastac.contract import Report
from fastac.runs import Session
from fastac.runs.copies import newest_checkpoint
from fastac.runs.resuming import rerun_config, why_complete
from fastac.runs.run_dir import RunDirectory
from fastac.studies.curves import read_curve, score, score_so_far
from fastac.studies.options import Objective
from fastac.trials import consult

_TELL_S = 0.25  # between two messages about progress


@dataclass(frozen=True, slots=True)
class Task:
    """A run to be made, or to be continued if it is there.

    Attributes:
        name: used in messages, such as "seed 3".
        config: complete.
        run_dir: the run's directory.
        env_factory: the user's environments, if a name is not enough.
        encoder: the user's encoder.
        command: stored in the summary.
    """

    name: str
    config: Config
    run_dir: Path
    env_factory: EnvFactory | None = None
    encoder: EncoderFactory | None = None
    command: str = ""


@dataclass(frozen=True, slots=True)
class Moment:
    """How far a run has come.

    Attributes:
        share: of its env steps.
        mean_return: of the latest training episodes, None before one has ended.
        sps: environment steps per second.
    """

    share: float
    mean_return: float | None
    sps: float


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning of a run."""

    text: str


@dataclass(frozen=True, slots=True)
class Rung:
    """What the runs of a trial have reached at one of its evaluations.

    Attributes:
        number: of the evaluation, from 1.
        score: mean over seeds, see `score_so_far`.
    """

    number: int
    score: float


# How long runs go on may change; what they learn by may not, since runs of one study are compared.
_CHANGEABLE = ("total_env_steps", "budget_minutes", "until_return", "workers")


def check_task(task: Task) -> None:
    """Refuse a run directory that holds another run than the task's.

    Raises:
        ValueError: a setting that cannot change differs.
    """
    if os.path.lexists(task.run_dir / "config.json"):
        rerun_config(RunDirectory.open(task.run_dir).read_config(), task.config, task.run_dir, _CHANGEABLE)


def is_done(task: Task) -> bool:
    """Return whether the task's run is there and complete."""
    if not (task.run_dir / "config.json").exists() or newest_checkpoint(task.run_dir)[0] < 0:
        return False
    directory = RunDirectory.open(task.run_dir)
    checkpoint = directory.load_checkpoint("last")
    config = rerun_config(checkpoint.config, task.config, task.run_dir, _CHANGEABLE)
    return why_complete(config, checkpoint, directory) is not None


def open_session(task: Task) -> Session | None:
    """Begin the task's run, or continue it from its last checkpoint; return None if it is complete.

    Raises:
        Exception: see `api.start_config` and `api.resume`.
    """
    if is_done(task):
        return None
    where = task.run_dir
    if os.path.lexists(where / "config.json"):
        directory = RunDirectory.open(where)
        if newest_checkpoint(where)[0] >= 0:
            run = rerun_config(directory.read_config(), task.config, where, _CHANGEABLE).run
            return resume(
                where,
                env=task.env_factory,
                encoder=task.encoder,
                total_env_steps=run.total_env_steps,
                budget_minutes=run.budget_minutes,
                until_return=run.until_return,
                workers=run.workers,
                command=task.command,
            )
        with directory.held():
            directory.clear()
    with suppress(OSError):  # empty, if a process was killed in the instant in which it began the run
        (where / "checkpoints").rmdir()
    return start_config(task.config, where, task.env_factory, task.encoder, command=task.command)


def train_run(task: Task) -> bool:
    """Train a run to its end; return whether it is complete, or was asked to stop, and is saved."""
    with _telling_warnings(), ExitStack() as opened:
        session = open_session(task)
        if session is None:
            return True
        opened.enter_context(session)
        reports = opened.enter_context(closing(iter(session)))
        told = time.monotonic()
        for report in reports:
            if time.monotonic() < told + _TELL_S:
                continue
            told = time.monotonic()
            if not consult(_look(session, report)):
                return False
        session.finish()
        return session.stop_signal is None


def _look(session: Session, report: Report) -> Moment:
    share = report.env_steps / session.config.run.total_env_steps
    return Moment(min(1.0, share), session.tracker.mean_return, session.tracker.sps)


def train_trial(tasks: Sequence[Task], objective: Objective) -> list[float] | None:
    """Train one setting with several seeds, in turns of one evaluation each, and return the scores.

    After every turn the mean over seeds is told, and the answer may end the trial; the result is then None.

    Args:
        tasks: one per seed, which differ in nothing else; evaluations come every `eval_every` env steps.
        objective: see `score`.
    """
    config = tasks[0].config
    every, total = config.run.eval_every, config.run.total_env_steps
    assert every, "a trial's evaluations are what it is compared by"
    with _telling_warnings(), ExitStack() as opened:
        streams: list[Generator[Report, None, None]] = []
        sessions: list[Session] = []
        for task in tasks:
            session = open_session(task)
            if session is not None:
                sessions.append(opened.enter_context(session))
                streams.append(opened.enter_context(closing(iter(session))))
        for number in range(1, -(-total // every)):
            for stream in streams:
                if not _advance(stream, number * every):
                    return None
            curves = [read_curve(task.run_dir) for task in tasks]
            scores = [score_so_far(curve, objective) for curve in curves if curve.size]
            if len(scores) == len(tasks) and not consult(Rung(number, float(np.mean(scores)))):
                return None
        for stream, session in zip(streams, sessions, strict=True):
            if not _advance(stream, None):
                return None
            session.finish()
            if session.stop_signal is not None:
                return None
    return [score(read_curve(task.run_dir), objective, config.run.until_return) for task in tasks]


def _advance(stream: Iterator[Report], env_steps: int | None) -> bool:
    """Train up to `env_steps`, None: to the end; return whether to go on."""
    told = time.monotonic()
    for report in stream:
        if env_steps is not None and report.env_steps >= env_steps:
            return True
        if time.monotonic() >= told + _TELL_S:
            told = time.monotonic()
            if not consult(None):
                return False
    return True


@contextmanager
def _telling_warnings() -> Iterator[None]:
    """Send warnings to the process that shows the progress, where all runs would say the same."""
    handler, log = _Teller(logging.WARNING), logging.getLogger("fastac")
    log.addHandler(handler)
    propagates, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagates


class _Teller(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        consult(Warned(record.getMessage()))
