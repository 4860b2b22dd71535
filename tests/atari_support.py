"""Games of ALE's, and what they tell besides the rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastac.config import EnvConfig
from fastac.envs import make_vec
from fastac.envs.atari import AtariEnvs

ale_py = pytest.importorskip("ale_py")
pytest.importorskip("ale_py.vector_env")
roms = pytest.importorskip("ale_py.roms")


BREAKOUT, PONG, INVADERS = "ALE/Breakout-v5", "ALE/Pong-v5", "ALE/SpaceInvaders-v5"


NOOP, FIRE = 0, 1


def build(env_id: str = PONG, num_envs: int = 1, seed: int = 0, whole_stacks: bool = False, **protocol) -> AtariEnvs:
    config = EnvConfig(env_id, num_envs, **{"env_threads": 1, **protocol})
    return make_vec(config, np.random.SeedSequence(seed), whole_stacks=whole_stacks)


def repeat(env: AtariEnvs, action: int, num_steps: int) -> np.ndarray:
    return np.full((num_steps, env.num_envs), action)


class Spy:
    """Keeps what ALE tells besides: frame numbers and lives, `[T + 1, N]`."""

    def __init__(self, env: AtariEnvs) -> None:
        self._seen: list[dict[str, np.ndarray]] = []
        env._env.reset = self._watch(env._env.reset)
        env._env.step = self._watch(env._env.step)

    def _watch(self, call: Callable) -> Callable:
        def watched(*args, **kwargs):
            result = call(*args, **kwargs)
            self._seen.append({name: value.copy() for name, value in result[-1].items()})
            return result

        return watched

    def __getitem__(self, name: str) -> np.ndarray:
        return np.stack([infos[name] for infos in self._seen])
