"""Environments stepped in worker processes, several in each, with arrays in shared memory.

Each worker runs `SyncEnvs` on its slice of the environments and writes the rows where this process
reads them; only commands and replies go through pipes. So the trajectories are those of `SyncEnvs`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Literal, TypeAlias, cast

import numpy as np

from fastac.contract import ActionArray, BoolArray, EnvFailure, Extras, ObsArray, StateTree, StepRow, read_array
from fastac.envs.cautions import find_cautions
from fastac.envs.failure import describe
from fastac.envs.infos import NOTHING, join
from fastac.envs.limits import find_time_limit
from fastac.envs.seeds import draw_seeds
from fastac.envs.spaces import action_dtype, space_dtype
from fastac.envs.state import SingleEnv, subtree
from fastac.envs.sync import SyncEnvs
from fastac.processes import (
    Child,
    Failed,
    SharedArray,
    Stopwatch,
    WorkerTraceback,
    close,
    get_context,
    has_news,
    ignore_signals,
    pickled,
    start,
    unpickled,
)

Build: TypeAlias = Callable[[], SingleEnv]
Command: TypeAlias = Literal["reset", "reseed", "rest", "step", "get_state", "set_state"]
Payload: TypeAlias = StateTree | None

ENV_TIMEOUT_S = 120.0  # for a reset or step of all environments of a worker

_UNSENDABLE = (
    "vectorization 'process' cannot send the environment to its workers: register it with an entry point "
    "'module:Class', or use sync"
)


class _SharedRow:
    """The actions of one step and the row that it writes, for all environments."""

    def __init__(self, sample: SingleEnv, num_envs: int) -> None:
        """Allocate for environments like `sample`."""
        obs_space, action_space = sample.observation_space, sample.action_space
        self._obs = SharedArray((num_envs, *(obs_space.shape or ())), space_dtype(obs_space))
        self._action = SharedArray((num_envs, *(action_space.shape or ())), action_dtype(action_space))
        self._reward = SharedArray((num_envs,), np.dtype(np.float32))
        self._flags = SharedArray((5, num_envs), np.dtype(np.bool_))

    def view(self, envs: slice) -> tuple[ActionArray, StepRow]:
        """Return the actions and the row of a slice of the environments."""
        start, *flags = self._flags.view()[:, envs]
        row = StepRow(self._obs.view()[envs], start, self._reward.view()[envs], *flags)
        return self._action.view()[envs], row


@dataclass(frozen=True, slots=True)
class _Worker:
    """One worker, seen from here."""

    child: Child
    envs: slice

    @property
    def name(self) -> str:
        """Which environments are its, for messages."""
        return f"the worker of envs {self.envs.start} to {self.envs.stop - 1}"

    def send(self, command: Command, payload: Payload) -> None:
        """Ask for something; the reply comes by `receive`."""
        try:
            self.child.pipe.send((command, payload))
        except OSError as error:
            raise self._died() from error

    def receive(self, watch: Stopwatch, timeout_s: float) -> Payload:
        """Wait for the reply until `watch` says `timeout_s`.

        Raises:
            EnvFailure: an environment failed, or the worker died or hung.
        """
        try:
            if not has_news(self.child.pipe, watch, timeout_s):
                raise EnvFailure(f"{self.name} gave no answer for {timeout_s:g} s.")
            reply: Payload | Failed = self.child.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(reply, Failed):
            raise EnvFailure(reply.message) from WorkerTraceback(reply.traceback)
        return reply

    def _died(self) -> EnvFailure:
        return EnvFailure(f"{self.name} {self.child.tell_end()}.")


class ProcessEnvs:
    """A `VecEnv` whose environments live in worker processes."""

    frame_skip: int = 1
    frame_stack: int = 1

    def __init__(
        self,
        build: Build,
        sample: SingleEnv,
        seeds: Sequence[int],
        num_workers: int,
        description: str,
        start_timeout_s: float = 120.0,
        timeout_s: float = ENV_TIMEOUT_S,
    ) -> None:
        """Start the workers and wait until all have built their environments.

        Args:
            build: makes one environment; it is pickled, so it must be importable.
            sample: an environment like those it makes, for its spaces; it may be closed.
            seeds: one per environment.
            num_workers: processes, at most one per environment.
            description: for the log.
            start_timeout_s: the longest that a worker may take to start and build its environments.
            timeout_s: the longest that a worker may take to reset or step its environments, all of them.

        Raises:
            ValueError: `build` cannot be pickled, or lives in a script that a worker cannot import.
            EnvFailure: a worker died, hung, or could not build an environment.
        """
        self.num_envs = len(seeds)
        self.description = description
        self.max_episode_steps, self.cautions = find_time_limit(sample), find_cautions(sample)
        self.single_observation_space = sample.observation_space
        self.single_action_space = sample.action_space
        self._timeout_s = timeout_s
        shared = _SharedRow(sample, self.num_envs)
        self._action, self._row = shared.view(slice(0, self.num_envs))
        self.extras: Extras = NOTHING
        self._workers: list[_Worker] = []
        edges = [self.num_envs * k // num_workers for k in range(num_workers + 1)]
        context = get_context(__name__)
        sent = pickled(build, _UNSENDABLE)
        try:
            for begin, end in pairwise(edges):
                envs = slice(begin, end)
                child = start(context, partial(_work, sent, shared, envs, list(seeds[begin:end])), sent)
                self._workers.append(_Worker(child, envs))
            self._collect(start_timeout_s)
        except BaseException:
            self.close()
            raise

    def reset(self, obs: ObsArray, start: BoolArray) -> None:
        """Begin an episode in every environment."""
        self._ask("reset")
        obs[...] = self._row.obs
        start.fill(True)

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Seed the next reset."""
        seeds = np.array(draw_seeds(seed, self.num_envs), dtype=np.uint64)
        self._ask("reseed", [{"seeds": seeds[worker.envs]} for worker in self._workers])

    def rest(self, mask: BoolArray) -> None:
        """Step only the others."""
        self._ask("rest", [{"mask": mask[worker.envs].copy()} for worker in self._workers])

    def step(self, action: ActionArray, row: StepRow) -> None:
        """Step all environments, every worker at once."""
        self._action[...] = action
        replies = self._ask("step")
        row.obs[...] = self._row.obs
        row.start[...] = self._row.start
        row.reward[...] = self._row.reward
        row.terminated[...] = self._row.terminated
        row.truncated[...] = self._row.truncated
        row.valid[...] = self._row.valid
        # What nothing but an end brings comes through the pipes.
        parts = [
            (worker.envs, cast(Extras, reply)) for worker, reply in zip(self._workers, replies, strict=True) if reply
        ]
        self.extras = join(parts, self.num_envs) if parts else NOTHING

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
        envs, done = subtree(state, "envs"), read_array(state, "done", np.zeros(self.num_envs, dtype=np.bool_))
        self._ask("set_state", [{**state, "done": done[w.envs], "envs": envs} for w in self._workers])

    def close(self) -> None:
        """End the workers."""
        close([worker.child for worker in self._workers])
        self._workers.clear()

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
        watch = Stopwatch()
        return [worker.receive(watch, timeout_s) for worker in self._workers]


