"""The session of a run: the loop that logs, evaluates, saves and ends.

`Session` is the loop that the command line and the Python functions share. It is itself an iterator
of reports, so whoever wants the loop has it::

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

from fastac.build import EncoderFactory, EnvFactory, single_thread
from fastac.config import Config, JsonValue
from fastac.contract import Asynchrony, EnvFailure, NonFiniteError, Report, StateTree, WorkerFailure
from fastac.models import ActorCritic, load_module
from fastac.runs.checkpoint import prune_checkpoints
from fastac.runs.efficiency import BareTimes, count_rows, efficiency, measure, rows_per_iteration
from fastac.runs.evaluations import LONGEST_TIMES, Evaluations
from fastac.runs.files import RecordError
from fastac.runs.recorder import Recorder
from fastac.runs.run_dir import RunDirectory
from fastac.runs.saver import Saver, restore
from fastac.runs.signals import Stop, stop_signals
from fastac.runs.state import Ending, Progress
from fastac.runs.summary import summarize
from fastac.runs.threads import steps_on_one_thread
from fastac.runs.tracker import ReturnTracker
from fastac.workers import Training

log = logging.getLogger("fastac")

_LEAST_TRAIN_S = 0.2  # of a run whose efficiency says something: a shorter one is mostly warming up


class Session:
    """A run in progress; iterate over it for reports, then call `finish`.

    A context manager too, which closes it. Where its loop is left by a break or an exception, what was done is saved
    and workers end; `finish` ends the run all the same.

    Attributes:
        config: the resolved configuration.
        directory: the run directory.
        training: the environments, the policy and the workers.
        tracker: mean return and rates so far.
        progress: what is remembered besides the training's state.
        env_factory: what the environments are made from, where a name is not enough.
        evaluations: the latest evaluation, and after `finish` those of the best and the last policy.
        stop_signal: the signal that ended the run early, or None.
        ended_by: why there are no more reports; None before that, and if the caller broke out of the loop.
        command: the command line that began the run, or "".
        bare_times: what `finish` measured, or None.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        training: Training,
        began: float,
        held: ExitStack,
        env_factory: EnvFactory | None = None,
        encoder: EncoderFactory | None = None,
        state: StateTree | None = None,
        verbose: bool = False,
        command: str = "",
    ) -> None:
        """Take the assembled run; with `state`, continue from there. Made by `start` and `resume`.

        `began` is what `perf_counter` said before it was assembled: from then on its minutes count. `held` is what
        lasts as long as the session, such as the directory's lock.
        """
        self.config, self.directory, self.training, self.command = config, directory, training, command
        self.env_factory = env_factory
        self.tracker, self.progress = ReturnTracker(), Progress()
        self.stop_signal: signal.Signals | None = None
        self.ended_by: Ending | None = None
        self.bare_times: BareTimes | None = None
        self._report: Report | None = None
        self._summary: dict[str, JsonValue] = {}
        self._closed = False
        _log_start(config, training, directory)
        self._is_new = state is None
        self._has_begun = False  # nothing that was there before is changed until then
        if state is not None:
            self.progress, self._report = restore(state, directory, training, self.tracker)
        mark = None if self._report is None else (self._report.iteration, self._report.env_steps)
        saved_at = -1 if self._report is None else self._report.env_steps
        with ExitStack() as opened:  # closed where this fails, by `close`, and where nobody needs the session any more
            opened.enter_context(held.pop_all())
            opened.enter_context(closing(training))
            recorder = Recorder(config, directory, self.tracker, mark, verbose)
            self._recorder = opened.enter_context(closing(recorder))
            self._saver = Saver(config, directory, training, recorder, self.progress, saved_at, began)
            evaluations = Evaluations(config, training, env_factory, encoder, recorder, self._saver)
            self.evaluations = opened.enter_context(closing(evaluations))
            if self._is_new:
                self._begin()
            self._opened = opened.pop_all()
        weakref.finalize(self, _close_quietly, self._opened)

    def __repr__(self) -> str:
        """Tell what is trained, how far it is, and where."""
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
        """How workers have interleaved so far, or None where they are in step."""
        return self.training.asynchrony

    @property
    def is_saved(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self._saver.saved_at >= 0

    @property
    def total_wall_s(self) -> float:
        """Seconds since the run began, without those in which it was not running."""
        return self._saver.total_wall_s

    @steps_on_one_thread  # for small networks a second thread costs more than it brings
    def __iter__(self) -> Generator[Report, None, None]:
        """Train; yield every report of the trainer, after it was logged, evaluated and saved as due.

        Ends when the budget of steps or minutes is spent, the target is reached, or SIGINT or SIGTERM asked to
        stop; `ended_by` says which. The budget of minutes is looked at after every report, so that a run which
        is late from the start still makes one.

        Raises:
            ValueError: the session is closed, or its workers have ended with the loop that was left.
            EnvFailure: an environment failed, in training or evaluation; the last good parameters are saved.
            WorkerFailure: a worker or the evaluator was lost; the last good parameters are saved, unless it was
                within a step: then the last checkpoint stays.
            NonFiniteError: a loss or gradient is not finite; the state is saved under `failure/`.
            RecordError: the disk is full; the last checkpoint stays.
        """
        self._check_open()
        try:
            self._begin()
            if self._report is not None:  # resumed: perhaps only the end is missing
                self.ended_by = self._find_ending(Stop())
            if self.ended_by is None:
                yield from self._train()
        except NonFiniteError as error:
            saved = self._saver.save_failure()
            self._abandon()
            raise NonFiniteError(f"{error}; {saved}.") from error
        except (EnvFailure, WorkerFailure):
            try:
                self._save_without_workers()
            finally:
                self._abandon()
                if self._is_new and self._report is None:
                    self.directory.discard()
            raise
        except (Exception, KeyboardInterrupt):
            self._abandon()
            raise
        except GeneratorExit:
            self._leave()
            raise

    def _train(self) -> Generator[Report, None, None]:
        """Yield the trainer's reports until the run ends, and note why."""
        # Closed by name: what the end of a generator raises, such as a second Ctrl-C, would be lost otherwise.
        with stop_signals() as stop, closing(self.training.trainer.run()) as reports:
            self.evaluations.stop = stop
            if self._report is not None:  # where a resumed run was stopped in its evaluation
                self.evaluations.play_due(self._report)
            if self.evaluations.is_reached:
                self.ended_by = "until_return"
                return
            for report in reports:
                self._consume(report)
                yield report
                self.ended_by = self._find_ending(stop)
                if self.ended_by is not None:
                    return
            self.stop_signal = stop.signal  # it may have come after the last report
            self.ended_by = "env_steps" if stop.signal is None else "signal"

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
        """What to write in Python to go on to the end."""
        return f"fastac.complete(fastac.resume({str(self.directory.path)!r}))"

    def _begin(self) -> None:
        """Make the directory that of a run in progress, with the configuration that it goes on with."""
        if self._has_begun:
            return
        self._recorder.begin()
        if not self._is_new:
            self.directory.reopen(self.config)
            prune_checkpoints(self.directory.path, self.config.run.keep_checkpoints)  # a kill may have come before it
            log.info("continuing from step %d", self.report.env_steps)
        self._has_begun = True

    def _consume(self, report: Report) -> None:
        self.directory.check_there()
        before = 0 if self._report is None else self._report.env_steps
        self._record(report)
        self.evaluations.play_due(report)
        if _passes(self.config.run.checkpoint_every, before, report.env_steps):
            self._saver.save()

    def _record(self, report: Report) -> None:
        # A3C reports now and then without news, or between two of a worker's counters.
        is_news = self._report is None or report.env_steps > self._report.env_steps
        self._report = report
        self._recorder.report(report, self.training.action_std() if is_news else None, is_news)

    def _find_ending(self, stop: Stop) -> Ending | None:
        """Return why the run ends here, or None: it goes on, or all steps are spent, where the trainer itself ends."""
        if self.evaluations.is_reached:
            return "until_return"
        self.stop_signal = stop.signal
        if self.stop_signal is not None:
            return "signal"
        run = self.config.run
        if run.budget_minutes is None or self.report.env_steps >= run.total_env_steps:
            return None
        return "minutes" if self.total_wall_s >= 60.0 * run.budget_minutes else None

    def _leave(self) -> None:
        """Save what was done, and keep nobody waiting: whether the caller comes back nobody knows."""
        if self._closed or sys.is_finalizing():  # when Python ends, everything has been closed by now
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
        if self._report is not None and self._saver.saved_at != self._report.env_steps:
            self._saver.save()

    def _save_without_workers(self) -> None:
        """Save the last good parameters after an environment or worker was lost; all environments begin anew."""
        last = self.training.trainer.halt()
        self.training.drop_workers()  # those in step are in the middle of an iteration
        with suppress(RecordError, WorkerFailure):  # what the worker was lost for is the news, also if within a step
            if last is not None:
                self._record(last)
            if self._report is not None and self._saver.saved_at != self._report.env_steps:  # never over a better one
                self._saver.save()

    def __enter__(self) -> Session:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Save what was not saved yet, end all processes and close all files; safe to call twice.

        The run can be resumed. To end it, with its last evaluation and its summary, call `finish` first.

        Raises:
            RecordError: the disk is full.
            WorkerFailure: a worker was lost.
        """
        if not self._closed:
            try:
                self._save_unsaved()
            finally:
                self._abandon()

    @single_thread()
    def finish(self, measure_efficiency: bool = False) -> dict[str, JsonValue]:
        """End the run: evaluate and save what was not yet, write `summary.json`, close; return the summary.

        After a stop signal it only saves. Calling it twice changes nothing.

        Raises:
            ValueError: nothing was trained yet, or the session was closed before it was finished.

        Args:
            measure_efficiency: see `fastac.runs.efficiency`; takes a quarter of a second, or as long as
                it takes to build the environments again and step them twice.
        """
        if not self._closed:
            try:
                has_trained = self._take_last()
                if has_trained:
                    self._end(measure_efficiency)
            except (Exception, KeyboardInterrupt) as error:
                try:
                    if isinstance(error, WorkerFailure):
                        self._save_without_workers()
                finally:
                    self._abandon()
                raise
            if not has_trained:  # it may be iterated over still
                raise ValueError("nothing was trained yet: iterate over the session first, or fastac.complete it.")
            self._close()
        if not self._summary:
            self._check_open()
        return self._summary

    def _take_last(self) -> bool:
        """Take in what was not reported yet; return whether anything was trained."""
        last = self.training.trainer.halt()
        if last is not None:
            self._record(last)
        return self._report is not None

    def _end(self, measure_efficiency: bool) -> None:
        self._begin()
        report = self.report
        # Before the evaluation, which may take long or fail. What was saved before the minutes were over does not
        # say that they are.
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
        """Return a copy of a policy: the one with the best evaluation, or the last one."""
        model = deepcopy(self.training.model)
        if which == "best" and self.progress.best_env_steps not in (None, self.report.env_steps):
            load_module(model, self._saver.load_best_model())
        return model

    def _time_bare(self, report: Report) -> BareTimes | None:
        """Time what the run cannot do without; None where that would not say anything about the run.

        That is after a run so short that it was mostly warming up, and on accelerators, whose captured graphs have
        no parts that could be called bare. Nor is it done where no second set of environments is to be opened.
        """
        config = self.config
        has_one_set = not config.run.eval or config.run.eval_every == 0
        if has_one_set or report.train_wall_s < _LEAST_TRAIN_S or config.run.device != "cpu":
            return None
        try:
            rows = rows_per_iteration(config, report.iteration, report.env_steps)
            return measure(config, self.training, rows, self.env_factory, config.run.seed)
        except (Exception, KeyboardInterrupt) as error:  # a trained run is not lost by what comes after it
            log.warning("efficiency was not measured: %s", str(error) or type(error).__name__)
            return None

    @property
    def efficiency(self) -> float | None:
        """How near the run came to the machine, see `fastac.runs.efficiency`; None where that was not measured."""
        if self.bare_times is None:
            return None
        rows = count_rows(self.config, self.report.iteration, self.report.env_steps)
        return efficiency(self.bare_times, rows, self.report.train_wall_s)

    def _close(self) -> None:
        self._closed = True
        self._opened.close()  # each of them, whatever another one raises

    def _abandon(self) -> None:
        """Close after an error; a disk that is full fails once more here, which is no news."""
        with suppress(RecordError):
            self._close()


def _log_start(config: Config, training: Training, directory: RunDirectory) -> None:
    log.info(
        "%s on %s: %d envs x %d steps, %s",
        config.algo.algo,
        config.env.env_id,
        config.env.num_envs,
        config.algo.num_steps,
        training.info.description,
    )
    workers = config.run.workers
    log.info(
        "rollout %.2f MB, activations %.2f MB%s, device %s, run directory %s",
        training.info.rollout_nbytes / 1e6,
        training.info.activations_nbytes / 1e6,
        f" in each of {workers} workers" if workers != 1 else "",
        config.run.device,
        directory.path,
    )
    if config.run.eval and config.run.eval_max_steps is None and training.envs.max_episode_steps is None:
        log.info(
            "%s names no time limit: an evaluation's episode is cut after %d times the longest training episode "
            "(--eval-max-steps sets another limit)",
            config.env.env_id,
            LONGEST_TIMES,
        )


def _close_quietly(opened: ExitStack) -> None:
    """Close what a session had open that nobody holds any more, or that is there when Python ends."""
    with suppress(RecordError):  # there is nobody to tell
        opened.close()


def _passes(every: int, before: int, after: int) -> bool:
    """Return whether a multiple of `every` lies in (before, after]; never where `every` is 0."""
    return every > 0 and after // every > before // every
