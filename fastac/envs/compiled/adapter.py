"""Compiled environments behind the step contract."""

from __future__ import annotations

from typing import cast

import numpy as np

from fastac.contract import ActionArray, BoolArray, Extras, ObsArray, StateTree, StepRow
from fastac.envs.compiled.batch import Actions, Batch
from fastac.envs.compiled.declaration import CompiledEnv
from fastac.envs.compiled.loop import Mapping
from fastac.envs.infos import NOTHING
from fastac.envs.spaces import ArraySpace, SquashedBox
from fastac.envs.state import read_seeded, subtree
from fastac.kernels.program import Program

_MOST_PREPARED = 4096  # rows whose calls are kept


class CompiledEnvs:
    """A `VecEnv` of compiled environments, in NEXT_STEP mode; a step is one compiled call."""

    frame_skip: int = 1
    frame_stack: int = 1
    cautions: tuple[str, ...] = ()
    extras: Extras = NOTHING

    def __init__(
        self, env: CompiledEnv, num_envs: int, seed: np.random.SeedSequence, name: str, squashes: bool = False
    ) -> None:
        """Compile the environment, or load it from the disk cache.

        Args:
            env: the environment.
            num_envs: N.
            seed: the parent of every environment's random stream.
            name: of the environment, for the log and for messages.
            squashes: squash actions into the action space, instead of clipping them.

        Raises:
            ValueError: the environment cannot be compiled, or `squashes` and its actions cannot be squashed.
        """
        self.num_envs, self.max_episode_steps = num_envs, env.max_episode_steps
        self.single_observation_space: ArraySpace = env.observation_space
        actions = cast("ArraySpace", env.action_space)
        self.single_action_space = SquashedBox(actions) if squashes else actions
        self.description = f"compiled ({name})"
        mapping = Mapping.SQUASH if squashes else Mapping.CLIP
        self._batch = Batch(env, num_envs, name, Actions(int(getattr(env.action_space, "start", 0)), mapping))
        self._seed: np.random.SeedSequence | None = seed
        self._action = self._batch.make_actions()
        self._programs: dict[int, tuple[Program, StepRow]] = {}

    def reset(self, obs: ObsArray, start: BoolArray) -> None:
        """Begin an episode in every environment."""
        if self._seed is not None:
            self._batch.seed(self._seed.generate_state(self.num_envs, np.uint64).astype(np.uint64))
            self._seed = None
        self._batch.reset(obs, start)

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Seed the next reset."""
        self._seed = seed

    def rest(self, mask: BoolArray) -> None:
        """Do nothing: a step of all environments costs less than finding out which."""

    def prepare_step(self, action: ActionArray, row: StepRow) -> Program:
        """Return the call that steps all environments with `action` and writes `row`; neither may move.

        It gives the same bits as `step`. After it, or after several, `check` raises if one failed.
        """
        return self._batch.prepare_step(action, row)

    def check(self) -> None:
        """Raise EnvFailure if a prepared step since the last check failed; it names the environment and the line."""
        self._batch.check()

    def step(self, action: ActionArray, row: StepRow) -> None:
        """Step all environments and write `row`."""
        found = self._programs.get(id(row))
        if found is None:
            if len(self._programs) == _MOST_PREPARED:
                self._programs.clear()
            found = self._programs[id(row)] = (self.prepare_step(self._action, row), row)  # keeps the row and its id
        self._action[...] = action
        found[0]()
        self._batch.check()

    def get_state(self) -> StateTree:
        """Return the states of the environments and of their random streams."""
        return {"seeded": self._seed is None, "compiled": self._batch.get_state()}

    def set_state(self, state: StateTree) -> None:
        """Continue from a `get_state` of as many of the same environment."""
        self._batch.set_state(subtree(state, "compiled"))
        if read_seeded(state):
            self._seed = None

    def close(self) -> None:
        """Do nothing: there are only arrays."""
