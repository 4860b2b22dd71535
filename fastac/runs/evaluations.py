"""A run's evaluations: when they are played, their results, and which policy is the best."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from time import perf_counter

from fastac.build import EnvFactory
from fastac.config import Config
from fastac.contract import EnvFailure, Report, WorkerFailure
from fastac.models import load_module
from fastac.runs.evaluate import Evaluation
from fastac.runs.evaluation_schedule import EvaluationSchedule
from fastac.runs.evaluator import Request, open_stage, plays_where_it_trains
from fastac.runs.files import RecordError
from fastac.runs.progress import Evaluated
from fastac.runs.recorder import Recorder
from fastac.runs.saver import Saver
from fastac.runs.signals import Stop
from fastac.runs.writers import EvaluationRow
from fastac.workers import Training

_ANY = 10**15  # env steps
LONGEST_TIMES = 2  # an episode may last this multiple of the longest training episode, if it has no other limit


class _StoppedError(Exception):
    """The run must stop while an evaluation is in progress."""


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
        recorder: Recorder,
        saver: Saver,
    ) -> None:
        """Take the run's parts, and build no environments yet."""
        self._config, self._training, self._recorder, self._saver = config, training, recorder, saver
        self._progress = saver.progress
        self._schedule = EvaluationSchedule(config, env_factory, self._progress)
        self._stage = open_stage(config, training, env_factory)
        self.stop = Stop()
        self.latest: Evaluation | None = None
        self.best: Evaluation | None = None
        self.last: Evaluation | None = None
        self.beaten: tuple[int, float] | None = None
        self._env_steps, self._played_at = 0, -1  # of training so far; at the latest evaluation

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

    def is_due(self, report: Report) -> bool:
        """Return whether to evaluate after `report`."""
        return self._is_worthwhile and self._schedule.is_due(report.env_steps)

    def play(self, report: Report) -> None:
        """Evaluate the policy after `report`, and save it if it is the best so far.

        Raises:
            EnvFailure: an environment failed; the run is saved.
        """
        self._env_steps = report.env_steps
        result = self._play(report, self._schedule.request(report.env_steps, self.max_steps))
        if result is None:
            return
        best_so_far = self._progress.best_mean_return
        if best_so_far is None or result.mean_return > best_so_far:
            self._note_best(result, report.env_steps)
            self._saver.save(result.mean_return)
        elif report.env_steps == self._progress.best_env_steps:
            self.best = result  # played once more after a resume
        self._show(report.env_steps, result)

    def may_be_due(self, env_steps: int) -> bool:
        """Return whether an evaluation may be due when there are at most `env_steps`."""
        return self._schedule.is_due(env_steps)

    @property
    def _is_worthwhile(self) -> bool:
        """Whether training returns are high enough to evaluate, and a fair episode limit is known."""
        tracker, least = self._recorder.tracker, self._config.run.eval_from_return
        is_promising = least is None or (tracker.mean_return is not None and tracker.mean_return >= least)
        return is_promising and (self._limit is not None or tracker.longest > 0)

    def _tell(self, played: int, episodes: int) -> None:
        """Show an evaluation's progress; raise if the run must stop."""
        if self.stop.signal is not None:
            raise _StoppedError
        self._recorder.evaluating(played, episodes)

    def _play(self, report: Report, request: Request) -> Evaluation | None:
        """Play and record an evaluation of the policy after `report`; return None if the run must stop."""
        began = perf_counter()
        try:
            result = self._stage.play(request, self._tell)
        except _StoppedError:
            return None
        except (EnvFailure, WorkerFailure, KeyboardInterrupt):
            # Save: training itself is sound. But keep an existing checkpoint of this step: the last evaluation may have
            # changed the state of the training environments.
            with suppress(RecordError):
                if self._saver.saved_at != self._env_steps:
                    self._saver.save()
            raise
        self.latest, self._played_at = result, report.env_steps
        self._recorder.write_evaluation(
            EvaluationRow(
                env_steps=report.env_steps,
                mean_return=result.mean_return,
                std=result.std_return,
                mean_length=result.mean_length,
                wall_s=report.train_wall_s,
                episodes=result.episodes,
                success_rate=result.success_rate,
            )
        )
        self._schedule.note(request, result.calls, result.mean_length, result.episodes)
        self._progress.eval_wall_s += perf_counter() - began
        self._note_solution(result.mean_return, report.env_steps, report.train_wall_s)
        return result

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
            EnvFailure: see `play`.
        """
        self._env_steps = report.env_steps
        if self.is_reached:
            self._play_after_target(report)
            return
        if self._config.run.eval_every == 0 and not plays_where_it_trains(self._config):
            self._training.close()  # all is saved; do not keep two sets of environments open
        request = self._request_last(report)
        is_new = self._played_at != report.env_steps or self._config.run.eval_episodes is None
        if is_new and self._play(report, request) is None:
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
            if self._progress.best_env_steps == report.env_steps:
                self.play(report)
            else:
                self.best = self._play_best(self._schedule.request(report.env_steps, self.max_steps))
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
        load_module(model, self._saver.load_best_model())
        try:
            return self._stage.play(request, self._tell)
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
        """Close the environments; safe to call twice."""
        self._stage.close()
