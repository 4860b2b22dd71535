"""Environments stepped in worker processes, several in each, with arrays in shared memory.

Each worker runs `SyncEnvs` on its slice of the environments and writes the rows where this process
reads them; only commands and replies go through pipes. So the trajectories are those of `SyncEnvs`.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from typing import Generic, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastac.contract import ActionArray, BoolArray, EnvFailure, ObsArray, StateTree, StepRow
from fastac.envs.failure import describe
from fastac.envs.spaces import action_dtype, space_dtype
from fastac.envs.state import SingleEnv, subtree
from fastac.envs.sync import SyncEnvs

Build: TypeAlias = Callable[[], SingleEnv]
Command: TypeAlias = Literal["reset", "step", "get_state", "set_state"]
Payload: TypeAlias = StateTree | None
Scalar = TypeVar("Scalar", bound=np.generic)

_START_TIMEOUT_S = 120.0  # a worker imports torch and the environment's package, perhaps from a cold disk
_CLOSE_TIMEOUT_S = 2.0


class WorkerTraceback(Exception):
    """The traceback of a worker, as text; the cause of the `EnvFailure` raised here."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """A worker's reply when an environment failed."""

    message: str
    traceback: str


class _SharedArray(Generic[Scalar]):
    """An array in anonymous shared memory, which goes with its last process even if that is killed."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Scalar]) -> None:
        """Allocate zeros."""
        self._shape, self._dtype = shape, dtype
        self._memory = RawArray("B", prod(shape) * dtype.itemsize)

    def view(self) -> NDArray[Scalar]:
        """Return the array over the shared memory, in whichever process this is."""
        return np.frombuffer(self._memory, dtype=self._dtype).reshape(self._shape)


class _SharedRow:
    """The actions of one step and the row that it writes, for all environments."""

    def __init__(self, sample: SingleEnv, num_envs: int) -> None:
        """Allocate for environments like `sample`."""
        obs_space, action_space = sample.observation_space, sample.action_space
        self._obs = _SharedArray((num_envs, *(obs_space.shape or ())), space_dtype(obs_space))
        self._action = _SharedArray((num_envs, *(action_space.shape or ())), action_dtype(action_space))
        self._reward = _SharedArray((num_envs,), np.dtype(np.float32))
        self._flags = _SharedArray((4, num_envs), np.dtype(np.bool_))

    def view(self, envs: slice) -> tuple[ActionArray, StepRow]:
        """Return the actions and the row of a slice of the environments."""
        start, terminated, truncated, valid = self._flags.view()[:, envs]
        row = StepRow(self._obs.view()[envs], start, self._reward.view()[envs], terminated, truncated, valid)
        return self._action.view()[envs], row


@dataclass(frozen=True, slots=True)
class _Worker:
    """One worker, seen from here."""

    process: BaseProcess
    pipe: Connection
    envs: slice

    @property
    def name(self) -> str:
        """Which environments are its, for messages."""
        return f"the worker of envs {self.envs.start} to {self.envs.stop - 1}"

    def send(self, command: Command, payload: Payload) -> None:
        """Ask for something; the reply comes by `receive`."""
        try:
            self.pipe.send((command, payload))
        except OSError as error:
            raise self._died() from error

    def receive(self, deadline_s: float, timeout_s: float) -> Payload:
        """Wait for the reply until `deadline_s` on the monotonic clock.

        Raises:
            EnvFailure: an environment failed, or the worker died or hung.
        """
        try:
            if not self.pipe.poll(max(0.0, deadline_s - time.monotonic())):
                raise EnvFailure(f"{self.name} gave no answer for {timeout_s:g} s.")
            reply: Payload | _Failed = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(reply, _Failed):
            raise EnvFailure(reply.message) from WorkerTraceback(reply.traceback)
        return reply

    def _died(self) -> EnvFailure:
        self.process.join(_CLOSE_TIMEOUT_S)  # the pipe closes a moment before there is an exit code
        return EnvFailure(f"{self.name} died (exit code {self.process.exitcode}).")


class ProcessEnvs:
    """A `VecEnv` whose environments live in worker processes."""

    frame_skip: int = 1

    def __init__(
        self,
        build: Build,
        sample: SingleEnv,
        seeds: Sequence[int],
        num_workers: int,
        description: str,
        timeout_s: float = 60.0,
    ) -> None:
        """Start the workers and wait until all have built their environments.

        Args:
            build: makes one environment; it is pickled, so it must be importable.
            sample: an environment like those it makes, for its spaces.
            seeds: one per environment.
            num_workers: processes, at most one per environment.
            description: for the log.
            timeout_s: the longest that a worker may take for one reset or step.

        Raises:
            ValueError: `build` cannot be pickled.
            EnvFailure: a worker died, hung, or could not build an environment.
        """
        self.num_envs = len(seeds)
        self.description = description
        self.single_observation_space = sample.observation_space
        self.single_action_space = sample.action_space
        self._timeout_s = timeout_s
        shared = _SharedRow(sample, self.num_envs)
        self._action, self._row = shared.view(slice(0, self.num_envs))
        self._workers: list[_Worker] = []
        edges = [self.num_envs * k // num_workers for k in range(num_workers + 1)]
        context = _get_context()
        try:
            for begin, end in pairwise(edges):
                work = partial(_work, _pickle(build), shared, slice(begin, end), list(seeds[begin:end]))
                self._workers.append(_start(context, work, slice(begin, end)))
            self._collect(_START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def reset(self, obs: ObsArray, start: BoolArray) -> None:
        """Begin an episode in every environment."""
        self._ask("reset")
        obs[...] = self._row.obs
        start.fill(True)

    def step(self, action: ActionArray, row: StepRow) -> None:
        """Step all environments, every worker at once."""
        self._action[...] = action
        self._ask("step")
        row.obs[...] = self._row.obs
        row.start[...] = self._row.start
        row.reward[...] = self._row.reward
        row.terminated[...] = self._row.terminated
        row.truncated[...] = self._row.truncated
        row.valid[...] = self._row.valid

    def get_state(self) -> StateTree | None:
        """Return the same state as `SyncEnvs` would, or None, also where the workers are gone."""
        if not self._workers:
            return None
        states = [state for state in self._ask("get_state") if state is not None]
        if len(states) < len(self._workers):
            return None
        envs = {index: env for state in states for index, env in subtree(state, "envs").items()}
        done = np.concatenate([np.array(state["done"], dtype=np.bool_) for state in states])  # [N]
        return {"seeded": states[0]["seeded"], "done": done, "envs": envs}

    def set_state(self, state: StateTree) -> None:
        """Continue from a `get_state` of as many environments, here or of `SyncEnvs`."""
        envs, done = subtree(state, "envs"), np.array(state["done"], dtype=np.bool_)
        if done.shape != (self.num_envs,):
            raise ValueError(f"the saved state is of {done.size} environments, expected {self.num_envs}.")
        self._ask("set_state", [{**state, "done": done[w.envs], "envs": envs} for w in self._workers])

    def close(self) -> None:
        """Close the pipes, at which the workers end by themselves; kill those that do not."""
        for worker in self._workers:
            worker.pipe.close()
        deadline_s = time.monotonic() + _CLOSE_TIMEOUT_S
        while self._workers:
            process = self._workers.pop().process
            process.join(max(0.0, deadline_s - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()

    def _ask(self, command: Command, payloads: Sequence[Payload] | None = None) -> list[Payload]:
        """Send a command to all workers and wait for all replies.

        After a failure no worker is left; nor after Ctrl-C, or a late reply would pass for the next one.
        """
        if not self._workers:
            raise EnvFailure("the environments' workers are closed.")
        try:
            for index, worker in enumerate(self._workers):
                worker.send(command, payloads[index] if payloads else None)
            return self._collect(self._timeout_s)
        except BaseException:
            self.close()
            raise

    def _collect(self, timeout_s: float) -> list[Payload]:
        deadline_s = time.monotonic() + timeout_s
        return [worker.receive(deadline_s, timeout_s) for worker in self._workers]


def _get_context() -> SpawnContext | ForkServerContext:
    """Return a context that never forks this process, whose threads (torch's, CUDA's) a fork would break.

    A fork server imports this module, and torch with it, once; each worker then starts in
    milliseconds. Windows has only spawn.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _pickle(build: Build) -> bytes:
    try:
        return pickle.dumps(build)
    except Exception as error:  # pickling runs foreign code, which may raise anything
        raise ValueError(
            f"vectorization 'process' cannot send the environment to its workers ({describe(error)}): register it "
            "with an entry point 'module:Class', or use sync."
        ) from error


