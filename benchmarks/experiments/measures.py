"""Measurements of an arm: learning curves, and the variance of advantages and of gradients.

Every measure is a function of a configuration, whose seed determines all randomness. Seconds count training only, on
as many cores as the configuration has workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.experiments.definition import Curve, Measurement, Number
from fastac.api import start_config
from fastac.build import Streams, assemble, build_envs, build_model, torch_threads
from fastac.build.worker import build_worker
from fastac.config import Config
from fastac.contract import Alone, NonFiniteError, Phases, StateTree, read_branch
from fastac.kernels import Op, gae
from fastac.learning.optimizer import flatten
from fastac.models import load_module
from fastac.rollout import Rollout
from fastac.runs.evaluate import MOST_STEPS
from fastac.runs.evaluator import Request, Stage
from fastac.runs.tracker import ReturnTracker
from fastac.workers import SyncTraining, Training

_POINTS = 100  # of a curve: the resolution of a picture
_WINDOW = 50  # averaging window, in episodes, of returns in training


@dataclass
class _Points:
    """A curve under construction."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)

    def add(self, x: float, y: float) -> None:
        self.x.append(x)
        self.y.append(y)

    def thinned(self, end: float | None = None) -> Curve:
        """Return the means over `_POINTS` equal intervals of x, up to `end` or the last point.

        An interval without a point repeats the previous mean. Without `end`, a curve of few points is unchanged.
        """
        x, y = np.array(self.x), np.array(self.y)
        if end is None and len(x) <= _POINTS:
            return Curve(tuple(self.x), tuple(self.y))
        edges = np.linspace(x[0], x[-1] if end is None else end, _POINTS + 1)
        inside = x <= edges[-1]
        stretch = np.clip(np.searchsorted(edges, x[inside], side="left") - 1, 0, _POINTS - 1)
        counts = np.bincount(stretch, minlength=_POINTS)
        means = np.bincount(stretch, weights=y[inside], minlength=_POINTS) / np.maximum(counts, 1)
        latest = np.maximum.accumulate(np.where(counts > 0, np.arange(_POINTS), 0))
        return Curve(tuple(edges[1:].tolist()), tuple(means[latest].tolist()))

    def first_from(self, x: float) -> Number:
        """Return y at the first point from `x` on, None if there is none."""
        at = int(np.searchsorted(self.x, x))
        return self.y[at] if at < len(self.y) else None

    def last_before(self, x: float) -> Number:
        """Return y at the last point up to `x`, None before the first."""
        at = int(np.searchsorted(self.x, x, side="right"))
        return self.y[at - 1] if at else None

    def fall_before(self, x: float) -> Number:
        """Return how far the last point up to `x` is below the best so far, None before the first."""
        at = int(np.searchsorted(self.x, x, side="right"))
        return max(self.y[:at]) - self.y[at - 1] if at else None

    def first_reaching(self, y: float) -> Number:
        """Return x at the first point of at least `y`, None if there is none."""
        return next((here for here, value in zip(self.x, self.y, strict=True) if value >= y), None)

    def percent_staying(self, y: float) -> Number:
        """Return the percentage of points after the first of at least `y` that reach `y`, too; None if none follows."""
        reaches = [value >= y for value in self.y]
        later = reaches[reaches.index(True) + 1 :] if True in reaches else []
        return 100.0 * sum(later) / len(later) if later else None


# --- learning curves -----------------------------------------------------------------------------


