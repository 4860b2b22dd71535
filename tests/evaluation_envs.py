"""Compiled environments for evaluations, next to nothing in them: their reward and length follow from a count."""

import numpy as np
from gymnasium.spaces import Box, Discrete
from numba.core.caching import NullCache

from fastac.envs.infos import NOTHING
from fastac.kernels import Program
from fastac.kernels.compiling import ARRAYS, compile_block

_ints, _floats, _bools = (ARRAYS[f"{name}_array"] for name in ("int64", "float32", "bool"))


def _step(block):
    """Step every env: the action decides how fast its episode goes by."""
    values = _ints(block, 10)
    num = values[0]
    count, action = _ints(values[1], 2 * num), _ints(values[2], num)
    obs, reward = _floats(values[3], 2 * num), _floats(values[4], num)
    start, valid = _bools(values[5], num), _bools(values[6], num)
    terminated, truncated = _bools(values[7], num), _bools(values[8], num)
    for n in range(num):
        start[n] = terminated[n] or truncated[n]
        valid[n] = not start[n]
        if start[n]:
            count[2 * n], count[2 * n + 1] = 0, (count[2 * n + 1] * 29 + 7) % 101
        else:
            count[2 * n] += 1 + action[n]
        reward[n] = 0.25 * count[2 * n] if valid[n] else 0.0
        terminated[n] = valid[n] and count[2 * n] > 4 + count[2 * n + 1] % 31
        truncated[n] = valid[n] and not terminated[n] and count[2 * n] == 17
        obs[2 * n], obs[2 * n + 1] = np.sin(np.float32(count[2 * n])), np.float32(count[2 * n + 1]) / 50.0
        if count[2 * n + 1] == values[9] and count[2 * n] >= 3:
            obs[2 * n] = np.inf


class Counting:
    """`N` of them, as a `VecEnv` and as steps of a program; an episode that drew `breaks` breaks at count 3."""

    single_observation_space, single_action_space = Box(-2.0, 2.0, (2,)), Discrete(2)
    frame_skip, max_episode_steps, extras = 1, None, NOTHING

    def __init__(self, num_envs, breaks=-1):
        self.num_envs, self.checks, self._breaks = num_envs, 0, breaks
        self._count = np.zeros((num_envs, 2), dtype=np.int64)
        self._count[:, 1] = np.arange(num_envs)
        self._address = compile_block(_step, lambda _: NullCache())
        self._action = np.zeros(num_envs, dtype=np.int64)

    def reset(self, obs, start):
        self._count[:, 0] = 0
        obs[...] = np.stack([np.zeros(self.num_envs), self._count[:, 1] / 50.0], axis=1)
        start.fill(True)

    def rest(self, mask):
        pass

    def prepare_step(self, action, row):
        arrays = (self._count, action, row.obs, row.reward, row.start, row.valid, row.terminated, row.truncated)
        values = [self.num_envs, *(array.ctypes.data for array in arrays), self._breaks]
        return Program.call(self._address, values, (arrays, self))

    def check(self):
        self.checks += 1

    def step(self, action, row):
        self._action[...] = action
        self.prepare_step(self._action, row)()


class Stepwise:
    """The same environments without their programs."""

    def __init__(self, envs):
        self._envs = envs

    def __getattr__(self, name):
        if name in ("prepare_step", "check"):
            raise AttributeError(name)
        return getattr(self._envs, name)
