"""The session of a run: the loop that logs, evaluates, saves and ends.

`Session` is the loop that the command line and the Python functions share. It is itself an iterator
of reports, so whoever wants the loop has it::

    session = fastac.start("CartPole-v1", algo="a2c", seed=0)
    for report in session:
        print(report.env_steps, session.tracker.mean_return)
    run = fastac.finish(session)
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Generator
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from time import perf_counter

from fastac.build import EncoderFactory, EnvFactory, Parts, load_module, single_thread
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
from fastac.records import (
    Bar,
    NullBar,
    NullWriter,
    ProgressWriter,
    RecordError,
    ReturnTracker,
    RunDirectory,
    TensorBoardWriter,
    best_mean_return,
    find_checkpoint,
    git_commit,
    load_checkpoint,
    mark_best,
    open_bar,
    peak_rss_mb,
    progress_row,
    prune_checkpoints,
    save_checkpoint,
    versions,
)
from fastac.run.signals import Stop, stop_signals
from fastac.run.state import Ending, Progress, env_steps_of, last_report
from fastac.run.threads import steps_on_one_thread
from fastac.tools.efficiency import BareTimes, count_rows, efficiency, measure, rows_per_iteration
from fastac.tools.evaluate import Evaluation
from fastac.tools.evaluator import open_evaluator

log = logging.getLogger("fastac")

_LEAST_TRAIN_S = 0.2  # of a run whose efficiency says something: a shorter one is mostly warming up


class Session:
    """A run in progress; iterate over it for reports, then call `finish`.

    Attributes:
        config: the resolved configuration.
        directory: the run directory.
        tracker: mean return and rates so far.
        stop_signal: the signal that ended the run early, or None.
        ended_by: why there are no more reports; None before that, and where who iterates has left.
        evaluation: the latest evaluation, or None.
        bare_times: what `finish` measured, or None.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        parts: Parts,
        began: float,
        env_factory: EnvFactory | None = None,
        encoder: EncoderFactory | None = None,
        state: StateTree | None = None,
        show_progress: bool = False,
        command: str = "",
    ) -> None:
        """Take the assembled run; with `state`, continue from there. Made by `start` and `resume`.

        `began` is what `perf_counter` said before it was assembled: from then on its minutes count.
        """
        self._began = began
        self.config, self.directory = config, directory
        self._env_factory = env_factory
        self.parts = parts
        self.tracker = ReturnTracker()
        self.stop_signal: signal.Signals | None = None
        self.ended_by: Ending | None = None
        self._report: Report | None = None
        self.evaluation: Evaluation | None = None
        self.bare_times: BareTimes | None = None
        self._steps_seen = 0 if state is None else env_steps_of(state)
        self._evaluated_at, self._saved_at = -1, -1 if state is None else self._steps_seen  # env steps
        self._pending: _Pending | None = None  # the evaluation that lasts
        self._is_due = False
        self._solution: StateTree | None = None  # what reached the target, where training went on meanwhile
        self._closed = False
        self._summary: dict[str, JsonValue] = {}
        self._command = command
        self._progress = Progress()
        self._log_start()
        if state is not None:
            self._restore(state)
            directory.reopen(config)
            log.info("continuing from step %d", self._steps_seen)
        self._writers = self._open_writers(state)
        self._bar: Bar = open_bar(config.run.total_env_steps) if show_progress else NullBar()
        self._evaluator = open_evaluator(config, parts.model, env_factory, encoder)

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
        return self.parts.asynchrony

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
            self.parts.description,
        )
        workers = config.run.workers
        log.info(
            "rollout %.2f MB, activations %.2f MB%s, device %s, run directory %s",
            self.parts.rollout_nbytes / 1e6,
            self.parts.activations_nbytes / 1e6,
            f" in each of {workers} workers" if workers != 1 else "",
            config.run.device,
            self.directory.path,
        )

    def _open_writers(self, state: StateTree | None) -> tuple[ProgressWriter, TensorBoardWriter | NullWriter]:
        trainer = self.parts.trainer
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
            EnvFailure: an environment failed, in training or evaluation; the last checkpoint stays.
            WorkerFailure: a worker or the evaluator was lost; the last good parameters are saved, unless it was
                within a step: then the last checkpoint stays.
            NonFiniteError: a loss or gradient is not finite; the state is saved under `failure/`.
            RecordError: the disk is full; the last checkpoint stays.
        """
        if self._report is not None:  # resumed: perhaps only the end is missing
            self.ended_by = self._find_ending(Stop())
            if self.ended_by is not None:
                return
        try:
            # Closed by name: what the end of a generator raises, such as a second Ctrl-C, would be lost otherwise.
            with stop_signals() as stop, closing(self.parts.trainer.run()) as reports:
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

    @property
    def _is_reached(self) -> bool:
        target, best = self.config.run.until_return, self._progress.best_mean_return
        return target is not None and best is not None and best >= target

    @property
    def _total_wall_s(self) -> float:
        return self._progress.total_wall_s + perf_counter() - self._began

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
        return "minutes" if self._total_wall_s >= 60.0 * run.budget_minutes else None

    def _consume(self, report: Report) -> None:
        before = self._steps_seen
        self._record(report)
        if _passes(self.config.run.eval_every, before, report.env_steps) and self._is_promising:
            self._is_due = True
        if self._is_due and self._pending is None:
            self._begin_evaluation(report)
        self._take_evaluation(wait=False)
        if _passes(self.config.run.checkpoint_every, before, report.env_steps):
            self._save()

    @property
    def _is_promising(self) -> bool:
        least, mean_return = self.config.run.eval_from_return, self.tracker.mean_return
        return least is None or (mean_return is not None and mean_return >= least)

    def _record(self, report: Report) -> None:
        self._report, self._steps_seen = report, report.env_steps
        self.tracker.update(report)
        row = progress_row(report, self.tracker, self.parts.action_std())
        for writer in self._writers:
            writer.write(row)
        self._bar.update(report, self.tracker)

    def _begin_evaluation(self, report: Report, state: StateTree | None = None) -> None:
        """Begin to play, in environments of their own, with the present policy or an earlier state's."""
        pending = _Pending(report.env_steps, report.train_wall_s, None, perf_counter())
        model: StateTree = {}
        if self._evaluator.is_beside:
            # Training goes on meanwhile, so what is evaluated has to be kept: it may be the best.
            state = self._get_state() if state is None else state
            trainer, model = (read_branch(read_branch(state, "parts"), name) for name in ("trainer", "model"))
            env_steps, train_wall_s = env_steps_of(state), read_number(trainer, "train_wall_s")
            pending = _Pending(env_steps, train_wall_s, state, perf_counter())
        self._pending, self._is_due = pending, False
        self._evaluator.begin(model, pending.env_steps)

    def _take_evaluation(self, wait: bool) -> None:
        """Note the evaluation in hand once it is there, whether it is the best, and whether it reaches the target."""
        pending, run = self._pending, self.config.run
        if pending is None:
            return
        try:
            result = self._evaluator.take(wait)
        except (EnvFailure, WorkerFailure, KeyboardInterrupt):
            with suppress(RecordError):
                self._save()  # training itself is sound
            raise
        if result is None:
            return
        self._pending, self.evaluation, self._evaluated_at = None, result, pending.env_steps
        for writer in self._writers:
            writer.write_evaluation(
                pending.env_steps, result.mean_return, result.std_return, result.mean_length, pending.train_wall_s
            )
        progress = self._progress
        if run.until_return is not None and result.mean_return >= run.until_return and not progress.solved:
            progress.solved_wall_s, progress.solved_env_steps = pending.train_wall_s, pending.env_steps
            self._solution = pending.state
        if progress.best_mean_return is None or result.mean_return > progress.best_mean_return:
            progress.best_mean_return = result.mean_return
            self._save(pending.state, result.mean_return)
        progress.eval_wall_s += perf_counter() - pending.began

    def _save(self, state: StateTree | None = None, best_mean_return: float | None = None) -> None:
        """Save the present state, or an earlier one; `best_mean_return` is what it has reached if it is the best."""
        for writer in self._writers:
            writer.flush()
        state = self._get_state() if state is None else {**state, "progress": self._get_progress()}
        env_steps = env_steps_of(state)
        path = save_checkpoint(self.directory.path, env_steps, state, self.config)
        if best_mean_return is not None:
            mark_best(self.directory.path, path, best_mean_return)
        prune_checkpoints(self.directory.path, self.config.run.keep_checkpoints)
        self._saved_at = max(self._saved_at, env_steps)

    def _save_without_workers(self) -> None:
        """Save the last good parameters after a worker was lost; its environments, and so all, begin anew."""
        if self.config.run.workers == 1 and not self._evaluator.is_beside:
            return  # what was lost was this process's own, and all of it
        last = self.parts.trainer.halt()
        self.parts.drop_workers()  # those in step are in the middle of an iteration
        with suppress(RecordError, WorkerFailure):  # what the worker was lost for is the news, also if within a step
            if last is not None:
                self._record(last)
            if self._report is not None and self._saved_at != self._report.env_steps:  # never over a better one
                self._save()

    def _save_failure(self) -> str:
        """Save the last good parameters beside the rollout that broke them; say where."""
        rollout = self.parts.rollout
        state = self._get_state()
        if rollout is not None:
            names = ("obs", "start", "action", "reward", "value", "valid")
            first = rollout.observations.get_state(0)  # of stacks, the frames before row 0 too
            rows: StateTree = {name: getattr(rollout, name) for name in names}
            state = {**state, "rollout": {**rows, "first": first}}
        folder = self.directory.path / "failure"
        try:
            folder.mkdir(exist_ok=True)
            path = save_checkpoint(folder, self.parts.trainer.env_steps, state, self.config)
        except (OSError, RecordError) as error:
            return f"the state before that update could not be saved ({error})"
        what = "the state before that update and its rollout are" if rollout else "the state is"
        return f"{what} saved in {path}"

    @single_thread()
    def finish(self, measure_efficiency: bool = False) -> dict[str, JsonValue]:
        """End the run: evaluate and save what was not yet, write `summary.json`, close; return the summary.

        After a stop signal it only saves. Calling it twice changes nothing.

        Args:
            measure_efficiency: see `fastac.tools.efficiency`; takes a quarter of a second, or as long as
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
        return self._summary

    def _end(self, measure_efficiency: bool) -> None:
        last = self.parts.trainer.halt()
        if last is not None:
            self._record(last)
        report = self.report
        # Before the evaluation, which may take long or fail. What was saved before the minutes were over does not
        # say that they are.
        if self._saved_at != report.env_steps or self.ended_by == "minutes":
            self._save()
        if self.stop_signal is None:
            self._take_evaluation(wait=True)
            if self.evaluation is None and self._is_reached and self._evaluator.is_beside:
                # Resumed after its target was reached, but not from there: workers had gone on meanwhile.
                best = load_checkpoint(find_checkpoint(self.directory.path, "best"), self.config.env.env_id)
                self._begin_evaluation(report, best.state)
                self._take_evaluation(wait=True)
            # Workers that went on while the target was reached have made a policy that nobody asked for.
            if self.evaluation is None or (self._evaluated_at != report.env_steps and not self._is_reached):
                self._begin_evaluation(report)
                self._take_evaluation(wait=True)
        if self._solution is not None:
            load_module(self.parts.model, read_branch(read_branch(self._solution, "parts"), "model"))
        if measure_efficiency:
            self.bare_times = self._time_bare(report)
        self._summary = self._summarize(report)
        for writer in self._writers:
            writer.write_summary(self._summary)
        self.directory.write_summary(self._summary)

    def _time_bare(self, report: Report) -> BareTimes | None:
        """Time what the run cannot do without; None where that would not say anything about the run.

        That is after a stop signal, where nobody wants to wait, after a run so short that it was mostly
        warming up, and on accelerators, whose captured graphs have no parts that could be called bare.
        """
        config = self.config
        if self.stop_signal is not None or report.train_wall_s < _LEAST_TRAIN_S or config.run.device != "cpu":
            return None
        try:
            rows = rows_per_iteration(config, report.iteration, report.env_steps)
            return measure(config, self.parts, rows, self._env_factory, config.run.seed)
        except (Exception, KeyboardInterrupt) as error:  # a trained run is not lost by what comes after it
            log.warning("efficiency was not measured: %s", str(error) or type(error).__name__)
            return None

    def _efficiency(self, report: Report) -> float | None:
        if self.bare_times is None:
            return None
        rows = count_rows(self.config, report.iteration, report.env_steps)
        return efficiency(self.bare_times, rows, report.train_wall_s)

    def _close(self) -> None:
        self._closed = True
        with ExitStack() as closing:  # closes each of them, whatever another one raises
            closing.callback(self.parts.close)
            closing.callback(self._evaluator.close)
            for writer in self._writers:
                closing.callback(writer.close)
            closing.callback(self._bar.close)

    def _abandon(self) -> None:
        """Close after an error; a disk that is full fails once more here, which is no news."""
        with suppress(RecordError):
            self._close()

    def _summarize(self, report: Report) -> dict[str, JsonValue]:
        """Return the content of `summary.json`; durations in seconds, memory in MB."""
        config, progress, evaluation = self.config, self._progress, self.evaluation
        return {
            "env_id": config.env.env_id,
            "algo": config.algo.algo,
            "seed": config.run.seed,
            "env_steps": report.env_steps,
            "frames": report.frames,
            "updates": report.updates,
            "episodes": report.episodes,
            "train_wall_s": report.train_wall_s,
            "eval_wall_s": progress.eval_wall_s,
            "total_wall_s": self._total_wall_s,
            "sps": self.tracker.sps,
            "sps_last_window": self.tracker.sps_window,
            "mean_return": self.tracker.mean_return,
            "eval_mean_return": evaluation.mean_return if evaluation else None,
            "eval_std_return": evaluation.std_return if evaluation else None,
            "best_eval_mean_return": progress.best_mean_return,
            "eval_actions": config.run.eval_actions,
            "until_return": config.run.until_return,
            "solved": progress.solved if config.run.until_return is not None else None,
            "solved_wall_s": progress.solved_wall_s,
            "solved_env_steps": progress.solved_env_steps,
            "phases": {**asdict(report.phases)},
            "efficiency": self._efficiency(report),
            "bare_times": {**asdict(self.bare_times)} if self.bare_times else None,
            "peak_rss_mb": peak_rss_mb(),
            "rollout_mb": self.parts.rollout_nbytes / 1e6,
            "activations_mb": self.parts.activations_nbytes / 1e6,
            "workers": config.run.workers,
            "asynchrony": _describe_asynchrony(self.asynchrony),
            "vectorization": self.parts.description,
            "ended_by": self.ended_by,
            "stopped_by": self.stop_signal.name if self.stop_signal else None,
            "versions": {**versions()},
            "git_commit": git_commit(),
            "command": self._command,
            "run_dir": str(self.directory.path),
        }

    def _get_state(self) -> StateTree:
        return {
            "parts": self.parts.get_state(),
            "tracker": self.tracker.get_state(),
            "progress": self._get_progress(),
        }

    def _get_progress(self) -> StateTree:
        return asdict(replace(self._progress, total_wall_s=self._total_wall_s))

    def _restore(self, state: StateTree) -> None:
        if not self.parts.set_state(read_branch(state, "parts")):
            log.warning("the state of the environments is not in the checkpoint: their episodes begin anew")
        self.tracker.load_state(read_branch(state, "tracker"))
        self._report = last_report(read_branch(read_branch(state, "parts"), "trainer"), self.parts.envs.frame_skip)
        self.tracker.update(self._report)
        # A run that has reached its target is resumed only towards a higher one: it is not solved yet.
        progress = Progress.from_state(read_branch(state, "progress"))
        best = best_mean_return(self.directory.path)
        if best is not None:
            progress.best_mean_return = max(best, progress.best_mean_return or best)
        self._progress = replace(progress, solved_wall_s=None, solved_env_steps=None)


@dataclass(frozen=True, slots=True)
class _Pending:
    """An evaluation that has begun: after how many steps and seconds, of what state (None: the present), and when."""

    env_steps: int
    train_wall_s: float
    state: StateTree | None
    began: float


def _describe_asynchrony(measured: Asynchrony | None) -> dict[str, JsonValue] | None:
    """Return what the summary says of workers that wait for nobody."""
    if measured is None:
        return None
    return {
        "mean_staleness": measured.mean_staleness,
        "max_staleness": measured.max_staleness,
        "staleness": measured.staleness.tolist(),
        "updates_per_worker": measured.updates.tolist(),
        "restarts": measured.restarts,
    }


def _passes(every: int, before: int, after: int) -> bool:
    """Return whether a multiple of `every` lies in (before, after]; never where `every` is 0."""
    return every > 0 and after // every > before // every
