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
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Literal

from fastac.build import EncoderFactory, EnvFactory, save_spaces, single_thread
from fastac.models import load_module
from fastac.workers import Training
from fastac.config import Config, JsonValue
from fastac.contract import (
    Asynchrony,
    EnvFailure,
    NonFiniteError,
    Report,
    StateTree,
    WorkerFailure,
    read_branch,
    read_number,
)
from fastac.models import ActorCritic
from fastac.runs.checkpoint import best_mark, mark_best, prune_checkpoints, save_checkpoint
from fastac.runs.files import RecordError, one_sentence
from fastac.runs.progress import Bar, Evaluated, NullBar, open_bar
from fastac.runs.run_dir import RunDirectory
from fastac.runs.tracker import ReturnTracker
from fastac.runs.writers import EvaluationRow, NullWriter, ProgressWriter, TensorBoardWriter, progress_row
from fastac.runs.schedule import Schedule
from fastac.runs.signals import Stop, stop_signals
from fastac.runs.state import Ending, Progress, env_steps_of, last_report
from fastac.runs.summary import summarize
from fastac.runs.threads import steps_on_one_thread
from fastac.runs.efficiency import BareTimes, count_rows, efficiency, measure, rows_per_iteration
from fastac.runs.evaluate import Evaluation, Tell
from fastac.runs.evaluator import Request, open_evaluator, plays_where_it_trains

log = logging.getLogger("fastac")

_LONGEST_TIMES = 2  # an evaluation's episode may take so many times the longest of training, without other limits

_LEAST_TRAIN_S = 0.2  # of a run whose efficiency says something: a shorter one is mostly warming up


class _EvaluationStopped(Exception):
    """The run is to stop while an evaluation is being played."""