def _start(context: SpawnContext | ForkServerContext, work: Callable[[Connection], None], envs: slice) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # or this process would hold the pipe of a dead worker open, and wait
    return _Worker(process, ours, envs)


def _work(build: bytes, shared: _SharedRow, envs: slice, seeds: Sequence[int], pipe: Connection) -> None:
    """Live as a worker: build the environments, then obey until the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # both may reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    try:
        with closing(SyncEnvs(pickle.loads(build), seeds, "", first_index=envs.start)) as own:
            action, row = shared.view(envs)
            pipe.send(None)
            while True:
                command, payload = pipe.recv()
                pipe.send(_obey(own, command, payload, action, row))
    except (EOFError, OSError):
        return  # the parent closed the pipe, or is gone
    except Exception as error:
        message = str(error) if isinstance(error, EnvFailure) else f"the worker raised {describe(error)}."
        pipe.send(_Failed(message, traceback.format_exc()))


def _obey(own: SyncEnvs, command: Command, payload: Payload, action: ActionArray, row: StepRow) -> Payload:
    match command:
        case "reset":
            own.reset(row.obs, row.start)
        case "step":
            own.step(action, row)
        case "get_state":
            return own.get_state()
        case "set_state":
            assert payload is not None
            own.set_state(payload)
    return None