def learn(
    config: Config, threshold: float | None = None, at_env_steps: float | None = None, at_seconds: float | None = None
) -> Measurement:
    """Train over the whole budget, with the evaluations set in the configuration.

    Args:
        config: the run's configuration.
        threshold: a mean return of an evaluation, for `env_steps_to`, `seconds_to` and `stays`.
        at_env_steps: read the curve at the first evaluation from these steps on.
        at_seconds: read the curve at the first evaluation from these seconds on.

    Returns:
        Curves `return` and `return_by_seconds`; values `final_return`, `sps`, and if requested `env_steps_to`,
        `seconds_to` (None: not reached), `stays` (percent of later evaluations that reach it too, None: there are
        none), `return_at_env_steps` and `return_at_seconds` (None: ended before). If numbers became NaN or infinite,
        the curves end there (they may be missing), and `final_return` and `sps` are None.
    """
    by_steps, by_seconds = _Points(), _Points()
    with TemporaryDirectory(prefix="fastac-") as folder:
        session = start_config(config.replace(tensorboard=False, checkpoint_every=0), Path(folder, "run"))
        sps: Number = None
        with suppress(NonFiniteError):  # the seed failed, not the experiment
            for _ in session:
                pass
            sps = float(str(session.finish()["sps"]))
        if session.stop_signal is not None:
            raise KeyboardInterrupt
        lines = Path(folder, "run", "evaluations.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        by_steps.add(row["env_steps"], row["mean_return"])
        by_seconds.add(row["wall_s"], row["mean_return"])  # of training only
    values: dict[str, Number] = {"final_return": by_steps.y[-1] if sps is not None else None, "sps": sps}
    if threshold is not None:
        values |= {"env_steps_to": by_steps.first_reaching(threshold)}
        values |= {"seconds_to": by_seconds.first_reaching(threshold), "stays": by_steps.percent_staying(threshold)}
    if at_env_steps is not None:
        values |= {"return_at_env_steps": by_steps.first_from(at_env_steps)}
    if at_seconds is not None:
        values |= {"return_at_seconds": by_seconds.first_from(at_seconds)}
    curves = {"return": by_steps, "return_by_seconds": by_seconds}
    return Measurement({name: points.thinned() for name, points in curves.items() if points.x}, values)


@dataclass(frozen=True, slots=True)
class Horizons:
    """Limits of a run measured by episodes: it ends when all three are reached, or its own budget is spent.

    Attributes:
        episodes: training episodes.
        env_steps: training steps.
        seconds: training seconds.
    """

    episodes: int
    env_steps: int
    seconds: float


class EpisodeLog:
    """Returns of training episodes, in the order in which they end, with their times."""

    def __init__(self) -> None:
        """Start empty."""
        self._returns: list[float] = []
        self._by_episode, self._by_steps, self._by_seconds = _Points(), _Points(), _Points()
        self._progress: dict[str, float] = {}

    def note(self, return_: float, env_steps: int, seconds: float) -> None:
        """Add an episode."""
        self._returns.append(return_)
        mean = float(np.mean(self._returns[-_WINDOW:]))
        self._by_episode.add(len(self._returns), mean)
        self._by_steps.add(env_steps, mean)
        self._by_seconds.add(seconds, mean)

    def has_passed(self, horizons: Horizons, env_steps: int, seconds: float) -> bool:
        """Record the run's progress; return whether all horizons are reached."""
        episodes = len(self._returns)
        self._progress = {"episodes": episodes, "env_steps": env_steps, "seconds": seconds}
        return episodes >= horizons.episodes and env_steps >= horizons.env_steps and seconds >= horizons.seconds

    def to_trial(self, horizons: Horizons) -> Measurement:
        """Return the measurement up to each horizon.

        Returns:
            Curves `return_by_...` up to it; values `return_at_...`, the mean of the last 50 episodes before it, and
            `fall_at_...`, how much higher the best mean of 50 was until then (None: the run ended before).
        """
        curves: dict[str, Curve] = {}
        values: dict[str, Number] = {}
        for name, end in asdict(horizons).items():
            points = {"episodes": self._by_episode, "env_steps": self._by_steps, "seconds": self._by_seconds}[name]
            has_passed = self._progress[name] >= end
            curves[f"return_by_{name}"] = points.thinned(end if has_passed else None)
            values[f"return_at_{name}"] = points.last_before(end) if has_passed else None
            values[f"fall_at_{name}"] = points.fall_before(end) if has_passed else None
        return Measurement(curves, values)


def learn_by_episodes(config: Config, horizons: Horizons) -> Measurement:
    """Train and record every training episode, up to three horizons; see `EpisodeLog.to_trial`."""
    log = EpisodeLog()
    with _assembled(config) as training:
        for report in training.trainer.run():
            for return_ in report.finished.return_.tolist():
                log.note(return_, report.env_steps, report.train_wall_s)
            if log.has_passed(horizons, report.env_steps, report.train_wall_s):
                break
    return log.to_trial(horizons)


def learn_dqn(config: Config, horizons: Horizons) -> Measurement:
    """Like `learn_by_episodes`, with stable-baselines3's DQN and its zoo's tuned settings for CartPole-v1.

    Source: https://github.com/DLR-RM/rl-baselines3-zoo, hyperparams/dqn.yml. The configuration supplies the
    environment, the seed, the budget, learning rate, discount, hidden layers and steps between updates.
    """
    import gymnasium as gym
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback

    log, began = EpisodeLog(), 0.0

    class Note(BaseCallback):
        def _on_step(self) -> bool:
            seconds = perf_counter() - began
            for info in self.locals["infos"]:
                if "episode" in info:
                    log.note(float(info["episode"]["r"]), self.num_timesteps, seconds)
            return not log.has_passed(horizons, self.num_timesteps, seconds)

    with torch_threads(1), closing(gym.make(config.env.env_id)) as env:
        model = DQN(
            "MlpPolicy",
            env,
            learning_rate=config.optim.learning_rate,
            buffer_size=100_000,
            learning_starts=1_000,
            batch_size=64,
            gamma=config.algo.gamma,
            train_freq=config.algo.num_steps,
            gradient_steps=128,
            target_update_interval=10,
            exploration_fraction=8_000 / config.run.total_env_steps,  # 0.16 of the zoo's 50,000
            exploration_final_eps=0.04,
            policy_kwargs={"net_arch": list(config.model.hidden_sizes)},
            seed=config.run.seed,
            device="cpu",
        )
        began = perf_counter()
        model.learn(config.run.total_env_steps, Note())
    return log.to_trial(horizons)


@contextmanager
def _assembled(config: Config) -> Iterator[Training]:
    with torch_threads(1), closing(assemble(config, Streams.spawn(config.run.seed).env)) as training:
        yield training


# --- variance of advantages ----------------------------------------------------------------------


def advantage_variance(config: Config) -> Measurement:
    """Train, and measure the advantages of every rollout before they are normalised.

    Returns:
        Curves over env steps: `return`, the mean of the last 100 training episodes, and `variance`, of the
        advantages. Values: `final_return`, greedy; `variance`, the mean over the run; and `variance_ratio`, its ratio
        to the mean variance of the TD errors of the same rows. (Not the mean of ratios: the TD errors of a perfect
        policy have almost no variance.)
    """
    tracker, curves = ReturnTracker(), {name: _Points() for name in ("return", "variance", "td_variance")}
    with _assembled(config) as training:
        assert isinstance(training, SyncTraining)
        for report in training.trainer.run():
            tracker.update(report)
            (rollout,) = training.rollouts
            found = advantage_variances(rollout, config.algo.gamma)
            for name, value in {"return": tracker.mean_return, **found}.items():
                if value is not None:  # before the first episode has ended
                    curves[name].add(report.env_steps, value)
        with closing(Stage(config, training.model, None)) as stage:
            final = stage.play(Request(report.env_steps, 100, 100, None, MOST_STEPS)).mean_return
    variance, td_variance = (float(np.mean(curves[name].y)) for name in ("variance", "td_variance"))
    return Measurement(
        {name: curves[name].thinned() for name in ("return", "variance")},
        {"final_return": final, "variance": variance, "variance_ratio": variance / td_variance},
    )


def advantage_variances(rollout: Rollout, gamma: float) -> dict[str, float]:
    """Return the variance of a rollout's advantages, and that of its TD errors (GAE with lambda 0)."""
    td_error, return_ = torch.empty_like(rollout.advantage), torch.empty_like(rollout.advantage)
    ends = (rollout.terminated, rollout.truncated, rollout.valid)
    moments = torch.empty(5, dtype=torch.float64)
    gae(rollout.reward, rollout.value, *ends, gamma, 0.0, td_error, return_, moments)
    variance, td_variance = (float(rows[rollout.valid].double().var()) for rows in (rollout.advantage, td_error))
    return {"variance": variance, "td_variance": td_variance}


def exact_critic(config: Config) -> Measurement:
    """Measure the variance of advantages for an exact critic, next to the theoretical value.

    An endless random walk x with reward x has the value x / (1 - gamma). So TD errors are i.i.d.:
    gamma / (1 - gamma) times the walk's step. The first row's advantage then has their variance times
    the sum over k < T of (gamma * lambda)^(2k).

    Returns:
        Values `variance_ratio`, measured over the configuration's environments, and `formula`.
    """
    algo, num_envs = config.algo, config.env.num_envs
    steps = torch.randn(algo.num_steps, num_envs, generator=torch.Generator().manual_seed(config.run.seed))
    walk = torch.cat([torch.zeros(1, num_envs), steps]).cumsum(dim=0)  # [T+1, N]
    never, always = torch.zeros_like(steps, dtype=torch.bool), torch.ones_like(steps, dtype=torch.bool)
    estimates = []
    for gae_lambda in (algo.gae_lambda, 0.0):
        advantage, return_ = torch.empty_like(steps), torch.empty_like(steps)
        values = walk / (1.0 - algo.gamma)
        moments = torch.empty(5, dtype=torch.float64)
        gae(walk[:-1].contiguous(), values, never, never, always, algo.gamma, gae_lambda, advantage, return_, moments)
        estimates.append(float(advantage[0].double().var()))
    formula = sum((algo.gamma * algo.gae_lambda) ** (2 * k) for k in range(algo.num_steps))
    return Measurement({}, {"variance_ratio": estimates[0] / estimates[1], "formula": formula})


# --- variance of gradients -----------------------------------------------------------------------


def gradient_variance(
    config: Config, base: Config, base_env_steps: int, num_gradients: int, threshold: float | None = None
) -> Measurement:
    """Train as `learn` does; in addition, estimate a frozen policy's gradient many times, with the arm's method.

    The policy is the same in all arms: `base`, trained with the same seed for `base_env_steps`. Each estimate uses
    one whole episode; nothing is learned from it. Only the actor's parameters are considered.

    Args:
        config: the arm's configuration; its model must be built like that of `base`.
        base: trains the frozen policy and its critic.
        base_env_steps: training steps of `base`.
        num_gradients: number of estimates.
        threshold: see `learn`.

    Returns:
        `learn`'s curves and values, and `gradient_variance`, the mean over parameters.
    """
    trial = learn(config, threshold)
    frozen = _train_for(base.replace(seed=config.run.seed), base_env_steps)
    gradients = _estimate_gradients(config.replace(num_envs=1, vf_coef=0.0, ent_coef=0.0), frozen, num_gradients)
    variance = gradients.var(dim=0)  # [P]
    return Measurement(trial.curves, {**trial.values, "gradient_variance": float(variance.mean())})


def _train_for(config: Config, env_steps: int) -> StateTree:
    """Return the state of the model after `env_steps` of training."""
    with _assembled(config) as training:
        next(report for report in training.trainer.run() if report.env_steps >= env_steps)
        return read_branch(training.get_state(), "model")


class _Recorder:
    """An `Optimizer` that stores the actor's gradients, `[P]` each, and takes no step."""

    def __init__(self, model: nn.Module) -> None:
        """Allocate the parameters' gradients."""
        flatten(model)
        self._params = [p for name, p in model.named_parameters() if p.requires_grad and _is_actors(name)]
        self.found: list[Tensor] = []

    def prepare_keep(self, shard: int) -> list[Op]:
        """See `Optimizer`."""
        return [self._store]

    def prepare(self, parts: Tensor, terms: Tensor, norm: Tensor, learning_rate: Tensor) -> list[Op]:
        """See `Optimizer`."""
        return [lambda: terms.copy_(parts.sum(dim=0))]

    def _store(self) -> None:
        self.found.append(torch.cat([p.grad.flatten() for p in self._params if p.grad is not None]))

    def get_state(self) -> StateTree:
        """Return an empty state: nothing is learned."""
        return {}

    def set_state(self, state: StateTree) -> None:
        """Do nothing."""


def _estimate_gradients(config: Config, frozen: StateTree, number: int) -> Tensor:
    """Return `number` estimates of the actor's gradient, `[number, P]`."""
    streams = Streams.spawn(config.run.seed)
    with torch_threads(1), closing(build_envs(config.env, streams.env)) as envs:
        model = build_model(config.model, envs, streams.model)
        load_module(model, frozen)
        recorder = _Recorder(model)
        worker = build_worker(config, [envs], model, recorder, [streams.actions], Alone())
        for _ in range(number):
            worker.collect(Phases())
            worker.learn(0.0, Phases())
    return torch.stack(recorder.found)


def _is_actors(parameter: str) -> bool:
    return parameter.startswith(("trunks.0.", "head."))
