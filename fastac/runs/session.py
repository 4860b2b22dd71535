"""The training loop of a run: it logs, evaluates, saves and ends the run.

The command line and the Python functions share `Session`. It is an iterator of reports, so a caller can run
the loop itself::
    with fastac.start("CartPole-v1", algo="a2c", seed=0) as session:
        for report in session:
            print(report.env_steps, session.tracker.mean_return)
        run = fastac.finish(session)
"""

from __future__ import annotations

import logging
import signal
import sys
import weakref
from collections.abc import Generator
from contextlib import ExitStack, closing, suppress
from copy import deepcopy
from typing import Literal

from fastac.build import EnvFactory, torch_threads
from fastac.config import Config, JsonValue
from fastac.contract import Asynchrony, EnvFailure, NonFiniteError, Report, WorkerFailure
from fastac.models import ActorCritic, load_module
from fastac.runs.checkpoint import Checkpoint, prune_checkpoints
from fastac.runs.efficiency import BareTimes, count_rows, efficiency, measure, rows_per_iteration
from fastac.runs.evaluations import Evaluations
from fastac.runs.files import RecordError
from fastac.runs.recorder import Recorder
from fastac.runs.resuming import find_changes
from fastac.runs.run_dir import RunDirectory
from fastac.runs.saver import Saver, restore
from fastac.runs.signals import Stop, stop_signals
from fastac.runs.starting import log_start
from fastac.runs.state import Ending, Progress
from fastac.runs.summary import summarize
from fastac.runs.threads import steps_on_its_threads
from fastac.runs.tracker import ReturnTracker
from fastac.torchrun import is_launched
from fastac.workers import Hosts, Training

log = logging.getLogger("fastac")

_LEAST_TRAIN_S = 0.2  # seconds; a shorter run is mostly warm-up, so its efficiency means nothing


