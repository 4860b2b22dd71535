"""The plan of given runs: each is a trial, and one line shows how far they have come."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from functools import partial

from fastac.processes import ChildFailure, Message
from fastac.runs.run_dir import RunDirectory
from fastac.studies.training import Moment, Task, Warned, train_run
from fastac.trials import Standing, Trial

log = logging.getLogger("fastac")

GRACE_S = 20.0  # for runs to save themselves after a signal


def end_by(stopped: signal.Signals | None) -> None:
    """End the caller as `fastac.train` does, if a signal has stopped the runs.

    Raises:
        KeyboardInterrupt: SIGINT.
        SystemExit: SIGTERM.
    """
    if stopped == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    if stopped is not None:
        raise KeyboardInterrupt("all is saved: the same call with the same run_dir goes on")


class Warnings:
    """Logs what runs warn of, once each."""

    def __init__(self) -> None:
        """Start without any."""
        self._known: set[str] = set()

    def take(self, name: str, message: Message) -> None:
        """Log a trial's message if it is a new warning."""
        if isinstance(message, Warned) and message.text not in self._known:
            self._known.add(message.text)
            log.warning("%s: %s", name, message.text)


class RunsPlan:
    """Trains runs, those that are there and complete left out.

    Attributes:
        failures: by the task's name, in a sentence.
    """

    def __init__(self, tasks: Sequence[Task], missing: Sequence[Task], tells_each: bool = True) -> None:
        """Take all tasks, those that are to be trained, and whether there is a line about each."""
        self._tells_each = tells_each
        self.failures: dict[str, str] = {}
        self._tasks = {task.name: task for task in tasks}
        self._waiting = list(missing)
        self._done, self._total = len(tasks) - len(missing), len(tasks)
        self._moments: dict[str, Moment] = {}
        self._warnings = Warnings()

    def next(self) -> Trial[bool] | None:
        """See `trials.Plan`."""
        if not self._waiting:
            return None
        task = self._waiting.pop(0)
        return Trial(task.name, partial(train_run, task), task.config.num_workers)

    def hear(self, trial: Trial[bool], message: Message) -> bool:
        """See `trials.Plan`."""
        if isinstance(message, Moment):
            self._moments[trial.name] = message
        self._warnings.take(trial.name, message)
        return True

    def keep(self, trial: Trial[bool], result: bool, wall_s: float) -> str:
        """See `trials.Plan`."""
        self._end(trial)
        if not self._tells_each:
            return ""
        summary = RunDirectory.open(self._tasks[trial.name].run_dir).read_summary()
        reached, steps = summary.get("eval_mean_return"), summary.get("env_steps")
        told = f"mean return {reached:,.1f}" if isinstance(reached, float) else "nothing was evaluated"
        return f"{trial.name}: {told} after {steps:,} env steps, {wall_s:,.1f} s"

    def fail(self, trial: Trial[bool], error: ChildFailure) -> str:
        """See `trials.Plan`."""
        self._end(trial)
        self.failures[trial.name] = str(error).removeprefix(f"{trial.name}: ")
        return f"{trial.name} failed: {self.failures[trial.name]}"

    def _end(self, trial: Trial[bool]) -> None:
        self._moments.pop(trial.name, None)
        self._done += 1

    def tell(self, running: Sequence[str]) -> Standing:
        """See `trials.Plan`."""
        moments = [self._moments[name] for name in running if name in self._moments]
        told = f"{len(running)} running"
        returns = [moment.mean_return for moment in moments if moment.mean_return is not None]
        if moments:
            told += f", {_tell_rate(sum(moment.sps for moment in moments))} steps/s"
        if returns:
            told += f", return {sum(returns) / len(returns):,.1f}"
        return Standing(self._done + sum(moment.share for moment in moments), self._total, told if running else "")


def count_seeds(number: int) -> str:
    """Return a number of seeds in words."""
    return f"{number} seed{'s' * (number != 1)}"


def _tell_rate(sps: float) -> str:
    return f"{sps / 1e6:.1f}M" if sps >= 1e6 else f"{sps / 1e3:,.0f}k" if sps >= 1e4 else f"{sps:,.0f}"
