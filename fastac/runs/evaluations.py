"""A run's evaluations: when they are played, what they gave, and which policy is the best."""

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
LONGEST_TIMES = 2  # an episode may take so many times the longest of training, where nothing else limits it


class _StoppedError(Exception):
    """The run is to stop while an evaluation is being played."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """An evaluation that has begun: of what, after how many seconds, of what state (None: the present), and when."""

    request: Request
    train_wall_s: float
    state: StateTree | None
    began: float


class Evaluations:
    """Plays a run's evaluations, writes them down, and saves the best policy.

    Attributes:
        stop: ends an evaluation when a signal has come.
        latest: the latest evaluation, or None.
        best: that of the best policy, unless that is known from a checkpoint alone.
        last: after `play_last` that of the last policy, or None.
        beaten: env steps and mean return of the best policy until then, where the last one was better; or None.
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
        """Build nothing yet; A3C's evaluator begins to start.

        Raises:
            ValueError: what builds environments or encoder cannot be sent to the evaluator's process.
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
        self._env_steps, self._played_at = 0, -1  # of training so far, and before the latest evaluation
        self._pending: _Pending | None = None  # the evaluation in progress

    @property
    def is_reached(self) -> bool:
        """Whether the run's target has been reached."""
        target, best = self._config.run.until_return, self._progress.best_mean_return
        return target is not None and best is not None and best >= target

    @property
    def max_steps(self) -> int:
        """After how many steps an evaluation's episode is cut now: the environment's own limit where it has one."""
        unfinished = self._env_steps // self._config.env.num_envs  # an episode that has not ended is as long, or longer
        longest = self._recorder.tracker.longest or unfinished
        return self._limit or max(1, LONGEST_TIMES * longest)

    @property
    def _limit(self) -> int | None:
        return self._config.run.eval_max_steps or self._training.envs.max_episode_steps

    def play_due(self, report: Report) -> None:
        """Begin an evaluation if one is due after `report`, and take one that is there.

        Raises:
            EnvFailure: an environment failed; the run is saved.
            WorkerFailure: the evaluator was lost; likewise.
        """
        self._env_steps = report.env_steps
        if self._pending is None and self._is_worthwhile and self._schedule.is_due(report.env_steps):
            self._begin(report, self._schedule.request(report.env_steps, self.max_steps))
        self._take(wait=False)

    @property
    def _is_worthwhile(self) -> bool:
        """Whether training promises something, and it is known how long an episode may be to be cut fairly."""
        tracker, least = self._recorder.tracker, self._config.run.eval_from_return
        is_promising = least is None or (tracker.mean_return is not None and tracker.mean_return >= least)
        return is_promising and (self._limit is not None or tracker.longest > 0)

    def _begin(self, report: Report, request: Request, state: StateTree | None = None) -> None:
        """Begin to play with the present policy; or with an earlier state's, where training goes on meanwhile."""
        self._pending = _Pending(request, report.train_wall_s, None, perf_counter())
        model: StateTree = {}
        if self._evaluator.is_concurrent:
            # What is evaluated has to be kept: it may be the best.
            state = self._saver.get_state() if state is None else state
            trainer, model = (read_branch(read_branch(state, "training"), name) for name in ("trainer", "model"))
            request = replace(request, env_steps=env_steps_of(state))
            self._pending = _Pending(request, read_number(trainer, "train_wall_s"), state, perf_counter())
        self._evaluator.begin(model, request)

    def _tell(self, played: int, episodes: int) -> None:
        """Show how far an evaluation is, and end it if the run is to stop."""
        if self.stop.signal is not None:
            raise _StoppedError
        self._recorder.evaluating(played, episodes)

    def _take(self, wait: bool) -> None:
        """Take the evaluation in progress once it is there, and save the policy if it is the best so far."""
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
        """Return the evaluation in progress and what it gave, written down, or None where it is not there."""
        pending = self._pending
        if pending is None:
            return None
        try:
            result = self._evaluator.take(wait)
        except _StoppedError:
            self._pending = None
            return None
        except (EnvFailure, WorkerFailure, KeyboardInterrupt):
            # Training itself is sound. What is saved already stays: the last evaluation may play in its environments.
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
        """Play the policies that the run may end with, the last one and the best, and mark the better one.

        Where a signal has come, they are not played to the end.

        Raises:
            EnvFailure, WorkerFailure: as `play_due`.
        """
        self._env_steps = report.env_steps
        self._take(wait=True)
        if self.is_reached:
            self._play_after_target(report)
            return
        if self._config.run.eval_every == 0 and not plays_where_it_trains(self._config):
            self._training.close()  # everything is saved, and no second set of environments is to be open beside these
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
        """Play what was not yet: the policy that reached the target stays the best, whatever the last one reaches."""
        if self.best is None:  # resumed after its target was reached: what reached it plays as it did then
            state = self._saver.load_best() if self._evaluator.is_concurrent else None
            self._begin(report, self._schedule.request(report.env_steps, self.max_steps), state)
            self._take(wait=True)
        if self._played_at != report.env_steps:  # workers had gone on meanwhile
            self._begin(report, self._request_last(report))
            self._receive(wait=True)
        self.last = self.latest if self._played_at == report.env_steps else None

    def _compare_with_best(self, report: Report, last: Evaluation, request: Request) -> None:
        """Mark the better one of the last policy and the best so far, which plays what the last one has played.

        Of many evaluations the best is so by luck too: only over the same episodes the two can be compared.
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
        """Play the best policy so far; None if the run is to stop."""
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
        """Mark a saved policy as the best, by its latest evaluation."""
        self._note_best(result, env_steps)
        self._saver.mark_best(env_steps, result.mean_return)

    def close(self) -> None:
        """End what evaluations need; safe to call twice."""
        self._evaluator.close()
