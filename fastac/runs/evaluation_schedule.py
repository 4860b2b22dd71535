"""When a run evaluates, and over how many episodes: decided by steps and configuration alone, for reproducibility.

The budget of evaluations is a share of the training steps. Their cost is counted in steps as well: those that
training would have made in the same time, estimated from the number of environments per step of either. Measured
time would be more accurate, but would differ on every machine. Only confirming a target may cost more: a run that stays
just below its target spends up to half of its time on that.
"""

from __future__ import annotations

from fastac.build import EnvFactory, evaluation_width, is_batched
from fastac.config import Config, is_atari
from fastac.runs.evaluator import Request
from fastac.runs.state import Progress

# Shares of the training steps that evaluations may cost: intermediate ones, of the steps so far; the last one, of all
# steps. With a target return the share is larger, so that the target is detected sooner.
_SHARE, _SHARE_UNTIL, _LAST_SHARE = 0.05, 0.08, 0.02
# And a much larger share of the first _SOON steps of batched environments: they take a second, less than startup.
_SHARE_SOON, _SOON = 0.5, 100_000
_FEW_SHARE = 0.05  # of a short run's steps for the last evaluation, so that it has more than one or two episodes
_TIMES, _TIMES_UNTIL = 20, 100  # maximum number of evaluations in a run
_FEW, _FEW_BATCHED = 5, 10  # episodes of an intermediate evaluation
_FEW_GAMES = 20  # of Atari with a target: the same emulators confirm it, and 5 of them take 1.3 times as long per game
_MOST = 100  # episodes of the last evaluation, and to confirm that the target is reached
# A batched step and a forward pass cost about half of a training step of as many environments, which also learns.
_BATCHED_COST = 0.5


class EvaluationSchedule:
    """The evaluations of one run."""

    def __init__(self, config: Config, env_factory: EnvFactory | None, progress: Progress) -> None:
        """Continue from `progress`, which holds the cost of past evaluations."""
        self._config, self._factory, self._progress = config, env_factory, progress
        self._is_batched = is_batched(config.env, env_factory)

    def is_due(self, env_steps: int) -> bool:
        """Return whether an evaluation is due after `env_steps` of training."""
        run = self._config.run
        if not run.eval or run.eval_every == 0 or env_steps >= run.total_env_steps:  # the last evaluation follows
            return False
        latest, spent = self._progress.eval_latest, self._progress.eval_spent
        if run.eval_every is not None:
            return env_steps // run.eval_every > latest // run.eval_every
        until = run.until_return is not None
        every = run.total_env_steps // (_TIMES_UNTIL if until else _TIMES)
        return env_steps - latest >= every and spent <= self._may_cost(env_steps)

    def _may_cost(self, env_steps: int) -> float:
        """Return the allowed cost of intermediate evaluations after `env_steps` of training."""
        if self._config.run.until_return is None:
            return _SHARE * env_steps
        first = min(env_steps, _SOON) if self._is_batched else 0
        return _SHARE_SOON * first + _SHARE_UNTIL * (env_steps - first)

    def request(self, env_steps: int, max_steps: int) -> Request:
        """Return an intermediate evaluation."""
        run = self._config.run
        few = run.eval_episodes or self._few
        return Request(env_steps, few, self._confirming(few), run.until_return, max_steps)

    def request_last(self, env_steps: int, mean_length: float | None, max_steps: int) -> Request:
        """Return the last evaluation: 100 episodes, or fewer if they would cost too much."""
        run = self._config.run
        if run.eval_episodes is not None:
            return Request(env_steps, run.eval_episodes, run.eval_episodes, run.until_return, max_steps)
        if self._is_batched:
            return Request(env_steps, _MOST, _MOST, run.until_return, max_steps)
        length = max(mean_length or 0.0, self._progress.eval_mean_length) or max_steps
        few = max(1, min(self._few, int(_FEW_SHARE * env_steps / length)))
        # The first episodes show how many the budget allows: training's episodes may have other lengths.
        return Request(env_steps, few, _MOST, run.until_return, max_steps, int(_LAST_SHARE * env_steps))

    @property
    def _few(self) -> int:
        if self._is_batched:
            return _FEW_BATCHED
        is_game = is_atari(self._config.env.env_id) and self._config.run.until_return is not None
        return _FEW_GAMES if is_game else _FEW

    def _confirming(self, episodes: int) -> int:
        return episodes if self._config.run.eval_episodes is not None else _MOST

    def note(self, request: Request, calls: int, mean_length: float, episodes: int) -> None:
        """Record an evaluation that took `calls` steps of its environments for `episodes` episodes.

        Those beyond `request.episodes` were to confirm a target, and may cost more than the budget of the whole run:
        100 games of Pong are 170,000 steps. They delay the next evaluation by no more steps than all of it cost.
        """
        cost = calls * self._cost_of_call(evaluation_width(self._config.env, request.episodes, self._factory))
        progress, planned = self._progress, cost * request.episodes / episodes
        most = max(progress.eval_spent + planned, self._may_cost(request.env_steps + int(cost)))
        progress.eval_spent = min(progress.eval_spent + cost, most)
        progress.eval_latest, progress.eval_mean_length = request.env_steps, mean_length

    def _cost_of_call(self, width: int) -> float:
        """Return the cost of a step of `width` environments and a forward, in training steps of one environment."""
        num_envs = self._config.env.num_envs
        if self._is_batched:
            return _BATCHED_COST * max(width, num_envs)
        if is_atari(self._config.env.env_id):
            return float(width)
        # Slow environments are stepped in parallel: a step of few of them takes as long as one of many. Not by workers,
        # since their number must not decide when a run evaluates.
        return float(max(width, self._config.num_shards, min(num_envs, 16) // 2))