class Session:
    """A run in progress; iterate over it for reports, then call `finish`.

    A context manager too, which closes it. Where its loop is left by a break or an exception, what was done is saved
    and workers end; `finish` ends the run all the same.

    Attributes:
        config: the resolved configuration.
        directory: the run directory.
        tracker: mean return and rates so far.
        progress: what is remembered besides the trainer's state.
        stop_signal: the signal that ended the run early, or None.
        ended_by: why there are no more reports; None before that, and if the caller broke out of the loop.
        evaluation: the latest evaluation, or None; after `finish` that of the best policy, if it is known.
        last_evaluation: after `finish` that of the last policy, or None.
        command: the command line that began the run, or "".
        bare_times: what `finish` measured, or None.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        training: Training,
        began: float,
        env_factory: EnvFactory | None = None,
        encoder: EncoderFactory | None = None,
        state: StateTree | None = None,
        verbose: bool = False,
        command: str = "",
    ) -> None:
        """Take the assembled run; with `state`, continue from there. Made by `start` and `resume`.

        `began` is what `perf_counter` said before it was assembled: from then on its minutes count.
        """
        self._began = began
        self.config, self.directory = config, directory
        self._env_factory = env_factory
        self.training = training
        self.tracker = ReturnTracker()
        self.stop_signal: signal.Signals | None = None
        self.ended_by: Ending | None = None
        self._report: Report | None = None
        self.evaluation: Evaluation | None = None
        self.last_evaluation: Evaluation | None = None
        self.bare_times: BareTimes | None = None
        self._steps_seen = 0
        self._evaluated_at, self._saved_at = -1, -1  # env steps
        self._pending: _Pending | None = None  # the evaluation in progress
        self._stop = Stop()
        self._closed = False
        self._left: StateTree | None = None  # what was when the loop was left, where workers ended with it
        self._summary: dict[str, JsonValue] = {}
        self.command = command
        self.progress = Progress()
        self._best: Evaluation | None = None  # of the best policy, unless that is known from a checkpoint alone
        self._log_start()
        if verbose and not log.isEnabledFor(logging.INFO):  # from Python, where nobody has asked for the log
            print(f"{config.algo.algo} on {config.env.env_id}: run directory {directory.path}", file=sys.stderr)
        if state is not None:
            self._take_in(state)
        self._schedule = Schedule(config, env_factory, self.progress)
        with ExitStack() as opened:  # closed where this fails, by `close`, and where nobody needs the session any more
            opened.enter_context(closing(training))
            self._writers = self._open_writers(state)
            for writer in self._writers:
                opened.enter_context(closing(writer))
            bar = open_bar(config.run.total_env_steps) if verbose else NullBar()
            self._bar: Bar = opened.enter_context(closing(bar))
            evaluator = open_evaluator(config, training, env_factory, encoder, _weakly(self._tell_evaluating))
            self._evaluator = opened.enter_context(closing(evaluator))
            if state is not None:
                directory.reopen(config)
                prune_checkpoints(directory.path, config.run.keep_checkpoints)  # a kill may have come before it
                log.info("continuing from step %d", self._steps_seen)
            self._opened = opened.pop_all()
        weakref.finalize(self, _close_quietly, self._opened)

    def __repr__(self) -> str:
        """Tell what is trained, how far it is, and where."""
        config = self.config
        steps = f"{self._steps_seen:,} of {config.run.total_env_steps:,} env steps"
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
        return self._saved_at >= 0

    def _log_start(self) -> None:
        config = self.config
        log.info(
            "%s on %s: %d envs x %d steps, %s",
            config.algo.algo,
            config.env.env_id,
            config.env.num_envs,
            config.algo.num_steps,
            self.training.description,
        )
        workers = config.run.workers
        log.info(
            "rollout %.2f MB, activations %.2f MB%s, device %s, run directory %s",
            self.training.rollout_nbytes / 1e6,
            self.training.activations_nbytes / 1e6,
            f" in each of {workers} workers" if workers != 1 else "",
            config.run.device,
            self.directory.path,
        )
        if config.run.eval and config.run.eval_max_steps is None and self.training.envs.max_episode_steps is None:
            log.info(
                "%s names no time limit: an evaluation's episode is cut after %d times the longest training episode "
                "(--eval-max-steps sets another limit)",
                config.env.env_id,
                _LONGEST_TIMES,
            )

    def _open_writers(self, state: StateTree | None) -> tuple[ProgressWriter, TensorBoardWriter | NullWriter]:
        trainer = self.training.trainer
        mark = None if state is None else (trainer.iteration, trainer.env_steps)
        rows = ProgressWriter(self.directory.progress_path, resume_at=mark)
        if not self.config.run.tensorboard:
            return rows, NullWriter()
        return rows, TensorBoardWriter(self.directory.tensorboard_path, self.config, mark and mark[1])

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
        if self._report is not None:  # resumed: perhaps only the end is missing
            self.ended_by = self._find_ending(Stop())
            if self.ended_by is not None:
                return
        try:
            # Closed by name: what the end of a generator raises, such as a second Ctrl-C, would be lost otherwise.
            with stop_signals() as stop, closing(self.training.trainer.run()) as reports:
                self._stop = stop
                self._evaluate_if_due()  # where a resumed run was stopped in its evaluation
                if self._is_reached:
                    self.ended_by = "until_return"
                    return
                for report in reports:
                    self._consume(report)
                    yield report
                    self.ended_by = self._find_ending(stop)
                    if self.ended_by is not None:
                        break
                else:
                    self.stop_signal = stop.signal  # it may have come after the last report
                    self.ended_by = "env_steps" if stop.signal is None else "signal"
        except NonFiniteError as error:
            saved = self._save_failure()
            self._abandon()
            raise NonFiniteError(f"{error}; {saved}.") from error
        except (EnvFailure, WorkerFailure):
            try:
                self._save_without_workers()
            finally:
                self._abandon()
            raise
        except (Exception, KeyboardInterrupt):
            self._abandon()
            raise
        except GeneratorExit:
            self._leave()
            raise

    def _check_open(self) -> None:
        if self._closed or self._left is not None:
            why = "the session is closed" if self._closed else "its workers ended when its loop was left"
            raise ValueError(f"{why}: go on with fastac.resume({str(self.directory.path)!r}).")

    def _leave(self) -> None:
        """Save what was done, and keep nobody waiting: whether the caller comes back nobody knows."""
        if self._closed or sys.is_finalizing():  # when Python ends, everything has been closed by now
            return
        try:
            self._save_unsaved()
            state = self._get_state()
        except (RecordError, EnvFailure, WorkerFailure) as error:
            log.warning("the loop was left, and not all that was done could be saved: %s", error)
            state = {}
        if self.training.rest():
            self._left = state

    def _save_unsaved(self) -> None:
        last = self.training.trainer.halt()
        if last is not None:
            self._record(last)
        if self._report is not None and self._saved_at != self._report.env_steps:
            self._save()

    @property
    def _is_reached(self) -> bool:
        target, best = self.config.run.until_return, self.progress.best_mean_return
        return target is not None and best is not None and best >= target

    @property
    def total_wall_s(self) -> float:
        """Seconds since the run began, without those in which it was not running."""
        return self.progress.total_wall_s + perf_counter() - self._began

    def _find_ending(self, stop: Stop) -> Ending | None:
        """Return why the run ends here, or None: it goes on, or all steps are spent, where the trainer itself ends."""
        if self._is_reached:
            return "until_return"
        self.stop_signal = stop.signal
        if self.stop_signal is not None:
            return "signal"
        run = self.config.run
        if run.budget_minutes is None or self._steps_seen >= run.total_env_steps:
            return None
        return "minutes" if self.total_wall_s >= 60.0 * run.budget_minutes else None

    def _consume(self, report: Report) -> None:
        before = self._steps_seen
        self._record(report)
        self._evaluate_if_due()
        if _passes(self.config.run.checkpoint_every, before, report.env_steps):
            self._save()

    def _evaluate_if_due(self) -> None:
        """Begin an evaluation if one is due after the latest report, and note one that is there."""
        report = self._report
        if (
            report is not None
            and self._pending is None
            and self._is_promising
            and self._knows_limit
            and self._schedule.is_due(report.env_steps)
        ):
            self._begin_evaluation(report)
        self._take_evaluation(wait=False)

    @property
    def _knows_limit(self) -> bool:
        """Whether evaluation's episodes can be cut fairly: before one has ended in training nobody knows how long."""
        limit = self.config.run.eval_max_steps or self.training.envs.max_episode_steps
        return limit is not None or self.tracker.longest > 0

    @property
    def _is_promising(self) -> bool:
        least, mean_return = self.config.run.eval_from_return, self.tracker.mean_return
        return least is None or (mean_return is not None and mean_return >= least)

    def _record(self, report: Report) -> None:
        # A3C reports now and then without news, or between two of a worker's counters.
        is_news = self._report is None or report.env_steps > self._report.env_steps
        self._report, self._steps_seen = report, report.env_steps
        self.tracker.update(report)
        if is_news:
            row = progress_row(report, self.tracker, self.training.action_std())
            for writer in self._writers:
                writer.write(row)
        self._bar.update(report, self.tracker)

    @property
    def max_eval_steps(self) -> int:
        """After how many steps an evaluation's episode is cut now: the environment's own limit where it has one."""
        limit = self.config.run.eval_max_steps or self.training.envs.max_episode_steps
        unfinished = self._steps_seen // self.config.env.num_envs  # an episode that has not ended is as long, or longer
        return limit or max(1, _LONGEST_TIMES * (self.tracker.longest or unfinished))

    def _tell_evaluating(self, played: int, episodes: int) -> None:
        """Show how far an evaluation is, and end it if the run is to stop."""
        if self._stop.signal is not None:
            raise _EvaluationStopped
        self._bar.evaluating(played, episodes)

    def _begin_evaluation(self, report: Report, state: StateTree | None = None, request: Request | None = None) -> None:
        """Begin to play, with the present policy or an earlier state's, as in between unless something is requested."""
        if request is None:
            request = self._schedule.request(report.env_steps, self.max_eval_steps)
        self._pending = _Pending(request, report.train_wall_s, None, perf_counter())
        model: StateTree = {}
        if self._evaluator.is_concurrent:
            # Training goes on meanwhile, so what is evaluated has to be kept: it may be the best.
            state = self._get_state() if state is None else state
            trainer, model = (read_branch(read_branch(state, "training"), name) for name in ("trainer", "model"))
            request = replace(request, env_steps=env_steps_of(state))
            self._pending = _Pending(request, read_number(trainer, "train_wall_s"), state, perf_counter())
        self._evaluator.begin(model, request)

    def _take_evaluation(self, wait: bool) -> None:
        """Note the evaluation in progress once it is there, and keep the policy if it is the best so far."""
        received = self._receive_evaluation(wait)
        if received is None:
            return
        pending, result = received
        if self.progress.best_mean_return is None or result.mean_return > self.progress.best_mean_return:
            self._note_best(result, pending.request.env_steps)
            self._save(pending.state, result.mean_return)
        elif pending.request.env_steps == self.progress.best_env_steps:
            self._best = result  # played once more after a resume
        self._show_evaluation(pending.request.env_steps, result)

    def _receive_evaluation(self, wait: bool) -> tuple[_Pending, Evaluation] | None:
        """Return the evaluation in progress and what it gave, written down, or None where it is not there."""
        pending = self._pending
        if pending is None:
            return None
        try:
            result = self._evaluator.take(wait)
        except _EvaluationStopped:
            self._pending = None
            return None
        except (EnvFailure, WorkerFailure, KeyboardInterrupt):
            # Training itself is sound. What is saved already stays: the last evaluation may play in its environments.
            with suppress(RecordError):
                if self._saved_at != self._steps_seen:
                    self._save()
            raise
        if result is None:
            return None
        self._pending, self.evaluation, self._evaluated_at = None, result, pending.request.env_steps
        self._note_evaluation(pending, result)
        return pending, result

    def _note_evaluation(self, pending: _Pending, result: Evaluation) -> None:
        env_steps, wall_s = pending.request.env_steps, pending.train_wall_s
        row = EvaluationRow(
            env_steps=env_steps,
            mean_return=result.mean_return,
            std=result.std_return,
            mean_length=result.mean_length,
            wall_s=wall_s,
            episodes=result.episodes,
            success_rate=result.success_rate,
        )
        for writer in self._writers:
            writer.write_evaluation(row)
        self._schedule.note(pending.request, result.calls, result.mean_length)
        self.progress.eval_wall_s += perf_counter() - pending.began
        self._note_solution(result.mean_return, env_steps, wall_s)

    def _note_solution(self, mean_return: float, env_steps: int, wall_s: float) -> None:
        target, progress = self.config.run.until_return, self.progress
        if target is not None and mean_return >= target and not progress.solved:
            progress.solved_wall_s, progress.solved_env_steps = wall_s, env_steps

    def _note_best(self, result: Evaluation, env_steps: int) -> None:
        self._best = result
        self.progress.best_mean_return, self.progress.best_env_steps = result.mean_return, env_steps

    def _show_evaluation(self, env_steps: int, result: Evaluation) -> None:
        best, eval_wall_s = self.progress.best_mean_return, self.progress.eval_wall_s
        assert best is not None
        self._bar.evaluated(Evaluated(env_steps, result.mean_return, result.std_return, best, eval_wall_s))

    def _save(self, state: StateTree | None = None, best_mean_return: float | None = None) -> None:
        """Save the present state, or an earlier one; `best_mean_return` is what it has reached if it is the best."""
        for writer in self._writers:
            writer.flush()
        state = self._get_state() if state is None else {**state, "progress": self._get_progress()}
        env_steps = env_steps_of(state)
        save_checkpoint(self.directory.path, env_steps, state, self.config, best_mean_return)
        prune_checkpoints(self.directory.path, self.config.run.keep_checkpoints)
        self._saved_at = max(self._saved_at, env_steps)

    def _save_without_workers(self) -> None:
        """Save the last good parameters after an environment or worker was lost; all environments begin anew."""
        last = self.training.trainer.halt()
        self.training.drop_workers()  # those in step are in the middle of an iteration
        with suppress(RecordError, WorkerFailure):  # what the worker was lost for is the news, also if within a step
            if last is not None:
                self._record(last)
            if self._report is not None and self._saved_at != self._report.env_steps:  # never over a better one
                self._save()

    def _save_failure(self) -> str:
        """Save the last good parameters beside the rollout that broke them; say where."""
        rollout = self.training.rollout
        state = self._get_state()
        if rollout is not None:
            names = ("obs", "start", "action", "reward", "value", "valid")
            first = rollout.observations.get_state(0)  # of stacks, the frames before row 0 too
            rows: StateTree = {name: getattr(rollout, name) for name in names}
            state = {**state, "rollout": {**rows, "first": first}}
        folder = self.directory.path / "failure"
        try:
            folder.mkdir(exist_ok=True)
            path = save_checkpoint(folder, self.training.trainer.env_steps, state, self.config)
        except (OSError, RecordError) as error:
            return f"the state before that update could not be saved ({error})"
        what = "the state before that update and its rollout are" if rollout else "the state is"
        return f"{what} saved in {path}"

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
                self._end(measure_efficiency)
            except (Exception, KeyboardInterrupt) as error:
                try:
                    if isinstance(error, WorkerFailure):
                        self._save_without_workers()
                finally:
                    self._abandon()
                raise
            self._close()
        if not self._summary:
            where = str(self.directory.path)
            raise ValueError(f"the session is closed, and its run has not ended: go on with fastac.resume({where!r}).")
        return self._summary

    def _end(self, measure_efficiency: bool) -> None:
        last = self.training.trainer.halt()
        if last is not None:
            self._record(last)
        if self._report is None:
            raise ValueError("nothing was trained yet, so there is nothing to finish: iterate over the session first.")
        report = self.report
        # Before the evaluation, which may take long or fail. What was saved before the minutes were over does not
        # say that they are.
        if self._saved_at != report.env_steps or self.ended_by == "minutes":
            self._save()
        if self.stop_signal is None and self.config.run.eval:
            with stop_signals() as self._stop:
                self._evaluate_last(report)
            self.stop_signal = self._stop.signal
        self.evaluation = self._best
        if measure_efficiency and self.stop_signal is None:
            self.bare_times = self._time_bare(report)
        self._summary = summarize(self)
        for writer in self._writers:
            writer.write_summary(self._summary)
        self.directory.write_summary(self._summary)

    def _evaluate_last(self, report: Report) -> None:
        """Play the policies that the run may end with, the last one and the best, and mark the better one."""
        self._take_evaluation(wait=True)
        if self._is_reached:
            self._evaluate_after_target(report)
            return
        if self.config.run.eval_every == 0 and not plays_where_it_trains(self.config):
            self.training.close()  # everything is saved, and no second set of environments is to be open beside these
        request = self._schedule.request_last(report.env_steps, self.tracker.mean_length, self.max_eval_steps)
        if self._evaluated_at != report.env_steps or self.config.run.eval_episodes is None:
            self._begin_evaluation(report, request=request)
            if self._receive_evaluation(wait=True) is None:
                return
        self.last_evaluation = self.evaluation
        assert self.last_evaluation is not None
        self._compare_with_best(report, self.last_evaluation, request)
        self._show_evaluation(report.env_steps, self.last_evaluation)

    def _evaluate_after_target(self, report: Report) -> None:
        """Play what was not yet: the policy that reached the target stays the best, whatever the last one reaches."""
        if self._best is None:  # resumed after its target was reached: what reached it plays as it did then
            self._begin_evaluation(report, self._load_best_state() if self._evaluator.is_concurrent else None)
            self._take_evaluation(wait=True)
        if self._evaluated_at != report.env_steps:  # workers had gone on meanwhile
            request = self._schedule.request_last(report.env_steps, self.tracker.mean_length, self.max_eval_steps)
            self._begin_evaluation(report, request=request)
            self._receive_evaluation(wait=True)
        self.last_evaluation = self.evaluation if self._evaluated_at == report.env_steps else None

    def _compare_with_best(self, report: Report, last: Evaluation, request: Request) -> None:
        """Mark the better one of the last policy and the best so far, which plays what the last one has played.

        Of many evaluations the best is so by luck too: only over the same episodes the two can be compared.
        """
        best, best_at = self.progress.best_mean_return, self.progress.best_env_steps
        if best is not None and best_at is not None and best_at != report.env_steps and best > last.mean_return:
            again = self._play_best(request)
            if again is None:
                return
            if again.mean_return > last.mean_return:
                self._mark(again, best_at)
                self._note_solution(again.mean_return, best_at, report.train_wall_s)
                return
        self._mark(last, report.env_steps)

    def _play_best(self, request: Request) -> Evaluation | None:
        """Play the best policy so far; None if the run is to stop."""
        began = perf_counter()
        last, model = self._copy_model(), read_branch(read_branch(self._load_best_state(), "training"), "model")
        load_module(self.training.model, model)
        try:
            self._evaluator.begin(model, request)
            return self._evaluator.take(wait=True)
        except _EvaluationStopped:
            return None
        finally:
            load_module(self.training.model, last)
            self.progress.eval_wall_s += perf_counter() - began

    def _mark(self, result: Evaluation, env_steps: int) -> None:
        """Mark a saved policy as the best, by its latest evaluation."""
        self._note_best(result, env_steps)
        path = self.directory.path
        mark_best(path, path / "checkpoints" / f"step-{env_steps:012d}", result.mean_return)
        prune_checkpoints(path, self.config.run.keep_checkpoints)  # what was the best before

    def _load_best_state(self) -> StateTree:
        return self.directory.load_checkpoint("best").state

    def copy_policy(self, which: Literal["best", "last"]) -> ActorCritic:
        """Return a copy of a policy: the one with the best evaluation, or the last one."""
        model = deepcopy(self.training.model)
        if which == "best" and self.progress.best_env_steps not in (None, self.report.env_steps):
            load_module(model, read_branch(read_branch(self._load_best_state(), "training"), "model"))
        return model

    def _copy_model(self) -> StateTree:
        return {name: value.clone() for name, value in self.training.model.state_dict().items()}

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
            return measure(config, self.training, rows, self._env_factory, config.run.seed)
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

    def _get_state(self) -> StateTree:
        if self._left:
            return {**self._left, "progress": self._get_progress()}
        return {
            "run_id": self.directory.run_id,
            "training": self.training.get_state(),
            "spaces": save_spaces(self.training.envs),
            "tracker": self.tracker.get_state(),
            "progress": self._get_progress(),
        }

    def _get_progress(self) -> StateTree:
        return asdict(replace(self.progress, total_wall_s=self.total_wall_s))

    def _take_in(self, state: StateTree) -> None:
        """Continue from a checkpoint's state, whatever somebody may have made of it.

        Raises:
            ValueError: it is malformed, or does not fit this run.
            WorkerFailure: a worker died or hung.
        """
        with one_sentence(f"the last checkpoint in {self.directory.path} does not fit this run"):
            self._restore(state)

    def _restore(self, state: StateTree) -> None:
        if not self.training.set_state(read_branch(state, "training")):
            log.warning("the state of the environments is not in the checkpoint: their episodes begin anew")
        self.tracker.load_state(read_branch(state, "tracker"))
        self._steps_seen = self._saved_at = env_steps_of(state)
        self._report = last_report(read_branch(read_branch(state, "training"), "trainer"), self.training.envs.frame_skip)
        self.tracker.update(self._report)
        # A run that has reached its target is resumed only towards a higher one: it is not solved yet.
        progress = Progress.from_state(read_branch(state, "progress"))
        progress = replace(progress, solved_wall_s=None, solved_env_steps=None)
        # What the mark says: it may be of an older checkpoint than this one, or have been moved since.
        best_at, best = best_mark(self.directory.path) or (None, None)
        self.progress = replace(progress, best_mean_return=best, best_env_steps=best_at)


def _weakly(tell: Tell) -> Tell:
    """Return what calls a method as long as its object is needed by somebody else."""
    method = weakref.WeakMethod(tell)

    def call(played: int, episodes: int) -> None:
        bound = method()
        if bound is not None:
            bound(played, episodes)

    return call


def _close_quietly(opened: ExitStack) -> None:
    """Close what a session had open that nobody holds any more, or that is there when Python ends."""
    with suppress(RecordError):  # there is nobody to tell
        opened.close()


@dataclass(frozen=True, slots=True)
class _Pending:
    """An evaluation that has begun: of what, after how many seconds, of what state (None: the present), and when."""

    request: Request
    train_wall_s: float
    state: StateTree | None
    began: float


def _passes(every: int, before: int, after: int) -> bool:
    """Return whether a multiple of `every` lies in (before, after]; never where `every` is 0."""
    return every > 0 and after // every > before // every