class Session:
    """A run in progress; iterate over it for reports, then call `finish`.

    Also a context manager, which closes the session. If its loop is left by a break or an exception, progress is
    saved and the workers end; `finish` can still end the run.

    Attributes:
        config: the resolved configuration.
        directory: the run directory.
        training: the environments, the policy and the workers.
        tracker: mean return and rates so far.
        progress: the state to save in addition to the training's own state.
        env_factory: builds the environments if the environment's name is not enough.
        evaluations: the latest evaluation; after `finish` also those of the best and the last policy.
        stop_signal: the signal that ended the run early, or None.
        ended_by: why there are no more reports; None before that, and if the caller broke out of the loop.
        command: the command line that began the run, or "".
        bare_times: the times that `finish` measured, or None.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        training: Training,
        began: float,
        held: ExitStack,
        env_factory: EnvFactory | None = None,
        checkpoint: Checkpoint | None = None,
        verbose: bool = False,
        command: str = "",
        hosts: Hosts | None = None,
    ) -> None:
        """Take the assembled run; with `checkpoint`, continue from there. `start` and `resume` call this.

        `began`: the value of `perf_counter` before the run was assembled; its budget of minutes counts from then.
        `held`: resources closed with the session, such as the directory lock.
        `hosts`: the run's hosts, of which this is the first, if torchrun has started it.
        """
        self._hosts = hosts
        self.config, self.directory, self.training, self.command = config, directory, training, command
        self.env_factory = env_factory
        self.tracker, self.progress = ReturnTracker(), Progress()
        self.stop_signal: signal.Signals | None = None
        self.ended_by: Ending | None = None
        self.bare_times: BareTimes | None = None
        self._report: Report | None = None
        self._summary: dict[str, JsonValue] = {}
        self._closed = False
        log_start(config, training, directory.path)
        self._before = None if checkpoint is None else checkpoint.config
        self._has_begun = False  # a resumed directory stays untouched until training starts
        if checkpoint is not None:
            self.progress, self._report = restore(checkpoint.state, directory, training, self.tracker)
        mark = None if self._report is None else (self._report.iteration, self._report.env_steps)
        saved_at = -1 if self._report is None else self._report.env_steps
        with ExitStack() as opened:  # closed if this block fails, by `close`, or when the session is garbage-collected
            opened.enter_context(held.pop_all())
            opened.enter_context(closing(training))
            recorder = Recorder(config, directory, self.tracker, mark, verbose)
            self._recorder = opened.enter_context(closing(recorder))
            self._saver = Saver(config, directory, training, recorder, self.progress, saved_at, began, hosts)
            evaluations = Evaluations(config, training, env_factory, recorder, self._saver)
            self.evaluations = opened.enter_context(closing(evaluations))
            if self._before is None:
                self._begin()
            self._opened = opened.pop_all()
        weakref.finalize(self, _close_quietly, self._opened)

    def __repr__(self) -> str:
        """Return the algorithm, the environment, the progress and the run directory as text."""
        config = self.config
        env_steps = 0 if self._report is None else self._report.env_steps
        steps = f"{env_steps:,} of {config.run.total_env_steps:,} env steps"
        what = f"{config.algo.algo} on {config.env.env_id}, seed {config.run.seed}"
        return f"Session({what}, {steps}, {self.directory.path})"

    @property
    def report(self) -> Report:
        """The latest report."""
        assert self._report is not None, "iterate over the session first"
        return self._report

    @property
    def asynchrony(self) -> Asynchrony | None:
        """How workers have interleaved so far, or None for synchronous training."""
        return self.training.asynchrony

    @property
    def is_saved(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self._saver.saved_at >= 0

    @property
    def total_wall_s(self) -> float:
        """Seconds since the run began, excluding the time when it was not running."""
        return self._saver.total_wall_s

    @steps_on_its_threads
    def __iter__(self) -> Generator[Report, None, None]:
        """Train; yield every report of the trainer after it is logged, evaluated and saved as due.

        Ends when the budget of steps or minutes is spent, the target is reached, or SIGINT or SIGTERM arrives;
        `ended_by` gives the reason. The budget of minutes is checked after every report, so a run that has
        already exceeded it still makes one report.

        Raises:
            ValueError: the session is closed, or its workers ended when its loop was left.
            EnvFailure: an environment failed, in training or evaluation; the last good parameters are saved.
            WorkerFailure: a worker was lost; the last good parameters are saved, unless it was lost within a step:
                then the last checkpoint stays.
            NonFiniteError: a loss or gradient is not finite; the state is saved under `failure/`.
            RecordError: the disk is full; the last checkpoint stays.
        """
        self._check_open()
        try:
            self._begin()
            if self._report is not None:  # resumed: the run may already be complete
                self.ended_by = self._find_ending(Stop())
            if self.ended_by is None:
                yield from self._train()
        except NonFiniteError as error:
            if self._hosts is not None:
                self._hosts.abandon()  # they all have come here
            saved = self._saver.save_failure()
            self._abandon()
            raise NonFiniteError(f"{error}; {saved}.") from error
        except (EnvFailure, WorkerFailure):
            try:
                self._save_without_workers()
            finally:
                self._abandon()
                if self._before is None and self._report is None:
                    self.directory.discard()
            raise
        except (Exception, KeyboardInterrupt):
            self._abandon()
            raise
        except GeneratorExit:
            self._leave()
            raise

    def _train(self) -> Generator[Report, None, None]:
        """Yield the trainer's reports until the run ends, and record why it ended."""
        # Close explicitly: an exception raised in implicit generator cleanup, such as a second Ctrl-C, is swallowed.
        with stop_signals() as stop, closing(self.training.trainer.run()) as reports:
            self.evaluations.stop = stop
            if self._hosts is not None:
                self._hosts.wish = lambda env_steps: self._wants_pause(env_steps, stop)
            if self._report is not None:  # resumed: an evaluation may have been interrupted
                self._play_due()
            if self.evaluations.is_reached:
                self.ended_by = "until_return"
                return
            self._go_on()
            for report in reports:
                self._consume(report)
                yield report
                if self.report is not report:  # what workers had done before they waited to be evaluated
                    yield self.report
                self.ended_by = self._find_ending(stop)
                if self.ended_by is not None:
                    return
                self._go_on()
            if self._hosts is not None:  # the others wait for the end
                self.ended_by = "env_steps"
                return
            self.stop_signal = stop.signal  # it may have arrived after the last report
            self.ended_by = "env_steps" if stop.signal is None else "signal"

    def _wants_pause(self, env_steps: int, stop: Stop) -> bool:
        """Return whether the other hosts must wait after the iteration that begins, by the most env steps after it."""
        assert self._hosts is not None
        self._hosts.own_signal = 0 if stop.signal is None else int(stop.signal)
        run, before = self.config.run, 0 if self._report is None else self._report.env_steps
        return (
            env_steps >= run.total_env_steps
            or _passes(run.checkpoint_every, before, env_steps)
            or self._saver.is_due
            or self._are_minutes_over
            or self.evaluations.may_be_due(env_steps)
        )

    def _go_on(self) -> None:
        if self._hosts is not None:
            self._hosts.go_on()

    @property
    def _is_alone(self) -> bool:
        """Whether no other host goes on while this one evaluates, saves or stops."""
        return self._hosts is None or self._hosts.is_paused

    @property
    def _are_minutes_over(self) -> bool:
        minutes = self.config.run.budget_minutes
        return minutes is not None and self.total_wall_s >= 60.0 * minutes

    def _check_open(self) -> None:
        if self._summary:
            raise ValueError(f"the run has ended: fastac.load({str(self.directory.path)!r}) reads it.")
        if self._closed:
            how = f"go on with {self.how_to_resume}" if self.is_saved else "nothing was saved: start anew"
            raise ValueError(f"the session is closed: {how}.")
        if self._saver.is_left:
            raise ValueError(
                "its workers ended when its loop was left: finish the session, or close it and go on with "
                f"{self.how_to_resume}."
            )

    @property
    def how_to_resume(self) -> str:
        """The Python code that continues the run to its end."""
        return f"fastac.complete(fastac.resume({str(self.directory.path)!r}))"

    def _begin(self) -> None:
        """Turn the directory into that of a run in progress, with the configuration that the run continues with."""
        if self._has_begun:
            return
        self._recorder.begin()
        if self._before is not None:
            self.directory.reopen(self.config, self.report.env_steps, find_changes(self._before, self.config))
            prune_checkpoints(self.directory.path, self.config.run.keep_checkpoints)  # a kill may have prevented it
            log.info("continuing from step %d", self.report.env_steps)
        self._has_begun = True

    def _consume(self, report: Report) -> None:
        self.directory.check_there()
        before = 0 if self._report is None else self._report.env_steps
        self._record(report)
        self._play_due()
        is_due = self._saver.is_due and self._is_alone
        if is_due or _passes(self.config.run.checkpoint_every, before, self.report.env_steps):
            self._saver.save()

    def _play_due(self) -> None:
        if not self.evaluations.is_due(self.report):
            return
        last = self.training.pause()
        if last is not None:
            self._record(last)
        if self.evaluations.is_due(self.report):  # not if the budget was spent meanwhile
            self.evaluations.play(self.report)

    def _record(self, report: Report) -> None:
        # A3C may report without progress, or between the updates of a worker's counters.
        is_news = self._report is None or report.env_steps > self._report.env_steps
        self._report = report
        self._recorder.report(report, self.training.action_std() if is_news else None, is_news)

    def _find_ending(self, stop: Stop) -> Ending | None:
        """Return why the run ends here, or None to continue; if all steps are spent, the trainer itself ends."""
        if self.evaluations.is_reached:
            return "until_return"
        if not self._is_alone:
            return None
        self.stop_signal = stop.signal
        if self._hosts is not None:  # only what all of them know of
            self.stop_signal = signal.Signals(self._hosts.signal) if self._hosts.signal else None
        if self.stop_signal is not None:
            return "signal"
        is_spent = self.report.env_steps >= self.config.run.total_env_steps
        return "minutes" if self._are_minutes_over and not is_spent else None

    def _leave(self) -> None:
        """Save, and stop the workers: the caller may never return."""
        if self._closed or sys.is_finalizing():  # at interpreter exit everything is already closed
            return
        try:
            self._save_unsaved()
            state = self._saver.get_state()
        except (RecordError, EnvFailure, WorkerFailure) as error:
            log.warning("the loop was left, and not all that was done could be saved: %s", error)
            state = {}
        if self.training.rest():
            self._saver.leave_at(state)

    def _save_unsaved(self) -> None:
        last = self.training.trainer.halt()
        if last is not None:
            self._record(last)
        if self._is_alone and self._report is not None and self._saver.saved_at != self._report.env_steps:
            self._saver.save()

    def _save_without_workers(self) -> None:
        """Save the last good parameters after losing an environment or a worker; all environments restart on resume.

        Under torchrun the run goes on from the last checkpoint instead, with the same results as without the failure.
        """
        if is_launched():
            return
        last = self.training.trainer.halt()
        self.training.drop_workers()  # synchronous workers are in the middle of an iteration
        with suppress(RecordError, WorkerFailure):  # the original failure is the one to report
            if last is not None:
                self._record(last)
            # Do not overwrite a complete checkpoint of the same step.
            if self._report is not None and self._saver.saved_at != self._report.env_steps:
                self._saver.save()

    def __enter__(self) -> Session:
        """Return the session."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the session."""
        self.close()

    def close(self) -> None:
        """Save unsaved progress, end all processes and close all files; safe to call twice.

        The run can be resumed. Call `finish` first to end it with its last evaluation and its summary.

        Raises:
            RecordError: the disk is full.
            WorkerFailure: a worker was lost.
        """
        if not self._closed:
            try:
                self._save_unsaved()
            finally:
                self._abandon()

    def finish(self, measure_efficiency: bool = False) -> dict[str, JsonValue]:
        """End the run: play the missing evaluation, save, write `summary.json`, close; return the summary.

        After a stop signal it only saves. Calling it twice changes nothing.

        Raises:
            ValueError: nothing was trained yet, or the session was closed before it was finished.

        Args:
            measure_efficiency: see `fastac.runs.efficiency`; takes an eighth of a second, or as long as
                it takes to build the environments again and step them twice.
        """
        with torch_threads(self.config.run.torch_threads):
            return self._finish(measure_efficiency)

    def _finish(self, measure_efficiency: bool) -> dict[str, JsonValue]:
        if not self._closed:
            try:
                has_trained = self._take_last()
                if has_trained:
                    self._end(measure_efficiency)
                    if self._hosts is not None:
                        self._hosts.leave()
            except (Exception, KeyboardInterrupt) as error:
                try:
                    if isinstance(error, WorkerFailure):
                        self._save_without_workers()
                finally:
                    self._abandon()
                raise
            if not has_trained:  # the caller may still iterate
                raise ValueError("nothing was trained yet: iterate over the session first, or fastac.complete it.")
            self._close()
        if not self._summary:
            self._check_open()
        return self._summary

    def _take_last(self) -> bool:
        """Record progress that was not reported yet; return whether anything was trained."""
        last = self.training.trainer.halt()
        if last is not None:
            self._record(last)
        return self._report is not None

    def _end(self, measure_efficiency: bool) -> None:
        self._begin()
        report = self.report
        # Save before the evaluation, which may take long or fail. If the budget of minutes ended the run, save again:
        # the earlier checkpoint does not record it.
        if self._saver.saved_at != report.env_steps or self.ended_by == "minutes":
            self._saver.save()
        if self.stop_signal is None and self.config.run.eval:
            with stop_signals() as stop:
                self.evaluations.stop = stop
                self.evaluations.play_last(report)
            self.stop_signal = stop.signal
        if measure_efficiency and self.stop_signal is None:
            self.bare_times = self._time_bare(report)
        self._summary = summarize(self)
        self._recorder.write_summary(self._summary)
        self.directory.write_summary(self._summary)

    def copy_policy(self, which: Literal["best", "last"]) -> ActorCritic:
        """Return a copy of the policy with the best evaluation, or of the last policy."""
        model = deepcopy(self.training.model)
        if which == "best" and self.progress.best_env_steps not in (None, self.report.env_steps):
            load_module(model, self._saver.load_best_model())
        return model

    def _time_bare(self, report: Report) -> BareTimes | None:
        """Measure the bare times of the run's parts; return None if they would say nothing about the run.

        This applies to runs that were mostly warm-up, and on accelerators, whose captured graphs cannot be split into
        parts. It is also skipped if no second set of environments may be opened.
        """
        config = self.config
        has_one_set = self._hosts is not None or not config.run.eval or config.run.eval_every == 0
        if has_one_set or report.train_wall_s < _LEAST_TRAIN_S or config.run.device != "cpu":
            return None
        try:
            rows = rows_per_iteration(config, report.iteration, report.env_steps)
            return measure(config, self.training, rows, self.env_factory, config.run.seed)
        except (Exception, KeyboardInterrupt) as error:  # a failed measurement must not lose a trained run
            log.warning("efficiency was not measured: %s", str(error) or type(error).__name__)
            return None

    @property
    def efficiency(self) -> float | None:
        """How close the run came to the machine's limit, see `fastac.runs.efficiency`; None if not measured."""
        if self.bare_times is None:
            return None
        rows = count_rows(self.config, self.report.iteration, self.report.env_steps)
        return efficiency(self.bare_times, rows, self.report.train_wall_s)

    def _close(self) -> None:
        self._closed = True
        self._opened.close()  # closes all of them even if one raises

    def _abandon(self) -> None:
        """Close after an error; ignore a second disk-full error. The other hosts see that this one has gone."""
        if self._hosts is not None:
            self._hosts.abandon()
        with suppress(RecordError):
            self._close()


def _close_quietly(opened: ExitStack) -> None:
    """Close the resources of a session that was garbage-collected or still open at interpreter exit."""
    with suppress(RecordError):  # no caller can handle it
        opened.close()


def _passes(every: int, before: int, after: int) -> bool:
    """Return whether a multiple of `every` lies in (before, after]; always False if `every` is 0."""
    return every > 0 and after // every > before // every
