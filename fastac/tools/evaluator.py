"""Evaluations of a run in progress: in this process, or beside training in one of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from time import monotonic
from typing import Protocol, TypeAlias, cast

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
    load_module,
)
from fastac.config import Config
from fastac.contract import EnvFailure, Policy, StateTree, WorkerFailure
from fastac.processes import (
    START_TIMEOUT_S,
    UNSENDABLE,
    Child,
    Failed,
    close,
    follow,
    get_context,
    ignore_signals,
    pickled,
    start,
    to_error,
    to_failed,
    unpickled,
)
from fastac.tools.evaluate import Evaluation, action_noise, evaluate

log = logging.getLogger("fastac")


class Evaluator(Protocol):
    """Plays episodes with a run's policy, greedy or sampled as the run's `eval_actions` says.

    Attributes:
        is_beside: whether training goes on meanwhile.
    """

    is_beside: bool

    def begin(self, model: StateTree, env_steps: int) -> None:
        """Begin to play with the weights of `model`; the same episodes for the same run and `env_steps`."""

    def take(self, wait: bool) -> Evaluation | None:
        """Return the evaluation begun, or None while it lasts and nobody waits.

        Raises:
            EnvFailure: an environment failed.
            WorkerFailure: the evaluating process failed otherwise.
        """

    def close(self) -> None:
        """End what it needs; safe to call twice."""


def play(
    config: Config,
    policy: Policy,
    env_steps: int,
    env_factory: EnvFactory | None,
    tell: Callable[[], None] | None = None,
) -> Evaluation:
    """Evaluate in environments of their own, built for it; `tell` is called after every step.

    Raises:
        EnvFailure: an environment failed.
    """
    seed = evaluation_seed(config.run.seed, env_steps)
    noise = action_noise(config.run.eval_actions, seed)
    envs = build_evaluation_envs(config.env, config.run.eval_episodes, seed, env_factory)
    try:
        return evaluate(policy, envs, config.run.eval_episodes, torch.device(config.run.device), noise, tell)
    except EnvFailure as error:
        where = f"in the evaluation after {env_steps} environment steps"
        raise EnvFailure(f"{str(error).removesuffix('.')}, {where}") from error
    finally:
        envs.close()


class InProcessEvaluator:
    """Plays at once, with the very policy that is trained, while nothing else happens."""

    is_beside = False

    def __init__(self, config: Config, policy: Policy, env_factory: EnvFactory | None) -> None:
        """Take what is needed."""
        self._config, self._policy, self._env_factory = config, policy, env_factory
        self._env_steps = 0

    def begin(self, model: StateTree, env_steps: int) -> None:
        """See `Evaluator`; `model` is what the policy has anyway."""
        self._env_steps = env_steps

    def take(self, wait: bool) -> Evaluation | None:
        """See `Evaluator`."""
        return play(self._config, self._policy, self._env_steps, self._env_factory)

    def close(self) -> None:
        """Nothing is left."""


# An evaluator hangs that has been silent for so long, and for so many times its longest silence so far.
_SILENCE_S = 600.0
_SILENCE_TIMES = 20.0
_ALIVE_S = 1.0  # how often it says that it plays, which may take it hours


class _Alive:
    """What the process sends when it has been built, and then while it plays."""


_Weights: TypeAlias = Mapping[str, NDArray[np.generic]]
_Work: TypeAlias = tuple[Config, EnvFactory | None, EncoderFactory | None]


class ProcessEvaluator:
    """Plays in a process beside the workers', on a copy of the weights; started again if it dies or hangs."""

    is_beside = True

    def __init__(self, config: Config, env_factory: EnvFactory | None, encoder: EncoderFactory | None) -> None:
        """Start the process.

        Raises:
            ValueError: what builds environments or encoder cannot be sent to it.
        """
        self._work = pickled(
            (config, env_factory, encoder),
            f"{UNSENDABLE}; move them there, or train with a2c",
        )
        self._request: tuple[_Weights, int] | None = None
        self._longest_s = 0.0
        self._restarts, self._max_restarts = 0, config.run.max_restarts
        self._children: list[Child] = []
        self._start()

    def _start(self) -> None:
        try:
            self._children.append(start(get_context(__name__), partial(_evaluate, self._work)))
        except OSError as error:  # no memory, or too many open files
            raise WorkerFailure(f"the evaluator could not be started ({error})") from error
        self._is_ready, self._since = False, monotonic()

    def begin(self, model: StateTree, env_steps: int) -> None:
        """See `Evaluator`."""
        weights = {name: value.numpy().copy() for name, value in model.items() if isinstance(value, torch.Tensor)}
        self._request = (weights, env_steps)
        self._ask()

    def _ask(self) -> None:
        self._since = monotonic()
        # Another thread, since a process that does not read would block this one once the pipe is full.
        threading.Thread(target=_send, args=(self._children[0].pipe, self._request), daemon=True).start()

    def take(self, wait: bool) -> Evaluation | None:
        """See `Evaluator`."""
        while True:
            left_s = self._since + self._patience_s - monotonic()
            reply = self._receive(max(0.0, left_s) if wait else 0.0)
            if reply is None and not wait and left_s > 0.0:
                return None
            if isinstance(reply, Failed):
                raise to_error("the evaluator", reply)
            if isinstance(reply, _Alive | Evaluation):
                self._note_life()
                if isinstance(reply, Evaluation):
                    return reply
            elif reply is None:
                self._start_again(f"has been silent for {self._patience_s:.0f} s")
            else:
                self._start_again(reply)

    def _note_life(self) -> None:
        now = monotonic()
        if self._is_ready:  # else it was importing
            self._longest_s = max(self._longest_s, now - self._since)
        self._is_ready, self._since = True, now

    def _receive(self, timeout_s: float) -> Evaluation | Failed | _Alive | str | None:
        """Return what it sends, None where it does not in time, or what has become of it in words."""
        child = self._children[0]
        try:
            if not child.pipe.poll(timeout_s):
                return None
            reply: Evaluation | Failed | _Alive = child.pipe.recv()
            return reply
        except (EOFError, OSError):
            return f"died (exit code {child.exit_code()})"

    @property
    def _patience_s(self) -> float:
        if not self._is_ready:
            return START_TIMEOUT_S
        # Doubled with every restart: perhaps it is only slow.
        return float(max(_SILENCE_S, _SILENCE_TIMES * self._longest_s) * 2**self._restarts)

    def _start_again(self, why: str) -> None:
        close(self._children, timeout_s=0.0)
        if self._restarts >= self._max_restarts:
            raise WorkerFailure(f"the evaluator {why}; it has been started again {self._restarts} times already")
        self._restarts += 1
        log.warning("the evaluator %s: started again (%d of at most %d times)", why, self._restarts, self._max_restarts)
        self._start()
        self._ask()

    def close(self) -> None:
        """End the process, also in the middle of an evaluation."""
        close(self._children, timeout_s=0.1)


