"""Evaluation of a run in progress: in the training process, or concurrently in a separate process."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from time import monotonic
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fastac.build import (
    EncoderFactory,
    EnvFactory,
    Streams,
    build_evaluation_envs,
    build_model,
    evaluation_seed,
    evaluation_width,
    is_batched,
    is_seeded_when_built,
)
from fastac.config import Config, is_atari
from fastac.contract import EnvFailure, Policy, StateTree, VecEnv, read_tensor
from fastac.models import load_module
from fastac.pickling import UNSENDABLE, Pickled, pickled
from fastac.processes import CHILD_FAILURES, ChildFailure, Parent, Restarts, start, was_sent
from fastac.runs.evaluate import Evaluation, Tell, action_noise, evaluate
from fastac.runs.player import Player, make_player
from fastac.workers import Training


@dataclass(frozen=True, slots=True)
class Request:
    """Specifies an evaluation.

    Attributes:
        env_steps: training steps of the policy; the seed of the environments depends on them.
        episodes: number of episodes.
        most: maximum number of episodes while the mean return reaches the goal.
        goal: a mean return, or None.
        max_steps: step limit of an episode.
        budget: environment steps; add episodes, up to `most`, as long as they fit at the mean length so far.
    """

    env_steps: int
    episodes: int
    most: int
    goal: float | None
    max_steps: int
    budget: int = 0


class Evaluator(Protocol):
    """Plays episodes with a run's policy, greedy or sampled as the run's `eval_actions` says.

    Attributes:
        is_concurrent: whether training continues during an evaluation.
    """

    is_concurrent: bool

    def begin(self, model: StateTree, request: Request) -> None:
        """Begin to play with the weights of `model`; the same run and request always play the same episodes."""

    def take(self, wait: bool) -> Evaluation | None:
        """Return the evaluation begun, or None if it has not finished and `wait` is False.

        Raises:
            EnvFailure: an environment failed.
            WorkerFailure: the evaluating process failed otherwise.
        """

    def close(self) -> None:
        """Release its resources; safe to call twice."""


class Stage:
    """The evaluation environments and their player: built on first use, then kept."""

    def __init__(
        self, config: Config, policy: Policy, env_factory: EnvFactory | None, own: VecEnv | None = None
    ) -> None:
        """Store the arguments; `own` are existing environments for all evaluations, instead of new ones."""
        self._config, self._policy, self._env_factory, self._own = config, policy, env_factory, own
        self._sets: dict[int, tuple[VecEnv, Player]] = {}  # by number of environments

    def play(self, request: Request, tell: Tell | None = None) -> Evaluation:
        """Play an evaluation.

        Raises:
            EnvFailure: an environment failed.
        """
        seed = evaluation_seed(self._config.run.seed, request.env_steps)
        noise = action_noise(self._config.run.eval_actions, seed)
        try:
            # Another object, since spawning from a SeedSequence changes it.
            own = evaluation_seed(self._config.run.seed, request.env_steps)
            envs, player = self._set(self._side_by_side(request), own)
            envs.reseed(seed)
            return evaluate(
                player,
                envs,
                request.episodes,
                noise,
                request.max_steps,
                request.goal,
                request.most,
                tell,
                request.budget,
            )
        except EnvFailure as error:
            where = f"in the evaluation after {request.env_steps} environment steps"
            raise EnvFailure(f"{str(error).removesuffix('.')}, {where}") from error

    def _side_by_side(self, request: Request) -> int:
        """Return for how many episodes to build environments: a few more in a batch cost next to nothing."""
        may_go_on = request.goal is not None and is_batched(self._config.env, self._env_factory)
        return request.most if may_go_on else request.episodes

    def _set(self, episodes: int, seed: np.random.SeedSequence) -> tuple[VecEnv, Player]:
        config, factory = self._config, self._env_factory
        width = self._own.num_envs if self._own is not None else evaluation_width(config.env, episodes, factory)
        if self._own is None and is_seeded_when_built(config.env, factory):
            self._close_built()  # it cannot be reseeded
        if width not in self._sets:
            if not is_batched(config.env, factory):
                self._close_built()  # unbatched environments hold processes, windows or emulators
            envs = self._own or build_evaluation_envs(config.env, width, seed, factory, config.num_workers)
            self._sets[width] = envs, make_player(self._policy, width, torch.device(config.run.device))
        return self._sets[width]

    def _close_built(self) -> None:
        while self._sets:
            _, (envs, _) = self._sets.popitem()
            if envs is not self._own:
                envs.close()

    def close(self) -> None:
        """Close what was built; safe to call twice."""
        self._close_built()


class InProcessEvaluator:
    """Plays synchronously, with the trained policy itself."""

    is_concurrent = False

    def __init__(self, stage: Stage, tell: Tell | None = None) -> None:
        """Take the stage to play on, and a callback for every step."""
        self._stage, self._tell = stage, tell
        self._request: Request | None = None

    def begin(self, model: StateTree, request: Request) -> None:
        """See `Evaluator`; ignores `model`, as the policy already has these weights."""
        self._request = request

    def take(self, wait: bool) -> Evaluation | None:
        """See `Evaluator`."""
        assert self._request is not None, "begin first"
        return self._stage.play(self._request, self._tell)

    def close(self) -> None:
        """Close the environments."""
        self._stage.close()


# An evaluator counts as hung when it has been silent for _SILENCE_S, for _SILENCE_TIMES its longest silence so far,
# and for the configured time limit of a step.
_SILENCE_S = 600.0
_SILENCE_TIMES = 20.0
_ALIVE_S = 0.5  # interval of its life signs during an evaluation, which may take hours
_LOOK_S = 0.1  # polling interval of `take`


@dataclass(frozen=True, slots=True)
class _Alive:
    """Life sign of the process, sent once it is built and then while it plays: episodes played, and of how many."""

    played: int = 0
    episodes: int = 0


_Weights: TypeAlias = Mapping[str, NDArray[np.generic]]
_Work: TypeAlias = tuple[Config, EnvFactory | None, EncoderFactory | None]


class ProcessEvaluator:
    """Plays in a separate process on a copy of the weights; restarted if it dies or hangs.

    Attributes:
        child: the process.
    """

    is_concurrent = True

    def __init__(
        self,
        config: Config,
        env_factory: EnvFactory | None,
        encoder: EncoderFactory | None,
        tell: Tell | None = None,
    ) -> None:
        """Start the process; `tell` hears of its progress while it plays.

        Raises:
            ValueError: the environment factory or encoder cannot be sent to it.
            WorkerFailure: it could not be started.
        """
        self._work = pickled((config, env_factory, encoder), f"{UNSENDABLE}; move them there, or train with a2c")
        self._tell = tell
        self._is_asked = False
        self._request: tuple[_Weights, Request] | None = None
        self._start_timeout_s, self._env_timeout_s = config.env.start_timeout_s, config.env.env_timeout_s or 0.0
        self._longest_s = 0.0
        self._restarts = Restarts(config.run.max_restarts)
        self._start()

    def _start(self) -> None:
        self.child = start("the evaluator", partial(_evaluate, self._work), __name__, self._work)
        self._is_ready = False

    def begin(self, model: StateTree, request: Request) -> None:
        """See `Evaluator`."""
        # Copy to arrays: tensors would be sent as shared memory.
        weights = {name: read_tensor(model, name).numpy() for name in model}
        if self._is_asked:  # the evaluation in progress was abandoned
            self.child.end(timeout_s=0.0)
            self._start()
        self._request, self._is_asked = (weights, request), True
        self._ask()

    def _ask(self) -> None:
        self.child.silence.restart()
        # Send from a thread: if the child does not read, a full pipe would block this process.
        threading.Thread(target=_send, args=(self.child.pipe, self._request), daemon=True).start()

    def take(self, wait: bool) -> Evaluation | None:
        """See `Evaluator`."""
        while True:
            try:
                news = self._receive(wait)
            except CHILD_FAILURES as error:
                if was_sent(error):
                    raise
                self._start_again(error)
                continue
            if isinstance(news, Evaluation):
                self._is_asked = False
                return news
            if news is not None:
                self._say(news)
            elif wait:
                self._say(_Alive())
            else:
                return None

    def _say(self, news: _Alive) -> None:
        if self._tell is not None:
            self._tell(news.played, news.episodes)

    def _receive(self, wait: bool) -> Evaluation | _Alive | None:
        """Return the next message, or None if there is none yet; with `wait`, block for a short time.

        Raises:
            EnvFailure, NonFiniteError, WorkerFailure: the process failed, died, or was silent for too long.
        """
        patience_s, setting = self._patience
        left_s = patience_s - self.child.silence.look()
        if self.child.has_news(min(_LOOK_S, max(0.0, left_s)) if wait else 0.0):
            news: Evaluation | _Alive = self.child.receive()
            if self._is_ready:  # before that it was importing modules
                self._longest_s = max(self._longest_s, self.child.silence.look())
            self._is_ready = True
            self.child.silence.restart()
            return news
        if left_s <= 0.0:
            raise self.child.too_late("has been silent", patience_s, setting)
        return None

    @property
    def _patience(self) -> tuple[float, str]:
        """Seconds that the process may be silent, and the setting to raise if it needs longer."""
        if not self._is_ready:
            return self._start_timeout_s, "start_timeout_s"
        least_s = max(_SILENCE_S, _SILENCE_TIMES * self._longest_s, self._env_timeout_s)
        return least_s * 2.0**self._restarts.count, "env_timeout_s"  # doubled by every restart: it may only be slow

    def _start_again(self, lost: ChildFailure) -> None:
        self.child.end(timeout_s=0.0)
        self._restarts.add(lost)
        self._start()
        self._ask()

    def close(self) -> None:
        """End the process, even during an evaluation."""
        self.child.end(timeout_s=0.1)


def _send(pipe: Connection, request: object) -> None:
    # The child has ended, or the pipe was closed in the middle of a write (TypeError); `take` finds the reason.
    with suppress(OSError, TypeError):
        pipe.send(request)


def _evaluate(work: Pickled[_Work], parent: Parent) -> None:
    """Answer requests until the parent leaves."""
    torch.set_num_threads(1)
    requests: SimpleQueue[tuple[_Weights, Request]] = SimpleQueue()
    parent.listen(requests.put, grace_s=0.0)
    config, env_factory, encoder = work.load()
    envs = build_evaluation_envs(config.env, 1, evaluation_seed(config.run.seed, 0), env_factory)
    model = build_model(config.model, envs, Streams.spawn(config.run.seed).model, encoder)
    envs.close()
    parent.send(_Alive())
    with closing(Stage(config, model, env_factory)) as stage:
        while True:
            weights, request = requests.get()
            load_module(model, weights)
            parent.send(stage.play(request, _make_pulse(parent)))


def _make_pulse(parent: Parent) -> Tell:
    """Return a callback that sends a life sign to the parent, rate-limited."""
    said = monotonic()

    def pulse(played: int, episodes: int) -> None:
        nonlocal said
        now = monotonic()
        if now - said > _ALIVE_S:
            said = now
            parent.send(_Alive(played, episodes))

    return pulse


def open_evaluator(
    config: Config,
    training: Training,
    env_factory: EnvFactory | None,
    encoder: EncoderFactory | None,
    tell: Tell | None = None,
) -> Evaluator:
    """Return an evaluator: concurrent for asynchronous workers, else between iterations.

    Nothing is built in this process before the first evaluation. If the only evaluation is at the end of the run, it is
    played in the training environments, provided their rows are whole observations and their episodes whole games.
    """
    at_end = config.run.eval_every == 0
    if config.algo.has_async_workers and config.run.eval and not at_end:
        return ProcessEvaluator(config, env_factory, encoder, tell)
    own = training.envs if at_end and plays_where_it_trains(config) else None
    return InProcessEvaluator(Stage(config, training.model, env_factory, own), tell)


def plays_where_it_trains(config: Config) -> bool:
    """Return whether a last evaluation can be played in the training environments."""
    return not config.algo.has_async_workers and not is_atari(config.env.env_id)
