"""N compiled environments: their arrays, and the prepared calls that step them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from fastac.contract import ActionArray, BoolArray, EnvFailure, ObsArray, StateTree, StepRow, read_array
from fastac.envs.compiled.compiling import compile_env
from fastac.envs.compiled.declaration import CompiledEnv
from fastac.envs.compiled.loop import Block, Mapping, Status
from fastac.envs.compiled.streams import draw, make_streams
from fastac.envs.compiled.trial import call, observe, read_step
from fastac.kernels.program import Program

_ENDLESS = np.iinfo(np.int64).max
_FAILED = int(Status.FAILED)  # looking up an enum's member costs more than the rest of a check


@dataclass(frozen=True, slots=True)
class Actions:
    """How a batch reads actions.

    Attributes:
        start: added to discrete actions: 0 if they are those of the space, its start if they count from 0.
        mapping: what becomes of a Box's actions.
    """

    start: int = 0
    mapping: Mapping = Mapping.AS_IS


class Batch:
    """The state of N environments, and calls that step or reset them in place."""

    def __init__(self, env: CompiledEnv, num_envs: int, name: str, actions: Actions) -> None:
        """Compile `env`, or load it, and allocate the arrays; `name` is for messages.

        Raises:
            ValueError: a function of `env` cannot be compiled, or failed when it was played.
        """
        self.env, self.num_envs = env, num_envs
        self._name, self._actions = name, actions
        self._address = compile_env(env, name)
        self._state = np.zeros((num_envs, env.state_size))
        self._streams = np.zeros((num_envs, 2), np.int64)
        self._steps = np.zeros(num_envs, np.int64)
        self._done = np.zeros(num_envs, np.bool_)
        self._scratch = np.zeros(env.state_size + max(env.reset_draws, env.step_draws))
        self._status = np.zeros(len(Status), np.int64)
        space = env.action_space
        self._bounds = np.stack([space.low, space.high]) if isinstance(space, Box) else np.zeros((2, 0), np.float32)
        self._mapped = np.zeros(env.action_size, np.float32)
        self._kind = f"{env.step.__module__}.{env.step.__qualname__}"

    def seed(self, seeds: NDArray[np.uint64], mask: BoolArray | None = None) -> None:
        """Begin new random streams, one for each seed `[N]`, in the environments of `mask` `[N]` or in all."""
        streams = make_streams(seeds)
        if mask is None:
            self._streams[...] = streams
        else:
            self._streams[mask] = streams[mask]

    def prepare_step(self, action: ActionArray, row: StepRow) -> Program:
        """Return the call that reads `action` `[N]` int64 or `[N, A]` float32 and writes `row`; neither may move.

        After the call, `check` raises if it failed. A call after a failure does nothing.
        """
        return self._prepare(action, row, self._done, only_resets=False)

    def make_actions(self) -> ActionArray:
        """Return an array for the actions of a step."""
        size = self.env.action_size
        return np.zeros((self.num_envs, size), np.float32) if size else np.zeros(self.num_envs, np.int64)

    def make_row(self) -> StepRow:
        """Return a row to write into."""
        flags = [np.zeros(self.num_envs, np.bool_) for _ in range(5)]
        obs = np.zeros((self.num_envs, self.env.obs_size), np.float32)
        return StepRow(obs, flags[0], np.zeros(self.num_envs, np.float32), *flags[1:])

    def reset(self, obs: ObsArray, start: BoolArray, mask: BoolArray | None = None) -> None:
        """Begin an episode in the environments of `mask` `[N]` or in all; write all observations and `mask`.

        Raises:
            EnvFailure: a user's function raised.
        """
        row, ending = self.make_row(), np.ones(self.num_envs, np.bool_) if mask is None else mask.copy()
        self._prepare(self.make_actions(), row, ending, only_resets=True)()
        self.check()
        obs[...], start[...] = row.obs, row.start

    def check(self) -> None:
        """Raise if a call since the last check failed.

        Raises:
            EnvFailure: names the environment, the exception, and the file and line of the user's function.
        """
        if not self._status[_FAILED]:
            return
        index = int(self._status[Status.INDEX])
        try:
            self._repeat(index)
        except ValueError as error:
            reason = str(error).removeprefix(f"{self._name} ").removesuffix(".")
            raise EnvFailure(f"env {index} ({self._name}) {reason}.") from error.__cause__
        finally:
            self._status.fill(0)
        raise EnvFailure(f"env {index} ({self._name}) raised in compiled code, but not in plain Python.")

    def get_state(self) -> StateTree:
        """Return everything that changes."""
        arrays = {name: array.copy() for name, array in self._arrays().items()}
        return {"kind": self._kind, **arrays}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state` of a batch of the same size and environment.

        Raises:
            ValueError: the state is of another kind of environment.
        """
        if state.get("kind") != self._kind:
            raise ValueError(
                f"the saved environment state is of {state.get('kind')!r:.80}, expected {self._kind!r}: go on with "
                "the environments that the run began with."
            )
        read = {name: read_array(state, name, array) for name, array in self._arrays().items()}
        if (read["steps"].astype(np.int64) < 0).any():
            raise ValueError("'steps' in the saved environment state are negative, expected at least 0.")
        for name, array in self._arrays().items():
            array[...] = read[name]

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        return {"state": self._state, "streams": self._streams, "steps": self._steps, "done": self._done}

    def _prepare(self, action: ActionArray, row: StepRow, ending: BoolArray, only_resets: bool) -> Program:
        num, size = self.num_envs, self.env.action_size
        _check(action, (num, size) if size else (num,), np.float32 if size else np.int64)
        _check(row.obs, (num, self.env.obs_size), np.float32)
        _check(row.reward, (num,), np.float32)
        flags = (row.start, row.terminated, row.truncated, row.valid)
        for flag in flags:
            _check(flag, (num,), np.bool_)
        values: dict[Block, int | NDArray[np.generic]] = {
            Block.NUM_ENVS: num,
            Block.ONLY_RESETS: int(only_resets),
            Block.LIMIT: self.env.max_episode_steps or _ENDLESS,
            Block.STATE: self._state,
            Block.STREAMS: self._streams,
            Block.STEPS: self._steps,
            Block.DONE: self._done,
            Block.ENDING: ending,
            Block.SCRATCH: self._scratch,
            Block.STATUS: self._status,
            Block.ACTION: action,
            Block.START_ACTION: self._actions.start,
            Block.BOUNDS: self._bounds,
            Block.MAPPING: self._actions.mapping,
            Block.MAPPED: self._mapped,
            Block.OBS: row.obs,
            Block.START: row.start,
            Block.REWARD: row.reward,
            Block.TERMINATED: row.terminated,
            Block.TRUNCATED: row.truncated,
            Block.VALID: row.valid,
        }
        block = [_address(values[place]) for place in Block]
        return Program.call(self._address, block, values)  # keeps the arrays alive

    def _repeat(self, index: int) -> None:
        """Repeat the step that failed in plain Python, on a copy.

        Raises:
            ValueError: what a user's function raised.
        """
        env, status = self.env, self._status
        state = self._scratch[: env.state_size].copy()
        stream = np.array([status[Status.STREAM], self._streams[index, 1]])
        if status[Status.IS_RESET]:
            call(env.reset, self._name, draw(stream, env.reset_draws), state)
        else:
            action = status[Status.ACTION] if isinstance(env.action_space, Discrete) else self._mapped.copy()
            draws = (draw(stream, env.step_draws),) if env.step_draws else ()
            read_step(env, self._name, call(env.step, self._name, state, action, *draws))
        observe(env, self._name, state)


def _check(array: NDArray[np.generic], shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    assert array.shape == shape and array.dtype == dtype and array.flags.c_contiguous, (array.shape, array.dtype)


def _address(value: int | NDArray[np.generic]) -> int:
    return value if isinstance(value, int) else value.ctypes.data