def _send(pipe: Connection, request: object) -> None:
    with suppress(OSError):  # it has ended; `take` finds out why
        pipe.send(request)


def _evaluate(work: bytes, pipe: Connection) -> None:
    """Answer requests until the pipe closes."""
    ignore_signals()
    torch.set_num_threads(1)
    requests: SimpleQueue[tuple[_Weights, int]] = SimpleQueue()
    follow(pipe, lambda request: requests.put(cast("tuple[_Weights, int]", request)), grace_s=0.0)
    with suppress(OSError):  # the run has gone
        try:
            config, env_factory, encoder = cast(_Work, unpickled(work))
            envs = build_evaluation_envs(config.env, 1, evaluation_seed(config.run.seed, 0), env_factory)
            model = build_model(config.model, envs, Streams.spawn(config.run.seed).model, encoder)
            envs.close()
            pipe.send(_Alive())
            while True:
                weights, env_steps = requests.get()
                load_module(model, weights)
                pipe.send(play(config, model, env_steps, env_factory, _make_pulse(pipe)))
        except Exception as error:
            pipe.send(to_failed(error))


def _make_pulse(pipe: Connection) -> Callable[[], None]:
    """Return what says that this process lives, now and then however often it is called."""
    said = monotonic()

    def tell() -> None:
        nonlocal said
        if monotonic() - said >= _ALIVE_S:
            said = monotonic()
            pipe.send(_Alive())

    return tell


def open_evaluator(
    config: Config, policy: Policy, env_factory: EnvFactory | None, encoder: EncoderFactory | None
) -> Evaluator:
    """Return an evaluator: beside training where workers wait for nobody, else between iterations."""
    if config.algo.algo == "a3c":
        return ProcessEvaluator(config, env_factory, encoder)
    return InProcessEvaluator(config, policy, env_factory)
