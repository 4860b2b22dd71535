"""A run's evaluations: when they are played, their results, and which policy is the best."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from time import perf_counter

from fastac.build import EncoderFactory, EnvFactory
from fastac.config import Config
from fastac.contract import EnvFailure, Report, StateTree, WorkerFailure, read_branch, read_number
from fastac.models import load_module
from fastac.runs.evaluate import Evaluation
from fastac.runs.evaluation_schedule import EvaluationSchedule
from fastac.runs.evaluator import Request, open_evaluator, plays_where_it_trains
from fastac.runs.files import RecordError
from fastac.runs.progress import Evaluated
from fastac.runs.recorder import Recorder
from fastac.runs.saver import Saver
from fastac.runs.signals import Stop
from fastac.runs.state import env_steps_of
from fastac.runs.writers import EvaluationRow
from fastac.workers import Training

_ANY = 10**15  # env steps
LONGEST_TIMES = 2  # an episode may last this multiple of the longest training episode, if it has no other limit


class _StoppedError(Exception):
    """The run must stop while an evaluation is in progress."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """An evaluation in progress: its request, the training time, the state (None: the present one) and its start."""

    request: Request
    train_wall_s: float
    state: StateTree | None
    began: float


class Evaluations:
    """Plays and records a run's evaluations, and saves the best policy.

    Attributes:
        stop: ends an evaluation when a signal has arrived.
        latest: the latest evaluation, or None.
        best: the evaluation of the best policy; None if the best is known only from a checkpoint.
        last: after `play_last` the evaluation of the last policy, or None.
        beaten: env steps and mean return of the previous best policy, if the last one was better; or None.
    """

    def __init__(
        self,
        config: Config,
        training: Training,
        env_factory: EnvFactory | None,
        encoder: EncoderFactory | None,
        recorder: Recorder,
        saver: Saver,
    ) -> None:
        """Build no environments yet; start A3C's evaluator process in the background.

        Raises:
            ValueError: the environment factory or encoder cannot be sent to the evaluator's process.
        """
        self._config, self._training, self._recorder, self._saver = config, training, recorder, saver
        self._progress = saver.progress
        self._schedule = EvaluationSchedule(config, env_factory, self._progress)
        self._evaluator = open_evaluator(config, training, env_factory, encoder, self._tell)
        self.stop = Stop()
        self.latest: Evaluation | None = None
        self.best: Evaluation | None = None
        self.last: Evaluation | None = None
        self.beaten: tuple[int, float] | None = None
        self._env_steps, self._played_at = 0, -1  # of training so far; at the latest evaluation
        self._pending: _Pending | None = None  # the evaluation in progress

    @property
    def is_reached(self) -> bool:
        """Whether the run's target has been reached."""
        target, best = self._config.run.until_return, self._progress.best_mean_return
        return target is not None and best is not None and best >= target

    @property
    def max_steps(self) -> int:
        """Step limit of an evaluation's episode: the environment's own limit if it has one."""
        unfinished = self._env_steps // self._config.env.num_envs  # the episode in progress is at least this long
        longest = self._recorder.tracker.longest or unfinished
        return self._limit or max(1, LONGEST_TIMES * longest)

    @property
    def _limit(self) -> int | None:
        return self._config.run.eval_max_steps or self._training.envs.max_episode_steps

    def play_due(self, report: Report) -> None:
        """Begin an evaluation if one is due after `report`, and take a finished one.

        Raises:
            EnvFailure: an environment failed; the run is saved.
            WorkerFailure: the evaluator was lost; the run is saved.
        """
        self._env_steps = report.env_steps
        if self._pending is None and self._is_worthwhile and self._schedule.is_due(report.env_steps):
            self._begin(report, self._schedule.request(report.env_steps, self.max_steps))
        self._take(wait=False)

    def may_be_due(self, env_steps: int) -> bool:
        """Return whether an evaluation may be due when there are at most `env_steps`."""
        return self._schedule.is_due(env_steps)

    @property
    def _is_worthwhile(self) -> bool:
        """Whether training returns are high enough to evaluate, and a fair episode limit is known."""
        tracker, least = self._recorder.tracker, self._config.run.eval_from_return
        is_promising = least is None or (tracker.mean_return is not None and tracker.mean_return >= least)
        return is_promising and (self._limit is not None or tracker.longest > 0)

    def _begin(self, report: Report, request: Request, state: StateTree | None = None) -> None:
        """Begin to evaluate the present policy, or that of an earlier state if training runs concurrently."""
        self._pending = _Pending(request, report.train_wall_s, None, perf_counter())
        model: StateTree = {}
        if self._evaluator.is_concurrent:
            # Keep the evaluated state: it may turn out to be the best.
            state = self._saver.get_state() if state is None else state
            trainer, model = (read_branch(read_branch(state, "training"), name) for name in ("trainer", "model"))
            request = replace(request, env_steps=env_steps_of(state))
            self._pending = _Pending(request, read_number(trainer, "train_wall_s"), state, perf_counter())
        self._evaluator.begin(model, request)

    def _tell(self, played: int, episodes: int) -> None:
        """Show an evaluation's progress; raise if the run must stop."""
        if self.stop.signal is not None:
            raise _StoppedError
        self._recorder.evaluating(played, episodes)

    def _take(self, wait: bool) -> None:
        """Take the evaluation in progress once it has finished, and save the policy if it is the best so far."""
        received = self._receive(wait)
        if received is None:
            return
        pending, result = received
        best_so_far = self._progress.best_mean_return
        if best_so_far is None or result.mean_return > best_so_far:
            self._note_best(result, pending.request.env_steps)
            self._saver.save(pending.state, result.mean_return)
        elif pending.request.env_steps == self._progress.best_env_steps:
            self.best = result  # played once more after a resume
        self._show(pending.request.env_steps, result)

    def _receive(self, wait: bool) -> tuple[_Pending, Evaluation] | None:
        """Return the finished evaluation and its result, and record them; return None if it has not finished."""
        pending = self._pending
        if pending is None:
            return None
        try:
            result = self._evaluator.take(wait)
        except _StoppedError:
            self._pending = None
            return None
        except (EnvFailure, WorkerFailure, KeyboardInterrupt):
            # Save: training itself is sound. But keep an existing checkpoint of this step: the last evaluation may have
            # changed the state of the training environments.
            with suppress(RecordError):
                if self._saver.saved_at != self._env_steps:
                    self._saver.save()
            raise
        if result is None:
            return None
        self._pending, self.latest, self._played_at = None, result, pending.request.env_steps
        self._note(pending, result)
        return pending, result

    def _note(self, pending: _Pending, result: Evaluation) -> None:
        env_steps, wall_s = pending.request.env_steps, pending.train_wall_s
        self._recorder.write_evaluation(
            EvaluationRow(
                env_steps=env_steps,
                mean_return=result.mean_return,
                std=result.std_return,
                mean_length=result.mean_length,
                wall_s=wall_s,
                episodes=result.episodes,
                success_rate=result.success_rate,
            )
        )
        self._schedule.note(pending.request, result.calls, result.mean_length)
        self._progress.eval_wall_s += perf_counter() - pending.began
        self._note_solution(result.mean_return, env_steps, wall_s)

    def _note_solution(self, mean_return: float, env_steps: int, wall_s: float) -> None:
        target, progress = self._config.run.until_return, self._progress
        if target is not None and mean_return >= target and not progress.solved:
            progress.solved_wall_s, progress.solved_env_steps = wall_s, env_steps

    def _note_best(self, result: Evaluation, env_steps: int) -> None:
        self.best = result
        self._progress.best_mean_return, self._progress.best_env_steps = result.mean_return, env_steps

    def _show(self, env_steps: int, result: Evaluation) -> None:
        best, eval_wall_s = self._progress.best_mean_return, self._progress.eval_wall_s
        assert best is not None
        self._recorder.show_evaluation(Evaluated(env_steps, result.mean_return, result.std_return, best, eval_wall_s))

    def play_last(self, report: Report) -> None:
        """Evaluate the policies that the run may end with, the last and the best, and mark the better one.

        A signal interrupts the evaluation.

        Raises:
            EnvFailure, WorkerFailure: see `play_due`.
        """
        self._env_steps = report.env_steps
        self._take(wait=True)
        if self.is_reached:
            self._play_after_target(report)
            return
        if self._config.run.eval_every == 0 and not plays_where_it_trains(self._config):
            self._training.close()  # all is saved; do not keep two sets of environments open
        request = self._request_last(report)
        if self._played_at != report.env_steps or self._config.run.eval_episodes is None:
            self._begin(report, request)
            if self._receive(wait=True) is None:
                return
        self.last = self.latest
        assert self.last is not None
        self._compare_with_best(report, self.last, request)
        self._show(report.env_steps, self.last)

    def _request_last(self, report: Report) -> Request:
        return self._schedule.request_last(report.env_steps, self._recorder.tracker.mean_length, self.max_steps)

    def _play_after_target(self, report: Report) -> None:
        """Play missing evaluations; the policy that reached the target stays the best in any case."""
        if self.best is None:  # resumed after reaching the target: repeat the evaluation that reached it
            state = self._saver.load_best() if self._evaluator.is_concurrent else None
            self._begin(report, self._schedule.request(report.env_steps, self.max_steps), state)
            self._take(wait=True)
        if self._played_at != report.env_steps:  # workers trained on in the meantime
            self._begin(report, self._request_last(report))
            self._receive(wait=True)
        self.last = self.latest if self._played_at == report.env_steps else None

    def _compare_with_best(self, report: Report, last: Evaluation, request: Request) -> None:
        """Replay the best policy so far on the last policy's episodes, and mark the better of the two.

        The maximum of many evaluations is biased upwards: compare the two only over the same episodes.
        """
        best, best_at = self._progress.best_mean_return, self._progress.best_env_steps
        if best is not None and best_at is not None and best_at != report.env_steps and best > last.mean_return:
            again = self._play_best(replace(request, most=last.episodes, budget=_ANY))
            if again is None:
                return
            if again.mean_return > last.mean_return:
                self._mark(again, best_at)
                self._note_solution(again.mean_return, best_at, report.train_wall_s)
                return
            self.beaten = best_at, again.mean_return
        self._mark(last, report.env_steps)

    def _play_best(self, request: Request) -> Evaluation | None:
        """Play the best policy so far; return None if the run must stop."""
        began, model = perf_counter(), self._training.model
        last = {name: value.clone() for name, value in model.state_dict().items()}
        weights = self._saver.load_best_model()
        load_module(model, weights)
        try:
            self._evaluator.begin(weights, request)
            return self._evaluator.take(wait=True)
        except _StoppedError:
            return None
        finally:
            load_module(model, last)
            self._progress.eval_wall_s += perf_counter() - began

    def _mark(self, result: Evaluation, env_steps: int) -> None:
        """Mark a saved policy as the best, with its latest evaluation."""
        self._note_best(result, env_steps)
        self._saver.mark_best(env_steps, result.mean_return)

    def close(self) -> None:
        """Close the evaluator; safe to call twice."""
        self._evaluator.close()
