"""The compiled step of N environments: the loop around the user's three functions.

The loop takes the address of a block of numbers (`Block`), as the calls of a `Program` do.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, auto
from typing import Any, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from fastac.envs.compiled.declaration import CompiledEnv, State, plain
from fastac.envs.compiled.streams import compile_draw
from fastac.kernels.compiling import ARRAYS

_Function: TypeAlias = Callable[..., Any]  # compiled; Numba infers the types
_Ints: TypeAlias = NDArray[np.int64]
_Words: TypeAlias = NDArray[np.uint64]
_Action: TypeAlias = Any  # an int, or float32 [A]
_Result: TypeAlias = Any  # (reward, terminated)
_Number: TypeAlias = Any  # float32


class Block(IntEnum):
    """Places in the block of a call: numbers, and addresses of arrays (of 64-bit numbers unless said otherwise)."""

    NUM_ENVS = 0
    ONLY_RESETS = auto()  # not 0: environments that do not end are only observed
    LIMIT = auto()  # steps in an episode
    STATE = auto()  # [N, S] float64
    STREAMS = auto()  # [N, 2]
    STEPS = auto()  # [N], of the episode so far
    DONE = auto()  # [N] bool: ended in the previous step
    ENDING = auto()  # [N] bool: to be reset in this call; `DONE`, or a mask of the user's
    SCRATCH = auto()  # [S + draws] float64: the state before the step, and random draws
    STATUS = auto()  # [len(Status)]
    ACTION = auto()  # [N], or [N, A] float32
    START_ACTION = auto()  # added to discrete actions
    BOUNDS = auto()  # [2, A] float32: what a Box's actions are clipped to or squashed into
    MAPPING = auto()  # how: a `Mapping`
    MAPPED = auto()  # [A] float32: the action given to the user's function
    OBS = auto()  # [N, D] float32
    START = auto()  # [N] bool
    REWARD = auto()  # [N] float32
    TERMINATED = auto()  # [N] bool
    TRUNCATED = auto()  # [N] bool
    VALID = auto()  # [N] bool


class Status(IntEnum):
    """Places in the status, which is all zero until a user's function raises."""

    FAILED = 0
    INDEX = auto()  # of the environment in progress
    IS_RESET = auto()  # whether it was reset
    ACTION = auto()  # a discrete action
    STREAM = auto()  # where its random stream was before the step


class Mapping(IntEnum):
    """What becomes of a Box's actions."""

    AS_IS = 0
    CLIP = auto()
    SQUASH = auto()


def make_loop(env: CompiledEnv) -> Callable[[int], None]:
    """Return the function to compile; it takes the address of a block."""
    advance = _make_advance(env)
    int64_array = ARRAYS["int64_array"]
    place, size, failed, in_status = int(Block.STATUS), len(Block), int(Status.FAILED), len(Status)

    def step_batch(address: int) -> None:
        status = int64_array(int64_array(address, size)[place], in_status)
        if status[failed]:
            return
        try:  # a C callback must not raise
            advance(address, status)
        except Exception:
            status[failed] = 1

    return step_batch


def inline(function: _Function) -> _Function:
    """Compile as a part of the loop: exact arithmetic, so that bits do not depend on inlining, and checked indices."""
    compiled: _Function = numba.njit(error_model="numpy", boundscheck=True, forceinline=True)(function)
    return compiled