def _work(build: bytes, shared: _SharedRow, envs: slice, seeds: Sequence[int], pipe: Connection) -> None:
    """Live as a worker: build the environments, then obey until the pipe closes."""
    ignore_signals()
    try:
        with closing(SyncEnvs(cast(Build, unpickled(build)), seeds, "", first_index=envs.start)) as own:
            action, row = shared.view(envs)
            pipe.send(None)
            while True:
                command, payload = pipe.recv()
                pipe.send(_obey(own, command, payload, action, row))
    except (EOFError, OSError):
        return  # the parent closed the pipe, or is gone
    except Exception as error:
        message = str(error) if isinstance(error, EnvFailure) else f"the worker raised {describe(error)}."
        pipe.send(Failed(message, traceback.format_exc(), "env"))


def _obey(own: SyncEnvs, command: Command, payload: Payload, action: ActionArray, row: StepRow) -> Payload:
    match command:
        case "reset":
            own.reset(row.obs, row.start)
        case "reseed":
            assert payload is not None
            own.take_seeds(np.array(payload["seeds"]).tolist())
        case "rest":
            assert payload is not None
            own.rest(np.array(payload["mask"], dtype=np.bool_))
        case "step":
            own.step(action, row)
            return own.extras or None
        case "get_state":
            return own.get_state()
        case "set_state":
            assert payload is not None
            own.set_state(payload)
    return None
