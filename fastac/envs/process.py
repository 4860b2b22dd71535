"""Environments stepped in worker processes, several per process, with arrays in shared memory.

Each worker runs `SyncEnvs` on a slice of the environments and writes rows to shared memory, from which this process
reads them. Pipes carry only commands and replies. Trajectories equal those of `SyncEnvs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias, cast

import numpy as np

from fastac.contract import ActionArray, BoolArray, EnvFailure, Extras, ObsArray, StateTree, StepRow, read_array
from fastac.envs.cautions import find_cautions
from fastac.envs.infos import NOTHING, join
from fastac.envs.limits import find_time_limit
from fastac.envs.seeds import draw_seeds
from fastac.envs.spaces import action_dtype, space_dtype
from fastac.envs.state import SingleEnv, subtree
from fastac.envs.sync import SyncEnvs
from fastac.pickling import Pickled, pickled
from fastac.processes import ANSWER_TIMEOUT_S, Children, Parent, start
from fastac.shared_memory import SharedArray

Build: TypeAlias = Callable[[], SingleEnv]
Command: TypeAlias = Literal["reset", "reseed", "rest", "step", "get_state", "set_state"]
Payload: TypeAlias = StateTree | None

_UNSENDABLE = (
    "vectorization 'process' cannot send the environment to its workers: register it with an entry point "
    "'module:Class', or use sync"
)


class _SharedRow:
    """Shared memory for the actions of a step and the row it writes, for all environments."""

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


class ProcessEnvs:
    """A `VecEnv` whose environments run in worker processes.

    Attributes:
        children: the worker processes; empty after a failure.
    """

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
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        """Start the workers and wait until all have built their environments.

        Args:
            build: makes one environment; it is pickled, so it must be importable.
            sample: an environment made by `build`, for its spaces; it may be closed.
            seeds: one per environment.
            num_workers: number of processes, at most one per environment.
            description: for the log.
            start_timeout_s: most seconds for a worker to start and build its environments.
            timeout_s: most seconds for a worker to reset or step all its environments.

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
        edges = [self.num_envs * k // num_workers for k in range(num_workers + 1)]
        self._slices = [slice(begin, end) for begin, end in pairwise(edges)]
        self.children = Children()
        sent = pickled(build, _UNSENDABLE)
        with self.children:
            for envs in self._slices:
                name = f"the worker of envs {envs.start} to {envs.stop - 1}"
                work = partial(_work, sent, shared, envs, list(seeds[envs]))
                self.children.append(start(name, work, __name__, sent, EnvFailure))
            self.children.receive_within(start_timeout_s, "start_timeout_s")

    def reset(self, obs: ObsArray, start: BoolArray) -> None:
        """Begin an episode in every environment."""
        self._ask("reset")
        obs[...] = self._row.obs
        start.fill(True)

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Seed the next reset of every environment."""
        seeds = np.array(draw_seeds(seed, self.num_envs), dtype=np.uint64)
        self._ask("reseed", [{"seeds": seeds[envs]} for envs in self._slices])

    def rest(self, mask: BoolArray) -> None:
        """Skip the environments in `mask`."""
        self._ask("rest", [{"mask": mask[envs].copy()} for envs in self._slices])

    def step(self, action: ActionArray, row: StepRow) -> None:
        """Step all environments, with all workers in parallel."""
        self._action[...] = action
        replies = self._ask("step")
        row.obs[...] = self._row.obs
        row.start[...] = self._row.start
        row.reward[...] = self._row.reward
        row.terminated[...] = self._row.terminated
        row.truncated[...] = self._row.truncated
        row.valid[...] = self._row.valid
        # Extras are rare, since only the end of an episode brings them, so they come through the pipes.
        parts = [(envs, cast(Extras, reply)) for envs, reply in zip(self._slices, replies, strict=True) if reply]
        self.extras = join(parts, self.num_envs) if parts else NOTHING

    def get_state(self) -> StateTree | None:
        """Return the state as `SyncEnvs` does, or None if it cannot be captured or the workers are gone."""
        if not self.children:
            return None
        states = [state for state in self._ask("get_state") if state is not None]
        if len(states) < len(self._slices):
            return None
        envs = {index: env for state in states for index, env in subtree(state, "envs").items()}
        done = np.concatenate([np.array(state["done"], dtype=np.bool_) for state in states])  # [N]
        return {"seeded": states[0]["seeded"], "done": done, "envs": envs}

    def set_state(self, state: StateTree) -> None:
        """Continue from a `get_state` of the same number of environments, from here or from `SyncEnvs`."""
        envs, done = subtree(state, "envs"), read_array(state, "done", np.zeros(self.num_envs, dtype=np.bool_))
        self._ask("set_state", [{**state, "done": done[part], "envs": envs} for part in self._slices])

    def close(self) -> None:
        """End the worker processes."""
        self.children.end()

    def _ask(self, command: Command, payloads: Sequence[Payload] | None = None) -> list[Payload]:
        """Send a command to all workers and wait for all replies.

        Raises:
            EnvFailure: an environment failed, or a worker died or did not answer in time; all workers are ended.
        """
        if not self.children:
            raise EnvFailure("the environments' workers are closed.")
        with self.children:
            for index, child in enumerate(self.children):
                child.send((command, payloads[index] if payloads else None))
            return self.children.receive_within(self._timeout_s, "env_timeout_s")


def _work(build: Pickled[Build], shared: _SharedRow, envs: slice, seeds: Sequence[int], parent: Parent) -> None:
    """Run in a worker: build the environments, then execute commands until the parent ends."""
    with closing(SyncEnvs(build.load(), seeds, "", first_index=envs.start)) as own:
        action, row = shared.view(envs)
        parent.send(None)
        while True:
            command, payload = parent.receive()
            parent.send(_obey(own, command, payload, action, row))


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