def _make_advance(env: CompiledEnv) -> _Function:
    # Whatever a compiled function refers to is a constant in it, so it knows all sizes.
    state_size, obs_size = env.state_size, env.obs_size
    reset, observe = inline(plain(env.reset)), inline(plain(env.observe))
    fill, reset_draws = compile_draw(inline), env.reset_draws
    step = _make_step(env)
    int64_array, float64_array = ARRAYS["int64_array"], ARRAYS["float64_array"]
    float32_array, bool_array = ARRAYS["float32_array"], ARRAYS["bool_array"]
    size = len(Block)
    num_at, only_at, limit_at, state_at, streams_at, steps_at, done_at, ending_at, scratch_at = map(
        int, list(Block)[:9]
    )
    obs_at, start_at, reward_at, terminated_at, truncated_at, valid_at = map(int, list(Block)[-6:])
    index_at, reset_at, stream_at = int(Status.INDEX), int(Status.IS_RESET), int(Status.STREAM)

    @inline
    def advance(address: int, status: _Ints) -> None:
        block = int64_array(address, size)
        num = block[num_at]
        streams = int64_array(block[streams_at], 2 * num).view(np.uint64)
        steps, reward = int64_array(block[steps_at], num), float32_array(block[reward_at], num)
        done, ending = bool_array(block[done_at], num), bool_array(block[ending_at], num)
        start, valid = bool_array(block[start_at], num), bool_array(block[valid_at], num)
        terminated, truncated = bool_array(block[terminated_at], num), bool_array(block[truncated_at], num)
        before = float64_array(block[scratch_at], state_size)
        only_resets, limit = block[only_at] != 0, block[limit_at]
        for i in range(num):
            state = float64_array(block[state_at] + 8 * state_size * i, state_size)
            is_reset = ending[i]
            # What `explain` needs to repeat the step, if it raises.
            for k in range(state_size):
                before[k] = state[k]
            status[index_at], status[reset_at] = i, is_reset
            status[stream_at] = np.int64(streams[2 * i])
            start[i], valid[i] = is_reset, not is_reset
            if is_reset:
                draws = float64_array(block[scratch_at] + 8 * state_size, reset_draws)
                fill(streams, i, draws, reset_draws)
                reset(draws, state)
                steps[i], done[i] = 0, False
                reward[i], terminated[i], truncated[i] = np.float32(0.0), False, False
            elif not only_resets:
                earned, ends = step(block, i, state, streams, status)
                is_terminated = bool(ends)
                steps[i] += 1
                is_truncated = steps[i] >= limit
                reward[i], terminated[i], truncated[i] = np.float32(earned), is_terminated, is_truncated
                done[i] = is_terminated or is_truncated
            observe(state, float32_array(block[obs_at] + 4 * obs_size * i, obs_size))

    return advance


def _make_step(env: CompiledEnv) -> _Function:
    """Return the compiled `step(block, i, state, streams, status)`, which reads the action and draws if needed."""
    step = _make_drawing_step(env)
    if not env.action_size:
        return _make_discrete_step(step)
    action_size, act = env.action_size, inline(_map_action)
    float32_array = ARRAYS["float32_array"]
    action_at, bounds_at, mapping_at, mapped_at = map(int, (Block.ACTION, Block.BOUNDS, Block.MAPPING, Block.MAPPED))

    @inline
    def step_box(block: _Ints, i: int, state: State, streams: _Words, status: _Ints) -> _Result:
        action = float32_array(block[action_at] + 4 * action_size * i, action_size)
        bounds = float32_array(block[bounds_at], 2 * action_size)
        mapped = float32_array(block[mapped_at], action_size)
        for k in range(action_size):
            mapped[k] = act(action[k], bounds[k], bounds[action_size + k], block[mapping_at])
        return step(block, i, state, mapped, streams)

    return step_box


def _make_discrete_step(step: _Function) -> _Function:
    int64_array = ARRAYS["int64_array"]
    num_at, action_at, start_at = int(Block.NUM_ENVS), int(Block.ACTION), int(Block.START_ACTION)
    kept_at = int(Status.ACTION)

    @inline
    def step_discrete(block: _Ints, i: int, state: State, streams: _Words, status: _Ints) -> _Result:
        action = int64_array(block[action_at], block[num_at])[i] + block[start_at]
        status[kept_at] = action
        return step(block, i, state, action, streams)

    return step_discrete


def _make_drawing_step(env: CompiledEnv) -> _Function:
    """Return the compiled `step(block, i, state, action, streams)`."""
    step = inline(plain(env.step))
    if not env.step_draws:

        @inline
        def step_plain(block: _Ints, i: int, state: State, action: _Action, streams: _Words) -> _Result:
            return step(state, action)

        return step_plain
    fill, num, at, scratch_at = compile_draw(inline), env.step_draws, 8 * env.state_size, int(Block.SCRATCH)
    float64_array = ARRAYS["float64_array"]

    @inline
    def step_drawing(block: _Ints, i: int, state: State, action: _Action, streams: _Words) -> _Result:
        draws = float64_array(block[scratch_at] + at, num)
        fill(streams, i, draws, num)
        return step(state, action, draws)

    return step_drawing


def _map_action(action: _Number, low: _Number, high: _Number, mapping: int) -> _Number:
    """Clip or squash one float32 of an action, as `envs.spaces` does; NaN stays NaN."""
    if mapping == 0:
        return action
    if mapping == 1:
        clipped = low if action < low else action
        return high if clipped > high else clipped
    squashed = (np.float32(np.tanh(np.float64(action))) + np.float32(1.0)) * (np.float32(0.5) * (high - low)) + low
    return high if squashed > high else squashed
